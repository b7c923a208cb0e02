#!/usr/bin/env bash
# ICMP errors find their way back through the translation: a closed UDP port behind masquerade gives the client ECONNREFUSED,
# and traceroute sees the gateway and the server.
#   lan 10.10.0.2 -- [masquerade to 203.0.113.1] -- wan 203.0.113.10, port 9 closed
# shellcheck source=scripts/e2e/_init.sh
source "$(dirname "$0")/_init.sh"

config <<'YAML'
interfaces:
  lan: {device: "net_tap0,iface=dlan", zone: lan, addresses: [10.10.0.1/24, "fd10:10::1/64"]}
  wan: {device: "net_tap1,iface=dwan", zone: wan, addresses: [203.0.113.1/24, "2001:db8:113::1/64"]}
nat:
  - {name: out, type: masquerade, from: lan, to: wan, source: 10.10.0.0/24}
policy:
  default: drop
  rules:
    - {name: established, state: [established, related], action: accept}
    - {name: lan-out, from: lan, to: wan, state: new, action: accept}
YAML
start_lab
pings lan 2 203.0.113.10
pings lan 2 2001:db8:113::10

# A connected UDP socket sends to a closed port, then reads: what error does it get?
closed_port() {
    in_ns lan "$PYTHON" - "$1" <<'PY'
import errno, socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
s = socket.socket(family, socket.SOCK_DGRAM)
s.settimeout(3)
s.connect((sys.argv[1], 9))
s.send(b"anybody there?")
try:
    print(s.recv(100))
except OSError as e:
    print(errno.errorcode.get(e.errno, e))
PY
}
scrape >"$LAB_DIR/before"
assert_equal "UDP to a closed port, translated" "$(closed_port 203.0.113.10)" ECONNREFUSED
assert_moved 1 "$LAB_DIR/before" classified_packets_total state=related
assert_equal "UDP to a closed port, IPv6" "$(closed_port 2001:db8:113::10)" ECONNREFUSED
assert_moved 2 "$LAB_DIR/before" classified_packets_total state=related

hops=$(in_ns lan traceroute -n -q 1 -w 3 -m 4 203.0.113.10)
assert_match "traceroute, first hop" "$hops" '^ 1  10\.10\.0\.1 '
assert_match "traceroute, second hop" "$hops" '^ 2  203\.0\.113\.10 '
