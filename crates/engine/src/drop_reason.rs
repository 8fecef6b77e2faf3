//! The one list of reasons for which a received frame is dropped before it reaches a connection,
//! each with its text.
//!
//! Every frame given to `Shard::handle_frame`, and every packet a shard sends to itself, is counted
//! once: as accepted or under exactly one of these. What a connection then thinks of a segment is
//! counted in [`crate::TcpCounters`]. A test fails on a reason that nothing counts.

macro_rules! drop_reasons {
    ($($(#[$meta:meta])* $name:ident => $text:literal,)*) => {
        /// Why a received frame was dropped.
        #[derive(Copy, Clone, PartialEq, Eq, Debug, PartialOrd, Ord, Hash)]
        pub enum DropReason {
            $($(#[$meta])* #[doc = $text] $name,)*
        }

        impl DropReason {
            /// All reasons, in the order of their counters.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$name,)*];

            /// What happened, in words.
            pub const fn text(self) -> &'static str {
                match self { $(DropReason::$name => $text,)* }
            }

            /// The reason's name, as written here.
            pub const fn name(self) -> &'static str {
                match self { $(DropReason::$name => stringify!($name),)* }
            }
        }
    };
}

drop_reasons! {
    // Ethernet
    FrameTruncated => "frame is shorter than an Ethernet header",
    FrameOversized => "frame is longer than the MTU allows",
    EthernetNotForUs => "Ethernet destination is another station",
    EthernetBadSource => "Ethernet source is a group address",
    CopyForOthers => "copy of a neighbour message that tells this server nothing",
    SpeakerOnly => "message that another server of this service answers",
    EthernetOtherVlan => "frame of a VLAN",
    EthernetUnknownType => "Ethernet type is neither ARP, IPv4 nor IPv6",
    // ARP
    ArpMalformed => "ARP packet is malformed",
    ArpNotForUs => "ARP asks for another station's address",
    ArpBadSender => "ARP sender is not a possible neighbour",
    ArpUnsolicited => "ARP reply for an address nobody asked for",
    // IPv4
    Ipv4Malformed => "IPv4 header is malformed or longer than the packet",
    Ipv4BadChecksum => "IPv4 header checksum is wrong",
    Ipv4MartianSource => "IPv4 source address is impossible",
    Ipv4BroadcastSource => "IPv4 source address is a broadcast or multicast address",
    Ipv4SelfSource => "IPv4 source address is our own, from the wire",
    Ipv4NotForUs => "IPv4 destination is not ours",
    Ipv4Broadcast => "IPv4 broadcast or multicast that nothing here takes",
    Ipv4SourceRoute => "IPv4 packet chooses its own way by a source route option",
    Ipv4UnicastInBroadcast => "IPv4 unicast packet in a broadcast frame",
    // IPv6
    Ipv6Malformed => "IPv6 header is malformed or longer than the packet",
    Ipv6MartianSource => "IPv6 source address is impossible",
    Ipv6MartianDestination => "IPv6 destination address is impossible",
    Ipv6SelfSource => "IPv6 source address is our own, from the wire",
    Ipv6NotForUs => "IPv6 destination is not ours",
    Ipv6UnicastInMulticast => "IPv6 unicast packet in a multicast frame",
    Ipv6BadExtension => "IPv6 extension header is malformed or out of place",
    Ipv6TooManyExtensions => "IPv6 packet has too many extension headers",
    Ipv6UnknownOption => "IPv6 option is unknown and asks to be dropped",
    Ipv6RoutingHeader => "IPv6 routing header with segments left",
    Ipv6IncompleteChain => "first IPv6 fragment ends before the transport header",
    Ipv6NoNextHeader => "IPv6 packet has no next header",
    // Fragments
    FragmentMalformed => "fragment is empty, unaligned or beyond the largest datagram",
    FragmentOverlap => "fragment overlaps another: the datagram is dropped (RFC 5722)",
    FragmentNoMemory => "memory for reassembly is used up",
    // Above IP
    ProtocolUnknown => "no such transport protocol here",
    UdpMalformed => "UDP header is malformed",
    UdpBadChecksum => "UDP checksum is wrong",
    UdpElsewhere => "datagram to a port that is at home in another server",
    UdpPortZero => "UDP destination port is zero",
    UdpNoPort => "no UDP socket has this port",
    UdpReceiveFull => "no memory is left at the UDP sockets that the datagram is for",
    DhcpIgnored => "DHCP message that is malformed or answers nothing we asked",
    DnsIgnored => "answer of a name server that is malformed or answers another question",
    // Group management
    GroupMalformed => "IGMP or MLD message is malformed",
    GroupNotLocal => "IGMP or MLD message has passed a router",
    GroupIgnored => "IGMP or MLD message says nothing that counts here",
    // ICMP and NDP
    IcmpMalformed => "ICMP message is malformed",
    IcmpBadChecksum => "ICMP checksum is wrong",
    IcmpUnknownType => "ICMP type is not handled here",
    IcmpMtuTooSmall => "ICMPv6 reports an MTU below 1280",
    IcmpErrorUnmatched => "ICMP error quotes no flow of ours",
    IcmpEchoLimited => "echo requests come faster than the limit",
    NdpMalformed => "neighbour discovery message is malformed",
    NdpBadHopLimit => "neighbour discovery message has passed a router",
    NdpBadSource => "neighbour discovery source is not a possible neighbour",
    NdpNotForUs => "neighbour solicitation for another station's address",
    NdpUnsolicited => "neighbour advertisement for an address nobody asked for",
    NdpNotWanted => "router advertisement or redirect, and this host takes none",
    ReplyQueueFull => "the reply to the packet found its queue full",
    // TCP before a connection
    TcpMalformed => "TCP header or options are malformed",
    TcpBadChecksum => "TCP checksum is wrong",
    TcpElsewhere => "TCP segment of no connection here, and another server owns the flow",
    TcpPortZero => "TCP port is zero",
    TcpNotUnicast => "TCP segment to a group address",
    TcpNoFlow => "TCP segment for a connection that does not exist; answered with RST",
    TcpNoFlowReset => "TCP RST for a connection that does not exist",
    TcpSynMalformed => "TCP SYN carries other control flags",
    TcpListenerFull => "the listener's accept queue is full",
    TcpListenerOpening => "the listener is being opened at all servers",
    TcpDeferred => "the listener waits for data before it accepts",
    TcpNoRoute => "no route back to the sender of a SYN",
    TcpSocketLimit => "no room for another connection",
    TcpCookieAhead => "segment of a SYN cookie's handshake that came before what completes it",
    TcpTimeWait => "segment for a connection in TIME-WAIT",
}
