#!/usr/bin/env bash
# The gateway itself: lan may ping it and log in, wan may not; it reaches both sides.
#   lan 10.10.0.2, fd10:10::2 -- 10.10.0.1 [gateway, listener on port 22] 203.0.113.1 -- wan 203.0.113.10, 2001:db8:113::10
# shellcheck source=scripts/e2e/_init.sh
source "$(dirname "$0")/_init.sh"

config <<'YAML'
interfaces:
  lan: {device: "net_tap0,iface=dlan", zone: lan, addresses: [10.10.0.1/24, "fd10:10::1/64"]}
  wan: {device: "net_tap1,iface=dwan", zone: wan, addresses: [203.0.113.1/24, "2001:db8:113::1/64"]}
policy:
  default: drop
  rules:
    - {name: established, state: [established, related], action: accept}
    - {name: lan-ping, from: lan, to: local, proto: [icmp, icmpv6], state: new, action: accept}
    - {name: lan-ssh, from: lan, to: local, proto: tcp, dport: [22], state: new, action: accept}
    - {name: me-out, from: local, to: any, state: new, action: accept}
YAML
start_lab
serve gw tcp 22
www wan

pings lan 5 10.10.0.1
pings lan 5 fd10:10::1
pings gw 5 10.10.0.2
pings gw 5 203.0.113.10
pings gw 5 fd10:10::2
pings gw 5 2001:db8:113::10

# hello NS ADDRESS: what the listener on port 22 says.
hello() { in_ns "$1" timeout 5 bash -c "exec 3<>/dev/tcp/$2/22 && cat <&3"; }
assert_equal "log in from lan" "$(hello lan 10.10.0.1)" "hello 10.10.0.2"
assert_equal "log in from lan by IPv6" "$(hello lan fd10:10::1)" "hello fd10:10::2"
assert_equal "the gateway fetches from wan" "$(fetch gw http://203.0.113.10/)" "hello from wan"

scrape >"$LAB_DIR/before"
assert_fails "log in from wan" in_ns wan timeout 2 bash -c 'exec 3<>/dev/tcp/203.0.113.1/22'
assert_fails "ping from wan" in_ns wan ping -n -c 2 -i 0.2 -W 1 203.0.113.1
assert_moved 3 "$LAB_DIR/before" dropped_packets_total reason=policy_default
