# shellcheck shell=bash
# What scenarios of translation share. To be sourced after _init.sh; gives:
#   translate [KEY…] <<YAML   the configuration with these translation rules and both IP versions; lan may begin connections to
#                             wan. FILTER has further filter rules, WAN keys of the interface
#   far_host                  a host behind wan, which then routes: far 192.0.2.10, 2001:db8:2::10
#   more NS ADDRESS…          gives it further addresses
#   sees NS [PORT]            the client of the last request, as the web server there saw it
#   names NS ADDRESS PORT     a name server
#   asks NS ADDRESS [OPTION]… a name, of it
#   streams NS SERVER-NS TARGET  iperf3, TCP and UDP
#   echo_server NS PORT       TCP, repeats what it is told
#   hold NS NAME COUNT TARGET PORT [SOURCE]  opens connections to it and keeps them; how many it got is printed
#   alive NAME                how many of them still work
#   release NAME              ends them with resets
#   reaches NS TARGET PORT    whether one more connection can be had

translate() {
    config <<YAML
interfaces:
  lan: {device: "net_tap0,iface=dlan", zone: lan, addresses: [10.10.0.1/24, "fd10:10::1/64"]}
  wan: {device: "net_tap1,iface=dwan", zone: wan, addresses: [${WAN_ADDRESSES:-203.0.113.1/24, "2001:db8:113::1/64"}]${WAN:+, $WAN}}
routes:
  - {to: 192.0.2.0/24, via: 203.0.113.10}
  - {to: "2001:db8:2::/64", via: "2001:db8:113::10"}
nat:
$(cat)
policy:
  default: drop
  rules:
    - {name: established, state: [established, related], action: accept}
    - {name: lan-out, from: lan, to: wan, state: new, action: accept}
${FILTER:-}
YAML
}

far_host() {
    local ns
    make_ns far
    ip -n "$LAB-wan" link add to-far type veth peer name eth0 netns "$LAB-far"
    # The frames of a veth carry no finished checksum, and the tap's end has nobody to finish it.
    in_ns wan ethtool -K to-far tx off tso off gso off gro off >/dev/null
    in_ns far ethtool -K eth0 tx off tso off gso off gro off >/dev/null
    in_ns wan sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
    # A host that was asked much before answers traceroute no longer.
    for ns in wan far; do in_ns "$ns" sysctl -qw net.ipv4.icmp_ratelimit=0 net.ipv6.icmp.ratelimit=0; done
    ip -n "$LAB-wan" address add 192.0.2.1/24 dev to-far
    ip -n "$LAB-wan" address add 2001:db8:2::1/64 dev to-far nodad
    ip -n "$LAB-far" address add 192.0.2.10/24 dev eth0
    ip -n "$LAB-far" address add 2001:db8:2::10/64 dev eth0 nodad
    ip -n "$LAB-wan" link set to-far up
    ip -n "$LAB-far" link set eth0 up
    gateway far 192.0.2.1 2001:db8:2::1
}

more() {
    local ns=$1 address
    shift
    for address in "$@"; do
        case $address in
        *:*) ip -n "$LAB-$ns" address add "$address/64" dev eth0 nodad ;;
        *) ip -n "$LAB-$ns" address add "$address/24" dev eth0 ;;
        esac
    done
}

sees() { tail -n 1 "$LAB_DIR/http-$1-${2:-80}.log" | cut -d' ' -f1; }

names() {
    local ns=$1 address=$2 port=$3
    spawn "$ns" "dnsmasq-$ns.log" dnsmasq --keep-in-foreground --conf-file=/dev/null --user=root --group= --pid-file= --no-resolv \
        --no-hosts --bind-interfaces --port="$port" --listen-address="$address" --log-queries --log-facility=- --host-record=www.lab.test,192.0.2.80
    wait_for 10 grep -q started "$LAB_DIR/dnsmasq-$ns.log" || fail "dnsmasq in $ns did not start: $(cat "$LAB_DIR/dnsmasq-$ns.log")"
}

asks() {
    local ns=$1 address=$2
    shift 2
    in_ns "$ns" dig "@$address" +short +timeout=3 +tries=1 "$@" www.lab.test
}

streams() {
    local ns=$1 server=$2 target=$3 kind out
    for kind in tcp udp; do
        spawn "$server" "iperf3-$kind.log" iperf3 -s -1 --forceflush
        wait_for 10 grep -q listening "$LAB_DIR/iperf3-$kind.log" || fail "iperf3 did not start: $(cat "$LAB_DIR/iperf3-$kind.log")"
        if [[ $kind == tcp ]]; then
            out=$(in_ns "$ns" iperf3 -c "$target" -t 2 -J 2>"$LAB_DIR/iperf3-client.log") || fail "iperf3 to $target: $out"
            assert_at_least "bytes that iperf3 brought to $target" "$(jq .end.sum_received.bytes <<<"$out")" 1000000
        else
            out=$(in_ns "$ns" iperf3 -c "$target" -u -l 1200 -b 10M -t 2 -J 2>"$LAB_DIR/iperf3-client.log") || fail "iperf3 to $target: $out"
            # Hosts on a busy machine lose some themselves.
            assert_match "percent lost to $target" "$(jq '.end.sum.lost_percent < 10' <<<"$out")" true
        fi
    done
}

echo_server() {
    spawn "$1" "echo-$1-$2.log" "$PYTHON" -uc '
import socket, sys, threading
listener = socket.create_server(("::", int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
def serve(s, peer):
    # In one piece: threads write at the same time.
    sys.stdout.write("%s %d\n" % (peer[0].removeprefix("::ffff:"), peer[1]))
    try:
        while data := s.recv(1000):
            s.sendall(data)
    except OSError:
        pass
print("ready")
while True:
    threading.Thread(target=serve, args=listener.accept(), daemon=True).start()' "$2"
    wait_for 10 grep -q '^ready$' "$LAB_DIR/echo-$1-$2.log" || fail "the echo server in $1 did not start"
}

hold() {
    local ns=$1 name=$2
    shift 2
    rm -f "$LAB_DIR/$name.in"
    mkfifo "$LAB_DIR/$name.in"
    spawn "$ns" "$name.log" "$PYTHON" -uc '
import errno, selectors, socket, struct, sys, time
count, target, port, source = int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5:]
pending = selectors.DefaultSelector()
for n in range(count):
    s = socket.socket(socket.AF_INET6 if ":" in target else socket.AF_INET)
    s.setblocking(False)
    if source:
        s.bind((source[0], 0))
    s.connect_ex((target, port))
    pending.register(s, selectors.EVENT_WRITE)
open_ones, end = [], time.monotonic() + 3
while pending.get_map() and time.monotonic() < end:
    for key, _ in pending.select(0.1):
        pending.unregister(key.fileobj)
        if key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
            open_ones.append(key.fileobj)
for key in list(pending.get_map().values()):
    key.fileobj.close()
print("open", len(open_ones))
def ask(word):
    # All are asked before any is waited for: those that have ended do not answer.
    alive = []
    for s in open_ones:
        try:
            s.setblocking(True)
            s.sendall(word)
            alive.append(s)
        except OSError:
            pass
    end, good = time.monotonic() + 1.5, 0
    for s in alive:
        try:
            s.settimeout(max(end - time.monotonic(), 0.01))
            good += s.recv(1000) == word
        except OSError:
            pass
    return good
while True:
    for line in open(sys.argv[1]):
        word = line.split()
        if word[0] == "release":
            for s in open_ones:
                s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                s.close()
            sys.exit()
        print("alive", word[1], ask(line.encode()))' "$LAB_DIR/$name.in" "$@"
    wait_for 10 grep -q '^open ' "$LAB_DIR/$name.log" || fail "$name holds nothing: $(cat "$LAB_DIR/$name.log")"
    awk '/^open/ { print $2 }' "$LAB_DIR/$name.log"
}

alive() {
    local turn
    turn=$(grep -c '^alive' "$LAB_DIR/$1.log" || true)
    echo "ask $turn" >"$LAB_DIR/$1.in"
    wait_for 10 grep -q "^alive $turn " "$LAB_DIR/$1.log" || fail "$1 says nothing: $(cat "$LAB_DIR/$1.log")"
    awk -v turn="$turn" '/^alive/ && $2 == turn { print $3 }' "$LAB_DIR/$1.log"
}

release() { echo release >"$LAB_DIR/$1.in"; }

reaches() {
    in_ns "$1" "$PYTHON" -c '
import socket, struct, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 1.5)
s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))' "$2" "$3"
}
