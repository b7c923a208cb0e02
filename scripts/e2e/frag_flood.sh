#!/usr/bin/env bash
# First fragments from made-up sources, both IP versions, fill the memory for fragments within a fraction of a second. Large
# pings go on unharmed meanwhile, and the memory stays under its mark.
#   lan 10.10.0.2, fd10:10::2 -- [masquerade] -- wan 203.0.113.10, 2001:db8:113::10: answers, and floods
# shellcheck source=scripts/e2e/_init.sh
source "$(dirname "$0")/_init.sh"
# shellcheck source=scripts/e2e/_frag.sh
source "$(dirname "$0")/_frag.sh"

config <<'YAML'
interfaces:
  lan: {device: "net_tap0,iface=dlan", zone: lan, addresses: [10.10.0.1/24, "fd10:10::1/64"]}
  wan: {device: "net_tap1,iface=dwan", zone: wan, addresses: [203.0.113.1/24, "2001:db8:113::1/64"]}
defrag: {memory: 1048576}
nat:
  - {name: out, type: masquerade, from: lan, to: wan}
policy:
  default: drop
  rules:
    - {name: established, state: [established, related], action: accept}
    - {name: out, from: lan, to: wan, state: new, action: accept}
YAML
start_lab
large_pings lan 203.0.113.10 2001:db8:113::10

scrape >"$LAB_DIR/before"
router=$(in_ns wan ip neigh show 203.0.113.1 | sed 's/.*lladdr \([^ ]*\).*/\1/')
spawn wan flood.log "$PYTHON" -uc '
import os, random, socket, struct, sys, time
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(("eth0", 0))
router = bytes.fromhex(sys.argv[1].replace(":", ""))
own = bytes.fromhex("02000000010a")
def checksum(b):
    n = sum(struct.unpack("!%dH" % (len(b) // 2), b))
    n = (n & 0xffff) + (n >> 16)
    return ~(n + (n >> 16)) & 0xffff
def v4():
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + 64, random.getrandbits(16), 0x2000, 64, 17, 0,
        struct.pack("!I", random.getrandbits(32) & 0x3fffffff | 0x10000000), bytes([203, 0, 113, 1]))
    return b"\x08\x00" + ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:] + os.urandom(64)
def v6():
    ip = struct.pack("!IHBB", 0x60000000, 8 + 64, 44, 64) + b"\x20\x01\x0d\xb8" + os.urandom(12) + socket.inet_pton(socket.AF_INET6, "2001:db8:113::1")
    return b"\x86\xdd" + ip + struct.pack("!BBHI", 17, 0, 1, random.getrandbits(32)) + os.urandom(64)
frames = [router + own + (v4 if n % 2 else v6)() for n in range(40000)]
print("ready")
end, sent, start = time.monotonic() + 12, 0, time.monotonic()
while time.monotonic() < end:
    for _ in range(20):
        s.send(frames[sent % len(frames)])
        sent += 1
    ahead = start + sent / 10000 - time.monotonic()
    if ahead > 0:
        time.sleep(ahead)' "$router"
wait_for 10 grep -q '^ready$' "$LAB_DIR/flood.log" || fail "the flood did not begin: $(cat "$LAB_DIR/flood.log")"
full() { (($(metric dropped_packets_total reason=fragment_limit) > 1000)); }
wait_for 10 full || fail "the flood does not fill the memory for fragments"
for target in 203.0.113.10 2001:db8:113::10; do
    pings lan 30 $target -s 8000
    limit=$(metric fragment_memory_limit_bytes)
    for ((worker = 0; worker < ${#E2E_CPUS[@]}; worker++)); do
        used=$(metric fragment_memory_bytes "worker=$worker")
        ((used <= limit)) || fail "worker $worker holds $used bytes of fragments, the mark is $limit"
    done
done
full || fail "the flood has ended too early"
assert_moved 10000 "$LAB_DIR/before" dropped_packets_total reason=fragment_limit
assert_still "$LAB_DIR/before" dropped_packets_total reason=fragment_overlap
