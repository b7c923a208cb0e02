#!/usr/bin/env bash
# A port forward: wan reaches a server in lan through the gateway's address; a port that is not forwarded is dropped and counted.
#   wan 203.0.113.10 -- 203.0.113.1:8080 [dnat to 10.10.0.2:80] -- lan 10.10.0.2
# shellcheck source=scripts/e2e/_init.sh
source "$(dirname "$0")/_init.sh"

config <<'YAML'
interfaces:
  lan: {device: "net_tap0,iface=dlan", zone: lan, addresses: [10.10.0.1/24]}
  wan: {device: "net_tap1,iface=dwan", zone: wan, addresses: [203.0.113.1/24]}
nat:
  - {name: web, type: dnat, from: wan, proto: tcp, destination: 203.0.113.1, dport: 8080, to_address: 10.10.0.2, to_port: 80}
policy:
  default: drop
  rules:
    - {name: established, state: [established, related], action: accept}
    - {name: web-in, from: wan, to: lan, proto: tcp, destination: 10.10.0.2, dport: 80, state: new, action: accept}
YAML
start_lab
www lan

assert_equal "web page through the forward" "$(fetch wan http://203.0.113.1:8080/)" "hello from lan"
assert_match "the server's view" "$(cat "$LAB_DIR/http-lan-80.log")" '^203\.0\.113\.10 '
assert_match "the connection table" "$(ctl conntrack list -o nf_conntrack)" \
    'src=203\.0\.113\.10 dst=203\.0\.113\.1 sport=[0-9]+ dport=8080 .*src=10\.10\.0\.2 dst=203\.0\.113\.10 sport=80 dport=[0-9]+'

scrape >"$LAB_DIR/before"
assert_fails "a port that is not forwarded" fetch wan --max-time 1.5 http://203.0.113.1:8081/
assert_moved 1 "$LAB_DIR/before" dropped_packets_total reason=policy_default
assert_equal "web page after the refusal" "$(fetch wan http://203.0.113.1:8080/)" "hello from lan"
