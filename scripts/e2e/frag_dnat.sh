#!/usr/bin/env bash
# Datagrams in fragments through port forwards, both IP versions: a host behind the gateway is pinged at the gateway's own
# address, serves files there, and takes a stream.
#   wan 203.0.113.10, 2001:db8:113::10 -- [dnat 203.0.113.2, 2001:db8:113::2] -- lan 10.10.0.2, fd10:10::2
# shellcheck source=scripts/e2e/_init.sh
source "$(dirname "$0")/_init.sh"
# shellcheck source=scripts/e2e/_frag.sh
source "$(dirname "$0")/_frag.sh"

config <<'YAML'
interfaces:
  lan: {device: "net_tap0,iface=dlan", zone: lan, addresses: [10.10.0.1/24, "fd10:10::1/64"]}
  wan:
    device: "net_tap1,iface=dwan"
    zone: wan
    addresses: [203.0.113.1/24, 203.0.113.2/24, "2001:db8:113::1/64", "2001:db8:113::2/64"]
nat:
  - {name: calls, type: dnat, from: wan, proto: udp, destination: 203.0.113.2, dport: 2049, to_address: 10.10.0.2}
  - {name: calls6, type: dnat, from: wan, proto: udp, destination: "2001:db8:113::2", dport: 2049, to_address: "fd10:10::2"}
  - {name: all, type: dnat, from: wan, destination: 203.0.113.2, to_address: 10.10.0.2}
  - {name: all6, type: dnat, from: wan, destination: "2001:db8:113::2", to_address: "fd10:10::2"}
policy:
  default: drop
  rules:
    - {name: established, state: [established, related], action: accept}
    - {name: in, from: wan, to: lan, state: new, action: accept}
YAML
start_lab

large_pings wan 203.0.113.2 2001:db8:113::2
rpc_server lan 2049 10.10.0.2 fd10:10::2
rpc wan 203.0.113.2 2049
rpc wan 2001:db8:113::2 2049
large_stream wan lan 203.0.113.2
large_stream wan lan 2001:db8:113::2
fragments_fit
