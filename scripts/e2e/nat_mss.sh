#!/usr/bin/env bash
# The largest segment: SYNs through an interface with `mss: auto` announce what fits its MTU, with a number that number, both ways
# and IP versions; smaller ones are left alone.
#   lan 10.10.0.2, mtu 1500 -- [wan: mtu 1400, mss] -- wan 203.0.113.10, mtu 1500
# shellcheck source=scripts/e2e/_init.sh
source "$(dirname "$0")/_init.sh"
# shellcheck source=scripts/e2e/_nat.sh
source "$(dirname "$0")/_nat.sh"

# segment NS TARGET [OWN]: the largest segment that the listener there was announced, with 12 bytes of timestamps off; OWN is
# the largest that the client wants.
segment() {
    in_ns "$1" "$PYTHON" - "$2" "${3:-}" <<'PY'
import socket, sys
s = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET)
if sys.argv[2]:
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, int(sys.argv[2]))
s.settimeout(5)
s.connect((sys.argv[1], 9))
print(int(s.recv(100)), s.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG))
PY
}

listener() {
    spawn "$1" "mss-$1.log" "$PYTHON" -uc '
import socket
listener = socket.create_server(("::", 9), family=socket.AF_INET6, dualstack_ipv6=True)
print("ready")
while True:
    s, peer = listener.accept()
    s.sendall(b"%d" % s.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG))
    s.close()'
    wait_for 10 grep -q ready "$LAB_DIR/mss-$1.log" || fail "no listener in $1"
}

mss() {
    WAN='mtu: 1400, mss: auto' FILTER='    - {name: in, from: wan, to: lan, state: new, action: accept}' translate <<'YAML'
  - {name: out, type: masquerade, from: lan, to: wan, source: 10.10.0.0/24}
YAML
    start_lab
    # The ports have the MTU of the interfaces; the hosts are not to know.
    ip -n "$LAB-wan" link set eth0 mtu 1500
    listener wan
    listener lan
    # What the server was announced, and what the client was.
    assert_equal "auto" "$(segment lan 203.0.113.10)" "1348 1348"
    assert_equal "auto, IPv6" "$(segment lan 2001:db8:113::10)" "1328 1328"
    assert_equal "auto, inwards" "$(segment wan fd10:10::2)" "1328 1328"
    assert_equal "auto, and less is wanted" "$(segment lan 203.0.113.10 800)" "788 788"

    WAN='mtu: 1400, mss: 1000' FILTER='    - {name: in, from: wan, to: lan, state: new, action: accept}' translate <<'YAML'
  - {name: out, type: masquerade, from: lan, to: wan, source: 10.10.0.0/24}
YAML
    assert "reload" ctl reload "$CONFIG"
    assert_equal "a number" "$(segment lan 203.0.113.10)" "988 988"
    assert_equal "a number, IPv6" "$(segment lan 2001:db8:113::10)" "988 988"
    www wan
    assert_equal "page" "$(fetch lan http://203.0.113.10/)" "hello from wan"
}

on_workers mss
