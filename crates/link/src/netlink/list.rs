//! Owns what the kernel's lists mean: links, addresses and routes as plain values, parsed from the
//! payload of one message each. Called by `Netlink::links`, `addresses` and `routes`. A message this
//! code cannot read is left out (`None`), never a panic.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::constants::*;
use super::message::{attributes, text, u32_at};

/// A network interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Link {
    /// The kernel's number of the interface in its namespace, from 1.
    pub index: u32,
    /// Name, at most 15 bytes.
    pub name: String,
    /// The `IFF_*` flags.
    pub flags: u32,
    /// What the kernel has noted of its carrier (`IF_OPER_*`, RFC 2863 section 3.1.14), a little late.
    pub(super) operational_state: u8,
    /// How often the driver has said that the carrier came or went.
    pub(super) carrier_changes: u32,
    /// MTU in bytes (IP packet, without the Ethernet header).
    pub mtu: u32,
    /// Ethernet address; `None` for links without a 6-byte one.
    pub mac: Option<[u8; 6]>,
    /// Driver kind ("veth", "tun", ...); `None` for plain devices and loopback.
    pub kind: Option<String>,
}

impl Route {
    /// Whether what takes this route is delivered on this machine.
    pub fn is_local(&self) -> bool {
        self.kind == RTN_LOCAL
    }
}

impl Link {
    /// Whether the interface is administratively up.
    pub fn is_up(&self) -> bool {
        self.flags & IFF_UP != 0
    }

    /// Whether the interface is up with a carrier that the kernel has noted: it sends.
    pub fn is_running(&self) -> bool {
        let noted = self.operational_state == IF_OPER_UP || self.carrier_is_as_made();
        self.is_up() && self.has_carrier() && noted
    }

    /// Whether the kernel has noted that there is a carrier, or there is none.
    pub(super) fn is_noted(&self) -> bool {
        let stale = [IF_OPER_DOWN, IF_OPER_LOWERLAYERDOWN].contains(&self.operational_state)
            || self.operational_state == IF_OPER_UNKNOWN && !self.carrier_is_as_made();
        !self.has_carrier() || !stale
    }

    /// Whether the other side of the interface is there, if it is up itself.
    fn has_carrier(&self) -> bool {
        self.flags & IFF_LOWER_UP != 0
    }

    /// Whether nothing about the carrier was ever to be noted, as with drivers that do not tell.
    fn carrier_is_as_made(&self) -> bool {
        self.operational_state == IF_OPER_UNKNOWN && self.carrier_changes == 0
    }

    /// Whether the interface is the loopback.
    pub fn is_loopback(&self) -> bool {
        self.flags & IFF_LOOPBACK != 0
    }
}

/// An address of an interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Address {
    /// Index of the interface that has it.
    pub link: u32,
    /// The machine's own address.
    pub address: IpAddr,
    /// Length of the prefix that is on link, in bits: 0..=32 or 0..=128.
    pub prefix_len: u8,
    /// The `IFA_F_*` flags.
    pub flags: u32,
}

/// A route of any table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Route {
    /// Destination network; a default route has the unspecified address and length 0.
    pub destination: IpAddr,
    /// Length of the destination's prefix, in bits: 0..=32 or 0..=128.
    pub prefix_len: u8,
    /// Next hop; `None` when the destination is on link (or the route has several hops).
    pub gateway: Option<IpAddr>,
    /// Index of the interface it leaves by; `None` for routes without one or with several.
    pub link: Option<u32>,
    /// Routing table (254 = main, 255 = local).
    pub table: u32,
    /// Kind (`RTN_*`: 1 = unicast, 2 = local, 7 = unreachable ...).
    pub kind: u8,
    /// Metric; lower wins. 0 when none is given.
    pub priority: u32,
}

/// Parses the payload of an RTM_NEWLINK message.
pub(super) fn parse_link(payload: &[u8]) -> Option<Link> {
    let mut link = Link {
        index: u32_at(payload, 4)?,
        name: String::new(),
        flags: u32_at(payload, 8)?,
        operational_state: IF_OPER_UNKNOWN,
        carrier_changes: 0,
        mtu: 0,
        mac: None,
        kind: None,
    };
    for (kind, value) in attributes(payload.get(16..)?) {
        match kind {
            IFLA_IFNAME => link.name = text(value),
            IFLA_OPERSTATE => link.operational_state = *value.first()?,
            IFLA_CARRIER_CHANGES => link.carrier_changes = u32_at(value, 0)?,
            IFLA_MTU => link.mtu = u32_at(value, 0)?,
            IFLA_ADDRESS => link.mac = value.try_into().ok(),
            IFLA_LINKINFO => {
                link.kind = attributes(value)
                    .find(|(kind, _)| *kind == IFLA_INFO_KIND)
                    .map(|(_, value)| text(value));
            }
            _ => {}
        }
    }
    if link.name.is_empty() { None } else { Some(link) }
}

/// Parses the payload of an RTM_NEWADDR message.
pub(super) fn parse_address(payload: &[u8]) -> Option<Address> {
    let family = *payload.first()?;
    let prefix_len = *payload.get(1)?;
    let mut flags = u32::from(*payload.get(2)?);
    let link = u32_at(payload, 4)?;
    let (mut local, mut address) = (None, None);
    for (kind, value) in attributes(payload.get(8..)?) {
        match kind {
            IFA_LOCAL => local = ip(family, value),
            IFA_ADDRESS => address = ip(family, value),
            IFA_FLAGS => flags = u32_at(value, 0)?,
            _ => {}
        }
    }
    // On a point-to-point link IFA_ADDRESS is the peer and IFA_LOCAL is ours.
    let address = local.or(address)?;
    (prefix_len <= bits(address)).then_some(Address { link, address, prefix_len, flags })
}

/// Parses the payload of an RTM_NEWROUTE message of a list; cached clones are left out.
pub(super) fn parse_listed_route(payload: &[u8]) -> Option<Route> {
    if u32_at(payload, 8)? & RTM_F_CLONED != 0 { None } else { parse_route(payload) }
}

/// Parses the payload of an RTM_NEWROUTE message.
pub(super) fn parse_route(payload: &[u8]) -> Option<Route> {
    let family = *payload.first()?;
    let prefix_len = *payload.get(1)?;
    let unspecified = match family {
        AF_INET => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AF_INET6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    if prefix_len > bits(unspecified) {
        return None;
    }
    let mut route = Route {
        destination: unspecified,
        prefix_len,
        gateway: None,
        link: None,
        table: u32::from(*payload.get(4)?),
        kind: *payload.get(7)?,
        priority: 0,
    };
    for (kind, value) in attributes(payload.get(12..)?) {
        match kind {
            RTA_DST => route.destination = ip(family, value)?,
            RTA_GATEWAY => route.gateway = ip(family, value),
            RTA_OIF => route.link = u32_at(value, 0),
            RTA_TABLE => route.table = u32_at(value, 0)?,
            RTA_PRIORITY => route.priority = u32_at(value, 0)?,
            _ => {}
        }
    }
    Some(route)
}

/// The number of bits in an address of this family.
pub(crate) fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn ip(family: u8, value: &[u8]) -> Option<IpAddr> {
    match family {
        AF_INET => Some(IpAddr::from(<[u8; 4]>::try_from(value).ok()?)),
        AF_INET6 => Some(IpAddr::from(<[u8; 16]>::try_from(value).ok()?)),
        _ => None,
    }
}
