#!/usr/bin/env bash
# IPv6 goes through untranslated, with state: lan may open connections to wan, wan none to lan.
#   lan fd10:10::2 -- [sluiced] -- wan 2001:db8:113::10
# shellcheck source=scripts/e2e/_init.sh
source "$(dirname "$0")/_init.sh"

config <<'YAML'
interfaces:
  lan: {device: "net_tap0,iface=dlan", zone: lan, addresses: [10.10.0.1/24, "fd10:10::1/64"]}
  wan: {device: "net_tap1,iface=dwan", zone: wan, addresses: [203.0.113.1/24, "2001:db8:113::1/64"]}
nat:
  - {name: out, type: masquerade, from: lan, to: wan, source: 10.10.0.0/24}
policy:
  default: drop
  rules:
    - {name: established, state: [established, related], action: accept}
    - {name: lan-out, from: lan, to: wan, state: new, action: accept}
YAML
start_lab
www lan
www wan

pings lan 5 2001:db8:113::10
assert_equal "web page" "$(fetch lan -6 'http://[2001:db8:113::10]/')" "hello from wan"
assert_match "the server's view" "$(cat "$LAB_DIR/http-wan-80.log")" '^fd10:10::2 '
assert_match "the connection table" "$(ctl conntrack list -o nf_conntrack -p tcp)" \
    '^ipv6 +10 tcp +6 .*src=fd10:0*:?.*2 dst=2001:.* dport=80 .*src=2001:.* sport=80 '

scrape >"$LAB_DIR/before"
assert_fails "from wan to lan" fetch wan -6 --max-time 1.5 'http://[fd10:10::2]/'
assert_moved 1 "$LAB_DIR/before" dropped_packets_total reason=policy_default
