#!/usr/bin/env bash
# Ports mapped one to one: 8000-8003 outside are 9000-9003 inside, by TCP and UDP; the ports beside them are not forwarded.
#   wan 203.0.113.10 -- 203.0.113.1:8000-8003 [dnat] -- lan 10.10.0.2:9000-9003
# shellcheck source=scripts/e2e/_init.sh
source "$(dirname "$0")/_init.sh"
# shellcheck source=scripts/e2e/_nat.sh
source "$(dirname "$0")/_nat.sh"

ports() {
    FILTER='    - {name: in, from: wan, to: lan, proto: [tcp, udp], dport: 9000-9003, state: new, action: accept}' translate <<'YAML'
  - name: range
    type: dnat
    from: wan
    proto: [tcp, udp]
    destination: [203.0.113.1, "2001:db8:113::1"]
    dport: 8000-8003
    to_address: [10.10.0.2, "fd10:10::2"]
    to_port: 9000-9003
YAML
    start_lab
    local n
    for n in 9000 9001 9003; do
        mkdir -p "$LAB_DIR/www-$n"
        echo "port $n" >"$LAB_DIR/www-$n/index.html"
        serve lan http "$n" "$LAB_DIR/www-$n"
    done
    names lan 10.10.0.2 9002
    assert_equal "name" "$(asks wan 203.0.113.1 -p 8002)" 192.0.2.80
    assert_equal "name by TCP" "$(asks wan 203.0.113.1 -p 8002 +tcp)" 192.0.2.80
    for n in 0 1 3; do
        assert_equal "port 800$n" "$(fetch wan "http://203.0.113.1:800$n/")" "port 900$n"
        assert_equal "port 800$n, IPv6" "$(fetch wan "http://[2001:db8:113::1]:800$n/")" "port 900$n"
    done
    assert_equal "whom the server saw" "$(sees lan 9003)" 2001:db8:113::10
    assert_match "the table" "$(ctl conntrack list -p tcp)" 'dst=203\.0\.113\.1 sport=[0-9]+ dport=8003 .*src=10\.10\.0\.2 dst=203\.0\.113\.10 sport=9003 '
    for n in 7999 8004; do assert_fails "port $n" fetch wan --max-time 1 "http://203.0.113.1:$n/"; done
    assert_at_least "connections of the rule" "$(metric nat_rule_connections_total rule=range)" 8
}

on_workers ports
