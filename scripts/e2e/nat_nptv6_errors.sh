#!/usr/bin/env bash
# Prefix translation (RFC 6296): hosts have one address inside and one outside, without state; errors, fragments, hairpin.
#   lan fd10:10::2 -- [sluiced] -- wan 2001:db8:113::10
#   fd10:10::/48 is outside 2001:db8:f::/48: fd20 - 2dc8 = cf58, so fd10:10::2 is 2001:db8:f:cf58::2
# shellcheck source=scripts/e2e/_init.sh
source "$(dirname "$0")/_init.sh"

errors() {
    config <<'YAML'
interfaces:
  lan: {device: "net_tap0,iface=dlan", zone: lan, addresses: [10.10.0.1/24, "fd10:10::1/64"]}
  wan: {device: "net_tap1,iface=dwan", zone: wan, addresses: [203.0.113.1/24, "2001:db8:113::1/64"], mtu: 1400}
nat:
  - {name: prefix, type: nptv6, from: lan, to: wan, source: "fd10:10::/48", to_prefix: "2001:db8:f::/48"}
policy:
  default: drop
  rules:
    - {name: established, state: [established, related], action: accept}
    - {name: lan-out, from: lan, to: wan, state: new, action: accept}
    - {name: hairpin, from: lan, to: lan, state: new, action: accept}
    - {name: www-in, from: wan, to: lan, destination: "fd10:10::2", proto: tcp, dport: 80, state: new, action: accept}
    - {name: ping-in, from: wan, to: lan, destination: "fd10:10::2", proto: icmpv6, icmp_type: 128, state: new, action: accept}
YAML
    start_lab
    www lan
    www wan
    local outside=2001:db8:f:cf58::2

    # Out, and the server sees the outside address; in, and the table knows the inside one.
    pings lan 5 2001:db8:113::10
    assert_equal "web page" "$(fetch lan -6 'http://[2001:db8:113::10]/')" "hello from wan"
    assert_match "the server's view" "$(cat "$LAB_DIR/http-wan-80.log")" "^$outside "
    assert_equal "a page from inside" "$(fetch wan -6 "http://[$outside]/")" "hello from lan"
    pings wan 2 "$outside"
    assert_match "the connection table" "$(ctl conntrack list -o nf_conntrack -p tcp)" \
        'src=2001:.*113:.*10 dst=fd10:.*2 .*src=fd10:.*2 dst=2001:.*113:.*10 '

    # To another inside host by its outside address: here itself.
    assert_equal "hairpin" "$(fetch lan -6 "http://[$outside]/")" "hello from lan"
    assert_match "its view of the client" "$(cat "$LAB_DIR/http-lan-80.log")" "^$outside "

    # Errors: ping shows only those that quote what it has sent.
    local out
    out=$(in_ns lan ping -n -c 1 -W 3 -t 1 2001:db8:113::10 2>&1) || true
    assert_match "time exceeded inside" "$out" '^From fd10:10::1 .*Hop limit'
    out=$(in_ns wan ping -n -c 1 -W 3 -t 1 "$outside" 2>&1) || true
    assert_match "time exceeded outside" "$out" '^From 2001:db8:113::1 .*Hop limit'
    out=$(in_ns lan ping -n -c 1 -W 3 -M "do" -s 1450 2001:db8:113::10 2>&1) || true
    assert_match "packet too big" "$out" '^From fd10:10::1 .*Packet too big: mtu=1400'
    pings lan 2 2001:db8:113::10 -s 4000 # in fragments that fit
    pings wan 2 "$outside" -s 4000
    assert "port unreachable from outside" in_ns lan "$PYTHON" - <<'PY'
import socket
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.settimeout(3)
s.connect(("2001:db8:113::10", 9))
s.send(b"anybody there?")
try:
    s.recv(1)
    raise SystemExit("answered")
except ConnectionRefusedError:
    pass
PY

    # An address that the other prefix has no room for.
    ip -n "$LAB-lan" addr add fd10:10:0:ffff::2/64 dev eth0 nodad
    scrape >"$LAB_DIR/before"
    out=$(in_ns lan ping -n -c 1 -W 3 -I fd10:10:0:ffff::2 2001:db8:113::10 2>&1) || true
    assert_match "no image" "$out" 'Parameter problem'
    assert_moved 1 "$LAB_DIR/before" dropped_packets_total reason=nptv6_address
}

on_workers errors
