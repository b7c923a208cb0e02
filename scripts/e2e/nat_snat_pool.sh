#!/usr/bin/env bash
# Source translation to pools of both IP versions: clients are spread over all addresses of the pool, and one that is to stay
# with its address does, whatever it does and wherever it goes.
#   lan 10.10.0.2 and 30 more -- [snat to 198.51.100.8-11, persistent to .16-.19, 2001:db8:f::8-b] -- wan, which routes these
# shellcheck source=scripts/e2e/_init.sh
source "$(dirname "$0")/_init.sh"
# shellcheck source=scripts/e2e/_nat.sh
source "$(dirname "$0")/_nat.sh"

pool() {
    translate <<'YAML'
  - name: stays
    type: snat
    from: lan
    to: wan
    source: 10.10.0.64/26
    to_address: 198.51.100.16/30
    persistent: true
    random: true
  - {name: spread, type: snat, from: lan, to: wan, to_address: [198.51.100.8-198.51.100.11, "2001:db8:f::8-2001:db8:f::b"]}
YAML
    start_lab
    more wan 203.0.113.11
    ip -n "$LAB-wan" route add 198.51.100.0/24 via 203.0.113.1
    ip -n "$LAB-wan" route add 2001:db8:f::/64 via 2001:db8:113::1
    www wan
    local n seen
    for n in $(seq 10 39); do
        more lan "10.10.0.$n" "fd10:10::$n"
        assert "page for 10.10.0.$n" fetch lan --interface "10.10.0.$n" http://203.0.113.10/
        assert "page for fd10:10::$n" fetch lan --interface "fd10:10::$n" 'http://[2001:db8:113::10]/'
    done
    seen=$(cut -d' ' -f1 "$LAB_DIR/http-wan-80.log" | grep -v ready | sort -u)
    assert_no_match "who came" "$seen" '^(10\.|fd10|203)'
    assert_equal "addresses of the IPv4 pool that came" "$(grep -c '^198\.51\.100\.\(8\|9\|10\|11\)$' <<<"$seen")" 4
    assert_equal "addresses of the IPv6 pool that came" "$(grep -c '^2001:db8:f::[89ab]$' <<<"$seen")" 4

    names wan 203.0.113.10 53
    for n in 70 71 72; do
        more lan "10.10.0.$n"
        for _ in 1 2 3; do
            assert "page for 10.10.0.$n" fetch lan --interface "10.10.0.$n" http://203.0.113.10/
            assert "another page for 10.10.0.$n" fetch lan --interface "10.10.0.$n" http://203.0.113.11/
        done
        seen=$(tail -n 6 "$LAB_DIR/http-wan-80.log" | cut -d' ' -f1 | sort -u)
        assert_match "the address of 10.10.0.$n" "$seen" '^198\.51\.100\.1[6-9]$'
        assert_equal "how many it had" "$(wc -l <<<"$seen")" 1
        assert_equal "a name for 10.10.0.$n" "$(asks lan 203.0.113.10 -b "10.10.0.$n")" 192.0.2.80
        assert_match "whom the name server saw" "$(tail -n 3 "$LAB_DIR/dnsmasq-wan.log")" "from ${seen//./\\.}\$"
    done
    pings lan 3 203.0.113.10
    assert_match "show nat" "$(ctl show nat)" '^2 +spread +snat .* 198\.51\.100\.8/30,2001:db8:f::8/126$'
}

on_workers pool
