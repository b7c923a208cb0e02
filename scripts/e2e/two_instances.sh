#!/usr/bin/env bash
# Two gateways side by side on one machine, each with namespace, socket and metrics of its own; each starts and stops in under
# three seconds on an idle machine (printed; a loaded one may take longer).
#   lan -- [gw] -- wan    and    lan2 -- [gw2] -- wan2, with the same addresses
# shellcheck source=scripts/e2e/_init.sh
source "$(dirname "$0")/_init.sh"

config <<'YAML'
interfaces:
  lan: {device: "net_tap0,iface=dlan", zone: lan, addresses: [10.10.0.1/24]}
  wan: {device: "net_tap1,iface=dwan", zone: wan, addresses: [203.0.113.1/24]}
policy:
  default: drop
  rules:
    - {name: established, state: [established, related], action: accept}
    - {name: lan-out, from: lan, to: wan, state: new, action: accept}
YAML

# As milliseconds since $1, a time in microseconds.
since() { echo $(((${EPOCHREALTIME/./} - $1) / 1000)); }
start=${EPOCHREALTIME/./}
start_lab
say "$SCENARIO: first instance up after $(since "$start") ms"
pings lan 2 203.0.113.10

first_config=$CONFIG first_socket=$SOCKET first=$SLUICED first_lab=$LAB
CONFIG=$LAB_DIR/second.yaml SOCKET=$LAB_DIR/second.sock LAB=${LAB}b
sed "s|$first_socket|$SOCKET|" "$first_config" >"$CONFIG"
start=${EPOCHREALTIME/./}
start_lab
say "$SCENARIO: second instance up after $(since "$start") ms"
pings lan 2 203.0.113.10
assert_equal "connections of the second" "$(ctl conntrack count)" 1

start=${EPOCHREALTIME/./}
kill -TERM "$SLUICED"
wait "$SLUICED" || fail "the second instance ended with code $?"
say "$SCENARIO: second instance down after $(since "$start") ms"
[[ ! -e $SOCKET ]] || fail "the second socket is still there"

LAB=$first_lab SOCKET=$first_socket SLUICED=$first
pings lan 3 203.0.113.10
start=${EPOCHREALTIME/./}
kill -TERM "$SLUICED"
wait "$SLUICED" || fail "the first instance ended with code $?"
say "$SCENARIO: first instance down after $(since "$start") ms"
