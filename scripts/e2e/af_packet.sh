#!/usr/bin/env bash
# Ports on kernel interfaces (net_af_packet on veth, two queue pairs): forwarding and masquerade as on any port, and the
# kernel, which receives a copy of every frame there, takes none of it: what the policy refuses does not reach it.
# A second instance with the same interfaces is refused and leaves the first alone.
# shellcheck source=scripts/e2e/_init.sh
source "$(dirname "$0")/_init.sh"

config <<'YAML'
interfaces:
  lan: {device: "net_af_packet0,iface=vlan0,qpairs=2", zone: lan, addresses: [10.10.0.1/24, "fd10:10::1/64"]}
  wan: {device: "net_af_packet1,iface=vwan0,qpairs=2", zone: wan, addresses: [203.0.113.1/24, "2001:db8:113::1/64"]}
nat:
  - {name: out, type: masquerade, from: lan, to: wan, source: 10.10.0.0/24}
policy:
  default: drop
  rules:
    - {name: established, state: [established, related], action: accept}
    - {name: lan-out, from: lan, to: wan, state: new, action: accept}
    - {name: ping, to: local, proto: icmp, icmp_type: echo-request, action: accept}
    - {name: self-out, from: local, action: accept}
YAML

# cable DEV NS: a veth pair between DEV in the gateway and eth0 in NS, without the offloads that leave checksums undone.
cable() {
    ip -n "$LAB-gw" link add "$1" type veth peer name eth0 netns "$LAB-$2"
    in_ns gw ethtool -K "$1" tx off >/dev/null 2>&1 || true
    in_ns "$2" ethtool -K eth0 tx off >/dev/null 2>&1 || true
    ip -n "$LAB-gw" link set "$1" up
    ip -n "$LAB-$2" link set eth0 up
}
# address NS ADDRESS [OPTION]
address() { ip -n "$LAB-$1" address add "$2" dev eth0 "${@:3}"; }

command -v ethtool >/dev/null || skip "needs ethtool"
make_ns lan gw wan
cable vlan0 lan
cable vwan0 wan
address lan 10.10.0.2/24
address lan fd10:10::2/64 nodad
address wan 203.0.113.10/24
address wan 2001:db8:113::10/64 nodad
start_sluiced
gateway lan 10.10.0.1 fd10:10::1
gateway wan 203.0.113.1 2001:db8:113::1

pings lan 5 203.0.113.10
pings lan 5 2001:db8:113::10
www wan
assert_equal "page" "$(fetch lan http://203.0.113.10/)" "hello from wan"

# One answer for each ping to the gateway: the kernel does not answer beside sluiced.
pings wan 5 203.0.113.1
assert_no_match "ping to the gateway" "$(cat "$LAB_DIR/ping")" "duplicates"

dropped() { (assert_moved 1 "$LAB_DIR/before" dropped_packets_total reason=policy_default); }

# A service of the gateway that no rule opens hears nothing.
spawn gw heard "$PYTHON" -u -c '
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("0.0.0.0", 5353))
print("ready", flush=True)
print("heard", s.recvfrom(100), flush=True)'
wait_for 10 grep -q ready "$LAB_DIR/heard" || fail "the service did not start"
scrape >"$LAB_DIR/before"
in_ns wan "$PYTHON" -c '
import socket
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"hello", ("203.0.113.1", 5353))'
wait_for 5 dropped || fail "nothing was dropped"
assert_no_match "what the service heard" "$(cat "$LAB_DIR/heard")" "heard"

sed "s|$SOCKET|$LAB_DIR/second.sock|; s|127.0.0.1:9477|127.0.0.1:9478|" "$CONFIG" >"$LAB_DIR/second.yaml"
assert_fails "a second instance" in_ns gw timeout 10 "$BIN/sluiced" --config "$LAB_DIR/second.yaml"
assert_match "why" "$(cat "$LAB_DIR/out")" "interface lan: the kernel has an interface lan already"
pings lan 3 203.0.113.10
