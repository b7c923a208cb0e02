#!/usr/bin/env bash
# A packet whose TTL or hop limit ends at the gateway is answered and counted.
#   lan 10.10.0.2, fd10:10::2 -- [sluiced] -- wan 203.0.113.10, 2001:db8:113::10
# shellcheck source=scripts/e2e/_init.sh
source "$(dirname "$0")/_init.sh"

config <<'YAML'
interfaces:
  lan: {device: "net_tap0,iface=dlan", zone: lan, addresses: [10.10.0.1/24, "fd10:10::1/64"]}
  wan: {device: "net_tap1,iface=dwan", zone: wan, addresses: [203.0.113.1/24, "2001:db8:113::1/64"]}
policy:
  default: drop
  rules:
    - {name: established, state: [established, related], action: accept}
    - {name: lan-out, from: lan, to: wan, state: new, action: accept}
YAML
start_lab
pings lan 2 203.0.113.10
pings lan 2 2001:db8:113::10

scrape >"$LAB_DIR/before"
out=$(in_ns lan ping -n -c 1 -W 3 -t 1 203.0.113.10) || true
assert_match "IPv4" "$out" '^From 10\.10\.0\.1 icmp_seq=1 Time to live exceeded'
out=$(in_ns lan ping -n -c 1 -W 3 -t 1 2001:db8:113::10) || true
assert_match "IPv6" "$out" '^From fd10:10::1 icmp_seq=1 Time exceeded: Hop limit'
assert_moved 2 "$LAB_DIR/before" dropped_packets_total reason=ttl_expired
pings lan 2 203.0.113.10 -t 2
