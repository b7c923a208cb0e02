#!/usr/bin/env bash
# A TFTP server behind the gateway's address: its answers come from there, on one worker and on two.
#   wan 203.0.113.10, curl -- 203.0.113.1:69 [dnat to 10.10.0.2, helper tftp] -- lan 10.10.0.2, in.tftpd
# shellcheck source=scripts/e2e/_init.sh
source "$(dirname "$0")/_init.sh"
# shellcheck source=scripts/e2e/_ftp.sh
source "$(dirname "$0")/_ftp.sh"

tftp() {
    config <<YAML
interfaces:
  lan: {device: "net_tap0,iface=dlan", zone: lan, addresses: [10.10.0.1/24]}
  wan: {device: "net_tap1,iface=dwan", zone: wan, addresses: [203.0.113.1/24]}
nat:
  - {name: tftp, type: dnat, from: wan, proto: udp, destination: 203.0.113.1, dport: 69, to_address: 10.10.0.2}
$POLICY
YAML
    start_lab
    tftp_server lan 10.10.0.2
    tftp_transfers wan tftp://203.0.113.1 lan
    assert_match "the answer" "$(ctl conntrack list -p udp)" \
        'src=10\.10\.0\.2 dst=203\.0\.113\.10 sport=[0-9]+ dport=[0-9]+ .*src=203\.0\.113\.10 dst=203\.0\.113\.1 '
}

on_workers tftp
