#!/usr/bin/env bash
# `sluicectl status --wait` returns when the gateway is ready, whether it is called before or after the start, and fails when
# nothing comes in time; the socket is 0660.
#   [sluiced] alone
# shellcheck source=scripts/e2e/_init.sh
source "$(dirname "$0")/_init.sh"

config <<'YAML'
interfaces:
  lan: {device: "net_tap0,iface=dlan", zone: lan, addresses: [10.10.0.1/24]}
policy: {default: drop}
YAML
make_ns gw
assert_fails "status of nothing" ctl status
start=$SECONDS
assert_fails "status --wait 1 of nothing" ctl status --wait 1
assert_at_least "seconds waited" $((SECONDS - start)) 1

ctl status --wait 20 >"$LAB_DIR/early" 2>&1 &
early=$!
launch_sluiced
wait "$early" || fail "status --wait, called before the start: $(cat "$LAB_DIR/early")"
assert "status when up" ctl status
assert_equal "JSON" "$(ctl --json status | jq -r type)" object
assert_equal "the socket's mode" "$(stat -c %a "$SOCKET")" 660
