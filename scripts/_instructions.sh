#!/usr/bin/env bash
# Instructions per packet of a worker's turns, by load, beside those of bench/instructions.tsv; run by scripts/check.sh instructions.
#   _instructions.sh            fails where a load takes over 2 % more than the file says; ends with 77 where another compiler
#                               wrote that, which says nothing then
#   _instructions.sh --update   writes the file
# Each load runs twice under callgrind, with so many turns and with twice as many: the difference is what the packets cost,
# without what it takes to get there. Counts do not depend on the machine's speed or load; they do on the compiler and, for
# memcpy and the like, on the C library and what the processor can do.
# shellcheck source=scripts/_lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/_lib.sh"

FILE=$ROOT/bench/instructions.tsv
TOLERANCE=2 # percent
TURNS=640   # a multiple of the 64 turns after which the timer wheel does the same again, and of 10
OPENING='new new-rules new-tcp new-snat'
LOADS="stateful snat ipv6 tcp forward $OPENING"
UPDATE='scripts/check.sh instructions --update'

main() {
    local update=${1:-} load work count
    [[ -z $update || $update == --update ]] || die "no option $update: --update"
    command -v valgrind >/dev/null || die "valgrind is missing: scripts/packages"
    cd "$ROOT"
    cargo build --release --locked -q -p sluice-bench
    find_bin
    work=$(mktemp -d)
    # shellcheck disable=SC2064
    trap "rm -rf '$work'" EXIT
    for load in $LOADS; do
        count=$(per_packet "$load" "$work") # which has said what is wrong
        printf '%s\t%s\n' "$load" "$count" >>"$work/counts"
    done
    if [[ $update == --update ]]; then
        {
            echo "# Instructions per packet, by load (bench/src/rig/load.rs). Written by $UPDATE, with"
            echo "# $(rustc --version), $(uname -m)"
            cat "$work/counts"
        } >"$FILE"
        cat "$FILE"
    else
        compare "$work/counts"
    fi
}

# per_packet LOAD DIRECTORY
per_packet() {
    local load=$1 work=$2 flows=1000 turns pids=()
    # More connections begin than live at a time.
    [[ " $OPENING " != *" $load "* ]] || flows=40000
    # Two at once: nothing here depends on time.
    for turns in $TURNS $((2 * TURNS)); do
        valgrind --tool=callgrind --callgrind-out-file=/dev/null \
            "$BIN/sluice-bench" turns "$load" "$flows" "$turns" \
            >"$work/$load.$turns" 2>&1 </dev/null &
        pids+=($!)
    done
    for turns in "${pids[@]}"; do
        wait "$turns" || { cat "$work/$load".* >&2 && die "$load failed"; }
    done
    awk '
        /^packets / { packets = $2 - packets }
        / Collected : / { count = $NF - count }
        END {
            if (packets <= 0 || count <= 0) exit 1
            printf "%.1f\n", count / packets
        }' "$work/$load.$TURNS" "$work/$load.$((2 * TURNS))" || die "$load counted nothing"
}

# compare FILE: a table, and 1 where something is worse.
compare() {
    local code=0
    [[ -f $FILE ]] || die "there is no $FILE: $UPDATE"
    awk -F '\t' -v tolerance="$TOLERANCE" '
        /^#/ { next }
        NR == FNR { before[$1] = $2; next }
        !($1 in before) { printf "%-12s %10s %10.1f            not in the file\n", $1, "-", $2; worse++; next }
        {
            change = ($2 / before[$1] - 1) * 100
            word = change > tolerance ? "worse" : change < -tolerance ? "better" : ""
            printf "%-12s %10.1f %10.1f %+8.2f %%  %s\n", $1, before[$1], $2, change, word
            if (word == "worse") worse++
            if (word == "better") better++
        }
        END { exit worse ? 1 : better ? 2 : 0 }' "$FILE" "$1" || code=$?
    if ! grep -qF "$(rustc --version)" "$FILE"; then
        echo "another compiler wrote the file: $(sed -n '2s/^# //p' "$FILE")"
        return 77
    fi
    case $code in
    1) echo "over $TOLERANCE % worse, or not in the file. Where that is meant, say why in the commit, and: $UPDATE" ;;
    2) echo "over $TOLERANCE % better: keep that with $UPDATE" && code=0 ;;
    esac
    return "$code"
}

main "$@"
