"""UDP flows through Sluice for TRex in stateless mode, both ways: the clients' frames from even ports, answers from odd ones.

Tunables: size (64 to 1518 with FCS, or imix), flows (1 to 65000), checksum (1: UDP's is right, made by the NIC; 0: there is
none), latency (1: a stream of probes besides, one way). Written after TRex's documentation and not run by the authors: see
README.md beside this file.
"""

import argparse

from trex_stl_lib.api import (
    CTRexVmInsFixHwCs,
    Ether,
    IP,
    STLFlowLatencyStats,
    STLPktBuilder,
    STLScVmRaw,
    STLStream,
    STLTXCont,
    STLVmFixChecksumHw,
    STLVmFixIpv4,
    STLVmFlowVar,
    STLVmWrFlowVar,
    UDP,
)

SERVER = "198.18.0.1"
CLIENTS = 10 << 24 | 2  # 10.0.0.2
CLIENT_PORT = 1024
SERVER_PORT = 7
FCS = 4
# Seven of 64 bytes, four of 570, one of 1,518; times in microseconds keep the streams from sending at the same moment.
IMIX = [(64, 7, 0.0), (570, 4, 0.1), (1518, 1, 0.2)]
PROBES_PER_SECOND = 1000


def address(number):
    """A number as an IPv4 address."""
    return ".".join(str(number >> shift & 255) for shift in (24, 16, 8, 0))


class SluiceUdp:
    """One UDP flow per client, all to one server."""

    def packet(self, direction, size, flows, checksum):
        """A frame whose client counts up from one to the next."""
        ends = (address(CLIENTS), SERVER) if direction == 0 else (SERVER, address(CLIENTS))
        ports = (CLIENT_PORT, SERVER_PORT) if direction == 0 else (SERVER_PORT, CLIENT_PORT)
        base = Ether() / IP(src=ends[0], dst=ends[1]) / UDP(sport=ports[0], dport=ports[1], chksum=0)
        padding = max(0, size - FCS - len(base)) * "x"
        client = "IP.src" if direction == 0 else "IP.dst"
        if checksum:
            fix = STLVmFixChecksumHw(l3_offset="IP", l4_offset="UDP", l4_type=CTRexVmInsFixHwCs.L4_TYPE_UDP)
        else:
            fix = STLVmFixIpv4(offset="IP")
        instructions = [
            STLVmFlowVar(
                name="client",
                min_value=address(CLIENTS),
                max_value=address(CLIENTS + flows - 1),
                size=4,
                op="inc",
            ),
            STLVmWrFlowVar(fv_name="client", pkt_offset=client),
            fix,
        ]
        return STLPktBuilder(pkt=base / padding, vm=STLScVmRaw(instructions))

    def probes(self, direction):
        """A slow stream whose frames are timed; a flow of its own."""
        client = address(CLIENTS + 65000)
        ends = (client, SERVER) if direction == 0 else (SERVER, client)
        ports = (CLIENT_PORT, SERVER_PORT) if direction == 0 else (SERVER_PORT, CLIENT_PORT)
        base = Ether() / IP(src=ends[0], dst=ends[1]) / UDP(sport=ports[0], dport=ports[1], chksum=0)
        return STLStream(
            packet=STLPktBuilder(pkt=base / ("x" * 18)),
            flow_stats=STLFlowLatencyStats(pg_id=10 + direction),
            mode=STLTXCont(pps=PROBES_PER_SECOND),
        )

    def get_streams(self, direction=0, tunables=(), **kwargs):
        """What TRex calls: with tunables as arguments (new releases) or as keywords (old ones)."""
        parser = argparse.ArgumentParser(description=__doc__)
        parser.add_argument("--size", default=str(kwargs.get("size", 64)))
        parser.add_argument("--flows", type=int, default=int(kwargs.get("flows", 1000)))
        parser.add_argument("--checksum", type=int, default=int(kwargs.get("checksum", 1)))
        parser.add_argument("--latency", type=int, default=int(kwargs.get("latency", 0)))
        args = parser.parse_args(list(tunables))
        mix = IMIX if args.size.lower() == "imix" else [(int(args.size), 1, 0.0)]
        streams = [
            STLStream(
                packet=self.packet(direction, size, args.flows, args.checksum),
                mode=STLTXCont(pps=share),
                isg=gap,
            )
            for size, share, gap in mix
        ]
        if args.latency:
            streams.append(self.probes(direction))
        return streams


def register():
    """TRex's entry point."""
    return SluiceUdp()
