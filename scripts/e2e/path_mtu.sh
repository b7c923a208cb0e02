#!/usr/bin/env bash
# A smaller MTU behind the gateway: the client is told, with the number, on both IP versions, and a transfer adapts.
#   lan 10.10.0.2, mtu 1500 -- [sluiced] -- wan, mtu 1400, 203.0.113.10
# shellcheck source=scripts/e2e/_init.sh
source "$(dirname "$0")/_init.sh"

config <<'YAML'
interfaces:
  lan: {device: "net_tap0,iface=dlan", zone: lan, addresses: [10.10.0.1/24, "fd10:10::1/64"]}
  wan: {device: "net_tap1,iface=dwan", zone: wan, addresses: [203.0.113.1/24, "2001:db8:113::1/64"], mtu: 1400}
nat:
  - {name: out, type: masquerade, from: lan, to: wan, source: 10.10.0.0/24}
policy:
  default: drop
  rules:
    - {name: established, state: [established, related], action: accept}
    - {name: lan-out, from: lan, to: wan, state: new, action: accept}
YAML
start_lab
ip -n "$LAB-wan" link set eth0 mtu 1400
pings lan 2 203.0.113.10
pings lan 2 2001:db8:113::10

scrape >"$LAB_DIR/before"
out=$(in_ns lan ping -n -c 1 -W 3 -M "do" -s 1450 203.0.113.10 2>&1) || true
assert_match "IPv4" "$out" '^From 10\.10\.0\.1 .*Frag needed and DF set \(mtu = 1400\)'
out=$(in_ns lan ping -n -c 1 -W 3 -M "do" -s 1450 2001:db8:113::10 2>&1) || true
assert_match "IPv6" "$out" '^From fd10:10::1 .*Packet too big: mtu=1400'
assert_moved 2 "$LAB_DIR/before" dropped_packets_total reason=mtu_exceeded

# The kernel has learnt: what fits passes, what does not is refused without asking.
pings lan 2 203.0.113.10 -M "do" -s 1372
assert_match "the client's route" "$(ip -n "$LAB-lan" route get 203.0.113.10)" 'mtu 1400'

# An upload has to come down to 1400 by itself, in a kernel that has not learnt yet.
ip -n "$LAB-lan" route flush cache
serve wan tcp 9000
head -c 300000 /dev/urandom >"$LAB_DIR/upload"
in_ns lan "$PYTHON" - "$LAB_DIR/upload" <<'PY'
import socket, sys
s = socket.create_connection(("203.0.113.10", 9000), timeout=10)
s.sendall(open(sys.argv[1], "rb").read())
s.shutdown(socket.SHUT_WR)
while s.recv(4096):
    pass
PY
assert "the server got the upload" wait_for 10 grep -q '^203\.0\.113\.1 [0-9]* sent 300000 bytes' "$LAB_DIR/tcp-wan-9000.log"
