# shellcheck shell=bash
# The peers of scripts/bench --peers, each on one CPU with the same trace as sluiced. To be sourced after _lab.sh.
#
#   Open vSwitch   pcap port 0 -- lan [ userspace datapath, ct ] wan -- pcap port 1
#   the kernel     testpmd, first CPU: pcap ports -- af_packet == veth lan, wan [ nft, second CPU ] to_lan, to_wan: ifb, which drop all
#
# Both leave what they measured in RATE, as arguments of `sluice-bench round`, and in VOID why it does not count.
# shellcheck disable=SC2034

ovs() {
    local program=$1
    shift
    case $program in
    vsctl) ovs-vsctl --timeout=60 --db="unix:$LAB_DIR/ovs/db.sock" "$@" ;;
    appctl) ovs-appctl --timeout=60 --target="$LAB_DIR/ovs/vswitchd.ctl" "$@" ;;
    ofctl) ovs-ofctl "$1" "unix:$LAB_DIR/ovs/br0.mgmt" "${@:2}" ;;
    esac
}

run_ovs() {
    local case=$1 flows=$2 workers=$3 rules=$4 dir=$LAB_DIR/ovs side n=0 mask=$((1 << CPU[1])) vswitchd queues
    (($3 == 1)) || mask=$((mask | 1 << CPU[0]))
    # A port's pool is sized by the queues that it is asked to have, 4,096 descriptors each; it gets as many as the device has.
    queues=$((MBUFS / 2 / 4096 + 16))
    mkdir -p "$dir"
    rm -f "$dir"/*
    make_ns gw
    ovsdb-tool create "$dir/conf.db" /usr/share/openvswitch/vswitch.ovsschema
    export OVS_RUNDIR=$dir OVS_DBDIR=$dir OVS_LOGDIR=$dir
    spawn gw ovsdb.log ovsdb-server "$dir/conf.db" --remote="punix:$dir/db.sock" --unixctl="$dir/ovsdb.ctl"
    wait_for 20 test -S "$dir/db.sock" || { ovs_says "has no database"; return 1; }
    ovs vsctl --no-wait init || return 1
    ovs vsctl --no-wait set Open_vSwitch . other_config:dpdk-init=true other_config:dpdk-extra="--in-memory --no-pci" \
        other_config:dpdk-lcore-mask="$(printf %x $((1 << CPU[0])))" other_config:pmd-cpu-mask="$(printf %x $mask)" \
        other_config:per-port-memory=true
    vswitchd=$(command -v /usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk || command -v ovs-vswitchd)
    spawn gw vswitchd.log "$vswitchd" "unix:$dir/db.sock" --unixctl="$dir/vswitchd.ctl"
    ovs vsctl add-br br0 -- set Bridge br0 datapath_type=netdev fail_mode=secure || return 1
    [[ $case != new-connections ]] ||
        ovs vsctl -- --id=@dp create Datapath datapath_version=0 -- set Open_vSwitch . datapaths:netdev=@dp -- \
            add-zone-tp netdev zone=0 udp_first=1 udp_single=1 udp_multiple=1 >/dev/null
    # Its defaults refuse fragments of less than 1,200 bytes, and more than a thousand at once.
    [[ $case != fragments ]] ||
        { ovs appctl dpctl/ipf-set-min-frag v4 400 && ovs appctl dpctl/ipf-set-max-nfrags 5000; } >/dev/null
    "$BIN/sluice-bench" config --system ovs --case "$case" "$([[ $rules == - ]] && echo --rules=10 || echo "--rules=$rules")" >"$dir/flows"
    ovs ofctl add-flows "$dir/flows" || return 1
    for side in lan wan; do
        ovs vsctl add-port br0 $side -- set Interface $side type=dpdk ofport_request=$((n + 1)) \
            options:n_rxq="$queues" options:n_rxq_desc=4096 options:dpdk-devargs="\"$(pcap_port $n $side "$workers")\"" || return 1
        n=$((n + 1))
    done
    case $case in
    forward | new-connections) sleep 2 ;;
    *) wait_for 60 ovs_has "$flows" || VOID=(--void "Open vSwitch has $(ovs_connections) connections, not $flows") ;;
    esac
    sleep 1
    local first last start end
    first=$(ovs_sent) start=${EPOCHREALTIME/./}
    sleep "$SECONDS_EACH"
    last=$(ovs_sent) end=${EPOCHREALTIME/./}
    remove_lab
    unset OVS_RUNDIR OVS_DBDIR OVS_LOGDIR
    RATE=(--mpps "$(awk -v n=$((last - first)) -v us=$((end - start)) 'BEGIN { printf "%.4f\n", n / us }')")
}

ovs_connections() { ovs appctl dpctl/ct-get-nconns; }
ovs_has() { (($(ovs_connections) * 100 >= $1 * 99)); }
# Packets sent by both ports.
ovs_sent() { ovs ofctl dump-ports | awk '/tx pkts=/ { match($0, /tx pkts=[0-9]+/); n += substr($0, RSTART + 8, RLENGTH - 8) } END { printf "%.0f\n", n }'; }
ovs_says() {
    tail -n 20 "$LAB_DIR"/{ovsdb,vswitchd}.log >&2 || true
    say "Open vSwitch $*"
}

# Limits that only the first namespace can set; give_back_kernel undoes it.
CONNTRACK=/proc/sys/net/netfilter
KERNEL_LIMITS=()

# raise FILE VALUE: what the file of a sysctl says, at least VALUE.
raise() {
    local before
    before=$(cat "$1")
    ((before < $2)) || return 0
    KERNEL_LIMITS+=("$1 $before")
    echo "$2" >"$1"
}

run_kernel() {
    local case=$1 flows=$2 rules=$4 side thread n=0 most=$(($2 + $2 / 4 + 65536)) log=$LAB_DIR/load.log
    make_ns gw load || return 1
    for side in lan wan; do
        ip -n "$LAB-gw" link add $side address "02:70:63:61:70:0$n" type veth peer name $side netns "$LAB-load"
        ip -n "$LAB-gw" link add to_$side type ifb
        ip -n "$LAB-gw" link set $side up
        ip -n "$LAB-gw" link set to_$side up
        ip -n "$LAB-load" link set $side up
        n=$((n + 1))
    done
    in_ns gw sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.lan.rp_filter=0 net.ipv4.conf.wan.rp_filter=0 \
        net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
    ip -n "$LAB-gw" route add 10.0.0.0/8 dev to_lan
    ip -n "$LAB-gw" route add 198.18.0.0/15 dev to_wan
    ip -n "$LAB-gw" route add 2001:db8:a::/48 dev to_lan
    ip -n "$LAB-gw" route add 2001:db8:b::/48 dev to_wan
    # NAPI in threads: what the first CPU puts on the cable, the second forwards, and what finds the ring full is dropped.
    local threads
    threads=$(napi_threads)
    for side in lan wan; do
        in_ns gw ethtool -K $side gro on
        in_ns load ethtool -K $side tso off # else veth leaves NAPI out
        in_ns gw sh -c "echo 1 >/sys/class/net/$side/threaded"
    done
    for thread in $(comm -13 <(echo "$threads") <(napi_threads)); do taskset -pc "${CPU[1]}" "$thread" >/dev/null; done
    "$BIN/sluice-bench" config --system kernel --case "$case" "$([[ $rules == - ]] && echo --rules=10 || echo "--rules=$rules")" >"$LAB_DIR/nft"
    in_ns gw nft -f "$LAB_DIR/nft" || return 1
    raise $CONNTRACK/nf_conntrack_max "$most"
    raise $CONNTRACK/nf_conntrack_buckets "$most"
    # A sender may have as many bytes under way as its socket's buffer has, and with the usual 208 KB it sleeps more than it sends.
    raise /proc/sys/net/core/wmem_default 4194304
    [[ $case != new-connections ]] || in_ns gw sysctl -qw net.netfilter.nf_conntrack_udp_timeout=1 net.netfilter.nf_conntrack_udp_timeout_stream=1

    # Interactive, on a standard input that never ends: its main thread spins otherwise, on the CPU of the load.
    rm -f "$LAB_DIR/stdin"
    mkfifo "$LAB_DIR/stdin"
    # shellcheck disable=SC2016
    spawn load load.log sh -c 'exec 0<>"$0"; exec "$@"' "$LAB_DIR/stdin" dpdk-testpmd --in-memory --no-pci --lcores "0@${CPU[0]},1@${CPU[0]}" \
        --vdev "$(pcap_port 0 lan 1)" --vdev "net_af_packet0,iface=lan,qdisc_bypass=1,framecnt=4096" \
        --vdev "$(pcap_port 1 wan 1)" --vdev "net_af_packet1,iface=wan,qdisc_bypass=1,framecnt=4096" \
        -- -i --forward-mode=io --port-topology=paired --total-num-mbufs="$((MBUFS + 16384))" --no-lsc-interrupt --auto-start
    case $case in
    forward | new-connections) wait_for 60 kernel_sends || { tail -n 5 "$log" >&2; return 1; } ;;
    *) wait_for 90 kernel_has "$flows" || VOID=(--void "the kernel has $(kernel_connections) connections, not $flows") ;;
    esac
    sleep 1
    local first last start end refused
    refused=$(kernel_refused) first=$(kernel_sent) start=${EPOCHREALTIME/./}
    sleep "$SECONDS_EACH"
    last=$(kernel_sent) end=${EPOCHREALTIME/./} refused=$(($(kernel_refused) - refused))
    # Where all that was offered went through, the load was the limit.
    ((refused * 50 >= last - first)) || VOID=(--void "only $refused packets were more than the kernel took: the load is too slow")
    remove_lab
    give_back_kernel
    RATE=(--mpps "$(awk -v n=$((last - first)) -v us=$((end - start)) 'BEGIN { printf "%.4f\n", n / us }')")
}

kernel_connections() { in_ns gw cat $CONNTRACK/nf_conntrack_count; }
kernel_has() { (($(kernel_connections) * 100 >= $1 * 99)); }
# Packets that the two ifb were given.
kernel_sent() { in_ns gw cat /sys/class/net/to_{lan,wan}/statistics/rx_packets | awk '{ n += $1 } END { printf "%.0f\n", n }'; }
# Packets that found no room in the rings of the second CPU.
kernel_refused() { in_ns load cat /sys/class/net/{lan,wan}/statistics/tx_dropped | awk '{ n += $1 } END { printf "%.0f\n", n }'; }
napi_threads() { pgrep '^napi/[lw]an-' | sort || true; }
kernel_sends() { (($(kernel_sent) > 0)); }

give_back_kernel() {
    local file before
    while read -r file before; do
        [[ -z $file ]] || echo "$before" >"$file"
    done < <(printf '%s\n' ${KERNEL_LIMITS[@]+"${KERNEL_LIMITS[@]}"})
    KERNEL_LIMITS=()
}
