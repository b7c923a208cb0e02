-- RFC 2544 for Sluice with Pktgen-DPDK: throughput by frame size (section 26.1), then latency and loss at parts of it.
--
--   pktgen port 0 == lan [ sluiced ] wan == pktgen port 1
--
-- Load it where Pktgen runs, from its own directory so that Pktgen.lua is found:
--   pktgen -l 0-4 -n 4 -a 0000:3b:00.0 -a 0000:3b:00.1 -- -P -m "[1:2].0,[3:4].1" -f .../bench/pktgen/rfc2544.lua
-- It writes rfc2544.tsv in the directory that Pktgen was started in: size, load_percent, mpps, loss, min_us, avg_us, max_us.
-- Written after Pktgen's documentation and not run by the authors: see README.md beside this file.

package.path = package.path .. ";?.lua;test/?.lua;app/?.lua;../?.lua"
require "Pktgen"

-- What to change for a lab of one's own. Addresses are those of the example sluice.yaml in README.md.
local settings = {
    lan = { port = 0, gateway = "3c:fd:fe:00:00:01" },  -- MAC addresses of the gateway's ports: sluicectl show interfaces
    wan = { port = 1, gateway = "3c:fd:fe:00:00:02" },
    first_client = "10.0.0.2",
    last_client = "10.0.3.233",                          -- 1,000 flows: one per client
    server = "198.18.0.1",
    client_port = 1024,
    server_port = 7,
    sizes = { 64, 128, 256, 512, 1024, 1280, 1518 },     -- FCS included
    seconds = 60,                                        -- per trial; RFC 2544 section 24
    settle = 2,                                          -- wait for the last frames; RFC 2544 section 23
    resolution = 0.5,                                    -- percent of line rate
    tolerance = 0,                                       -- part of the frames that may be lost
    both_ways = true,
    output = "rfc2544.tsv",
}

local lan, wan = tostring(settings.lan.port), tostring(settings.wan.port)

-- A range that counts up, or stays where first and last are the same.
local function range(set, port, first, last, step)
    set(port, "start", first)
    set(port, "inc", step)
    set(port, "min", first)
    set(port, "max", last)
end

-- Frames of every flow, in turn, from `port`; `reply` turns the flows round.
local function flows(port, gateway, reply)
    local client = reply and pktgen.range.dst_ip or pktgen.range.src_ip
    local server = reply and pktgen.range.src_ip or pktgen.range.dst_ip
    local client_port = reply and pktgen.range.dst_port or pktgen.range.src_port
    local server_port = reply and pktgen.range.src_port or pktgen.range.dst_port
    pktgen.set_type(port, "ipv4")
    pktgen.set_proto(port, "udp")
    pktgen.set_mac(port, "dst", gateway)
    pktgen.range.ip_proto(port, "udp")
    pktgen.range.dst_mac(port, "start", gateway)
    range(client, port, settings.first_client, settings.last_client, "0.0.0.1")
    range(server, port, settings.server, settings.server, "0.0.0.0")
    range(client_port, port, settings.client_port, settings.client_port, 0)
    range(server_port, port, settings.server_port, settings.server_port, 0)
    range(pktgen.range.ttl, port, 64, 64, 0)
    pktgen.set_range(port, "on")
end

local function size_of(port, size)
    pktgen.set(port, "size", size)
    range(pktgen.range.pkt_size, port, size, size, 0)
end

-- Frames per second of a full line: each has 20 bytes of preamble and gap around it.
local function line_rate(size)
    local mbps = tonumber(string.match(pktgen.linkState(lan)[settings.lan.port], "%d+"))
    assert(mbps, "the link of port " .. lan .. " is down")
    return mbps * 1e6 / ((size + 20) * 8)
end

-- Sends at `rate` percent of the line for so many seconds; gives frames sent and received, both ports together.
local function trial(ports, rate, seconds)
    pktgen.clr()
    pktgen.set("all", "count", 0)
    pktgen.set("all", "rate", rate)
    pktgen.start(ports)
    pktgen.delay(math.floor(seconds * 1000))
    pktgen.stop(ports)
    pktgen.delay(math.floor(settings.settle * 1000))
    local a = pktgen.portStats(lan, "port")[settings.lan.port]
    local b = pktgen.portStats(wan, "port")[settings.wan.port]
    return a.opackets + b.opackets, a.ipackets + b.ipackets
end

local function loss(sent, received)
    if sent == 0 then return 1 end
    return math.max(0, sent - received) / sent
end

-- The highest rate, percent of the line, at which no more is lost than may be.
local function throughput(ports, size)
    local passed, failed, rate = 0, nil, 100
    while true do
        local sent, received = trial(ports, rate, settings.seconds)
        local lost = loss(sent, received)
        print(string.format("%d bytes, %.2f %%: %d sent, %d received, loss %.6f", size, rate, sent, received, lost))
        if lost <= settings.tolerance then passed = rate else failed = rate end
        if not failed or failed - passed <= settings.resolution then return passed end
        rate = (passed + failed) / 2
    end
end

-- Pktgen's own latency probes, on the wan port; nil where none came back.
local function latency()
    local s = pktgen.pktStats(wan)[settings.wan.port].latency
    if s and s.num_pkts > 0 then return s end
    return nil
end

local function main()
    local ports = settings.both_ways and (lan .. "," .. wan) or lan
    pktgen.screen("off")
    pktgen.reset("all")
    flows(lan, settings.lan.gateway, false)
    flows(wan, settings.wan.gateway, true)

    -- The gateway gets to know every flow: from the lan first, then the answers.
    size_of("all", 64)
    trial(lan, 0.1, 2)
    trial(wan, 0.1, 2)

    local file = assert(io.open(settings.output, "w"))
    file:write("size\tload_percent\tmpps\tloss\tmin_us\tavg_us\tmax_us\n")
    for _, size in ipairs(settings.sizes) do
        size_of("all", size)
        local best = throughput(ports, size)
        for _, load in ipairs({ 10, 50, 90, 100 }) do
            pktgen.latency(lan, "enable")
            pktgen.latency(wan, "enable")
            local sent, received = trial(ports, best * load / 100, settings.seconds)
            local l = latency()
            pktgen.latency(lan, "disable")
            pktgen.latency(wan, "disable")
            local times = l and string.format("%.2f\t%.2f\t%.2f", l.min_us, l.avg_us, l.max_us) or "-\t-\t-"
            local mpps = sent / settings.seconds / 1e6
            file:write(string.format("%d\t%d\t%.3f\t%.6f\t%s\n", size, load, mpps, loss(sent, received), times))
            file:flush()
        end
        print(string.format("%d bytes: %.2f %% of the line, %.3f Mpps each way", size, best, best / 100 * line_rate(size) / 1e6))
    end
    file:close()
    pktgen.screen("on")
end

main()
