#!/usr/bin/env bash
# SIGTERM and SIGINT end sluiced with 0 and leave nothing: no socket, no TAP twins, no ports, no DPDK files.
#   lan -- [sluiced, stopped under traffic] -- wan
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
dpdk_directories() { find /run/dpdk -mindepth 1 -maxdepth 1 2>/dev/null | sort || true; }

make_ns lan gw wan
huge_before=$(awk '/^HugePages_Total/ { print $2 }' /proc/meminfo)

for signal in TERM INT; do
    dpdk_directories >"$LAB_DIR/dpdk-before"
    start_sluiced
    plug_lan
    plug_wan
    pings lan 2 203.0.113.10
    spawn lan ping ping -n -q -i 0.01 -c 1000 203.0.113.10
    ping=$SPAWNED
    sleep 0.3

    # What DPDK made for this instance; others on the machine have theirs.
    mapfile -t made < <(dpdk_directories | comm -13 "$LAB_DIR/dpdk-before" -)

    start=${EPOCHREALTIME/./}
    kill -"$signal" "$SLUICED"
    code=0
    wait "$SLUICED" || code=$?
    say "$SCENARIO: SIG$signal to exit: $(((${EPOCHREALTIME/./} - start) / 1000)) ms"
    kill "$ping" 2>/dev/null || true
    wait "$ping" 2>/dev/null || true

    assert_equal "exit code after SIG$signal" "$code" 0
    [[ ! -e $SOCKET ]] || fail "the socket is still there"
    assert_equal "interfaces left in the gateway" "$(ip -n "$LAB-gw" -br link | awk '$1 != "lo" { print $1 }')" ""
    assert_equal "interfaces left in lan" "$(ip -n "$LAB-lan" -br link | awk '$1 != "lo" { print $1 }')" ""
    for directory in "${made[@]}"; do [[ ! -e $directory ]] || fail "$directory is still there"; done
    assert_equal "huge pages reserved" "$(awk '/^HugePages_Total/ { print $2 }' /proc/meminfo)" "$huge_before"
done
