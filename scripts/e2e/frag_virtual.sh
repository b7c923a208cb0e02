#!/usr/bin/env bash
# defrag.mode virtual: fragments wait for the first alone. Large pings, a file server's calls and a stream through masquerade,
# calls through a port forward; nothing is put together but what must be.
#   lan 10.10.0.2, fd10:10::2 -- [masquerade, dnat udp 203.0.113.1:2050] -- wan 203.0.113.10, 2001:db8:113::10
# shellcheck source=scripts/e2e/_init.sh
source "$(dirname "$0")/_init.sh"
# shellcheck source=scripts/e2e/_frag.sh
source "$(dirname "$0")/_frag.sh"

config <<'YAML'
interfaces:
  lan: {device: "net_tap0,iface=dlan", zone: lan, addresses: [10.10.0.1/24, "fd10:10::1/64"]}
  wan: {device: "net_tap1,iface=dwan", zone: wan, addresses: [203.0.113.1/24, "2001:db8:113::1/64"]}
defrag: {mode: virtual}
nat:
  - {name: out, type: masquerade, from: lan, to: wan}
  - {name: calls, type: dnat, from: wan, proto: udp, destination: 203.0.113.1, dport: 2050, to_address: 10.10.0.2, to_port: 2049}
policy:
  default: drop
  rules:
    - {name: established, state: [established, related], action: accept}
    - {name: out, from: lan, to: wan, state: new, action: accept}
    - {name: calls, from: wan, to: lan, proto: udp, dport: 2049, state: new, action: accept}
YAML
start_lab

large_pings lan 203.0.113.10 2001:db8:113::10
rpc_server wan 2049 203.0.113.10 2001:db8:113::10
rpc lan 203.0.113.10 2049
rpc lan 2001:db8:113::10 2049
large_stream lan wan 203.0.113.10
large_stream lan wan 2001:db8:113::10
rpc_server lan 2049 10.10.0.2
rpc wan 203.0.113.1 2050
fragments_fit
for reason in fragment_first fragment_header; do
    assert_equal "$reason" "$(metric dropped_packets_total "reason=$reason")" 0
done
assert_at_least "fragments passed on by the first's verdict" "$(metric fragments_total result=virtual)" 5000
assert_equal "fragments put together" "$(metric fragments_total result=reassembled)" 0
