#!/usr/bin/env bash
# Two workers and DNAT: the reply's home is the worker that does not own the connection, and finds the owner by the signpost.
# The hash is linear, so whether the two homes differ depends on what DNAT changes, not on the client: these addresses and
# ports are such that they do. Many source ports, so that both workers own some; every connection works, hand-overs are counted.
#   wan 203.0.113.10, 64 source ports -- 203.0.113.1:8080 [dnat, 2 workers] -- lan 10.10.0.2:8081
export WORKERS=2
# shellcheck source=scripts/e2e/_init.sh
source "$(dirname "$0")/_init.sh"

config <<'YAML'
interfaces:
  lan: {device: "net_tap0,iface=dlan", zone: lan, addresses: [10.10.0.1/24]}
  wan: {device: "net_tap1,iface=dwan", zone: wan, addresses: [203.0.113.1/24]}
nat:
  - {name: web, type: dnat, from: wan, proto: tcp, destination: 203.0.113.1, dport: 8080, to_address: 10.10.0.2, to_port: 8081}
policy:
  default: drop
  rules:
    - {name: established, state: [established, related], action: accept}
    - {name: web-in, from: wan, to: lan, proto: tcp, dport: 8081, state: new, action: accept}
YAML
start_lab
serve lan tcp 8081

scrape >"$LAB_DIR/before"
out=$(in_ns wan "$PYTHON" - <<'PY'
import socket
good = 0
for port in range(20000, 20064):
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(("203.0.113.10", port))
    s.settimeout(5)
    s.connect(("203.0.113.1", 8080))
    s.shutdown(socket.SHUT_WR)
    good += s.recv(100) == b"hello 203.0.113.10\n"
    s.close()
print(good)
PY
)
assert_equal "connections that worked" "$out" 64
assert_moved 16 "$LAB_DIR/before" handover_packets_total cause=signpost
assert_still "$LAB_DIR/before" dropped_packets_total reason=signpost_full
assert_still "$LAB_DIR/before" dropped_packets_total reason=signpost_clash
assert_still "$LAB_DIR/before" dropped_packets_total reason=handover_full
for worker in 0 1; do
    assert_at_least "connections on worker $worker" "$(metric conntrack_entries worker=$worker)" 8
done
