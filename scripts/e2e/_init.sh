# shellcheck shell=bash
# What every scenario starts with. To be sourced; gives, beside scripts/_lab.sh:
#   config <<YAML…      the scenario's configuration; the machine's part (workers, metrics, socket) is put in front
#   start_lab           namespaces lan, gw, wan and sluiced; ports plugged in as eth0, addresses and routes as below
#   on_workers FUNCTION  runs it on one worker and, where there are two CPUs, on two
#   fail, assert_…      concrete outputs and counters; the first that fails ends the scenario with sluiced's log
#
#   lan: 10.10.0.2, fd10:10::2 -- .1 lan [sluiced] wan .1 -- wan: 203.0.113.10, 2001:db8:113::10
#
# A scenario takes 60 seconds at most. WORKERS=1 or 2 before sourcing says how many it wants (default: as many CPUs as there
# are, at most two); HUGEPAGES=auto|off; CONNTRACK='key: value, …' adds to conntrack's section.
# shellcheck source=scripts/_lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../_lib.sh"
# shellcheck source=scripts/_lab.sh
source "$ROOT/scripts/_lab.sh"

SCENARIO=$(basename "$0" .sh)

# The scenario under a time limit: once more, as a child of timeout.
if [[ -z ${SLUICE_E2E_TIMED:-} ]]; then
    [[ $(id -u) == 0 ]] || die "end-to-end scenarios need root"
    SLUICE_E2E_TIMED=1 timeout --kill-after=20 "${E2E_TIMEOUT:-60}" bash "$0" && code=0 || code=$?
    ((code != 124)) || say "$SCENARIO: not done after ${E2E_TIMEOUT:-60} s"
    exit "$code"
fi

export LAB=sl$$
LAB_DIR=$(mktemp -d "${TMPDIR:-/tmp}/sluice-$SCENARIO.XXXXXX")
SOCKET=$LAB_DIR/sluice.sock
CONFIG=$LAB_DIR/sluice.yaml
find_bin
[[ -x $BIN/sluiced ]] || die "no $BIN/sluiced: cargo build --release -p sluice-control"

# Exit code 77 is a scenario that this machine cannot run.
skip() {
    say "$SCENARIO: skipped: $*"
    exit 77
}

mapfile -t E2E_CPUS < <(cpus | head -n "${WORKERS:-2}")
((${#E2E_CPUS[@]} >= ${WORKERS:-1})) || skip "needs ${WORKERS:-1} CPUs"

on_exit() {
    local code=$?
    trap - EXIT
    set +e
    if ((code != 0 && code != 77)); then
        say "---- what $SCENARIO's gateway dropped and handed over"
        scrape 2>&1 | grep -E '^sluice_(dropped_packets|handover_packets|icmp_errors)_total.* [^0]|^curl' >&2
        say "---- sluiced.log of $SCENARIO (the rest is in $LAB_DIR)"
        tail -n 40 "$LAB_DIR/sluiced.log" >&2
    fi
    remove_lab
    ((code != 0 && code != 77)) || rm -rf "$LAB_DIR"
    exit "$code"
}
trap on_exit EXIT
trap 'exit 124' TERM INT

config() {
    {
        prelude
        cat
    } >"$CONFIG"
}

# The part of the configuration that belongs to the machine and not to the scenario.
prelude() {
    cat <<YAML
dataplane: {workers: [$(IFS=,; echo "${E2E_CPUS[*]}")], hugepages: ${HUGEPAGES:-auto}}
metrics: {listen: 127.0.0.1:9477}
control: {socket: $SOCKET}
conntrack: {max: 65536${CONNTRACK:+, $CONNTRACK}}
YAML
}

start_lab() {
    make_ns lan gw wan
    start_sluiced
    plug_lan
    plug_wan
}

start_sluiced() {
    launch_sluiced
    wait_for 30 answered_or_gone || fail "sluiced did not answer within 30 s"
    sluiced_runs || fail "sluiced did not start"
}

answered_or_gone() { ! sluiced_runs || ctl status; }

plug_lan() {
    plug dlan lan 02:00:00:00:00:02 10.10.0.2/24 fd10:10::2/64
    gateway lan 10.10.0.1 fd10:10::1
}

plug_wan() {
    plug dwan wan 02:00:00:00:01:0a 203.0.113.10/24 2001:db8:113::10/64
    gateway wan 203.0.113.1 2001:db8:113::1
}

fail() {
    say "$SCENARIO: $*"
    exit 1
}

# assert WHAT COMMAND…: it succeeds.
assert() {
    local what=$1
    shift
    "$@" >"$LAB_DIR/out" 2>&1 || {
        cat "$LAB_DIR/out" >&2
        fail "$what: failed: $*"
    }
}

# assert_fails WHAT COMMAND…
assert_fails() {
    local what=$1
    shift
    ! "$@" >"$LAB_DIR/out" 2>&1 || {
        cat "$LAB_DIR/out" >&2
        fail "$what: succeeded, but should not: $*"
    }
}

# assert_equal WHAT GOT WANTED
assert_equal() { [[ $2 == "$3" ]] || fail "$1: is '$2', should be '$3'"; }

# assert_match WHAT GOT REGEX: some line of GOT matches the extended regular expression.
assert_match() { grep -qE -- "$3" <<<"$2" || fail "$1: no line matches '$3' in:"$'\n'"$2"; }

assert_no_match() { ! grep -qE -- "$3" <<<"$2" || fail "$1: a line matches '$3' in:"$'\n'"$2"; }

# assert_at_least WHAT NUMBER MINIMUM
assert_at_least() { (($2 >= $3)) || fail "$1: is $2, should be at least $3"; }

# assert_moved MINIMUM BEFORE-FILE METRIC [LABEL=VALUE]…: a metric grew by MINIMUM or more since the scrape in the file.
assert_moved() {
    local minimum=$1 file=$2 before after
    shift 2
    before=$(metric --stdin "$@" <"$file")
    after=$(metric "$@")
    ((after - before >= minimum)) || fail "metric $*: moved from $before to $after, should grow by at least $minimum"
}

# assert_still BEFORE-FILE METRIC [LABEL=VALUE]…: it did not move.
assert_still() {
    local file=$1
    shift
    assert_equal "metric $*" "$(metric "$@")" "$(metric --stdin "$@" <"$file")"
}

# pings NS COUNT TARGET [OPTION]…: every one is answered. The first may wait for address resolution on three hosts.
pings() {
    local ns=$1 count=$2 target=$3
    shift 3
    in_ns "$ns" ping -n -c "$count" -i 0.05 -W 3 "$@" "$target" >"$LAB_DIR/ping" 2>&1 || true
    grep -q " $count received, 0% packet loss" "$LAB_DIR/ping" || fail "ping $target from $ns: $(cat "$LAB_DIR/ping")"
}

fetch() {
    local ns=$1
    shift
    in_ns "$ns" curl -sS --max-time 10 "$@"
}

www() {
    mkdir -p "$LAB_DIR/www-$1"
    echo "hello from $1" >"$LAB_DIR/www-$1/index.html"
    serve "$1" http 80 "$LAB_DIR/www-$1"
}

# on_workers FUNCTION [ARGUMENT]…: runs it on one worker and on two, each in a lab of its own.
on_workers() {
    local number all
    mapfile -t all < <(cpus)
    for number in 1 2; do
        ((number <= ${#all[@]})) || skip "two workers need two CPUs"
        E2E_CPUS=("${all[@]:0:number}")
        "$@" || fail "$* failed on $number workers"
        remove_lab
    done
}
