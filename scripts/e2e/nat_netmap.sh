#!/usr/bin/env bash
# Prefixes one to one: lan is 198.51.100.0/24 to wan whoever begins, and the wide net 192.0.2.0/24 is 100.64.2.0/24 to lan. Host
# parts and ports stay.
#   lan 10.10.0.2, .20, fd10:10::2 -- [netmap] -- wan 203.0.113.10, a router -- far 192.0.2.10
# shellcheck source=scripts/e2e/_init.sh
source "$(dirname "$0")/_init.sh"
# shellcheck source=scripts/e2e/_nat.sh
source "$(dirname "$0")/_nat.sh"

netmap() {
    FILTER='    - {name: in, from: wan, to: lan, state: new, action: accept}' translate <<'YAML'
  - {name: own, type: netmap, from: lan, to: wan, source: 10.10.0.0/24, to_prefix: 198.51.100.0/24}
  - {name: own6, type: netmap, from: lan, to: wan, source: "fd10:10::/64", to_prefix: "2001:db8:f::/64"}
  - {name: theirs, type: netmap, from: lan, destination: 100.64.2.0/24, to_prefix: 192.0.2.0/24}
YAML
    start_lab
    far_host
    more lan 10.10.0.20
    ip -n "$LAB-wan" route add 198.51.100.0/24 via 203.0.113.1
    ip -n "$LAB-wan" route add 2001:db8:f::/64 via 2001:db8:113::1
    www wan
    www lan
    www far
    assert_equal "page, out" "$(fetch lan --interface 10.10.0.20 --local-port 40000 http://203.0.113.10/)" "hello from wan"
    assert_match "whom wan saw" "$(tail -n 1 "$LAB_DIR/http-wan-80.log")" '^198\.51\.100\.20 40000 '
    assert_equal "page, in" "$(fetch wan --local-port 40001 http://198.51.100.20/)" "hello from lan"
    assert_match "whom lan saw" "$(tail -n 1 "$LAB_DIR/http-lan-80.log")" '^203\.0\.113\.10 40001 '
    assert_equal "page, out, IPv6" "$(fetch lan 'http://[2001:db8:113::10]/')" "hello from wan"
    assert_equal "whom wan saw, IPv6" "$(sees wan)" 2001:db8:f::2
    assert_equal "page, in, IPv6" "$(fetch wan 'http://[2001:db8:f::2]/')" "hello from lan"
    assert_equal "page from their net" "$(fetch lan http://100.64.2.10/)" "hello from far"
    assert_equal "whom far saw" "$(sees far)" 198.51.100.2
    pings lan 3 203.0.113.10
    pings lan 3 100.64.2.10
    pings wan 3 198.51.100.2
    pings wan 3 198.51.100.20
    # As in Linux, what the gateway says of a translated destination seems to come from it.
    assert_equal "traceroute" \
        "$(in_ns wan traceroute -I -n -q 1 -w 3 -m 4 198.51.100.20 | awk 'NR > 1 { print $1, $2 }')" $'1 198.51.100.20\n2 198.51.100.20'
    assert_match "the table" "$(ctl conntrack list)" 'src=10\.10\.0\.2 dst=100\.64\.2\.10 .*src=192\.0\.2\.10 dst=198\.51\.100\.2 '
}

on_workers netmap
