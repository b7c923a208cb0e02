#!/usr/bin/env bash
# A configuration with a mistake is refused with file, line, path, value and what would be accepted: at start, by check, and by
# reload, which then leaves everything as it was.
#   lan -- [sluiced] -- wan
# shellcheck source=scripts/e2e/_init.sh
source "$(dirname "$0")/_init.sh"

gateway_config() {
    config <<YAML
interfaces:
  lan: {device: "net_tap0,iface=dlan", zone: lan, addresses: [10.10.0.1/24]}
  wan: {device: "net_tap1,iface=dwan", zone: wan, addresses: [203.0.113.1/24]}
policy:
  default: drop
  rules:
    - {name: established, state: [established, related], action: accept}
    - {name: lan-out, from: lan, to: wan, state: new, action: $1}
YAML
}
make_ns lan gw wan

gateway_config acept
line=$(grep -n acept "$CONFIG" | cut -d: -f1)
wanted="sluice\.yaml:$line:[0-9]+: policy\.rules\[1\]\.action: \"acept\" .*accept.*drop"
code=0
in_ns gw timeout 10 "$BIN/sluiced" --config "$CONFIG" >"$LAB_DIR/bad.log" 2>&1 || code=$?
((code != 0 && code != 124)) || fail "sluiced with a bad file ended with code $code"
assert_match "sluiced says" "$(cat "$LAB_DIR/bad.log")" "$wanted"
assert_fails "sluicectl check" "$BIN/sluicectl" check "$CONFIG"
assert_match "sluicectl check says" "$(cat "$LAB_DIR/out")" "$wanted"

gateway_config accept
assert "sluicectl check of a good file" "$BIN/sluicectl" check "$CONFIG"
start_sluiced
plug_lan
plug_wan
pings lan 2 203.0.113.10
scrape >"$LAB_DIR/before"
rules=$(ctl show rules | awk '{ print $1 }')

spawn lan ping ping -n -q -i 0.01 -c 200 -W 3 203.0.113.10
ping=$SPAWNED
gateway_config acept
assert_fails "reload of a bad file" ctl reload "$CONFIG"
assert_match "reload says" "$(cat "$LAB_DIR/out")" "$wanted"
wait "$ping" || true
assert_match "ping under the refused reload" "$(cat "$LAB_DIR/ping")" ' 200 received, 0% packet loss'
assert_still "$LAB_DIR/before" policy_generation
assert_equal "rules in force" "$(ctl show rules | awk '{ print $1 }')" "$rules"
