//! Where a packet goes and where it comes from: own addresses, routes, choice of the source.
//!
//! Called for every connection that is opened and for every packet that is not part of one. The
//! tables hold a handful of entries, made afresh whenever `network.rs` learns something.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::config::{Cidr, Route};

/// Where a packet goes next.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Hash)]
pub enum NextHop {
    /// Back into this shard: the address is ours.
    Ourselves,
    /// To the neighbour with this address.
    Neighbour(IpAddr),
}

/// Own addresses and routes.
#[derive(Debug)]
pub struct Routing {
    addresses: Vec<Cidr>,
    /// Beside each address: whether it may be used for something new.
    preferred: Vec<bool>,
    /// Longest prefix first.
    routes: Vec<Route>,
}

impl Routing {
    /// Takes over a checked configuration; the networks of the addresses become routes.
    #[cfg(test)]
    pub fn new(addresses: &[Cidr], routes: &[Route]) -> Routing {
        let own: Vec<(Cidr, bool, bool)> =
            addresses.iter().map(|cidr| (*cidr, true, true)).collect();
        Routing::with_states(&own, routes)
    }

    /// Tables from addresses, each with whether it is preferred, and whether its network is on the
    /// link.
    pub fn with_states(own: &[(Cidr, bool, bool)], routes: &[Route]) -> Routing {
        let on_link = own
            .iter()
            .filter(|(_, _, on_link)| *on_link)
            .map(|(cidr, ..)| Route { destination: *cidr, gateway: None });
        // Configured routes come first among equals: sorting is stable.
        let mut routes: Vec<Route> = routes.iter().copied().chain(on_link).collect();
        routes.sort_by_key(|route| std::cmp::Reverse(route.destination.prefix_len));
        Routing {
            addresses: own.iter().map(|(cidr, ..)| *cidr).collect(),
            preferred: own.iter().map(|(_, preferred, _)| *preferred).collect(),
            routes,
        }
    }

    /// Whether `addr` is ours. Of a loopback network every address is.
    pub fn is_ours(&self, addr: IpAddr) -> bool {
        self.addresses
            .iter()
            .any(|cidr| cidr.addr == addr || (cidr.addr.is_loopback() && cidr.contains(addr)))
    }

    /// Whether `addr` is a broadcast address: of one of our networks, or of all.
    pub fn is_broadcast(&self, addr: Ipv4Addr) -> bool {
        addr.is_broadcast() || self.addresses.iter().any(|cidr| cidr.is_broadcast(IpAddr::V4(addr)))
    }

    /// Whether `addr` lies in a network of ours, so that it can be a neighbour.
    pub fn is_on_link(&self, addr: IpAddr) -> bool {
        if let IpAddr::V6(addr) = addr
            && addr.is_unicast_link_local()
        {
            return true;
        }
        let on_link = |route: &&Route| route.gateway.is_none() && route.destination.contains(addr);
        self.routes.iter().any(|route| on_link(&route))
            || self.routes.iter().any(|route| route.gateway == Some(addr))
    }

    /// Longest prefix match; `None` without a route.
    pub fn next_hop(&self, destination: IpAddr) -> Option<NextHop> {
        if self.is_ours(destination) {
            return Some(NextHop::Ourselves);
        }
        let group = match destination {
            IpAddr::V4(addr) => addr.is_multicast() || self.is_broadcast(addr),
            IpAddr::V6(addr) => addr.is_multicast() || addr.is_unicast_link_local(),
        };
        if group {
            return Some(NextHop::Neighbour(destination));
        }
        let route = self.routes.iter().find(|route| route.destination.contains(destination))?;
        Some(NextHop::Neighbour(route.gateway.unwrap_or(destination)))
    }

    /// The address of ours that packets to `remote` come from: `remote` itself when it is ours. For
    /// IPv4 one in the network of the next hop, else the one that shares most with `remote`; for
    /// IPv6 by RFC 6724 section 5.
    pub fn source_for(&self, remote: IpAddr) -> Option<IpAddr> {
        let hop = match self.next_hop(remote)? {
            NextHop::Ourselves => return Some(remote),
            NextHop::Neighbour(hop) => hop,
        };
        let rank = |(cidr, preferred): &(&Cidr, &bool)| match (cidr.addr, remote) {
            (IpAddr::V6(own), IpAddr::V6(remote)) => rank_v6(own, cidr, **preferred, remote),
            _ => {
                let same_scope = is_link_local(cidr.addr) == is_link_local(remote);
                let near = u32::from(cidr.contains(hop));
                (true, u32::from(same_scope), true, near, common_bits(cidr.addr, remote))
            }
        };
        let same_family = |(cidr, _): &(&Cidr, &bool)| cidr.addr.is_ipv4() == remote.is_ipv4();
        let candidates = self.addresses.iter().zip(&self.preferred).filter(same_family);
        // The first of equals: `max_by_key` would take the last.
        candidates.rev().max_by_key(rank).map(|(cidr, _)| cidr.addr)
    }

    /// A link-local IPv6 address of ours.
    pub fn link_local(&self) -> Option<Ipv6Addr> {
        self.addresses.iter().find_map(|cidr| match cidr.addr {
            IpAddr::V6(addr) if addr.is_unicast_link_local() => Some(addr),
            _ => None,
        })
    }

    /// Whether a packet to this IPv6 group is for us: all nodes, or the solicited-node group of one
    /// of our addresses (RFC 4291 section 2.7.1).
    pub fn is_our_group(&self, group: Ipv6Addr) -> bool {
        let all_nodes = [Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1), ALL_NODES_OF_INTERFACE];
        all_nodes.contains(&group)
            || self.addresses.iter().any(|cidr| match cidr.addr {
                IpAddr::V6(addr) => solicited_node(addr) == group,
                IpAddr::V4(_) => false,
            })
    }
}

const ALL_NODES_OF_INTERFACE: Ipv6Addr = Ipv6Addr::new(0xff01, 0, 0, 0, 0, 0, 0, 1);

/// The group in which the holder of `addr` listens for neighbour solicitations.
pub fn solicited_node(addr: Ipv6Addr) -> Ipv6Addr {
    let [.., high, low] = addr.segments();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | (high & 0xff), low)
}

/// Rules 2, 3, 6 and 8 of RFC 6724 section 5, as a rank; rule 1 has been dealt with, rules 4, 5 and 7
/// have nothing to decide here.
fn rank_v6(
    own: Ipv6Addr,
    cidr: &Cidr,
    preferred: bool,
    remote: Ipv6Addr,
) -> (bool, u32, bool, u32, u32) {
    let (scope, wanted) = (scope_of(own), scope_of(remote));
    // The smallest scope that is large enough, else the largest.
    let reaches = scope >= wanted;
    let fit = if reaches { 16 - scope } else { scope };
    let same_label = u32::from(label_of(own) == label_of(remote));
    let common = common_bits(IpAddr::V6(own), IpAddr::V6(remote)).min(u32::from(cidr.prefix_len));
    (reaches, fit, preferred, same_label, common)
}

/// RFC 6724 section 3.1.
fn scope_of(addr: Ipv6Addr) -> u32 {
    if addr.is_multicast() {
        u32::from(addr.octets()[1] & 0xf)
    } else if addr.is_unicast_link_local() || addr.is_loopback() {
        2
    } else {
        14
    }
}

/// The default table of RFC 6724 section 2.1.
fn label_of(addr: Ipv6Addr) -> u32 {
    let [first, second, ..] = addr.segments();
    match (first, second) {
        _ if addr.is_loopback() => 0,
        _ if addr.to_ipv4_mapped().is_some() => 4,
        (0x2002, _) => 2,
        (0x2001, 0) => 5,
        (0xfc00..=0xfdff, _) => 13,
        (0xfec0..=0xfeff, _) => 11,
        (0x3ffe, _) => 12,
        (0, 0) if u128::from(addr) >> 32 == 0 => 3,
        _ => 1,
    }
}

fn is_link_local(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(addr) => addr.is_link_local(),
        IpAddr::V6(addr) => addr.is_unicast_link_local(),
    }
}

fn common_bits(one: IpAddr, other: IpAddr) -> u32 {
    match (one, other) {
        (IpAddr::V4(one), IpAddr::V4(other)) => (u32::from(one) ^ u32::from(other)).leading_zeros(),
        (IpAddr::V6(one), IpAddr::V6(other)) => {
            (u128::from(one) ^ u128::from(other)).leading_zeros()
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("address")
    }

    fn routing() -> Routing {
        let addresses = ["198.18.0.1/24", "10.0.0.1/8", "2001:db8::1/64", "fe80::1/64"]
            .map(|text| text.parse().expect("address"));
        let route = |destination: &str, gateway: &str| Route {
            destination: destination.parse().expect("network"),
            gateway: Some(ip(gateway)),
        };
        let routes = [
            route("0.0.0.0/0", "198.18.0.254"),
            route("10.9.0.0/16", "10.0.0.9"),
            route("::/0", "fe80::ff"),
        ];
        Routing::new(&addresses, &routes)
    }

    #[test]
    fn the_longest_prefix_wins() {
        let routing = routing();
        let hop = |text| routing.next_hop(ip(text));
        assert_eq!(hop("198.18.0.7"), Some(NextHop::Neighbour(ip("198.18.0.7"))));
        assert_eq!(hop("8.8.8.8"), Some(NextHop::Neighbour(ip("198.18.0.254"))));
        assert_eq!(hop("10.9.1.1"), Some(NextHop::Neighbour(ip("10.0.0.9"))));
        assert_eq!(hop("10.8.1.1"), Some(NextHop::Neighbour(ip("10.8.1.1"))));
        assert_eq!(hop("10.0.0.1"), Some(NextHop::Ourselves));
        assert_eq!(hop("2001:db8:1::1"), Some(NextHop::Neighbour(ip("fe80::ff"))));
        let narrow = Routing::new(&["10.0.0.1/24".parse().expect("address")], &[]);
        assert_eq!(narrow.next_hop(ip("10.0.1.1")), None);
        assert_eq!(narrow.next_hop(ip("2001:db8::1")), None);
    }

    #[test]
    fn sources_fit_their_destinations() {
        let routing = routing();
        let source = |text| routing.source_for(ip(text));
        assert_eq!(source("10.9.1.1"), Some(ip("10.0.0.1")));
        assert_eq!(source("8.8.8.8"), Some(ip("198.18.0.1")));
        assert_eq!(source("2001:db8:1::1"), Some(ip("2001:db8::1")));
        assert_eq!(source("fe80::77"), Some(ip("fe80::1")));
        assert_eq!(source("198.18.0.1"), Some(ip("198.18.0.1")));
    }

    #[test]
    fn sources_follow_the_rules_of_rfc_6724() {
        let own = |text: &str, preferred| (text.parse::<Cidr>().expect("address"), preferred, true);
        let route =
            Route { destination: "::/0".parse().expect("network"), gateway: Some(ip("fe80::ff")) };
        let routing = Routing::with_states(
            &[
                own("fe80::1/64", true),
                own("2001:db8:1::1/64", false),
                own("2001:db8:2::1/64", true),
                own("2001:db8:3::1/64", true),
                own("fd00::1/64", true),
            ],
            &[route],
        );
        let source = |text| routing.source_for(ip(text));
        // Rule 2: scopes, of groups too.
        assert_eq!(source("ff02::1"), Some(ip("fe80::1")));
        assert_eq!(source("ff0e::1"), Some(ip("2001:db8:2::1")));
        // Rule 3: a deprecated address gives way even where it is the longest match.
        assert_ne!(source("2001:db8:1::9"), Some(ip("2001:db8:1::1")));
        // Rule 6: labels.
        assert_eq!(source("fd77::9"), Some(ip("fd00::1")));
        // Rule 8: the longest match.
        assert_eq!(source("2001:db8:3::9"), Some(ip("2001:db8:3::1")));
    }

    #[test]
    fn groups_and_broadcasts_are_known() {
        let routing = routing();
        assert!(routing.is_broadcast(Ipv4Addr::new(198, 18, 0, 255)));
        assert!(!routing.is_broadcast(Ipv4Addr::new(198, 18, 1, 255)));
        let group = |text: &str| routing.is_our_group(text.parse().expect("group"));
        assert!(group("ff02::1"));
        assert!(group("ff02::1:ff00:1"));
        assert!(!group("ff02::1:ff00:2"));
        assert!(!group("ff02::2"));
        assert!(routing.is_on_link(ip("fe80::9")));
        assert!(routing.is_on_link(ip("198.18.0.254")));
        assert!(!routing.is_on_link(ip("8.8.8.8")));
    }

    #[test]
    fn a_loopback_network_is_all_ours() {
        let routing = Routing::new(&["127.0.0.1/8".parse().expect("address")], &[]);
        assert!(routing.is_ours(ip("127.9.9.9")));
        assert!(!routing.is_ours(ip("128.0.0.1")));
    }
}
