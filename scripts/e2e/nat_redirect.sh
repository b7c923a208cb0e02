#!/usr/bin/env bash
# Redirect to the gateway itself: whatever server a client asks, a program on the gateway answers, both IP versions, and the client
# sees the answer come from the server.
#   lan 10.10.0.2 -- [redirect of 80 to 3128, of 53 to 5353] -- wan 203.0.113.10, which is not asked
# shellcheck source=scripts/e2e/_init.sh
source "$(dirname "$0")/_init.sh"
# shellcheck source=scripts/e2e/_nat.sh
source "$(dirname "$0")/_nat.sh"

redirect() {
    FILTER='    - {name: to-me, from: lan, to: local, proto: [tcp, udp], dport: [3128, 5353], state: new, action: accept}' translate <<'YAML'
  - {name: web, type: redirect, from: lan, proto: tcp, dport: 80, to_port: 3128}
  - {name: dns, type: redirect, from: lan, proto: [udp, tcp], dport: 53, to_port: 5353}
YAML
    start_lab
    www wan
    mkdir -p "$LAB_DIR/www-gw"
    echo "hello from gw" >"$LAB_DIR/www-gw/index.html"
    serve gw http 3128 "$LAB_DIR/www-gw"
    names gw 10.10.0.1 5353
    assert_equal "page" "$(fetch lan http://203.0.113.10/)" "hello from gw"
    assert_equal "whom the gateway saw" "$(sees gw 3128)" 10.10.0.2
    assert_equal "page, IPv6" "$(fetch lan 'http://[2001:db8:113::10]/')" "hello from gw"
    assert_equal "whom the gateway saw, IPv6" "$(sees gw 3128)" fd10:10::2
    # dig takes no answer from anybody but whom it asked.
    assert_equal "name" "$(asks lan 203.0.113.10)" 192.0.2.80
    assert_equal "name by TCP" "$(asks lan 192.0.2.99 +tcp)" 192.0.2.80
    assert_equal "requests that wan saw" "$(grep -vc ready "$LAB_DIR/http-wan-80.log" || true)" 0
    assert_match "the table" "$(ctl conntrack list -p tcp)" 'src=10\.10\.0\.2 dst=203\.0\.113\.10 sport=[0-9]+ dport=80 .*src=10\.10\.0\.1 dst=10\.10\.0\.2 sport=3128 '
    assert_match "show nat" "$(ctl show nat)" '^1 +web +redirect +2 +0 .* the gateway, port 3128$'
}

on_workers redirect
