-- Every frame a new connection, with Pktgen-DPDK: how many connections per second a gateway opens before it loses frames.
--
--   pktgen port 0 == lan [ sluiced ] wan == pktgen port 1
--
-- Clients and their ports count up together, so that no two frames of a run have the same tuple. Compare what arrives with
-- `sluicectl conntrack stats` (insert, drop, early_drop). Not run by the authors: see README.md beside this file.

package.path = package.path .. ";?.lua;test/?.lua;app/?.lua;../?.lua"
require "Pktgen"

local port, back = 0, 1
local gateway = "3c:fd:fe:00:00:01"
local seconds = 10

local function range(set, first, last, step)
    set(tostring(port), "start", first)
    set(tostring(port), "inc", step)
    set(tostring(port), "min", first)
    set(tostring(port), "max", last)
end

pktgen.screen("off")
pktgen.reset("all")
pktgen.set_type(tostring(port), "ipv4")
pktgen.set_proto(tostring(port), "udp")
pktgen.set_mac(tostring(port), "dst", gateway)
pktgen.range.ip_proto(tostring(port), "udp")
pktgen.range.dst_mac(tostring(port), "start", gateway)
-- 65,521 addresses and 60,000 ports have no common divisor: their pairs repeat after 3.9 billion frames.
range(pktgen.range.src_ip, "10.0.0.2", "10.0.255.242", "0.0.0.1")
range(pktgen.range.src_port, 1024, 61023, 1)
range(pktgen.range.dst_ip, "198.18.0.1", "198.18.0.1", "0.0.0.0")
range(pktgen.range.dst_port, 7, 7, 0)
range(pktgen.range.pkt_size, 64, 64, 0)
pktgen.set_range(tostring(port), "on")

print("percent\tsent_per_s\treceived_per_s\tloss")
for rate = 5, 100, 5 do
    pktgen.clr()
    pktgen.set(tostring(port), "count", 0)
    pktgen.set(tostring(port), "rate", rate)
    pktgen.start(tostring(port))
    pktgen.delay(seconds * 1000)
    pktgen.stop(tostring(port))
    pktgen.delay(2000)
    local sent = pktgen.portStats(tostring(port), "port")[port].opackets
    local got = pktgen.portStats(tostring(back), "port")[back].ipackets
    print(string.format("%d\t%.0f\t%.0f\t%.6f", rate, sent / seconds, got / seconds, math.max(0, sent - got) / math.max(1, sent)))
end
pktgen.screen("on")
