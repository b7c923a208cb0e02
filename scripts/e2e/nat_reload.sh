#!/usr/bin/env bash
# What a reload that changes translations does: connections of the rule that says `on_reload: end` end, those of the others go on,
# and the answer has the numbers.
#   lan 10.10.0.2, .20, .30 -- [snat to 198.51.100.7, .8, then .17, .18] -- wan 203.0.113.10
# shellcheck source=scripts/e2e/_init.sh
source "$(dirname "$0")/_init.sh"
# shellcheck source=scripts/e2e/_nat.sh
source "$(dirname "$0")/_nat.sh"

rules() {
    translate <<YAML
  - {name: goes, type: snat, from: lan, to: wan, source: 10.10.0.20, to_address: 198.51.100.$1, on_reload: end}
  - {name: stays, type: snat, from: lan, to: wan, to_address: 198.51.100.$2}
YAML
}

reload() {
    rules 7 8
    start_lab
    ip -n "$LAB-wan" route add 198.51.100.0/24 via 203.0.113.1
    more lan 10.10.0.20
    more wan 203.0.113.11
    echo_server wan 7
    assert_equal "held by one that ends" "$(hold lan goes 7 203.0.113.10 7 10.10.0.20)" 7
    assert_equal "held by one that stays" "$(hold lan stays 5 203.0.113.10 7 10.10.0.2)" 5

    assert_match "a reload that changes nothing" "$(ctl reload "$CONFIG")" '; 12 connections kept, none ended$'
    assert_equal "connections of the first that work" "$(alive goes)" 7
    rules 17 18
    assert_match "a reload that translates otherwise" "$(ctl reload "$CONFIG")" '; 5 connections kept, 7 ended \(7 translated otherwise\)$'
    assert_equal "connections of the second that work" "$(alive stays)" 5
    assert_equal "connections of the first that work" "$(alive goes)" 0
    assert_match "those of the second" "$(ctl conntrack list --orig-src 10.10.0.2)" 'dst=198\.51\.100\.8 '
    assert "a new connection of the first" reaches lan 203.0.113.11 7
    assert_equal "ports in use of the address that is gone" "$(metric nat_ports_used address=198.51.100.7 proto=tcp)" 0

    sed -i 's/from: lan, to: wan, state: new/from: lan, to: wan, destination: 203.0.113.11, state: new/' "$CONFIG"
    local answer
    answer=$(ctl --json reload "$CONFIG")
    assert_equal "denied by the last reload" "$(jq -c '[.connections.denied >= 5, .connections.finished]' <<<"$answer")" '[true,true]'
    assert_equal "connections of the second that work" "$(alive stays)" 0
}

on_workers reload
