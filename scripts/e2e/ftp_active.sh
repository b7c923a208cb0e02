#!/usr/bin/env bash
# FTP without translation, the server calling the client: PORT and EPRT with a real server and client, on one worker and on
# two. Without the helper the server's call is a new connection like any other, which the policy does not allow.
#   lan 10.10.0.2, curl -- [helper ftp] -- wan 203.0.113.10, vsftpd
# shellcheck source=scripts/e2e/_init.sh
source "$(dirname "$0")/_init.sh"
# shellcheck source=scripts/e2e/_ftp.sh
source "$(dirname "$0")/_ftp.sh"

gateway_config() {
    config <<YAML
interfaces:
  lan: {device: "net_tap0,iface=dlan", zone: lan, addresses: [10.10.0.1/24]}
  wan: {device: "net_tap1,iface=dwan", zone: wan, addresses: [203.0.113.1/24]}
$POLICY
YAML
}

active() {
    gateway_config
    start_lab
    ftp_server wan 203.0.113.10
    ftp_transfers lan ftp://203.0.113.10 wan port eprt
    local list
    list=$(ctl conntrack list)
    assert_match "the control connection" "$list" 'src=10\.10\.0\.2 dst=203\.0\.113\.10 sport=[0-9]+ dport=21 .*helper=ftp'
    assert_match "the data connection" "$list" 'src=203\.0\.113\.10 dst=10\.10\.0\.2 sport=20 dport=[0-9]+ '

    local helpers=$CONNTRACK
    CONNTRACK=''
    gateway_config
    CONNTRACK=$helpers
    assert "a reload without the helper" ctl reload "$CONFIG"
    scrape >"$LAB_DIR/before"
    assert_fails "PORT without the helper" fetch lan --max-time 2 --ftp-port - ftp://203.0.113.10/file -o /dev/null
    assert_moved 1 "$LAB_DIR/before" dropped_packets_total reason=policy_default
}

on_workers active
