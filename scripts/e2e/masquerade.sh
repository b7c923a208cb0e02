#!/usr/bin/env bash
# A client in lan fetches from wan behind the gateway's address; the table shows both tuples, and flushing empties it.
#   lan 10.10.0.2 -- [masquerade to 203.0.113.1] -- wan 203.0.113.10
# shellcheck source=scripts/e2e/_init.sh
source "$(dirname "$0")/_init.sh"

config <<'YAML'
interfaces:
  lan: {device: "net_tap0,iface=dlan", zone: lan, addresses: [10.10.0.1/24]}
  wan: {device: "net_tap1,iface=dwan", zone: wan, addresses: [203.0.113.1/24]}
nat:
  - {name: out, type: masquerade, from: lan, to: wan}
policy:
  default: drop
  rules:
    - {name: established, state: [established, related], action: accept}
    - {name: lan-out, from: lan, to: wan, state: new, action: accept}
YAML
start_lab
www wan
head -c 5000000 /dev/urandom >"$LAB_DIR/www-wan/5mb"

fetch lan --max-time 40 http://203.0.113.10/5mb -o "$LAB_DIR/5mb"
assert "the bytes arrive unchanged" cmp "$LAB_DIR/5mb" "$LAB_DIR/www-wan/5mb"
assert_match "the server's view" "$(cat "$LAB_DIR/http-wan-80.log")" '^203\.0\.113\.1 [0-9]+ "GET /5mb'

list=$(ctl conntrack list -o nf_conntrack)
assert_match "the connection table" "$list" \
    '^ipv4 +2 tcp +6 .*src=10\.10\.0\.2 dst=203\.0\.113\.10 sport=[0-9]+ dport=80 .*src=203\.0\.113\.10 dst=203\.0\.113\.1 sport=80 dport=[0-9]+ .*\[ASSURED\]'
assert_equal "conntrack_entries" "$(metric conntrack_entries)" "$(ctl conntrack count)"

assert_at_least "ports in use before the flush" "$(metric nat_ports_used proto=tcp)" 1
assert "flush" ctl conntrack flush
assert_equal "entries after the flush" "$(ctl conntrack count)" 0
assert_equal "ports in use after the flush" "$(metric nat_ports_used address=203.0.113.1 proto=tcp)" 0
