#!/usr/bin/env bash
# DNS left out of connection tracking: it passes in both directions by rules on `untracked`, and no entry is made.
#   lan 10.10.0.2 -- [raw notrack, udp 53] -- wan 203.0.113.10, name server
# shellcheck source=scripts/e2e/_init.sh
source "$(dirname "$0")/_init.sh"

config <<'YAML'
interfaces:
  lan: {device: "net_tap0,iface=dlan", zone: lan, addresses: [10.10.0.1/24]}
  wan: {device: "net_tap1,iface=dwan", zone: wan, addresses: [203.0.113.1/24]}
raw:
  - {name: dns-query, from: lan, proto: udp, dport: 53, action: notrack}
  - {name: dns-answer, from: wan, proto: udp, sport: 53, action: notrack}
policy:
  default: drop
  rules:
    - {name: established, state: [established, related], action: accept}
    - {name: dns, proto: udp, state: untracked, action: accept}
YAML
start_lab
spawn wan dnsmasq.log dnsmasq --keep-in-foreground --conf-file=/dev/null --user=root --group= --pid-file= --no-resolv --no-hosts \
    --log-facility=- --address=/www.lab/203.0.113.10

scrape >"$LAB_DIR/before"
answer=$(in_ns lan dig @203.0.113.10 www.lab A +short +tries=3 +time=2)
assert_equal "the answer" "$answer" 203.0.113.10
assert_moved 2 "$LAB_DIR/before" classified_packets_total state=untracked
assert_no_match "the connection table" "$(ctl conntrack list -o nf_conntrack)" 'port=53 '
assert_fails "what is tracked stays shut" in_ns lan ping -n -c 1 -W 1 203.0.113.10
