#!/usr/bin/env bash
# An FTP session outlives the gateway: its table is saved, sluiced ends and starts again on another number of workers, the table
# is restored, and the session goes on, with PORT rewritten and lengthened before and after. Without what its helper knew, each
# side would hear of numbers that it has not sent.
#   lan 10.10.0.2, client -- [masquerade to 203.0.113.1, helper ftp] -- wan 203.0.113.10, vsftpd
# shellcheck source=scripts/e2e/_init.sh
source "$(dirname "$0")/_init.sh"
# shellcheck source=scripts/e2e/_ftp.sh
source "$(dirname "$0")/_ftp.sh"

mapfile -t ALL_CPUS < <(cpus)
((${#ALL_CPUS[@]} >= 2)) || skip "two workers need two CPUs"

gateway_on() {
    # shellcheck disable=SC2034 # _init.sh uses it
    E2E_CPUS=("${ALL_CPUS[@]:0:$1}")
    config <<YAML
interfaces:
  lan: {device: "net_tap0,iface=dlan", zone: lan, addresses: [10.10.0.1/24]}
  wan: {device: "net_tap1,iface=dwan", zone: wan, addresses: [203.0.113.1/24]}
nat:
  - {name: out, type: masquerade, from: lan, to: wan}
$POLICY
YAML
}

cat >"$LAB_DIR/session.py" <<'PY'
import os, socket, sys, time
control = socket.create_connection(("203.0.113.10", 21), 10)
replies = control.makefile("r", newline="\r\n")
control.settimeout(30)
def says(text):
    control.sendall(text.encode())
def hears(code):
    line = replies.readline()
    assert line.startswith(code), line
def fetches():
    listener = socket.create_server(("10.10.0.2", 0))
    listener.settimeout(10)
    port = listener.getsockname()[1]
    says(f"PORT 10,10,0,2,{port >> 8},{port & 255}\r\n")
    hears("200")
    says("RETR file\r\n")
    hears("150")
    data, _ = listener.accept()
    size = 0
    while got := data.recv(65536):
        size += len(got)
    hears("226")
    return size
hears("220")
says("USER anonymous\r\n")
hears("230")
says("TYPE I\r\n")
hears("200")
print("before", fetches(), fetches())
while not os.path.exists(sys.argv[1]):
    time.sleep(0.05)
print("after", fetches(), fetches())
says("QUIT\r\n")
hears("221")
print("over")
PY

said() { grep -q "^$1" "$LAB_DIR/session"; }

ended() { ! sluiced_runs; }

restart() {
    local from=$1 to=$2 control
    rm -f "$LAB_DIR/go" "$LAB_DIR/session"
    gateway_on "$from"
    start_lab
    ftp_server wan 203.0.113.10
    spawn lan session "$PYTHON" -u "$LAB_DIR/session.py" "$LAB_DIR/go"
    wait_for 20 said before || fail "the session did not begin: $(cat "$LAB_DIR/session")"
    control=$(ctl --json conntrack list -p tcp --dport 21)
    assert_match "what the helper knows" "$control" '"sides":\[\{"next":[0-9]+,.*"edits":\[\{"at":[0-9]+,"old":[0-9]+,"text":"203,0,113,1,'
    assert_equal "the data connections, expected" "$(ctl conntrack count -u EXPECTED)" 2
    assert "save" ctl conntrack save "$LAB_DIR/table"

    kill "$SLUICED"
    wait_for 10 ended || fail "sluiced did not end"
    gateway_on "$to"
    start_sluiced
    plug_lan
    plug_wan
    assert_match "restore" "$(ctl conntrack restore "$LAB_DIR/table")" '^([0-9]+) of \1 connections restored$'
    assert_equal "the data connections again" "$(ctl conntrack count -u EXPECTED)" 2
    scrape >"$LAB_DIR/before"
    touch "$LAB_DIR/go"
    wait_for 20 said over || fail "the session did not go on: $(cat "$LAB_DIR/session")"
    assert_equal "both" "$(head -n 2 "$LAB_DIR/session")" $'before 3000000 3000000\nafter 3000000 3000000'
    assert_moved 2 "$LAB_DIR/before" classified_packets_total state=related
    assert_equal "INVALID packets" "$(metric classified_packets_total state=invalid)" 0
    assert_no_match "the server's log" "$(cat "$LAB_DIR/vsftpd-wan.log")" '10\.10\.0\.2'
    remove_lab
}

restart 1 2
restart 2 1
