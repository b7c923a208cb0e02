#!/usr/bin/env bash
# NPTv6: lan is 2001:db8:f:.../64 to wan, both ways and without a connection; the interface part is as it was but for what keeps
# checksums right, which is in the subnet here (RFC 6296, prefixes of 48 bits).
#   lan fd10:10::2 -- [nptv6 fd10:10::/48 to 2001:db8:f::/48] -- wan 2001:db8:113::10, which routes 2001:db8:f::/48
# shellcheck source=scripts/e2e/_init.sh
source "$(dirname "$0")/_init.sh"
# shellcheck source=scripts/e2e/_nat.sh
source "$(dirname "$0")/_nat.sh"

# outside ADDRESS: what RFC 6296 section 3.1 makes of it.
outside() {
    "$PYTHON" - "$1" <<'PY'
import ipaddress, sys
def words(a):
    n = int(ipaddress.IPv6Address(a))
    return [n >> (112 - 16 * i) & 0xffff for i in range(8)]
def total(w):
    s = sum(w)
    while s >> 16:
        s = (s & 0xffff) + (s >> 16)
    return s
inside, new = words(sys.argv[1]), words("2001:db8:f::")
out = new[:3] + inside[3:]
change = total([total(inside[:3]), 0xffff - total(new[:3])])
out[3] = total([inside[3], change])
if out[3] == 0xffff:
    out[3] = 0
print(ipaddress.IPv6Address(sum(w << (112 - 16 * i) for i, w in enumerate(out))))
PY
}

nptv6() {
    FILTER='    - {name: in, from: wan, to: lan, action: accept}' translate <<'YAML'
  - {name: prefix, type: nptv6, from: lan, to: wan, source: "fd10:10::/48", to_prefix: "2001:db8:f::/48"}
YAML
    start_lab
    ip -n "$LAB-wan" route add 2001:db8:f::/48 via 2001:db8:113::1
    ip -n "$LAB-wan" -6 route del default
    www wan
    www lan
    local mine
    mine=$(outside fd10:10::2)
    assert_equal "page, out" "$(fetch lan 'http://[2001:db8:113::10]/')" "hello from wan"
    assert_equal "whom wan saw" "$(sees wan)" "$mine"
    assert_equal "page, in" "$(fetch wan "http://[$mine]/")" "hello from lan"
    assert_equal "whom lan saw" "$(sees lan)" 2001:db8:113::10
    pings lan 3 2001:db8:113::10
    pings wan 3 "$mine"
    streams lan wan 2001:db8:113::10
    assert_equal "traceroute in" \
        "$(in_ns wan traceroute -I -n -q 1 -w 3 -m 4 "$mine" | awk 'NR > 1 { print $1, $2 }')" "1 2001:db8:113::1"$'\n'"2 $mine"
}

on_workers nptv6
