#!/usr/bin/env bash
# FTP over IPv6, where only EPRT and EPSV have room for the addresses: plain, and by a client behind the gateway's address;
# on one worker and on two.
#   lan fd10:10::2, curl -- [helper ftp, then masquerade too] -- wan 2001:db8:113::10, vsftpd
# shellcheck source=scripts/e2e/_init.sh
source "$(dirname "$0")/_init.sh"
# shellcheck source=scripts/e2e/_ftp.sh
source "$(dirname "$0")/_ftp.sh"

gateway_config() {
    config <<YAML
interfaces:
  lan: {device: "net_tap0,iface=dlan", zone: lan, addresses: [10.10.0.1/24, "fd10:10::1/64"]}
  wan: {device: "net_tap1,iface=dwan", zone: wan, addresses: [203.0.113.1/24, "2001:db8:113::1/64"]}
$1
$POLICY
YAML
}

ipv6() {
    gateway_config ''
    start_lab
    ftp_server wan 2001:db8:113::10
    ftp_transfers lan 'ftp://[2001:db8:113::10]' wan eprt epsv
    gateway_config 'nat: [{name: out, type: masquerade, from: lan, to: wan}]'
    assert "a reload with translation" ctl reload "$CONFIG"
    ftp_transfers lan 'ftp://[2001:db8:113::10]' wan eprt epsv
    assert_match "the data connection" "$(ctl conntrack list -f ipv6)" \
        'src=2001:db8:113::10 dst=2001:db8:113::1 sport=20 dport=[0-9]+ .*src=fd10:10::2 dst=2001:db8:113::10 '
}

on_workers ipv6
