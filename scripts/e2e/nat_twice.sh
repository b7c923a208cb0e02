#!/usr/bin/env bash
# Both ends at once: a server of wan is one of lan to its clients, and they are the gateway to it; from wan, a server of lan that
# knows nothing beyond its own net is reached through a pool.
#   lan 10.10.0.2, without default route -- [twice] -- wan 203.0.113.10, without default route
# shellcheck source=scripts/e2e/_init.sh
source "$(dirname "$0")/_init.sh"
# shellcheck source=scripts/e2e/_nat.sh
source "$(dirname "$0")/_nat.sh"

twice() {
    FILTER='    - {name: in, from: wan, to: lan, state: new, action: accept}' translate <<'YAML'
  - {name: out, type: twice, from: lan, destination: 10.10.0.200, proto: tcp, dport: 8080, to_address: 203.0.113.10, to_port: 80, to_source: masquerade}
  - {name: ping, type: twice, from: lan, destination: 10.10.0.200, to_address: 203.0.113.10, to_source: 203.0.113.64/28}
  - {name: in, type: twice, from: wan, destination: 203.0.113.200, to_address: 10.10.0.2, to_source: 10.10.0.128/28, source_ports: 5000-5999}
YAML
    start_lab
    ip -n "$LAB-lan" route del default
    ip -n "$LAB-wan" route del default
    # Addresses of the nets beside that nobody has: the gateway would have to answer for them.
    ip -n "$LAB-lan" route add 10.10.0.200/32 via 10.10.0.1
    ip -n "$LAB-lan" route add 10.10.0.128/28 via 10.10.0.1
    ip -n "$LAB-wan" route add 203.0.113.200/32 via 203.0.113.1
    ip -n "$LAB-wan" route add 203.0.113.64/28 via 203.0.113.1
    www wan
    www lan
    assert_equal "page, out" "$(fetch lan http://10.10.0.200:8080/)" "hello from wan"
    assert_equal "whom wan saw" "$(sees wan)" 203.0.113.1
    pings lan 3 10.10.0.200
    assert_match "the table" "$(ctl conntrack list -p icmp)" 'src=10\.10\.0\.2 dst=10\.10\.0\.200 .*src=203\.0\.113\.10 dst=203\.0\.113\.(6[4-9]|7[0-9]) '
    assert_equal "page, in" "$(fetch wan http://203.0.113.200/)" "hello from lan"
    assert_match "whom lan saw" "$(tail -n 1 "$LAB_DIR/http-lan-80.log")" '^10\.10\.0\.1(2[89]|3[0-9]|4[0-3]) 5[0-9]{3} '
    assert_match "show nat" "$(ctl show nat)" "^1 +out +twice +1 +0 .* 203\\.0\\.113\\.10:80, source the egress interface's address\$"
}

on_workers twice
