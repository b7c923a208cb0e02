#!/usr/bin/env bash
# A pool of 16 ports: sixteen connections to one server, and no more. Further ones are dropped with the reason and the name of the
# rule, in the metrics and the log; another server can still be reached, and after connections end so can the first.
#   lan 10.10.0.2 -- [snat to 198.51.100.7, ports 4000-4015] -- wan 203.0.113.10, 203.0.113.11
# shellcheck source=scripts/e2e/_init.sh
source "$(dirname "$0")/_init.sh"
# shellcheck source=scripts/e2e/_nat.sh
source "$(dirname "$0")/_nat.sh"

exhaustion() {
    CONNTRACK='timeouts: {tcp_close: 1s}' translate <<'YAML'
  - {name: few, type: snat, from: lan, to: wan, source: 10.10.0.0/24, to_address: 198.51.100.7, source_ports: 4000-4015}
YAML
    start_lab
    ip -n "$LAB-wan" route add 198.51.100.0/24 via 203.0.113.1
    more wan 203.0.113.11
    echo_server wan 7
    scrape >"$LAB_DIR/before"
    assert_equal "ports free before" "$(metric nat_ports_free address=198.51.100.7 proto=tcp)" 16
    # Each worker has those ports whose answers come to it: with many clients all are taken.
    assert_equal "connections of 64" "$(hold lan held 64 203.0.113.10 7)" 16
    assert_equal "connections that work" "$(alive held)" 16
    assert_equal "ports in use" "$(metric nat_ports_used address=198.51.100.7 proto=tcp)" 16
    assert_equal "ports free" "$(metric nat_ports_free address=198.51.100.7 proto=tcp)" 0
    assert_equal "seconds to exhaustion" "$(metric nat_exhaustion_seconds address=198.51.100.7 proto=tcp)" 0
    assert_moved 48 "$LAB_DIR/before" dropped_packets_total reason=nat_no_port
    assert_moved 48 "$LAB_DIR/before" nat_failures_total rule=few
    assert_match "show nat" "$(ctl show nat)" '^1 +few +snat +16 +[0-9]+ .* 198\.51\.100\.7, source ports 4000-4015$'
    assert_match "the log" "$(cat "$LAB_DIR/sluiced.log")" \
        'WARN.* sluice::nat: tcp src=10\.10\.0\.2 dst=203\.0\.113\.10 sport=[0-9]+ dport=7 rule="few" reason="nat_no_port" interface="lan"'
    assert_fails "one more to the same server" reaches lan 203.0.113.10 7
    wait_for 10 reaches lan 203.0.113.11 7 || fail "another server cannot be reached by the same ports"
    local seen
    seen=$(awk '/^198\.51\.100\.7 / { print $2 }' "$LAB_DIR/echo-wan-7.log" | sort -un | sed -n '1p;$p' | tr '\n' ' ')
    assert_equal "first and last port that the server saw" "$seen" "4000 4015 "

    release held
    wait_for 20 recovered || fail "ports do not come back: $(metric nat_ports_used address=198.51.100.7 proto=tcp) are in use"
    assert_equal "connections after the recovery" "$(hold lan again 64 203.0.113.10 7)" 16
}

recovered() { (($(metric nat_ports_used address=198.51.100.7 proto=tcp) == 0)); }

on_workers exhaustion
