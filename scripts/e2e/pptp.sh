#!/usr/bin/env bash
# PPTP: calls of a client and a server who speak it over a real TCP connection and raw GRE sockets (the kernel may have no
# PPP); plain, by a client behind the gateway's address, and to a server behind a forward, on one worker and on two.
#   lan 10.10.0.2 -- [helper pptp, then masquerade too, then dnat] -- wan 203.0.113.10
# shellcheck source=scripts/e2e/_init.sh
source "$(dirname "$0")/_init.sh"
# shellcheck source=scripts/e2e/_ftp.sh
source "$(dirname "$0")/_ftp.sh"

CONNTRACK='helpers: [{helper: pptp, proto: tcp, dport: 1723}]'

# Nothing but control connections may begin: a call's packets pass only where they are RELATED.
gateway_config() {
    config <<YAML
interfaces:
  lan: {device: "net_tap0,iface=dlan", zone: lan, addresses: [10.10.0.1/24]}
  wan: {device: "net_tap1,iface=dwan", zone: wan, addresses: [203.0.113.1/24]}
$1
policy:
  default: drop
  rules:
    - {name: established, state: established, action: accept}
    - {name: related, state: related, action: accept}
    - {name: pptp, proto: tcp, dport: 1723, state: new, action: accept}
YAML
}

cat >"$LAB_DIR/peer.py" <<'PY'
"""One side of PPTP: `server ADDRESS`, which calls each client that it grants a call, or `client ADDRESS CALLS`."""
import select, socket, struct, sys, time

COOKIE = 0x1A2B3C4D
SIZES = {1: 156, 2: 156, 7: 168, 8: 32, 12: 16, 13: 148}


def say(control, kind, body):
    head = struct.pack(">HHIHH", SIZES[kind], 1, COOKIE, kind, 0)
    control.sendall((head + body).ljust(SIZES[kind], b"\0"))


def hear(control, kind):
    head = b""
    while len(head) < 2 or len(head) < struct.unpack_from(">H", head)[0]:
        more = control.recv(2 if len(head) < 2 else struct.unpack_from(">H", head)[0] - len(head))
        if not more:
            return None
        head += more
    assert struct.unpack_from(">H", head, 8)[0] == kind, (head.hex(), kind)
    return struct.unpack_from(">HHB", head + b"\0", 12)


def gre(call, number):
    data = b"packet %d" % number
    return struct.pack(">BBHHHI", 0x30, 1, 0x880B, len(data), call, number) + data


def packets(raw, own, peer, other, first, count):
    """Sends `count` packets and answers to those of the other side, until so many have come as were sent."""
    got = 0
    if first:
        raw.sendto(gre(other, 0), (peer, 0))
    until = time.monotonic() + 10
    while got < count:
        assert time.monotonic() < until, f"{got} packets of {count} came"
        if not select.select([raw], [], [], 0.5)[0]:
            continue
        packet, (source, _) = raw.recvfrom(2048)
        header = packet[(packet[0] & 15) * 4 :]
        if source != peer or header[1] & 7 != 1 or struct.unpack_from(">H", header, 6)[0] != own:
            continue
        got += 1
        if first and got == count:
            break
        raw.sendto(gre(other, got), (peer, 0))
    return got


def server(address):
    listener = socket.create_server((address, 1723))
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, 47)
    pac = 0x2200
    while True:
        control, (peer, _) = listener.accept()
        control.settimeout(10)
        assert hear(control, 1)
        say(control, 2, struct.pack(">HBB", 0x100, 1, 1))
        while asked := hear(control, 7):
            pac += 1
            say(control, 8, struct.pack(">HHBB", pac, asked[0], 1, 0))
            packets(raw, pac, peer, asked[0], False, 20)
            hear(control, 12)
            say(control, 13, struct.pack(">HBB", pac, 1, 0))
        control.close()


def client(address, calls):
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, 47)
    control = socket.create_connection((address, 1723), 10)
    control.settimeout(10)
    say(control, 1, struct.pack(">HH", 0x100, 0))
    assert hear(control, 2)[1] >> 8 == 1
    for n in range(calls):
        own = 0x1100 + n
        say(control, 7, struct.pack(">HH", own, n))
        pac, peer, result = hear(control, 8)
        assert (peer, result) == (own, 1), (peer, own, result)
        print("call", own, packets(raw, own, address, pac, True, 20), flush=True)
        say(control, 12, struct.pack(">HH", own, 0))
        assert hear(control, 13)
    control.close()


client(sys.argv[2], int(sys.argv[3])) if sys.argv[1] == "client" else server(sys.argv[2])
PY

# calls FROM ADDRESS: three calls, one after the other, of 20 packets each way.
calls() {
    local before out=$LAB_DIR/calls
    before=$(metric classified_packets_total state=related)
    in_ns "$1" timeout 20 "$PYTHON" "$LAB_DIR/peer.py" client "$2" 3 >"$out" 2>&1 || fail "calls from $1 to $2: $(cat "$out")"
    assert_equal "calls" "$(grep -c '^call [0-9]* 20$' "$out")" 3
    assert_equal "RELATED packets" "$(metric classified_packets_total state=related)" $((before + 3))
    assert_equal "expectations that are left" "$(ctl conntrack expect list | grep -c proto=47)" 0
    assert_no_match "calls that are over" "$(ctl conntrack list)" ' 47 '
    assert_match "the control connection" "$(ctl conntrack list -o extended)" 'dport=1723 .*helper=pptp'
}

pptp() {
    gateway_config ''
    start_lab
    spawn wan pptp-server "$PYTHON" "$LAB_DIR/peer.py" server 203.0.113.10
    spawn lan pptp-inside "$PYTHON" "$LAB_DIR/peer.py" server 10.10.0.2
    wait_for 10 listening wan || fail "the server outside did not start"
    wait_for 10 listening lan || fail "the server inside did not start"
    calls lan 203.0.113.10
    gateway_config 'nat: [{name: out, type: masquerade, from: lan, to: wan}]'
    assert "a reload with translation" ctl reload "$CONFIG"
    calls lan 203.0.113.10
    assert_match "the client's address" "$(ctl conntrack list -p tcp)" 'dst=203\.0\.113\.1 sport=1723'
    gateway_config 'nat: [{name: in, type: dnat, from: wan, destination: 203.0.113.1, proto: tcp, dport: 1723, to_address: 10.10.0.2}]'
    assert "a reload with a forward" ctl reload "$CONFIG"
    calls wan 203.0.113.1
}

listening() { in_ns "$1" ss -ltn | grep -q ':1723 '; }

on_workers pptp
