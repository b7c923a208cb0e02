#!/usr/bin/env bash
# Hairpin: a lan client uses the public address of a server in its own lan. The forward serves it by itself, though it is a rule
# for wan, and the server sees the public address; with `hairpin: off` it does not, but with a rule for lan and masquerade from lan
# to lan beside it.
#   sw: bridge -- a 10.10.0.2 (server), b 10.10.0.3 (client), and the port of lan; wan 203.0.113.10
# shellcheck source=scripts/e2e/_init.sh
source "$(dirname "$0")/_init.sh"
# shellcheck source=scripts/e2e/_nat.sh
source "$(dirname "$0")/_nat.sh"

forward() {
    FILTER='    - {name: web-in, from: [lan, wan], to: lan, proto: tcp, dport: 80, state: new, action: accept}' translate <<YAML
  - {name: web, type: dnat, from: [$1], proto: tcp, destination: 203.0.113.1, dport: 8080, to_address: 10.10.0.2, to_port: 80, hairpin: $2}
${3:-}
YAML
}

hairpin() {
    forward wan auto
    make_ns gw sw a b wan
    start_sluiced
    plug dlan sw 02:00:00:00:00:fe
    plug_wan
    ip -n "$LAB-sw" link add br0 type bridge
    ip -n "$LAB-sw" link set br0 up
    ip -n "$LAB-sw" link set eth0 master br0
    local host ns
    for host in a:2 b:3; do
        ns=${host%:*}
        ip -n "$LAB-sw" link add name "to-$ns" type veth peer name eth0 netns "$LAB-$ns"
        ip -n "$LAB-sw" link set "to-$ns" master br0 up
        # The frames of a veth carry no finished checksum, and the tap's end has nobody to finish it.
        in_ns "$ns" ethtool -K eth0 tx off tso off gso off gro off >/dev/null
        ip -n "$LAB-$ns" address add "10.10.0.${host#*:}/24" dev eth0
        ip -n "$LAB-$ns" link set eth0 up
        gateway "$ns" 10.10.0.1
    done
    www a
    assert_equal "straight" "$(fetch b http://10.10.0.2/)" "hello from a"
    assert_equal "by the public address" "$(fetch b http://203.0.113.1:8080/)" "hello from a"
    assert_equal "whom the server saw" "$(sees a)" 203.0.113.1
    assert_equal "the server itself" "$(fetch a http://203.0.113.1:8080/)" "hello from a"
    assert_equal "from wan" "$(fetch wan http://203.0.113.1:8080/)" "hello from a"
    assert_equal "whom the server saw" "$(sees a)" 203.0.113.10

    forward wan off
    assert "reload" ctl reload "$CONFIG"
    assert_fails "hairpin: off" fetch b --max-time 2 http://203.0.113.1:8080/
    assert_equal "from wan" "$(fetch wan http://203.0.113.1:8080/)" "hello from a"

    forward 'lan, wan' off
    assert "reload" ctl reload "$CONFIG"
    assert_fails "a rule for lan, of which the server answers past the gateway" fetch b --max-time 2 http://203.0.113.1:8080/

    forward 'lan, wan' off '  - {name: hairpin, type: masquerade, from: lan, to: lan}'
    assert "reload with the masquerade rule" ctl reload "$CONFIG"
    assert "flush" ctl conntrack flush
    assert_equal "with masquerade from lan to lan" "$(fetch b http://203.0.113.1:8080/)" "hello from a"
    assert_equal "whom the server saw" "$(sees a)" 10.10.0.1
}

on_workers hairpin
