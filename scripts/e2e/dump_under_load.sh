#!/usr/bin/env bash
# Watching stalls nothing: 60,000 connections are listed again and again by two clients at once, followed and saved, while
# pings go through: each is answered and each list is whole. How long bursts took is printed, alone and watched.
# (scripts/bench --cases dump measures the same at full load with a million.)
#   lan 10.10.0.2 -- [accept] -- wan 203.0.113.10
# shellcheck source=scripts/e2e/_init.sh
source "$(dirname "$0")/_init.sh"
CONNECTIONS=60000

config <<'YAML'
interfaces:
  lan: {device: "net_tap0,iface=dlan", zone: lan, addresses: [10.10.0.1/24]}
  wan: {device: "net_tap1,iface=dwan", zone: wan, addresses: [203.0.113.1/24]}
policy:
  default: drop
  rules:
    - {name: established, state: [established, related], action: accept}
    - {name: lan-out, from: lan, to: wan, state: new, action: accept}
YAML
start_lab

# The table comes from a file, as after a restart: one source port and server port for each connection.
awk -v n=$CONNECTIONS 'BEGIN {
    printf "{\"format\":\"sluice-conntrack\",\"version\":1,\"saved\":0,\"connections\":%d}\n", n
    for (i = 0; i < n; i++) {
        sport = 1024 + i % 60000; dport = 1 + int(i / 60000)
        way = "{\"src\":\"%s\",\"dst\":\"%s\",\"sport\":%d,\"dport\":%d}"
        a = sprintf(way, "10.10.0.99", "203.0.113.99", sport, dport); b = sprintf(way, "203.0.113.99", "10.10.0.99", dport, sport)
        printf "{\"proto\":17,\"timeout\":3600,\"original\":%s,\"reply\":%s,\"replied\":true,\"assured\":true,\"start\":0}\n", a, b
    }
}' >"$LAB_DIR/table"
assert_equal "restore" "$(ctl conntrack restore "$LAB_DIR/table")" "$CONNECTIONS of $CONNECTIONS connections restored"

# bursts FILE: how many bursts a scrape counts, and how many of them took longer than 0.5 ms.
bursts() { awk '/^sluice_burst_seconds_count/ { n = $2 } /le="0.000512"/ { below = $2 } END { print n, n - below }' "$1"; }

# slow WHAT: of a million bursts while WHAT went on, how many took longer than 0.5 ms; in SLOW.
slow() {
    local before_n before_slow n s
    read -r before_n before_slow < <(bursts "$LAB_DIR/before")
    read -r n s < <(bursts "$LAB_DIR/after")
    SLOW=$(((s - before_slow) * 1000000 / (n - before_n + 1)))
    say "$1: $((n - before_n)) bursts, of a million $SLOW took longer than 0.5 ms"
}

ping_through() { pings lan 2000 203.0.113.10 -i 0.001; }
pings lan 1 203.0.113.10

scrape >"$LAB_DIR/before"
ping_through
scrape >"$LAB_DIR/after"
slow "nobody watches"

list() {
    local part=$1
    while [[ ! -e $LAB_DIR/enough ]]; do
        # The pings are in the table too.
        (($(ctl conntrack list -d 203.0.113.99 | wc -l) == CONNECTIONS)) || return 1
        echo >>"$LAB_DIR/lists-$part"
    done
}
spawn gw events.log "$BIN/sluicectl" --socket "$SOCKET" conntrack events
scrape >"$LAB_DIR/before"
list 1 &
one=$!
list 2 &
two=$!
ping_through
assert "save" ctl conntrack save "$LAB_DIR/saved"
touch "$LAB_DIR/enough"
wait $one || fail "a list was not whole"
wait $two || fail "a list was not whole"
scrape >"$LAB_DIR/after"
slow "two clients list, one follows, one saves"
assert_at_least "lists meanwhile" "$(cat "$LAB_DIR"/lists-* | wc -l)" 2
assert_at_least "connections in the file" "$(wc -l <"$LAB_DIR/saved")" $((CONNECTIONS + 1))
assert_equal "dropped for want of time" "$(metric --stdin dropped_packets_total reason=handover_full <"$LAB_DIR/after")" 0
