#!/usr/bin/env bash
# The kernel's routes are the gateway's: one added with `ip route` works within a second, and one removed is gone as fast.
#   lan 10.10.0.2 -- [sluiced] -- wan 203.0.113.10, which also owns 192.0.2.1
# shellcheck source=scripts/e2e/_init.sh
source "$(dirname "$0")/_init.sh"

config <<'YAML'
interfaces:
  lan: {device: "net_tap0,iface=dlan", zone: lan, addresses: [10.10.0.1/24]}
  wan: {device: "net_tap1,iface=dwan", zone: wan, addresses: [203.0.113.1/24]}
policy:
  default: drop
  rules:
    - {name: established, state: [established, related], action: accept}
    - {name: lan-out, from: lan, to: wan, state: new, action: accept}
YAML
start_lab
ip -n "$LAB-wan" address add 192.0.2.1/32 dev lo
pings lan 2 203.0.113.10

scrape >"$LAB_DIR/before"
assert_fails "before there is a route" in_ns lan ping -n -c 1 -W 1 192.0.2.1
assert_moved 1 "$LAB_DIR/before" dropped_packets_total reason=no_route

ip -n "$LAB-gw" route add 192.0.2.0/24 via 203.0.113.10
sleep 1
pings lan 3 192.0.2.1
assert_match "show routes" "$(ctl show routes)" '192\.0\.2\.0/24.*203\.0\.113\.10'

ip -n "$LAB-gw" route del 192.0.2.0/24
sleep 1
assert_fails "after the route is gone" in_ns lan ping -n -c 1 -W 1 192.0.2.1
