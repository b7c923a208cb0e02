#!/usr/bin/env bash
# Source translation to an address that the gateway does not own but that wan routes to it; IPv4 TCP, UDP and ping.
#   lan 10.10.0.2 -- [snat to 198.51.100.7] -- wan 203.0.113.10, which routes 198.51.100.0/24 via 203.0.113.1
# shellcheck source=scripts/e2e/_init.sh
source "$(dirname "$0")/_init.sh"

config <<'YAML'
interfaces:
  lan: {device: "net_tap0,iface=dlan", zone: lan, addresses: [10.10.0.1/24]}
  wan: {device: "net_tap1,iface=dwan", zone: wan, addresses: [203.0.113.1/24]}
nat:
  - {name: out, type: snat, from: lan, to: wan, source: 10.10.0.0/24, to_address: 198.51.100.7}
policy:
  default: drop
  rules:
    - {name: established, state: [established, related], action: accept}
    - {name: lan-out, from: lan, to: wan, state: new, action: accept}
YAML
start_lab
ip -n "$LAB-wan" route add 198.51.100.0/24 via 203.0.113.1
www wan
serve wan udp 7

assert_equal "web page" "$(fetch lan http://203.0.113.10/)" "hello from wan"
assert_match "the web server's view" "$(cat "$LAB_DIR/http-wan-80.log")" '^198\.51\.100\.7 '

reply=$(in_ns lan "$PYTHON" -c '
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(3)
s.connect(("203.0.113.10", 7))
s.send(b"marco")
print(s.recv(100).decode())')
assert_equal "UDP echo" "$reply" marco
assert_match "the echo server's view" "$(cat "$LAB_DIR/udp-wan-7.log")" '^198\.51\.100\.7 [0-9]+ 5 bytes'

pings lan 5 203.0.113.10
assert_match "the connection table" "$(ctl conntrack list -o nf_conntrack -p icmp)" \
    'src=10\.10\.0\.2 dst=203\.0\.113\.10 type=8 code=0 id=[0-9]+ .*src=203\.0\.113\.10 dst=198\.51\.100\.7 type=0 code=0 id=[0-9]+'
