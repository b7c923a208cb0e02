#!/usr/bin/env bash
# Masquerade, both IP versions: pages, names, streams and pings come from the address of the gateway, and traceroute shows each
# hop behind it, by UDP, ICMP and TCP.
#   lan 10.10.0.2, fd10:10::2 -- [masquerade] -- wan 203.0.113.10, 2001:db8:113::10, a router -- far 192.0.2.10, 2001:db8:2::10
# shellcheck source=scripts/e2e/_init.sh
source "$(dirname "$0")/_init.sh"
# shellcheck source=scripts/e2e/_nat.sh
source "$(dirname "$0")/_nat.sh"

masquerade() {
    translate <<'YAML'
  - {name: out, type: masquerade, from: lan, to: wan}
YAML
    start_lab
    far_host
    www far
    assert_equal "page" "$(fetch lan http://192.0.2.10/)" "hello from far"
    assert_equal "whom the server saw" "$(sees far)" 203.0.113.1
    assert_equal "page, IPv6" "$(fetch lan 'http://[2001:db8:2::10]/')" "hello from far"
    assert_equal "whom the server saw, IPv6" "$(sees far)" 2001:db8:113::1
    names far 192.0.2.10 53
    assert_equal "name" "$(asks lan 192.0.2.10)" 192.0.2.80
    assert_equal "name by TCP" "$(asks lan 192.0.2.10 +tcp)" 192.0.2.80
    assert_match "whom the name server saw" "$(cat "$LAB_DIR/dnsmasq-far.log")" 'query\[A\] www\.lab\.test from 203\.0\.113\.1'
    pings lan 3 192.0.2.10
    pings lan 3 2001:db8:2::10
    streams lan far 192.0.2.10

    local how hops
    for how in --port=33434 -I -T; do
        hops=$(in_ns lan traceroute "$how" -n -q 1 -w 3 -m 5 192.0.2.10)
        assert_equal "traceroute $how" "$(awk 'NR > 1 { print $1, $2 }' <<<"$hops")" $'1 10.10.0.1\n2 203.0.113.10\n3 192.0.2.10'
        hops=$(in_ns lan traceroute "$how" -n -q 1 -w 3 -m 5 2001:db8:2::10)
        assert_equal "traceroute $how, IPv6" "$(awk 'NR > 1 { print $1, $2 }' <<<"$hops")" \
            $'1 fd10:10::1\n2 2001:db8:113::10\n3 2001:db8:2::10'
    done
    assert_at_least "connections of the rule" "$(metric nat_rule_connections_total rule=out)" 10
    assert_equal "failures" "$(metric nat_failures_total)" 0
}

on_workers masquerade
