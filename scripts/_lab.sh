# shellcheck shell=bash
# A lab: network namespaces around one sluiced, with its programs. To be sourced after _lib.sh.
#
#   client side  eth0 == net_tap port ==  sluiced in gw  == net_tap port == eth0  server side
#
# net_tap makes a kernel interface per port in the gateway's namespace. plug() moves it to where a real host would be at the
# other end of the cable and gives it a MAC address of its own: the port keeps the one that the interface was born with.
#
# LAB names the lab and prefixes its namespaces, LAB_DIR holds its logs, CONFIG is sluiced's YAML.

LAB_PIDS=()

# Makes namespaces: loopback up, forwarding off (a kernel that forwards beside sluiced would hide its faults), addresses
# usable at once.
make_ns() {
    local ns
    for ns in "$@"; do
        ip netns add "$LAB-$ns"
        echo "$LAB-$ns" >>"$LAB_DIR/namespaces"
        in_ns "$ns" sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0 \
            net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0 \
            net.ipv6.conf.default.dad_transmits=0 net.ipv6.conf.default.router_solicitations=0
        ip -n "$LAB-$ns" link set lo up
    done
}

# in_ns NS COMMAND…: runs it there.
in_ns() {
    local ns=$1
    shift
    ip netns exec "$LAB-$ns" "$@"
}

# spawn NS LOG COMMAND…: runs it there in the background; its process id is in SPAWNED.
spawn() {
    local ns=$1 log=$2
    shift 2
    ip netns exec "$LAB-$ns" "$@" >"$LAB_DIR/$log" 2>&1 </dev/null &
    SPAWNED=$!
    LAB_PIDS+=("$SPAWNED")
    # With its start time, so that a later --down ends this process and none that got its number since.
    echo "$SPAWNED $(start_time "$SPAWNED")" >>"$LAB_DIR/pids"
}

start_time() { cut -d' ' -f22 "/proc/$1/stat" 2>/dev/null || echo gone; }

# Ends the lab's processes, last started first, and waits for them.
end_processes() {
    local pid started i
    [[ -f $LAB_DIR/pids ]] || return 0
    while read -r pid started; do
        [[ $(start_time "$pid") == "$started" ]] || continue
        kill "$pid" 2>/dev/null || continue
        for ((i = 0; i < 100; i++)); do
            [[ $(start_time "$pid") == "$started" && $(process_state "$pid") != Z ]] || continue 2
            sleep 0.05
        done
        say "process $pid did not end on SIGTERM within 5 s"
        kill -KILL "$pid" 2>/dev/null || true
    done < <(tac "$LAB_DIR/pids")
    rm -f "$LAB_DIR/pids"
    for pid in ${LAB_PIDS[@]+"${LAB_PIDS[@]}"}; do wait "$pid" 2>/dev/null || true; done
    LAB_PIDS=()
}

process_state() { awk '/^State/ { print $2 }' "/proc/$1/status" 2>/dev/null || true; }

remove_lab() {
    end_processes
    local ns
    [[ -f $LAB_DIR/namespaces ]] || return 0
    while read -r ns; do ip netns delete "$ns" 2>/dev/null || true; done <"$LAB_DIR/namespaces"
    rm -f "$LAB_DIR/namespaces"
}

# wait_for SECONDS COMMAND…: until it succeeds.
wait_for() {
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < end)) || return 1
        sleep 0.05
    done
}

# plug DEV NS MAC ADDRESS…: the other end of port DEV becomes eth0 of NS.
plug() {
    local dev=$1 ns=$2 mac=$3
    shift 3
    wait_for 20 ip -n "$LAB-gw" link show dev "$dev" || { say "sluiced made no interface $dev"; return 1; }
    ip -n "$LAB-gw" link set "$dev" netns "$LAB-$ns"
    ip -n "$LAB-$ns" link set "$dev" name eth0
    ip -n "$LAB-$ns" link set eth0 address "$mac"
    ip -n "$LAB-$ns" link set eth0 up
    local address
    for address in "$@"; do
        case $address in
        *:*) ip -n "$LAB-$ns" address add "$address" dev eth0 nodad ;;
        *) ip -n "$LAB-$ns" address add "$address" dev eth0 ;;
        esac
    done
}

# gateway NS ADDRESS…: default routes.
gateway() {
    local ns=$1 via
    shift
    for via in "$@"; do ip -n "$LAB-$ns" route add default via "$via"; done
}

# Starts sluiced with $CONFIG in namespace gw; SLUICED is its process.
launch_sluiced() {
    spawn gw sluiced.log "$BIN/sluiced" --config "$CONFIG"
    SLUICED=$SPAWNED
}

sluiced_runs() { [[ -d /proc/$SLUICED && $(process_state "$SLUICED") != Z ]]; }

# The client's command, on the lab's socket.
ctl() { "$BIN/sluicectl" --socket "$SOCKET" "$@"; }

scrape() { in_ns gw curl -fsS --max-time 5 http://127.0.0.1:9477/metrics; }

# metric NAME [LABEL=VALUE]…: the sum of the samples of sluice_NAME that carry these labels, 0 where there is none.
# Reads a scrape from standard input with --stdin in front. Fails, and prints nothing, where there is no scrape.
metric() {
    local name page source=(scrape)
    if [[ $1 == --stdin ]]; then
        source=(cat)
        shift
    fi
    name=$1
    shift
    page=$("${source[@]}") || return 1
    awk -v name="sluice_$name" -v want="$*" '
        BEGIN { n = split(want, w, " "); for (i = 1; i <= n; i++) { eq = index(w[i], "="); w[i] = substr(w[i], 1, eq) "\"" substr(w[i], eq + 1) "\"" } }
        /^#/ { next }
        { brace = index($0, "{"); key = brace ? substr($0, 1, brace - 1) : $1 }
        key != name { next }
        { labels = brace ? "," substr($0, brace + 1, index($0, "}") - brace - 1) "," : ","
          for (i = 1; i <= n; i++) if (!index(labels, "," w[i] ",")) next
          sum += $NF }
        END { printf "%.0f\n", sum }' <<<"$page"
}

# serve NS http PORT DIRECTORY: a web server on both IP versions that logs who asks.
serve() {
    local ns=$1 kind=$2 port=$3
    shift 3
    spawn "$ns" "$kind-$ns-$port.log" "$PYTHON" -u "$ROOT/scripts/serve.py" "$kind" "$port" "$@"
    wait_for 10 grep -q '^ready$' "$LAB_DIR/$kind-$ns-$port.log" || { say "the $kind server in $ns did not start"; return 1; }
}
