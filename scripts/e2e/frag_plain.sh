#!/usr/bin/env bash
# Datagrams in fragments through plain forwarding, and to the gateway itself, both IP versions: pings, a file server's calls,
# a stream. On a link of 1,280 bytes what was not to be cut is refused and comes smaller.
#   lan 10.10.0.2, fd10:10::2 -- [no translation] -- wan 203.0.113.10, 2001:db8:113::10
# shellcheck source=scripts/e2e/_init.sh
source "$(dirname "$0")/_init.sh"
# shellcheck source=scripts/e2e/_frag.sh
source "$(dirname "$0")/_frag.sh"

config <<'YAML'
interfaces:
  lan: {device: "net_tap0,iface=dlan", zone: lan, addresses: [10.10.0.1/24, "fd10:10::1/64"]}
  wan: {device: "net_tap1,iface=dwan", zone: wan, addresses: [203.0.113.1/24, "2001:db8:113::1/64"]}
policy:
  default: drop
  rules:
    - {name: established, state: [established, related], action: accept}
    - {name: out, from: lan, to: [wan, local], state: new, action: accept}
YAML
start_lab

large_pings lan 10.10.0.1 203.0.113.10 fd10:10::1 2001:db8:113::10
rpc_server wan 2049 203.0.113.10 2001:db8:113::10
rpc lan 203.0.113.10 2049
rpc lan 2001:db8:113::10 2049
large_stream lan wan 203.0.113.10
large_stream lan wan 2001:db8:113::10
fragments_fit
assert_at_least "datagrams put together" "$(metric fragments_total result=reassembled)" 5000
