//! What one server has learned about the network, as a value for the others: addresses, routers, name servers.
//!
//! Made by the speaker's [`Network`], taken over whole by the others': what is missing in an update is gone.
//! [`NetworkUpdate::encode`] and [`NetworkUpdate::decode`] carry it between processes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Address, Detection, Learned, Network, Origin};
use crate::config::Cidr;
use crate::time::Instant;

/// The first byte of an encoded update.
const VERSION: u8 = 1;
/// Items of one list in a message; more than any list here can have.
const ITEMS_MAX: usize = 255;
/// Tags of items.
const ADDRESS: u8 = 1;
const ON_LINK: u8 = 2;
const GATEWAY: u8 = 3;
const NAME_SERVER: u8 = 4;
const MTU_V6: u8 = 5;
const HOP_LIMIT_V6: u8 = 6;

/// An address in use.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct UsedAddress {
    /// The address with its network.
    pub cidr: Cidr,
    /// Where it came from.
    pub origin: Origin,
    /// Not for anything new.
    pub deprecated: bool,
    /// When it ends, on the clock that all servers share; `None` for never.
    pub valid_until: Option<Instant>,
}

/// Everything that changes while a service runs.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NetworkUpdate {
    /// Addresses that may be used and answered, configured ones included.
    pub addresses: Vec<UsedAddress>,
    /// Networks that routers have said are on the link.
    pub on_link: Vec<Cidr>,
    /// Default routers that were learned, the preferred one of each family first.
    pub gateways: Vec<IpAddr>,
    /// Name servers that were learned.
    pub name_servers: Vec<IpAddr>,
    /// What a router says of the MTU for IPv6, in bytes.
    pub mtu_v6: Option<u16>,
    /// What a router recommends as hop limit.
    pub hop_limit_v6: Option<u8>,
}

impl Network {
    /// All of it as of now.
    pub fn update(&self) -> NetworkUpdate {
        let usable = self.addresses.iter().filter(|address| address.detection == Detection::Passed);
        let routers = self.routers.iter().map(|router| IpAddr::V6(router.value));
        NetworkUpdate {
            addresses: usable
                .map(|address| UsedAddress {
                    cidr: address.cidr,
                    origin: address.origin,
                    deprecated: address.deprecated,
                    valid_until: address.valid_until,
                })
                .collect(),
            on_link: self.prefixes.iter().map(|prefix| prefix.value).collect(),
            gateways: self.gateway_v4.map(IpAddr::V4).into_iter().chain(routers).collect(),
            name_servers: self.name_servers().collect(),
            mtu_v6: self.mtu_v6.and_then(|mtu| u16::try_from(mtu).ok()),
            hop_limit_v6: self.hop_limit_v6,
        }
    }

    /// Takes over what another server knows. Lifetimes are its affair, but an address ends in time even
    /// if nobody says so.
    pub fn follow(&mut self, update: &NetworkUpdate) {
        fn lasting<T>(value: T) -> Learned<T> {
            Learned { value, until: None }
        }
        let address = |used: &UsedAddress| Address {
            cidr: used.cidr,
            origin: used.origin,
            detection: Detection::Passed,
            preferred_until: None,
            valid_until: used.valid_until,
            deprecated: used.deprecated,
        };
        self.addresses = update.addresses.iter().map(address).collect();
        self.prefixes = update.on_link.iter().copied().map(lasting).collect();
        let v6 = |gateway: &IpAddr| match gateway {
            IpAddr::V4(_) => None,
            IpAddr::V6(addr) => Some(*addr),
        };
        self.routers = update.gateways.iter().filter_map(v6).map(lasting).collect();
        self.gateway_v4 = update.gateways.iter().find_map(|gateway| match gateway {
            IpAddr::V4(addr) => Some(*addr),
            IpAddr::V6(_) => None,
        });
        self.name_servers = update.name_servers.iter().copied().map(lasting).collect();
        self.mtu_v6 = update.mtu_v6.map(usize::from);
        self.hop_limit_v6 = update.hop_limit_v6;
        self.changed = true;
    }
}

impl NetworkUpdate {
    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        for used in self.addresses.iter().take(ITEMS_MAX) {
            bytes.extend([ADDRESS, number_of(used.origin), u8::from(used.deprecated)]);
            let until = used.valid_until.map_or(u64::MAX, Instant::us);
            bytes.extend(until.to_le_bytes());
            put_cidr(&mut bytes, used.cidr);
        }
        for cidr in self.on_link.iter().take(ITEMS_MAX) {
            bytes.push(ON_LINK);
            put_cidr(&mut bytes, *cidr);
        }
        for (tag, list) in [(GATEWAY, &self.gateways), (NAME_SERVER, &self.name_servers)] {
            for addr in list.iter().take(ITEMS_MAX) {
                bytes.push(tag);
                put_address(&mut bytes, *addr);
            }
        }
        if let Some(mtu) = self.mtu_v6 {
            bytes.push(MTU_V6);
            bytes.extend(mtu.to_le_bytes());
        }
        if let Some(hops) = self.hop_limit_v6 {
            bytes.extend([HOP_LIMIT_V6, hops]);
        }
        bytes
    }

    /// From bytes; `None` for what [`NetworkUpdate::encode`] did not write, or nonsense.
    pub fn decode(bytes: &[u8]) -> Option<NetworkUpdate> {
        let mut rest = bytes;
        let mut update = NetworkUpdate::default();
        if take(&mut rest, 1)? != [VERSION] {
            return None;
        }
        while let Some(tag) = rest.first().copied() {
            rest = &rest[1..];
            match tag {
                ADDRESS => update.addresses.push(take_used(&mut rest)?),
                ON_LINK => update.on_link.push(take_cidr(&mut rest)?),
                GATEWAY => update.gateways.push(take_address(&mut rest)?),
                NAME_SERVER => update.name_servers.push(take_address(&mut rest)?),
                MTU_V6 => update.mtu_v6 = Some(u16::from_le_bytes(take_array(&mut rest)?)),
                HOP_LIMIT_V6 => update.hop_limit_v6 = Some(take(&mut rest, 1)?[0]),
                _ => return None,
            }
            let longest = update.addresses.len().max(update.on_link.len());
            if longest.max(update.gateways.len()).max(update.name_servers.len()) > ITEMS_MAX {
                return None;
            }
        }
        Some(update)
    }
}

fn number_of(origin: Origin) -> u8 {
    match origin {
        Origin::Static => 0,
        Origin::Dhcp => 1,
        Origin::LinkLocal => 2,
        Origin::RouterAdvertisement => 3,
    }
}

fn put_address(bytes: &mut Vec<u8>, addr: IpAddr) {
    match addr {
        IpAddr::V4(addr) => {
            bytes.push(4);
            bytes.extend(addr.octets());
        }
        IpAddr::V6(addr) => {
            bytes.push(6);
            bytes.extend(addr.octets());
        }
    }
}

fn put_cidr(bytes: &mut Vec<u8>, cidr: Cidr) {
    bytes.push(cidr.prefix_len);
    put_address(bytes, cidr.addr);
}

fn take<'a>(rest: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (taken, after) = rest.split_at_checked(len)?;
    *rest = after;
    Some(taken)
}

fn take_array<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    take(rest, N)?.try_into().ok()
}

fn take_address(rest: &mut &[u8]) -> Option<IpAddr> {
    match take(rest, 1)? {
        [4] => Some(IpAddr::V4(Ipv4Addr::from(take_array::<4>(rest)?))),
        [6] => Some(IpAddr::V6(Ipv6Addr::from(take_array::<16>(rest)?))),
        _ => None,
    }
}

fn take_cidr(rest: &mut &[u8]) -> Option<Cidr> {
    let prefix_len = take(rest, 1)?[0];
    let addr = take_address(rest)?;
    let bits = if addr.is_ipv4() { 32 } else { 128 };
    (prefix_len <= bits).then_some(Cidr::new(addr, prefix_len))
}

fn take_used(rest: &mut &[u8]) -> Option<UsedAddress> {
    let [origin, deprecated] = take_array(rest)?;
    let origin = match origin {
        0 => Origin::Static,
        1 => Origin::Dhcp,
        2 => Origin::LinkLocal,
        3 => Origin::RouterAdvertisement,
        _ => return None,
    };
    let until = u64::from_le_bytes(take_array(rest)?);
    let cidr = take_cidr(rest)?;
    let deprecated = match deprecated {
        0 => false,
        1 => true,
        _ => return None,
    };
    let valid_until = (until != u64::MAX).then_some(Instant::from_us(until));
    Some(UsedAddress { cidr, origin, deprecated, valid_until })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cidr() -> impl Strategy<Value = Cidr> {
        let v4 = (any::<[u8; 4]>(), 0..=32u8).prop_map(|(addr, len)| Cidr::new(addr.into(), len));
        let v6 = (any::<[u8; 16]>(), 0..=128u8).prop_map(|(addr, len)| Cidr::new(addr.into(), len));
        prop_oneof![v4, v6]
    }

    fn used() -> impl Strategy<Value = UsedAddress> {
        let origin = prop_oneof![
            Just(Origin::Static),
            Just(Origin::Dhcp),
            Just(Origin::LinkLocal),
            Just(Origin::RouterAdvertisement)
        ];
        let until = proptest::option::of(0..u64::MAX).prop_map(|until| until.map(Instant::from_us));
        (cidr(), origin, any::<bool>(), until).prop_map(
            |(cidr, origin, deprecated, valid_until)| UsedAddress {
                cidr,
                origin,
                deprecated,
                valid_until,
            },
        )
    }

    proptest! {
        #[test]
        fn an_update_survives_its_bytes(
            addresses in prop::collection::vec(used(), 0..20),
            on_link in prop::collection::vec(cidr(), 0..20),
            gateways in prop::collection::vec(any::<IpAddr>(), 0..9),
            name_servers in prop::collection::vec(any::<IpAddr>(), 0..9),
            mtu_v6: Option<u16>,
            hop_limit_v6: Option<u8>,
        ) {
            let update = NetworkUpdate {
                addresses, on_link, gateways, name_servers, mtu_v6, hop_limit_v6,
            };
            prop_assert_eq!(NetworkUpdate::decode(&update.encode()), Some(update));
        }

        #[test]
        fn nonsense_is_refused_or_means_something(
            bytes in prop::collection::vec(any::<u8>(), 0..200)
        ) {
            if let Some(update) = NetworkUpdate::decode(&bytes) {
                prop_assert_eq!(NetworkUpdate::decode(&update.encode()), Some(update));
            }
        }
    }
}
