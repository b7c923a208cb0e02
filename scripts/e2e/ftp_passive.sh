#!/usr/bin/env bash
# FTP without translation, the client calling the server: PASV and EPSV, on one worker and on two.
#   lan 10.10.0.2, curl -- [helper ftp] -- wan 203.0.113.10, vsftpd
# shellcheck source=scripts/e2e/_init.sh
source "$(dirname "$0")/_init.sh"
# shellcheck source=scripts/e2e/_ftp.sh
source "$(dirname "$0")/_ftp.sh"

passive() {
    config <<YAML
interfaces:
  lan: {device: "net_tap0,iface=dlan", zone: lan, addresses: [10.10.0.1/24]}
  wan: {device: "net_tap1,iface=dwan", zone: wan, addresses: [203.0.113.1/24]}
$POLICY
YAML
    start_lab
    ftp_server wan 203.0.113.10
    ftp_transfers lan ftp://203.0.113.10 wan pasv epsv

    # An announcement that nobody follows: it waits, and can be seen.
    in_ns lan "$PYTHON" - >"$LAB_DIR/port" <<'PY'
import socket
s = socket.create_connection(("203.0.113.10", 21), 5)
f = s.makefile("rw", newline="\r\n")
def ask(line=None):
    if line:
        f.write(line + "\r\n")
        f.flush()
    return f.readline()
ask()
ask("USER anonymous")
reply = ask("EPSV")
print(reply.split("|")[3])
PY
    local port expected
    port=$(cat "$LAB_DIR/port")
    expected=$(ctl conntrack expect list)
    assert_match "what is expected" "$expected" "src=10\.10\.0\.2 dst=203\.0\.113\.10 sport=0 dport=$port .*helper=ftp"
}

on_workers passive
