#!/usr/bin/env bash
# Twenty reloads while a ping runs at a hundred a second and a download is under way: not one packet is lost.
#   lan 10.10.0.2 -- [masquerade; policy swapped twenty times] -- wan 203.0.113.10
# shellcheck source=scripts/e2e/_init.sh
source "$(dirname "$0")/_init.sh"

gateway_config() {
    config <<YAML
interfaces:
  lan: {device: "net_tap0,iface=dlan", zone: lan, addresses: [10.10.0.1/24]}
  wan: {device: "net_tap1,iface=dwan", zone: wan, addresses: [203.0.113.1/24]}
nat:
  - {name: out, type: masquerade, from: lan, to: wan}
policy:
  default: drop
  rules:
    - {name: established, state: [established, related], action: accept}
    - {name: number-$1, from: wan, to: lan, proto: tcp, dport: $1, action: drop}
    - {name: lan-out, from: lan, to: wan, state: new, action: accept}
YAML
}

gateway_config 1
start_lab
www wan
head -c 3000000 /dev/urandom >"$LAB_DIR/www-wan/3mb"
pings lan 3 203.0.113.10
generation=$(metric policy_generation)

spawn lan ping ping -n -q -i 0.01 -c 500 -W 3 203.0.113.10
ping=$SPAWNED
spawn lan fetch curl -sS --max-time 40 --limit-rate 500k http://203.0.113.10/3mb -o "$LAB_DIR/3mb"
fetch=$SPAWNED
for number in $(seq 2 21); do
    gateway_config "$number"
    assert "reload $number" ctl reload "$CONFIG"
    sleep 0.15
done
wait "$ping" || true
assert_match "ping under reloads" "$(cat "$LAB_DIR/ping")" '^500 packets transmitted, 500 received, 0% packet loss'
assert "the download ends well" wait "$fetch"
assert "its bytes are right" cmp "$LAB_DIR/3mb" "$LAB_DIR/www-wan/3mb"
assert_equal "policy_generation" "$(metric policy_generation)" $((generation + 20))
assert_match "the rule of the last reload" "$(ctl show rules)" 'number-21'
assert_no_match "rules of reloads before" "$(ctl show rules)" 'number-20'
