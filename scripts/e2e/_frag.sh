# shellcheck shell=bash
# What scenarios of fragments share. To be sourced after _init.sh; gives:
#   large_pings NS TARGET…            8,000 and 65,000 bytes, all answered
#   rpc_server NS PORT ADDRESS…       a file server in the manner of NFS over UDP, on each address
#   rpc NS TARGET PORT                reads and writes of 8 KB there, several under way at a time, all answered right
#   large_stream NS SERVER-NS TARGET  iperf3, UDP datagrams of 8 KB, nearly all of which arrive
#   fragments_fit                     nothing was dropped or given up but fragments of datagrams that iperf3 lost

large_pings() {
    local ns=$1 target size
    shift
    for target in "$@"; do
        for size in 8000 65000; do
            assert "ping of $size bytes to $target" in_ns "$ns" ping -q -c 3 -i 0.3 -W 5 -s "$size" "$target"
            assert_match "ping of $size bytes to $target" "$(cat "$LAB_DIR/out")" ' 0% packet loss'
        done
    done
}

# A call is its number, R or W, and for a write 8 KB; the answer the number, and for a read 8 KB made from it.
rpc_server() {
    local ns=$1 port=$2
    shift 2
    spawn "$ns" rpc.log "$PYTHON" -uc '
import select, socket, struct, sys
sockets = []
for address in sys.argv[2:]:
    s = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    s.bind((address, int(sys.argv[1])))
    sockets.append(s)
print("ready")
while True:
    for s in select.select(sockets, [], [])[0]:
        call, peer = s.recvfrom(65535)
        number, what = struct.unpack("!Ic", call[:5])
        data = struct.pack("!I", number) * 2048
        good = what == b"R" or call[5:] == data
        s.sendto(call[:4] + (data if what == b"R" else b"ok" if good else b"no"), peer)' "$port" "$@"
    wait_for 10 grep -q '^ready$' "$LAB_DIR/rpc.log" || fail "the file server did not start: $(cat "$LAB_DIR/rpc.log")"
}

rpc() {
    local out
    out=$(in_ns "$1" "$PYTHON" -c '
import socket, struct, sys
address, port = sys.argv[1], int(sys.argv[2])
s = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(1)
s.connect((address, port))
def call(n):
    return struct.pack("!Ic", n, b"R" if n % 2 else b"W") + (b"" if n % 2 else struct.pack("!I", n) * 2048)
wanted, under_way, good, tries = iter(range(60)), {}, 0, 0
def more():
    for n in wanted:
        under_way[n] = s.send(call(n))
        return
for _ in range(4):
    more()
while under_way and tries < 20:
    try:
        answer = s.recv(65535)
    except TimeoutError:
        tries += 1
        for n in under_way:
            s.send(call(n))
        continue
    n, = struct.unpack("!I", answer[:4])
    if under_way.pop(n, None) is not None:
        good += answer[4:] == (struct.pack("!I", n) * 2048 if n % 2 else b"ok")
        more()
print(good, tries)' "$2" "$3")
    assert_match "calls of $1 to $2 that were answered, and how often some were made again" "$out" '^60 [0-2]$'
}

large_stream() {
    local ns=$1 server=$2 target=$3 out
    spawn "$server" iperf3.log iperf3 -s -1 --forceflush
    wait_for 10 grep -q listening "$LAB_DIR/iperf3.log" || fail "iperf3 did not start: $(cat "$LAB_DIR/iperf3.log")"
    out=$(in_ns "$ns" iperf3 -c "$target" -u -l 8192 -b 20M -t 3 -J 2>"$LAB_DIR/iperf3-client.log")
    assert_at_least "datagrams of 8 KB that iperf3 sent to $target" "$(jq .end.sum.packets <<<"$out")" 700
    # Hosts on a busy machine lose some themselves; each lost fragment is a lost datagram.
    assert_match "percent of them lost" "$(jq '.end.sum.lost_percent, .end.sum.lost_percent < 10' <<<"$out")" true
}

fragments_fit() {
    local reason
    for reason in fragment_invalid fragment_overlap fragment_limit fragment_share; do
        assert_equal "$reason" "$(metric dropped_packets_total "reason=$reason")" 0
    done
}
