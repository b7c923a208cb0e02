#!/usr/bin/env bash
# Exempt: to one server, and from one client to the forwarded port, nothing is translated; beside them it is.
#   lan 10.10.0.2 -- [none, masquerade; none, dnat] -- wan 203.0.113.10, .11, which route lan by the gateway
# shellcheck source=scripts/e2e/_init.sh
source "$(dirname "$0")/_init.sh"
# shellcheck source=scripts/e2e/_nat.sh
source "$(dirname "$0")/_nat.sh"

none() {
    FILTER='    - {name: in, from: wan, to: lan, state: new, action: accept}' translate <<'YAML'
  - {name: plain, type: none, from: lan, to: wan, destination: [203.0.113.10, "2001:db8:113::10"]}
  - {name: out, type: masquerade, from: lan, to: wan}
  - {name: not-him, type: none, from: wan, source: 203.0.113.11}
  - {name: web, type: dnat, from: wan, proto: tcp, destination: 203.0.113.1, dport: 8080, to_address: 10.10.0.2, to_port: 80}
YAML
    start_lab
    more wan 203.0.113.11 2001:db8:113::11
    www wan
    www lan
    assert_equal "page" "$(fetch lan http://203.0.113.10/)" "hello from wan"
    assert_equal "whom the exempt server saw" "$(sees wan)" 10.10.0.2
    assert_equal "page" "$(fetch lan http://203.0.113.11/)" "hello from wan"
    assert_equal "whom another saw" "$(sees wan)" 203.0.113.1
    assert_equal "page, IPv6" "$(fetch lan 'http://[2001:db8:113::10]/')" "hello from wan"
    assert_equal "whom the exempt server saw, IPv6" "$(sees wan)" fd10:10::2
    assert_equal "page, IPv6" "$(fetch lan 'http://[2001:db8:113::11]/')" "hello from wan"
    assert_equal "whom another saw, IPv6" "$(sees wan)" 2001:db8:113::1
    assert_equal "the forwarded port" "$(fetch wan --interface 203.0.113.10 http://203.0.113.1:8080/)" "hello from lan"
    assert_fails "the forwarded port for who is exempt" fetch wan --interface 203.0.113.11 --max-time 1.5 http://203.0.113.1:8080/
    assert_equal "what he may reach untranslated" "$(fetch wan --interface 203.0.113.11 http://10.10.0.2/)" "hello from lan"
}

on_workers none
