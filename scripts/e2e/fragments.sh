#!/usr/bin/env bash
# Datagrams larger than a packet: pings of 8,000 and 65,000 bytes to the gateway, through masquerade and over IPv6, and an 8,000
# byte UDP question and answer through a port forward. Each is tracked as one packet and leaves in fragments.
#   lan 10.10.0.2, fd10:10::2 -- [masquerade, dnat udp 203.0.113.1:5353] -- wan 203.0.113.10, 2001:db8:113::10
# shellcheck source=scripts/e2e/_init.sh
source "$(dirname "$0")/_init.sh"

config <<'YAML'
interfaces:
  lan: {device: "net_tap0,iface=dlan", zone: lan, addresses: [10.10.0.1/24, "fd10:10::1/64"]}
  wan: {device: "net_tap1,iface=dwan", zone: wan, addresses: [203.0.113.1/24, "2001:db8:113::1/64"]}
nat:
  - {name: out, type: masquerade, from: lan, to: wan, source: 10.10.0.0/24}
  - {name: question, type: dnat, from: wan, proto: udp, destination: 203.0.113.1, dport: 5353, to_address: 10.10.0.2, to_port: 53}
policy:
  default: drop
  rules:
    - {name: established, state: [established, related], action: accept}
    - {name: lan-out, from: lan, to: wan, state: new, action: accept}
    - {name: question-in, from: wan, to: lan, proto: udp, dport: 53, state: new, action: accept}
    - {name: to-me, from: lan, to: local, state: new, action: accept}
YAML
start_lab

for target in 10.10.0.1 203.0.113.10 fd10:10::1 2001:db8:113::10; do
    for size in 8000 65000; do
        assert "ping of $size bytes to $target" in_ns lan ping -q -c 3 -i 0.3 -W 5 -s $size $target
        assert_match "ping of $size bytes to $target" "$(cat "$LAB_DIR/out")" ' 0% packet loss'
    done
done

# The echo server answers what it was sent.
spawn lan echo.log "$PYTHON" -uc '
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("10.10.0.2", 53))
print("ready")
while True:
    data, peer = s.recvfrom(65535)
    s.sendto(data, peer)'
wait_for 10 grep -q '^ready$' "$LAB_DIR/echo.log" || fail "the echo server did not start"
out=$(in_ns wan "$PYTHON" -c '
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(5)
good = 0
for n in range(20):
    question = bytes([n]) * 8000
    s.sendto(question, ("203.0.113.1", 5353))
    good += s.recvfrom(65535) == (question, ("203.0.113.1", 5353))
print(good)')
assert_equal "large datagrams answered through the forward" "$out" 20
assert_equal "fragments dropped" "$(metric dropped_packets_total reason=fragment_invalid)" 0
assert_equal "fragments given up" "$(metric dropped_packets_total reason=fragment_limit)" 0
