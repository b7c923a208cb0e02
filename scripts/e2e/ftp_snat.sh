#!/usr/bin/env bash
# FTP by a client behind the gateway's address: PORT and EPRT announce the gateway's address instead of the client's, on one
# worker and on two. A command that is written in two pieces is announced as well.
#   lan 10.10.0.2, curl -- [masquerade to 203.0.113.1, helper ftp] -- wan 203.0.113.10, vsftpd
# shellcheck source=scripts/e2e/_init.sh
source "$(dirname "$0")/_init.sh"
# shellcheck source=scripts/e2e/_ftp.sh
source "$(dirname "$0")/_ftp.sh"

snat() {
    config <<YAML
interfaces:
  lan: {device: "net_tap0,iface=dlan", zone: lan, addresses: [10.10.0.1/24]}
  wan: {device: "net_tap1,iface=dwan", zone: wan, addresses: [203.0.113.1/24]}
nat:
  - {name: out, type: masquerade, from: lan, to: wan}
$POLICY
YAML
    start_lab
    ftp_server wan 203.0.113.10
    ftp_transfers lan ftp://203.0.113.10 wan port eprt pasv epsv
    assert_match "the data connection" "$(ctl conntrack list)" \
        'src=203\.0\.113\.10 dst=203\.0\.113\.1 sport=20 dport=[0-9]+ .*src=10\.10\.0\.2 dst=203\.0\.113\.10 sport=[0-9]+ dport=20 '
    assert_no_match "the server's log" "$(cat "$LAB_DIR/vsftpd-wan.log")" '10\.10\.0\.2'

    # Ten times on one control connection, by a client that waits for each piece to be acknowledged before it sends the next.
    in_ns lan "$PYTHON" - >"$LAB_DIR/pieces" <<'PY'
import socket, time
control = socket.create_connection(("203.0.113.10", 21), 10)
replies = control.makefile("r", newline="\r\n")
def says(text):
    control.sendall(text.encode())
def hears(code):
    line = replies.readline()
    assert line.startswith(code), line
hears("220")
says("USER anonymous\r\n")
hears("230")
says("TYPE I\r\n")
hears("200")
for n in range(10):
    listener = socket.create_server(("10.10.0.2", 0))
    listener.settimeout(10)
    port = listener.getsockname()[1]
    line = f"PORT 10,10,0,2,{port >> 8},{port & 255}\r\n"
    for at in range(0, len(line), 3 + n):
        says(line[at:at + 3 + n])
        time.sleep(0.02)
    hears("200")
    says("RETR file\r\n")
    hears("150")
    data, _ = listener.accept()
    size = 0
    while got := data.recv(65536):
        size += len(got)
    hears("226")
    print(n, size)
says("QUIT\r\n")
hears("221")
PY
    assert_equal "commands in pieces" "$(grep -c ' 3000000$' "$LAB_DIR/pieces")" 10
}

on_workers snat
