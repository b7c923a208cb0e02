#!/usr/bin/env bash
# Sluice on ordinary pages: `hugepages: off` forwards and translates as ever, and touches no huge page.
#   lan 10.10.0.2 -- [masquerade] -- wan 203.0.113.10
export HUGEPAGES=off
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
huge() { awk '/^HugePages_(Total|Free)/ { print $2 }' /proc/meminfo | paste -sd' '; }
before=$(huge)
start_lab
www wan
pings lan 3 203.0.113.10
assert_equal "web page" "$(fetch lan http://203.0.113.10/)" "hello from wan"
assert_equal "huge pages, total and free" "$(huge)" "$before"
