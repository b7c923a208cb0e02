#!/usr/bin/env bash
# An FTP server behind the gateway's address: PASV announces the gateway's address instead of the server's, and data
# connections find it either way, on one worker and on two.
#   wan 203.0.113.10, curl -- 203.0.113.1:21 [dnat to 10.10.0.2, helper ftp] -- lan 10.10.0.2, vsftpd
# shellcheck source=scripts/e2e/_init.sh
source "$(dirname "$0")/_init.sh"
# shellcheck source=scripts/e2e/_ftp.sh
source "$(dirname "$0")/_ftp.sh"

dnat() {
    config <<YAML
interfaces:
  lan: {device: "net_tap0,iface=dlan", zone: lan, addresses: [10.10.0.1/24]}
  wan: {device: "net_tap1,iface=dwan", zone: wan, addresses: [203.0.113.1/24]}
nat:
  - {name: ftp, type: dnat, from: wan, proto: tcp, destination: 203.0.113.1, dport: 21, to_address: 10.10.0.2}
$POLICY
YAML
    start_lab
    ftp_server lan 10.10.0.2
    ftp_transfers wan ftp://203.0.113.1 lan pasv epsv port eprt
    grep -q '^< 227 .*(203,0,113,1,' "$LAB_DIR/curl-pasv.log" || fail "227 does not name the gateway: $(cat "$LAB_DIR/curl-pasv.log")"
    local list
    list=$(ctl conntrack list)
    assert_match "a passive data connection" "$list" \
        'src=203\.0\.113\.10 dst=203\.0\.113\.1 sport=[0-9]+ dport=[0-9]+ .*src=10\.10\.0\.2 dst=203\.0\.113\.10 '
    assert_match "an active data connection" "$list" \
        'src=10\.10\.0\.2 dst=203\.0\.113\.10 sport=20 dport=[0-9]+ .*src=203\.0\.113\.10 dst=203\.0\.113\.1 sport=[0-9]+ dport=20 '
}

on_workers dnat
