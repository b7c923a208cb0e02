#!/usr/bin/env bash
# TCP's largest segment: what both ends are told follows the MTU of a link that they do not see.
#   lan 10.10.0.2, mtu 1500 -- [sluiced] -- mtu 1400, mss auto; wan 203.0.113.10, mtu 1500
# shellcheck source=scripts/e2e/_init.sh
source "$(dirname "$0")/_init.sh"

config <<'YAML'
interfaces:
  lan: {device: "net_tap0,iface=dlan", zone: lan, addresses: [10.10.0.1/24, "fd10:10::1/64"]}
  wan: {device: "net_tap1,iface=dwan", zone: wan, addresses: [203.0.113.1/24, "2001:db8:113::1/64"], mtu: 1400, mss: auto}
nat:
  - {name: out, type: masquerade, from: lan, to: wan, source: 10.10.0.0/24}
policy:
  default: drop
  rules:
    - {name: established, state: [established, related], action: accept}
    - {name: lan-out, from: lan, to: wan, state: new, action: accept}
YAML
start_lab

# The largest segment that each end may send: what the other one has announced, less 12 bytes for timestamps.
cat >"$LAB_DIR/server.py" <<'PY'
import socket
listening = socket.create_server(("::", 9000), family=socket.AF_INET6, dualstack_ipv6=True)
while True:
    s, _ = listening.accept()
    s.sendall(b"%d" % s.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG))
    s.close()
PY
spawn wan server.log "$PYTHON" "$LAB_DIR/server.py"
ask() {
    in_ns lan "$PYTHON" - "$1" <<'PY'
import socket, sys
s = socket.create_connection((sys.argv[1], 9000), timeout=5)
own = s.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
print(own, s.recv(100).decode())
PY
}
assert "the server listens" wait_for 10 ask 203.0.113.10
assert_equal "IPv4, client and server" "$(ask 203.0.113.10)" "1348 1348"
assert_equal "IPv6, client and server" "$(ask 2001:db8:113::10)" "1328 1328"
