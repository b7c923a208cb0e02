#!/usr/bin/env bash
# Hairpin: a lan client uses the public address of a server in its own lan. The forward alone cannot work, because the server
# would answer the client past the gateway; with a masquerade rule from lan to lan it does. Both are shown.
#   sw: bridge -- a 10.10.0.2 (server), b 10.10.0.3 (client), and the port of lan
# shellcheck source=scripts/e2e/_init.sh
source "$(dirname "$0")/_init.sh"

gateway_config() {
    config <<YAML
interfaces:
  lan: {device: "net_tap0,iface=dlan", zone: lan, addresses: [10.10.0.1/24]}
  wan: {device: "net_tap1,iface=dwan", zone: wan, addresses: [203.0.113.1/24]}
nat:
  - {name: web, type: dnat, proto: tcp, destination: 203.0.113.1, dport: 8080, to_address: 10.10.0.2, to_port: 80}
$1
policy:
  default: drop
  rules:
    - {name: established, state: [established, related], action: accept}
    - {name: web-in, from: [lan, wan], to: lan, proto: tcp, dport: 80, state: new, action: accept}
YAML
}

gateway_config ''
make_ns gw sw a b
start_sluiced
plug dlan sw 02:00:00:00:00:fe
ip -n "$LAB-sw" link add br0 type bridge
ip -n "$LAB-sw" link set br0 up
ip -n "$LAB-sw" link set eth0 master br0
for host in a:2 b:3; do
    ns=${host%:*}
    ip -n "$LAB-sw" link add name "to-$ns" type veth peer name eth0 netns "$LAB-$ns"
    ip -n "$LAB-sw" link set "to-$ns" master br0 up
    # The frames of a veth carry no finished checksum, and the tap's end has nobody to finish it.
    in_ns "$ns" ethtool -K eth0 tx off tso off gso off gro off >/dev/null
    ip -n "$LAB-$ns" address add "10.10.0.${host#*:}/24" dev eth0
    ip -n "$LAB-$ns" link set eth0 up
    gateway "$ns" 10.10.0.1
done
www a
assert_equal "straight" "$(fetch b http://10.10.0.2/)" "hello from a"

assert_fails "the forward alone" fetch b --max-time 2 http://203.0.113.1:8080/

gateway_config '  - {name: hairpin, type: masquerade, from: lan, to: lan}'
assert "reload with the masquerade rule" ctl reload "$CONFIG"
assert "flush" ctl conntrack flush
assert_equal "with masquerade from lan to lan" "$(fetch b http://203.0.113.1:8080/)" "hello from a"
assert_match "the server sees the gateway" "$(tail -n 1 "$LAB_DIR/http-a-80.log")" '^10\.10\.0\.1 '
