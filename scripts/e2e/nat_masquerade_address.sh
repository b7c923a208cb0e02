#!/usr/bin/env bash
# The address of masquerade changes under traffic: its connections end at once, are counted in the log, and new ones have the new
# address. First the kernel takes the address away, then a reload does.
#   lan 10.10.0.2 -- [masquerade to 203.0.113.1, .5, .7] -- wan 203.0.113.10
# shellcheck source=scripts/e2e/_init.sh
source "$(dirname "$0")/_init.sh"
# shellcheck source=scripts/e2e/_nat.sh
source "$(dirname "$0")/_nat.sh"

address() {
    translate <<'YAML'
  - {name: out, type: masquerade, from: lan, to: wan}
YAML
    start_lab
    ip -n "$LAB-wan" route del default
    www wan
    echo_server wan 7
    head -c 20000000 /dev/urandom >"$LAB_DIR/www-wan/20mb"
    assert_equal "connections that are held" "$(hold lan held 12 203.0.113.10 7)" 12
    spawn lan download.log curl -sS --max-time 6 --limit-rate 500k http://203.0.113.10/20mb -o "$LAB_DIR/20mb"
    local download=$SPAWNED
    wait_for 10 test -s "$LAB_DIR/20mb" || fail "the download does not begin"
    assert_equal "connections that work" "$(alive held)" 12
    pings lan 2 203.0.113.10

    scrape >"$LAB_DIR/before"
    local before
    before=$(ctl conntrack count)
    ip -n "$LAB-gw" address del 203.0.113.1/24 dev wan
    wait_for 5 grep -q 'address 203\.0\.113\.1 of wan is gone: [0-9]* connections ended' "$LAB_DIR/sluiced.log" ||
        fail "the log does not say that the address is gone"
    assert_moved 13 "$LAB_DIR/before" conntrack_events_total event=address_gone
    assert_equal "the number in the log" \
        "$(sed -n 's/.*203\.0\.113\.1 of wan is gone: \([0-9]*\) .*/\1/p' "$LAB_DIR/sluiced.log")" \
        "$(($(metric conntrack_events_total event=address_gone) - $(metric --stdin conntrack_events_total event=address_gone <"$LAB_DIR/before")))"
    assert_no_match "the table" "$(ctl conntrack list)" 'dst=203\.0\.113\.1 .*dport='
    ip -n "$LAB-gw" address add 203.0.113.5/24 dev wan
    wait_for 5 reaches lan 203.0.113.10 7 || fail "nobody is reached after the change"
    assert_equal "page after the change" "$(fetch lan http://203.0.113.10/)" "hello from wan"
    assert_equal "whom the server saw" "$(sees wan)" 203.0.113.5
    assert_equal "held connections that still work" "$(alive held)" 0
    assert_fails "the download" wait "$download"
    pings lan 2 203.0.113.10

    # The same by a reload.
    assert_equal "connections that are held" "$(hold lan again 5 203.0.113.10 7)" 5
    WAN_ADDRESSES='203.0.113.7/24, "2001:db8:113::1/64"' translate <<'YAML'
  - {name: out, type: masquerade, from: lan, to: wan}
YAML
    # The kernel's was not of the configuration, and stays until somebody takes it.
    ip -n "$LAB-gw" address del 203.0.113.5/24 dev wan
    assert "reload" ctl reload "$CONFIG"
    wait_for 5 grep -q 'address 203\.0\.113\.5 of wan is gone: [0-9]* connections ended' "$LAB_DIR/sluiced.log" ||
        fail "the log does not say that the address is gone"
    wait_for 5 reaches lan 203.0.113.10 7 || fail "nobody is reached after the reload"
    assert_equal "page after the reload" "$(fetch lan http://203.0.113.10/)" "hello from wan"
    assert_equal "whom the server saw" "$(sees wan)" 203.0.113.7
    assert_equal "held connections that still work" "$(alive again)" 0

    assert_equal "connections that are held" "$(hold lan third 5 203.0.113.10 7)" 5
    WAN_ADDRESSES='203.0.113.8/24, "2001:db8:113::1/64"' translate <<'YAML'
  - {name: out, type: masquerade, from: lan, to: wan}
YAML
    assert "reload with another address" ctl reload "$CONFIG"
    wait_for 5 grep -q 'address 203\.0\.113\.7 of wan is gone: [0-9]* connections ended' "$LAB_DIR/sluiced.log" ||
        fail "the log does not say that the configured address is gone"
    wait_for 5 reaches lan 203.0.113.10 7 || fail "nobody is reached after the second reload"
    assert_equal "held connections that still work" "$(alive third)" 0
}

on_workers address
