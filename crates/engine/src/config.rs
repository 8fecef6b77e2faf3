//! What a shard is given at its start: addresses, routes, limits, secrets.
//!
//! Made by the service from its own configuration, checked here once; nothing in the engine reads
//! a file or the environment.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::error::{ConfigError, ParseCidrError};
use crate::limits::{self, Limits};
use crate::shard::Steered;

/// An address with a prefix length: a host address within its network, or a network.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Hash)]
pub struct Cidr {
    /// The address.
    pub addr: IpAddr,
    /// Leading bits that name the network, 0..=32 or 0..=128.
    pub prefix_len: u8,
}

impl Cidr {
    /// Puts both together, unchecked; [`ShardConfig::validate`] checks.
    pub const fn new(addr: IpAddr, prefix_len: u8) -> Cidr {
        Cidr { addr, prefix_len }
    }

    /// Whether `addr` lies in the network. Never for another family.
    pub fn contains(&self, addr: IpAddr) -> bool {
        match (self.addr, addr) {
            (IpAddr::V4(network), IpAddr::V4(addr)) => {
                let differ = u32::from(network) ^ u32::from(addr);
                differ.checked_shr(32 - u32::from(self.prefix_len.min(32))).unwrap_or(0) == 0
            }
            (IpAddr::V6(network), IpAddr::V6(addr)) => {
                let differ = u128::from(network) ^ u128::from(addr);
                differ.checked_shr(128 - u32::from(self.prefix_len.min(128))).unwrap_or(0) == 0
            }
            _ => false,
        }
    }

    /// Whether `addr` is the broadcast or network address of this IPv4 network (RFC 1122 3.2.1.3);
    /// networks of 31 and 32 bits have none (RFC 3021).
    pub fn is_broadcast(&self, addr: IpAddr) -> bool {
        let (IpAddr::V4(_), IpAddr::V4(host)) = (self.addr, addr) else { return false };
        if self.prefix_len >= 31 || !self.contains(addr) {
            return false;
        }
        let host_bits = u32::MAX.checked_shr(u32::from(self.prefix_len)).unwrap_or(0);
        let host = u32::from(host) & host_bits;
        host == host_bits || host == 0
    }

    /// Most bits a prefix of this family can have.
    const fn bits(&self) -> u8 {
        match self.addr {
            IpAddr::V4(_) => 32,
            IpAddr::V6(_) => 128,
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.prefix_len)
    }
}

impl FromStr for Cidr {
    type Err = ParseCidrError;

    fn from_str(text: &str) -> Result<Cidr, ParseCidrError> {
        let (addr, prefix_len) = text.split_once('/').ok_or(ParseCidrError)?;
        let digits = !prefix_len.is_empty() && prefix_len.bytes().all(|byte| byte.is_ascii_digit());
        let cidr = Cidr {
            addr: addr.parse().map_err(|_| ParseCidrError)?,
            prefix_len: prefix_len.parse().map_err(|_| ParseCidrError)?,
        };
        if digits && cidr.prefix_len <= cidr.bits() { Ok(cidr) } else { Err(ParseCidrError) }
    }
}

/// Where packets to a network go.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Route {
    /// The network.
    pub destination: Cidr,
    /// The router, or `None` when the network is on the link.
    pub gateway: Option<IpAddr>,
}

/// What the link does for the shard with frames to be sent.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct Offloads {
    /// The link completes transport checksums ([`crate::TxMeta::checksum`]).
    pub tx_checksum: bool,
    /// The largest IP packet, in bytes, that the link takes to cut it into TCP segments of at most
    /// the MTU, 0..=65535; 0 = it takes none beyond the MTU. Needs `tx_checksum`.
    pub tx_segmentation: u32,
}

impl Offloads {
    fn are_sound(&self) -> bool {
        self.tx_segmentation == 0
            || (self.tx_checksum && self.tx_segmentation <= limits::DATAGRAM_MAX as u32)
    }
}

/// Everything a shard needs to know at its start.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    /// Our Ethernet address.
    pub mac: [u8; 6],
    /// Largest IP packet in bytes, 1280..=65535.
    pub mtu: u16,
    /// Our addresses with the networks they are in; each network is on the link. None at all is
    /// fine for a shard that is to find them by itself.
    pub addresses: Vec<Cidr>,
    /// Further routes; the longest matching prefix wins.
    pub routes: Vec<Route>,
    /// How much to hold.
    pub limits: Limits,
    /// Keys initial sequence numbers (RFC 6528), timestamp offsets and the choice of ports.
    pub secret: [u8; 32],
    /// Seeds the hash tables.
    pub seed: u64,
    /// What the link does.
    pub offloads: Offloads,
    /// Which server of several on the link this is; `None` for the only one.
    pub steered: Option<Steered>,
}

impl ShardConfig {
    /// Checks everything.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.mtu < limits::MTU_MIN {
            return Err(ConfigError::MtuTooSmall(self.mtu));
        }
        if self.mac == [0; 6] || self.mac[0] & 1 != 0 {
            return Err(ConfigError::BadMac(self.mac));
        }
        for cidr in &self.addresses {
            check_prefix(cidr)?;
            check_host_address(cidr)?;
        }
        for route in &self.routes {
            check_prefix(&route.destination)?;
            let same_family =
                |gateway: IpAddr| gateway.is_ipv4() == route.destination.addr.is_ipv4();
            if !route.gateway.is_none_or(same_family) {
                return Err(ConfigError::BadGateway(route.destination));
            }
        }
        if !self.offloads.are_sound() {
            return Err(ConfigError::BadLimit(
                "offloads: segmentation takes at most 65535 bytes and needs checksums",
            ));
        }
        check_limits(&self.limits)
    }
}

fn check_prefix(cidr: &Cidr) -> Result<(), ConfigError> {
    if cidr.prefix_len > cidr.bits() { Err(ConfigError::BadPrefix(*cidr)) } else { Ok(()) }
}

fn check_host_address(cidr: &Cidr) -> Result<(), ConfigError> {
    let usable = match cidr.addr {
        IpAddr::V4(addr) => !addr.is_unspecified() && !addr.is_multicast() && !addr.is_broadcast(),
        IpAddr::V6(addr) => {
            !addr.is_unspecified() && !addr.is_multicast() && addr.to_ipv4_mapped().is_none()
        }
    };
    if usable && !cidr.is_broadcast(cidr.addr) {
        Ok(())
    } else {
        Err(ConfigError::BadAddress(*cidr))
    }
}

fn check_limits(limits: &Limits) -> Result<(), ConfigError> {
    let checks = [
        (limits.connections >= 1 && limits.connections <= 1 << 24, "connections: 1..=2^24"),
        (limits.half_open >= 1, "half_open: at least 1"),
        (limits.half_open <= limits.connections, "half_open: at most connections"),
        (limits.half_open_per_listener >= 1, "half_open_per_listener: at least 1"),
        (limits.time_wait >= 1 && limits.time_wait <= 1 << 24, "time_wait: 1..=2^24"),
        (limits.neighbours >= 1 && limits.neighbours <= 1 << 20, "neighbours: 1..=2^20"),
        (limits.packets_per_neighbour >= 1, "packets_per_neighbour: at least 1"),
        (limits.reassembly_contexts >= 1, "reassembly_contexts: at least 1"),
        (limits.reassembly_contexts <= 1 << 20, "reassembly_contexts: at most 2^20"),
        (limits.reassembly_contexts_per_source >= 1, "reassembly_contexts_per_source: at least 1"),
        (limits.reassembly_bytes >= limits::DATAGRAM_MAX, "reassembly_bytes: at least a datagram"),
        (limits.replies >= 1, "replies: at least 1"),
        (limits.reply_bytes >= limits::DATAGRAM_MAX, "reply_bytes: at least a datagram"),
        (limits.datagrams >= 128, "datagrams: at least 128"),
        (
            limits.datagram_bytes >= 2 * limits::DATAGRAM_MAX,
            "datagram_bytes: at least two datagrams",
        ),
        (limits.path_mtus >= 1, "path_mtus: at least 1"),
        (limits.loopback_packets >= 1, "loopback_packets: at least 1"),
        (limits.msl_us >= 1, "msl_us: at least 1"),
        (
            limits.tcp.receive_buffer_max <= limits::RECEIVE_BUFFER_MAX
                && limits.tcp.receive_buffer_max >= limits::RECEIVE_BUFFER_MIN,
            "tcp.receive_buffer_max: out of range",
        ),
        (
            limits.tcp.send_buffer_max <= limits::SEND_BUFFER_MAX
                && limits.tcp.send_buffer_max >= limits::SEND_BUFFER_MIN,
            "tcp.send_buffer_max: out of range",
        ),
    ];
    match checks.iter().find(|(fine, _)| !fine) {
        Some((_, what)) => Err(ConfigError::BadLimit(what)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> ShardConfig {
        ShardConfig {
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
            addresses: vec!["198.18.0.1/24".parse().expect("address")],
            routes: Vec::new(),
            limits: Limits::default(),
            secret: [7; 32],
            seed: 1,
            offloads: Offloads::default(),
            steered: None,
        }
    }

    #[test]
    fn networks_contain_their_hosts_only() {
        let network: Cidr = "198.18.1.0/24".parse().expect("network");
        assert!(network.contains("198.18.1.255".parse().expect("address")));
        assert!(!network.contains("198.18.2.0".parse().expect("address")));
        assert!(!network.contains("::1".parse().expect("address")));
        let all: Cidr = "::/0".parse().expect("network");
        assert!(all.contains("2001:db8::1".parse().expect("address")));
        let host: Cidr = "10.0.0.1/32".parse().expect("network");
        assert!(host.contains("10.0.0.1".parse().expect("address")));
        assert!(!host.contains("10.0.0.0".parse().expect("address")));
    }

    #[test]
    fn broadcast_addresses_are_known() {
        let network: Cidr = "198.18.1.7/24".parse().expect("network");
        assert!(network.is_broadcast("198.18.1.255".parse().expect("address")));
        assert!(network.is_broadcast("198.18.1.0".parse().expect("address")));
        assert!(!network.is_broadcast("198.18.2.255".parse().expect("address")));
        let pair: Cidr = "10.0.0.1/31".parse().expect("network");
        assert!(!pair.is_broadcast("10.0.0.1".parse().expect("address")));
    }

    #[test]
    fn texts_are_parsed_strictly() {
        for bad in ["", "10.0.0.1", "10.0.0.1/", "10.0.0.1/33", "::1/129", "x/8", "10.0.0.1/+8"] {
            assert_eq!(bad.parse::<Cidr>(), Err(ParseCidrError), "{bad}");
        }
        let text = "2001:db8::1/64";
        assert_eq!(text.parse::<Cidr>().expect("network").to_string(), text);
    }

    #[test]
    fn bad_configurations_are_refused() {
        assert_eq!(config().validate(), Ok(()));
        let bad = |change: fn(&mut ShardConfig)| {
            let mut config = config();
            change(&mut config);
            config.validate().expect_err("must be refused")
        };
        assert_eq!(bad(|c| c.mtu = 1279), ConfigError::MtuTooSmall(1279));
        assert_eq!(bad(|c| c.mac = [1, 0, 0, 0, 0, 0]), ConfigError::BadMac([1, 0, 0, 0, 0, 0]));
        for addr in ["0.0.0.0/0", "224.0.0.1/24", "198.18.0.255/24", "ff02::1/64", "::/64"] {
            let cidr: Cidr = addr.parse().expect("address");
            let mut config = config();
            config.addresses = vec![cidr];
            assert_eq!(config.validate(), Err(ConfigError::BadAddress(cidr)));
        }
        assert!(matches!(bad(|c| c.limits.half_open = 0), ConfigError::BadLimit(_)));
        let wrong = bad(|c| {
            c.routes = vec![Route {
                destination: Cidr::new("0.0.0.0".parse().expect("address"), 0),
                gateway: Some("::1".parse().expect("address")),
            }];
        });
        assert!(matches!(wrong, ConfigError::BadGateway(_)));
    }
}
