//! Why a packet was dropped: one enum, and the same words in metrics, logs, trace and documentation.
//!
//! A reason is a name (the metric's label) and a sentence for the operator. `docs/DROPS.md` is generated from this
//! table and a test keeps it true.

macro_rules! drop_reasons {
    ($($(#[$attr:meta])* $variant:ident $label:literal $help:literal;)*) => {
        /// Why a packet was dropped.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum DropReason {
            $(#[doc = $help] $(#[$attr])* $variant,)*
        }

        impl DropReason {
            /// All reasons, in the order of the packet's way.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The metric label: stable, snake case.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label,)* }
            }

            /// One sentence for the operator.
            pub const fn help(self) -> &'static str {
                match self { $(Self::$variant => $help,)* }
            }
        }
    };
}

drop_reasons! {
    // Receive
    ChainedTooLong "chained_too_long" "The frame came in several segments that do not fit one buffer.";
    NoBuffer "no_buffer" "No packet buffer was free.";
    // Ethernet
    EthTruncated "eth_truncated" "The frame is shorter than its Ethernet or VLAN header.";
    EthOtherHost "eth_other_host" "The frame is addressed to another station.";
    EthType "eth_type" "The Ethernet type is neither IPv4, IPv6 nor ARP.";
    VlanUnknown "vlan_unknown" "The frame's VLAN tag is not the interface's, or it has more than one.";
    // Network header
    Ipv4Truncated "ipv4_truncated" "The packet is shorter than its IPv4 header says.";
    Ipv4Version "ipv4_version" "The version field of an IPv4 packet is not 4.";
    Ipv4HeaderLength "ipv4_header_length" "The IPv4 header length is below 20 bytes or beyond the packet.";
    Ipv4Checksum "ipv4_checksum" "The IPv4 header checksum is wrong.";
    Ipv6Truncated "ipv6_truncated" "The packet is shorter than its IPv6 header says.";
    Ipv6Version "ipv6_version" "The version field of an IPv6 packet is not 6.";
    Ipv6Extension "ipv6_extension" "IPv6 hop-by-hop options are cut short, or there are two fragment headers.";
    // Fragments
    FragmentInvalid "fragment_invalid" "A fragment is empty, has a length that none can have, or contradicts its datagram's length.";
    FragmentOverlap "fragment_overlap" "A fragment overlaps another one in part: the datagram is lost.";
    FragmentDuplicate "fragment_duplicate" "The fragment's bytes were there already; the first ones count.";
    FragmentCount "fragment_count" "The datagram came in more fragments than one may have.";
    FragmentLimit "fragment_limit" "The memory for fragments is full, and this datagram made room for others.";
    FragmentShare "fragment_share" "The source has its share of the memory for fragments, and this datagram made room for its others.";
    FragmentHeader "fragment_header" "Virtual reassembly: the first fragment does not hold the whole transport header.";
    FragmentFirst "fragment_first" "Virtual reassembly: the datagram's first fragment was refused, or its connection is gone.";
    FragmentTimeout "fragment_timeout" "The rest of the datagram did not come in time.";
    // Steering
    HandoverFull "handover_full" "The ring to the worker that owns the flow was full.";
    SignpostFull "signpost_full" "The reply's home worker had no room for the signpost.";
    SignpostClash "signpost_clash" "The reply tuple already belongs to another connection on its home worker.";
    // Raw, tracking: invalid packets that the policy dropped keep the reason why they are invalid
    RawRule "raw_rule" "A raw rule dropped it.";
    InvalidExtension "invalid_extension" "INVALID: an IPv6 extension header is cut short, or there are too many.";
    InvalidNoNextHeader "invalid_no_next_header" "INVALID: an IPv6 packet that says that nothing follows its headers.";
    InvalidLength "invalid_length" "INVALID: the transport header is cut short or its length field is wrong.";
    InvalidChecksum "invalid_checksum" "INVALID: the transport checksum is wrong.";
    InvalidCoverage "invalid_coverage" "INVALID: UDP-Lite's checksum covers less than its header or more than there is.";
    InvalidFlags "invalid_flags" "INVALID: no TCP sends this set of flags.";
    InvalidTcpState "invalid_tcp_state" "INVALID: the segment neither fits its connection's state nor can start one.";
    InvalidWindow "invalid_window" "INVALID: a TCP sequence or acknowledgement number is outside the windows.";
    InvalidRst "invalid_rst" "INVALID: the reset's sequence number is lower than what its receiver has acknowledged.";
    InvalidSctpChunks "invalid_sctp_chunks" "INVALID: an SCTP packet without chunks, with an empty one, or with some that cannot go together.";
    InvalidSctpTag "invalid_sctp_tag" "INVALID: the SCTP verification tag is not the association's.";
    InvalidSctpState "invalid_sctp_state" "INVALID: the SCTP chunk neither fits its connection's state nor can start one.";
    InvalidGre "invalid_gre" "INVALID: GRE of version 1 that carries something else than PPP.";
    InvalidIcmpType "invalid_icmp_type" "INVALID: an ICMP type that cannot start a connection.";
    InvalidIcmpVersion "invalid_icmp_version" "INVALID: ICMP over IPv6, or ICMPv6 over IPv4.";
    InvalidRedirect "invalid_redirect" "INVALID: an ICMPv6 redirect that is no router's of this link, or that quotes nothing first.";
    InvalidQuote "invalid_quote" "INVALID: an ICMP error whose quote is cut short, is a later fragment, or is an error itself.";
    InvalidErrorTarget "invalid_error_target" "INVALID: an ICMP error to another address than the quoted packet's source.";
    InvalidNoParent "invalid_no_parent" "INVALID: an ICMP error about no known connection.";
    InvalidNoRequest "invalid_no_request" "INVALID: an ICMP reply to no known request.";
    // Helpers
    ExpectFull "expect_full" "The table of expectations is full, so a packet that announces a connection cannot pass.";
    ExpectClash "expect_clash" "What a packet announces is expected for another connection already.";
    HelperFull "helper_full" "There is no room for what the helper of another connection must remember.";
    HelperOrder "helper_order" "Text before it is missing that may have to be rewritten; both are sent again.";
    HelperEdits "helper_edits" "More text of a control connection would have to be rewritten than is remembered.";
    HelperFragments "helper_fragments" "A segment whose text may have to be rewritten came in fragments.";
    ConntrackFull "conntrack_full" "The connection table is full, and nothing in it could make room.";
    LimitSource "limit_source" "The source network has as many connections as `conntrack.limits` allows it.";
    LimitZone "limit_zone" "The zone has as many connections as `conntrack.limits` allows it.";
    // Translation
    NatNoAddress "nat_no_address" "Masquerade, or a redirect, found no address of this IP version on the interface.";
    NatNoPort "nat_no_port" "No source port, or identifier, of those that the rule allows is free for this destination.";
    NatClash "nat_clash" "The translated connection would have the reply tuple of another one.";
    NatReload "nat_reload" "A reload translates the connection otherwise; its next packet ended it.";
    NatAddressGone "nat_address_gone" "The address that the connection was translated to is not the gateway's, or its interface's, any more.";
    NatRedirect "nat_redirect" "A redirect about a translated connection: who follows it goes past the translation.";
    NatPrefix "nptv6_address" "The address has no image under the other prefix: the word that would make good for it is all ones.";
    // Routing
    MartianSource "martian_source" "The source address cannot come from a wire: loopback, multicast, broadcast, 0.0.0.0/8 or the gateway's own.";
    MartianDestination "martian_destination" "The destination address cannot be forwarded to: loopback, unspecified or in 0.0.0.0/8.";
    NoRoute "no_route" "There is no route to the destination.";
    RouteBlackhole "route_blackhole" "The route says blackhole.";
    RouteUnreachable "route_unreachable" "The route says unreachable.";
    RouteProhibit "route_prohibit" "The route says prohibit.";
    // Filter
    PolicyRule "policy_rule" "A rule of the policy dropped it.";
    PolicyDefault "policy_default" "No rule matched and the policy's default is drop.";
    PolicyReload "policy_reload" "A reload denied the connection; its next packet ended it.";
    // Forward
    TtlExpired "ttl_expired" "The TTL or hop limit ran out here.";
    MtuExceeded "mtu_exceeded" "The packet is larger than the egress MTU and may not be fragmented.";
    LinkLocalScope "link_local_scope" "A link-local address cannot be forwarded to another link.";
    NeighbourUnresolved "neighbour_unresolved" "The next hop did not answer ARP or neighbour discovery.";
    NeighbourQueueFull "neighbour_queue_full" "Too many packets wait for next hops to be resolved.";
    TxFull "tx_full" "The transmit queue stayed full after the bounded retries.";
}

/// How many reasons there are.
pub const DROP_REASONS: usize = DropReason::ALL.len();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_unique_snake_case() {
        let mut labels: Vec<_> = DropReason::ALL.iter().map(|r| r.label()).collect();
        assert!(labels.iter().all(|l| l.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')));
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), DROP_REASONS);
    }

    #[test]
    fn discriminants_index_the_table() {
        assert!(DropReason::ALL.iter().enumerate().all(|(i, &r)| r as usize == i));
    }

    #[test]
    fn the_documentation_lists_every_reason() {
        let doc = include_str!("../../docs/DROPS.md");
        for reason in DropReason::ALL {
            let row = format!("| `{}` | {} |", reason.label(), reason.help());
            assert!(doc.contains(&row), "docs/DROPS.md lacks: {row}");
        }
    }
}
