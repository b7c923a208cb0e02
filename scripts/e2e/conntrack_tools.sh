#!/usr/bin/env bash
# sluicectl conntrack as conntrack-tools users know it: events while a client fetches and pings, then get, create, update,
# delete, and a table that survives a restart.
#   lan 10.10.0.2 -- [masquerade to 203.0.113.1, mark 0x10] -- wan 203.0.113.10
# shellcheck source=scripts/e2e/_init.sh
source "$(dirname "$0")/_init.sh"

config <<'YAML'
interfaces:
  lan: {device: "net_tap0,iface=dlan", zone: lan, addresses: [10.10.0.1/24]}
  wan: {device: "net_tap1,iface=dwan", zone: wan, addresses: [203.0.113.1/24]}
nat:
  - {name: out, type: masquerade, from: lan, to: wan}
policy:
  default: drop
  rules:
    - {name: established, state: [established, related], action: accept}
    - {name: mark, from: lan, set_mark: 0x10/0xff, action: continue}
    - {name: lan-out, from: lan, to: wan, state: new, action: accept}
YAML
start_lab
www wan

spawn gw events.log "$BIN/sluicectl" --socket "$SOCKET" conntrack events
spawn gw ends.log "$BIN/sluicectl" --socket "$SOCKET" conntrack events -e DESTROY -p icmp -o timestamp,extended
listeners() { (($(metric conntrack_listeners) == $1)); }
wait_for 10 listeners 2 || fail "the events are not listened to"

assert_equal "the page" "$(fetch lan http://203.0.113.10/)" "hello from wan"
pings lan 1 203.0.113.10
tuple='src=10\.10\.0\.2 dst=203\.0\.113\.10 sport=[0-9]+ dport=80'
saw() { grep -qE -- "$2" "$LAB_DIR/$1"; }
for event in '    \[NEW\] tcp +6 [0-9]+ SYN_SENT '"$tuple"' \[UNREPLIED\] .* mark=16$' \
    ' \[UPDATE\] tcp +6 [0-9]+ ESTABLISHED '"$tuple"' .*\[ASSURED\] mark=16$' \
    '    \[NEW\] icmp +1 [0-9]+ src=10\.10\.0\.2 dst=203\.0\.113\.10 type=8 '; do
    wait_for 10 saw events.log "^$event" || fail "no event '$event' in:"$'\n'"$(cat "$LAB_DIR/events.log")"
done

# The connection as it is listed is found by either of its tuples.
line=$(ctl conntrack list -p tcp --dport 80 -m 0x10/0xff)
assert_match "the fetch" "$line" "^tcp +6 [0-9]+ (TIME_WAIT|CLOSE) $tuple packets=[0-9]+ .*\[ASSURED\] mark=16 use=1$"
sport=$(sed -E 's/.*sport=([0-9]+) dport=80 .*/\1/' <<<"$line")
found=$(ctl conntrack get -p tcp -s 10.10.0.2 -d 203.0.113.10 --sport "$sport" --dport 80 2>"$LAB_DIR/err")
assert_match "get" "$found" "sport=$sport dport=80 "
assert_match "what get says besides" "$(cat "$LAB_DIR/err")" '1 flow entries have been shown\.$'
reply=$(sed -E 's/.*dport=([0-9]+) packets=[0-9]+ bytes=[0-9]+ \[ASSURED.*/\1/' <<<"$line")
assert "get by the reply" ctl conntrack get -p tcp -r 203.0.113.10 -q 203.0.113.1 --reply-port-src 80 --reply-port-dst "$reply"
assert_fails "get of nothing" ctl conntrack get -p tcp -s 10.10.0.2 -d 203.0.113.10 --sport 1 --dport 80

# Each filter finds one of the two, or none.
for filter in '--reply-port-src 80' "--reply-port-dst $reply" '-u ASSURED' '--any-nat 203.0.113.1 -p tcp' '-n -p tcp' \
    '--icmp-type 8' '--icmp-type 8 --icmp-code 0' '-j -p icmp' '-s 10.10.0.0 --mask-src 255.255.255.0 -p icmp'; do
    # shellcheck disable=SC2086 # words
    assert_equal "how many $filter finds" "$(ctl conntrack count $filter)" 1
done
for filter in '-u EXPECTED' '--icmp-type 0' '--srckey 1' '--any-nat 203.0.113.10' '--reply-zone 7'; do
    # shellcheck disable=SC2086 # words
    assert_equal "how many $filter finds" "$(ctl conntrack count $filter)" 0
done
assert_fails "a status that no connection has" ctl conntrack list -u FIXED_TIMEOUT
assert_match "why" "$(cat "$LAB_DIR/out")" 'no connection is FIXED_TIMEOUT'

# A rule that only marks is counted too: it has seen at least the first packets of both.
assert_at_least "packets that were marked" "$(metric rule_packets_total rule=mark)" 2

assert "create" ctl conntrack create -p udp -s 10.10.0.2 -d 203.0.113.10 --sport 7 --dport 7 -t 600 -m 5
assert_fails "create again" ctl conntrack create -p udp -s 10.10.0.2 -d 203.0.113.10 --sport 7 --dport 7 -t 600
assert "update" ctl conntrack update -p udp --dport 7 -m 0x20/0x20 -t 900 -u ASSURED
assert_match "the update" "$(ctl conntrack list -p udp --dport 7)" '^udp +17 (900|89[0-9]) .*\[ASSURED\] mark=37 use=1$'

deleted=$(ctl conntrack delete -p icmp 2>"$LAB_DIR/err")
assert_match "delete" "$deleted" '^icmp +1 '
assert_match "what delete says besides" "$(cat "$LAB_DIR/err")" ': 1 flow entries have been deleted\.$'
assert_fails "delete of nothing" ctl conntrack delete -p icmp
ended='^\[[0-9]+\.[0-9]{6}\]	\[DESTROY\] ipv4 +2 icmp .* delta-time=[0-9]+ \[start=.*\] \[stop=.*\] reason=flushed$'
wait_for 10 saw ends.log "$ended" || fail "no end of the ping in:"$'\n'"$(cat "$LAB_DIR/ends.log")"
assert_equal "ends of anything else" "$(grep -vcE ' icmp ' "$LAB_DIR/ends.log")" 0
assert_equal "events that were lost" "$(metric conntrack_events_lost_total)" 0

# A restart: what was saved is there again, with what was left of its timeouts.
assert_match "save" "$(ctl conntrack save "$LAB_DIR/table")" '^2 connections saved to '
end_processes
launch_sluiced
wait_for 30 answered_or_gone || fail "sluiced did not answer again"
# Since when each is there, as JSON says it; the file's first line has none.
starts() { sed -nE 's/.*"proto":([0-9]+).*"start":([0-9]+).*/\1 \2/p' | sort; }
assert_equal "starts in the file" "$(starts <"$LAB_DIR/table" | wc -l)" 2
assert_equal "connections after the restart" "$(ctl conntrack count)" 0
assert_equal "restore" "$(ctl conntrack restore "$LAB_DIR/table")" "2 of 2 connections restored"
assert_match "the fetch again" "$(ctl conntrack list -p tcp)" "^tcp +6 [0-9]+ (TIME_WAIT|CLOSE) src=10\.10\.0\.2 dst=203\.0\.113\.10 sport=$sport "
assert_match "the other again" "$(ctl conntrack list -p udp)" '^udp +17 (900|8[0-9]{2}) .*\[ASSURED\] mark=37 use=1$'
assert_equal "since when" "$(ctl --json conntrack list | starts)" "$(starts <"$LAB_DIR/table")"
sed -i '3s/10\.10\.0\.2/10.10.0.256/' "$LAB_DIR/table"
assert_fails "a bad line" ctl conntrack restore "$LAB_DIR/table"
assert_match "which one" "$(cat "$LAB_DIR/out")" "/table:3: "
