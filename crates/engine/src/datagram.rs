//! What a caller says to and hears from UDP sockets: options, where to send, what came with a
//! datagram.
//!
//! Used by `Shard::open_datagram` and its relatives in `shard/datagram.rs`, which do the work.

use std::net::{IpAddr, SocketAddr};

/// What to do with datagrams that are larger than the way to their destination allows; the values
/// of IP_MTU_DISCOVER and IPV6_MTU_DISCOVER.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub enum PathMtu {
    /// IP_PMTUDISC_DONT: fragments by us and by routers.
    Dont,
    /// IP_PMTUDISC_WANT: fragments by us where the known path MTU asks for it, none by routers.
    #[default]
    Want,
    /// IP_PMTUDISC_DO: never fragments; too large for the known path MTU is an error.
    Do,
    /// IP_PMTUDISC_PROBE: never fragments; only the link's MTU counts.
    Probe,
    /// IP_PMTUDISC_INTERFACE: only the link's MTU counts, whatever routers report; larger is an
    /// error.
    Interface,
    /// IP_PMTUDISC_OMIT: as `Interface`, but larger datagrams are sent in fragments.
    Omit,
}

/// All options of one UDP socket, with Linux's defaults.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct DatagramOptions {
    /// IPV6_V6ONLY: a socket at `::` with `false` takes IPv4 datagrams too.
    pub v6only: bool,
    /// SO_REUSEADDR: sockets that all say so may share an address; the last one opened gets what
    /// is for one of them.
    pub reuse_address: bool,
    /// SO_REUSEPORT: as above, but datagrams are spread over the sockets by a hash.
    pub reuse_port: bool,
    /// SO_BROADCAST: may send to broadcast addresses.
    pub broadcast: bool,
    /// IP_TTL and IPV6_UNICAST_HOPS, 1..=255.
    pub hop_limit: u8,
    /// IP_MULTICAST_TTL and IPV6_MULTICAST_HOPS, 0..=255; 0 stays in this host.
    pub multicast_hop_limit: u8,
    /// IP_MULTICAST_LOOP: members on this host get what is sent to a group.
    pub multicast_loop: bool,
    /// IP_MULTICAST_ALL: also gets datagrams to groups that only other sockets have joined.
    pub multicast_all: bool,
    /// IP_TOS and IPV6_TCLASS.
    pub type_of_service: u8,
    /// IP_MTU_DISCOVER and IPV6_MTU_DISCOVER.
    pub dont_fragment: PathMtu,
    /// IP_RECVERR and IPV6_RECVERR: is told of ICMP errors even if not connected.
    pub receive_errors: bool,
}

impl Default for DatagramOptions {
    fn default() -> DatagramOptions {
        DatagramOptions {
            v6only: false,
            reuse_address: false,
            reuse_port: false,
            broadcast: false,
            hop_limit: 64,
            multicast_hop_limit: 1,
            multicast_loop: true,
            multicast_all: true,
            type_of_service: 0,
            dont_fragment: PathMtu::Want,
            receive_errors: false,
        }
    }
}

/// One option of an open UDP socket to change; [`DatagramOptions`] says what each means. Those that
/// are missing here count only when the socket is opened.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum DatagramOption {
    /// SO_BROADCAST.
    Broadcast(bool),
    /// IP_TTL or IPV6_UNICAST_HOPS; 0 is taken as 1.
    HopLimit(u8),
    /// IP_MULTICAST_TTL or IPV6_MULTICAST_HOPS.
    MulticastHopLimit(u8),
    /// IP_MULTICAST_LOOP.
    MulticastLoop(bool),
    /// IP_MULTICAST_ALL.
    MulticastAll(bool),
    /// IP_TOS or IPV6_TCLASS.
    TypeOfService(u8),
    /// IP_MTU_DISCOVER or IPV6_MTU_DISCOVER.
    DontFragment(PathMtu),
    /// IP_RECVERR or IPV6_RECVERR.
    ReceiveErrors(bool),
    /// SO_REUSEADDR: counts for sockets opened later at the same address.
    ReuseAddress(bool),
}

impl DatagramOptions {
    /// Stores one option.
    pub fn set(&mut self, option: DatagramOption) {
        match option {
            DatagramOption::Broadcast(on) => self.broadcast = on,
            DatagramOption::HopLimit(hops) => self.hop_limit = hops.max(1),
            DatagramOption::MulticastHopLimit(hops) => self.multicast_hop_limit = hops,
            DatagramOption::MulticastLoop(on) => self.multicast_loop = on,
            DatagramOption::MulticastAll(on) => self.multicast_all = on,
            DatagramOption::TypeOfService(class) => self.type_of_service = class,
            DatagramOption::DontFragment(mode) => self.dont_fragment = mode,
            DatagramOption::ReceiveErrors(on) => self.receive_errors = on,
            DatagramOption::ReuseAddress(on) => self.reuse_address = on,
        }
    }
}

/// Where and how to send a datagram; what is left out comes from the socket.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct SendTo {
    /// Destination; `None`: the peer that the socket is connected to.
    pub remote: Option<SocketAddr>,
    /// Source address, which must be ours (IP_PKTINFO).
    pub source: Option<IpAddr>,
    /// Hop limit of this datagram (IP_TTL, IPV6_HOPLIMIT as control message), 1..=255.
    pub hop_limit: Option<u8>,
    /// Type of service of this datagram (IP_TOS, IPV6_TCLASS as control message).
    pub type_of_service: Option<u8>,
    /// Payload bytes of each datagram that the payload is cut into (UDP_SEGMENT); 0: one datagram.
    pub segment_size: u16,
}

/// What came with a datagram.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Datagram {
    /// Who sent it.
    pub remote: SocketAddr,
    /// Where it was sent to: the destination address of the packet, and the port.
    pub local: SocketAddr,
    /// TTL or hop limit on arrival.
    pub hop_limit: u8,
    /// TOS byte or traffic class.
    pub type_of_service: u8,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_change_one_by_one() {
        let mut options = DatagramOptions::default();
        options.set(DatagramOption::HopLimit(0));
        options.set(DatagramOption::MulticastHopLimit(0));
        options.set(DatagramOption::DontFragment(PathMtu::Probe));
        options.set(DatagramOption::TypeOfService(0xb8));
        let expected = DatagramOptions {
            hop_limit: 1,
            multicast_hop_limit: 0,
            dont_fragment: PathMtu::Probe,
            type_of_service: 0xb8,
            ..DatagramOptions::default()
        };
        assert_eq!(options, expected);
    }
}
