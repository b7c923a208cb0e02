#!/usr/bin/env bash
# TFTP: the answer to a request comes from another port than the request went to; plain and by a client behind the
# gateway's address, on one worker and on two.
#   lan 10.10.0.2, curl -- [helper tftp, then masquerade too] -- wan 203.0.113.10, in.tftpd
# shellcheck source=scripts/e2e/_init.sh
source "$(dirname "$0")/_init.sh"
# shellcheck source=scripts/e2e/_ftp.sh
source "$(dirname "$0")/_ftp.sh"

gateway_config() {
    config <<YAML
interfaces:
  lan: {device: "net_tap0,iface=dlan", zone: lan, addresses: [10.10.0.1/24]}
  wan: {device: "net_tap1,iface=dwan", zone: wan, addresses: [203.0.113.1/24]}
$1
$POLICY
YAML
}

tftp() {
    gateway_config ''
    start_lab
    tftp_server wan 203.0.113.10
    tftp_transfers lan tftp://203.0.113.10 wan
    gateway_config 'nat: [{name: out, type: masquerade, from: lan, to: wan}]'
    assert "a reload with translation" ctl reload "$CONFIG"
    tftp_transfers lan tftp://203.0.113.10 wan
    assert_match "the answer" "$(ctl conntrack list -p udp)" \
        'src=203\.0\.113\.10 dst=203\.0\.113\.1 sport=[0-9]+ dport=[0-9]+ .*src=10\.10\.0\.2 dst=203\.0\.113\.10 '
}

on_workers tftp
