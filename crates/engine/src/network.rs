//! Our addresses and what routers and servers told us: where each came from, how long it counts, and
//! whether duplicate address detection has passed. Routing tables are made from this.
//!
//! Pure state: `shard/network.rs` brings messages and time and sends what [`Network::poll_message`]
//! asks for. Read first: RFC 4862 (addresses), RFC 4861 section 6.3 (routers), RFC 8106 (name
//! servers).

mod update;

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::config::{Cidr, Route};
use crate::routing::Routing;
use crate::time::Instant;

pub use update::{NetworkUpdate, UsedAddress};

/// RETRANS_TIMER, which is also how long a probe waits for an answer.
const RETRANSMIT_US: u64 = 1_000_000;
/// MAX_RTR_SOLICITATION_DELAY.
const DELAY_MAX_US: u64 = 1_000_000;
/// RTR_SOLICITATION_INTERVAL and MAX_RTR_SOLICITATIONS.
const SOLICITATION_INTERVAL_US: u64 = 4_000_000;
const SOLICITATIONS_MAX: u8 = 3;
/// RFC 4862 section 5.5.3 e: nobody shortens a lifetime to less.
const TWO_HOURS_US: u64 = 7_200_000_000;
/// What strangers on the link can make us remember.
const ADDRESSES_MAX: usize = 16;
const ROUTERS_MAX: usize = 8;
const PREFIXES_MAX: usize = 16;
const NAME_SERVERS_MAX: usize = 8;

/// Where an address came from.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    /// The configuration.
    Static,
    /// A DHCP server.
    Dhcp,
    /// Made for the link, without anybody's help (RFC 4291 section 2.5.6).
    LinkLocal,
    /// A router advertisement (RFC 4862).
    RouterAdvertisement,
}

/// What an address is good for.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum AddressState {
    /// Duplicate address detection has not finished: neither used nor answered.
    Tentative,
    /// In use.
    Preferred,
    /// In use by what uses it already, not for anything new.
    Deprecated,
    /// Somebody else has it: not used.
    Duplicate,
}

/// One address of ours, for display.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct AddressSummary {
    /// The address with its network.
    pub cidr: Cidr,
    /// Where it came from.
    pub origin: Origin,
    /// What it is good for.
    pub state: AddressState,
    /// When it ends; `None` for never.
    pub valid_until: Option<Instant>,
}

#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Detection {
    /// To be probed at this time.
    Waits(Instant),
    /// Probed; fine if nobody has complained by then.
    Probed(Instant),
    Passed,
    Failed,
}

#[derive(Copy, Clone, Debug)]
struct Address {
    cidr: Cidr,
    origin: Origin,
    detection: Detection,
    preferred_until: Option<Instant>,
    valid_until: Option<Instant>,
    deprecated: bool,
}

/// Something learned that ends at a time, `None` for never.
#[derive(Copy, Clone, Debug)]
struct Learned<T> {
    value: T,
    until: Option<Instant>,
}

/// A message to send.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum NetworkMessage {
    /// A neighbour solicitation from nobody: does somebody have this address?
    Probe(Ipv6Addr),
    /// A router solicitation.
    RouterSolicitation,
}

/// What changed, for who keeps group memberships.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Membership {
    /// An address that we must hear solicitations for.
    Join(Ipv6Addr),
    /// No longer.
    Leave(Ipv6Addr),
}

/// One prefix of a router advertisement; lifetimes in seconds, 2^32 - 1 is infinity.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct AdvertisedPrefix {
    /// The prefix.
    pub cidr: Cidr,
    /// Its addresses are neighbours.
    pub on_link: bool,
    /// Addresses may be made of it.
    pub autonomous: bool,
    /// How long both count.
    pub valid_s: u32,
    /// How long its addresses may be used for something new.
    pub preferred_s: u32,
}

/// The state of a shard's network configuration.
#[derive(Debug)]
pub struct Network {
    addresses: Vec<Address>,
    routes: Vec<Route>,
    prefixes: Vec<Learned<Cidr>>,
    routers: Vec<Learned<Ipv6Addr>>,
    gateway_v4: Option<Ipv4Addr>,
    name_servers: Vec<Learned<IpAddr>>,
    solicit_at: Option<Instant>,
    solicitations: u8,
    slaac: bool,
    messages: VecDeque<NetworkMessage>,
    memberships: VecDeque<Membership>,
    /// What a router says of the MTU for IPv6.
    pub mtu_v6: Option<usize>,
    /// What a router recommends as hop limit.
    pub hop_limit_v6: Option<u8>,
    changed: bool,
}

impl Network {
    /// Starts from a checked configuration; its addresses are used at once.
    pub fn new(addresses: &[Cidr], routes: &[Route]) -> Network {
        let fixed = |cidr: &Cidr| Address {
            cidr: *cidr,
            origin: Origin::Static,
            detection: Detection::Passed,
            preferred_until: None,
            valid_until: None,
            deprecated: false,
        };
        Network {
            addresses: addresses.iter().map(fixed).collect(),
            routes: routes.to_vec(),
            prefixes: Vec::new(),
            routers: Vec::new(),
            gateway_v4: None,
            name_servers: Vec::new(),
            solicit_at: None,
            solicitations: 0,
            slaac: false,
            messages: VecDeque::new(),
            memberships: VecDeque::new(),
            mtu_v6: None,
            hop_limit_v6: None,
            changed: false,
        }
    }

    /// Puts the IPv6 addresses of the configuration through duplicate address detection.
    pub fn detect_duplicates(&mut self, now: Instant) {
        for address in &mut self.addresses {
            if let IpAddr::V6(addr) = address.cidr.addr {
                address.detection = Detection::Waits(now);
                self.memberships.push_back(Membership::Join(addr));
            }
        }
        self.changed = true;
    }

    /// Begins to make addresses from router advertisements: first a link-local one (RFC 4862
    /// section 5.3). `random` spreads hosts that start together.
    pub fn start_slaac(&mut self, now: Instant, mac: [u8; 6], random: u64) {
        self.slaac = true;
        let addr = with_interface_id(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), mac);
        if !self.addresses.iter().any(|address| is_link_local(&address.cidr)) {
            let cidr = Cidr::new(IpAddr::V6(addr), 64);
            self.add(now.plus_us(random % DELAY_MAX_US), cidr, Origin::LinkLocal, None, None);
        } else {
            self.solicit_at = Some(now.plus_us(random % DELAY_MAX_US));
        }
    }

    /// A lease gives an address, and perhaps a router and name servers. Replaces what a lease gave
    /// before.
    pub fn set_lease(
        &mut self,
        cidr: Cidr,
        gateway: Option<Ipv4Addr>,
        name_servers: &[Ipv4Addr],
        until: Instant,
    ) {
        self.clear_lease();
        self.addresses.push(Address {
            cidr,
            origin: Origin::Dhcp,
            detection: Detection::Passed,
            preferred_until: None,
            valid_until: Some(until),
            deprecated: false,
        });
        self.gateway_v4 = gateway;
        for server in name_servers.iter().take(NAME_SERVERS_MAX) {
            let server = Learned { value: IpAddr::V4(*server), until: None };
            self.name_servers.push(server);
        }
        self.changed = true;
    }

    /// The lease is over.
    pub fn clear_lease(&mut self) {
        self.addresses.retain(|address| address.origin != Origin::Dhcp);
        self.name_servers.retain(|server| server.value.is_ipv6());
        self.gateway_v4 = None;
        self.changed = true;
    }

    /// Whether an address is still being probed.
    pub fn is_tentative(&self, addr: Ipv6Addr) -> bool {
        self.addresses.iter().any(|address| {
            address.cidr.addr == IpAddr::V6(addr)
                && matches!(address.detection, Detection::Waits(_) | Detection::Probed(_))
        })
    }

    /// Somebody else has a tentative address.
    pub fn mark_duplicate(&mut self, addr: Ipv6Addr) {
        for address in &mut self.addresses {
            if address.cidr.addr == IpAddr::V6(addr) {
                address.detection = Detection::Failed;
                self.memberships.push_back(Membership::Leave(addr));
                self.changed = true;
            }
        }
    }

    /// Whether router advertisements count.
    pub fn takes_advertisements(&self) -> bool {
        self.slaac
    }

    /// A router offers itself for so many seconds; 0: no longer.
    pub fn hear_router(&mut self, now: Instant, router: Ipv6Addr, lifetime_s: u16) {
        self.solicit_at = None;
        let until = (lifetime_s > 0).then(|| now.plus_us(u64::from(lifetime_s) * 1_000_000));
        learn(&mut self.routers, router, until.map(Some), ROUTERS_MAX);
        self.changed = true;
    }

    /// A prefix of a router advertisement (RFC 4862 section 5.5.3, RFC 4861 section 6.3.4).
    pub fn hear_prefix(&mut self, now: Instant, prefix: &AdvertisedPrefix, mac: [u8; 6]) {
        let IpAddr::V6(network) = prefix.cidr.addr else { return };
        if network.is_unicast_link_local() || network.is_multicast() {
            return;
        }
        let valid_until = lifetime(now, prefix.valid_s);
        if prefix.on_link {
            learn(&mut self.prefixes, prefix.cidr, valid_until, PREFIXES_MAX);
            self.changed = true;
        }
        let usable = prefix.autonomous
            && prefix.cidr.prefix_len == 64
            && prefix.preferred_s <= prefix.valid_s;
        if !usable {
            return;
        }
        let addr = IpAddr::V6(with_interface_id(network, mac));
        let preferred_until = lifetime(now, prefix.preferred_s).unwrap_or(Some(now));
        let room = self.addresses.len() < ADDRESSES_MAX;
        let known = self.addresses.iter_mut().find(|address| address.cidr.addr == addr);
        match (known, valid_until) {
            (Some(address), valid_until) => {
                let offered = valid_until.unwrap_or(Some(now));
                address.preferred_until = preferred_until;
                address.deprecated = false;
                address.valid_until = extended(now, address.valid_until, offered);
                self.changed = true;
            }
            (None, Some(valid_until)) if room => {
                let origin = Origin::RouterAdvertisement;
                self.add(now, Cidr::new(addr, 64), origin, preferred_until, valid_until);
            }
            (None, _) => {}
        }
    }

    /// A name server of a router advertisement (RFC 8106); lifetime in seconds, 0: no longer.
    pub fn hear_name_server(&mut self, now: Instant, server: Ipv6Addr, lifetime_s: u32) {
        let until = lifetime(now, lifetime_s);
        learn(&mut self.name_servers, IpAddr::V6(server), until, NAME_SERVERS_MAX);
        self.changed = true;
    }

    /// Runs what is due.
    pub fn handle_timers(&mut self, now: Instant, random: u64) {
        let passed = |until: Option<Instant>| until.is_some_and(|until| until <= now);
        let mut linked = false;
        for address in &mut self.addresses {
            match (address.detection, address.cidr.addr) {
                (Detection::Waits(at), IpAddr::V6(addr)) if at <= now => {
                    self.messages.push_back(NetworkMessage::Probe(addr));
                    address.detection = Detection::Probed(now.plus_us(RETRANSMIT_US));
                }
                (Detection::Probed(at), _) if at <= now => {
                    address.detection = Detection::Passed;
                    linked |= address.origin == Origin::LinkLocal;
                    self.changed = true;
                }
                _ => {}
            }
            if passed(address.preferred_until) {
                address.preferred_until = None;
                address.deprecated = true;
                self.changed = true;
            }
            if passed(address.valid_until)
                && let IpAddr::V6(addr) = address.cidr.addr
            {
                self.memberships.push_back(Membership::Leave(addr));
            }
        }
        let before = (self.addresses.len(), self.routers.len(), self.prefixes.len());
        self.addresses.retain(|address| !passed(address.valid_until));
        self.routers.retain(|router| !passed(router.until));
        self.prefixes.retain(|prefix| !passed(prefix.until));
        self.name_servers.retain(|server| !passed(server.until));
        self.changed |= before != (self.addresses.len(), self.routers.len(), self.prefixes.len());
        if linked {
            self.solicit_at = Some(now.plus_us(random % DELAY_MAX_US));
        }
        if passed(self.solicit_at) {
            self.messages.push_back(NetworkMessage::RouterSolicitation);
            self.solicitations += 1;
            let more = self.solicitations < SOLICITATIONS_MAX;
            self.solicit_at = more.then(|| now.plus_us(SOLICITATION_INTERVAL_US));
        }
    }

    /// When [`Network::handle_timers`] has something to do.
    pub fn next_timeout(&self) -> Option<Instant> {
        let addresses = self.addresses.iter().flat_map(|address| {
            let detection = match address.detection {
                Detection::Waits(at) | Detection::Probed(at) => Some(at),
                Detection::Passed | Detection::Failed => None,
            };
            [detection, address.preferred_until, address.valid_until]
        });
        let routers = self.routers.iter().map(|router| router.until);
        let prefixes = self.prefixes.iter().map(|prefix| prefix.until);
        let servers = self.name_servers.iter().map(|server| server.until);
        let all = addresses.chain(routers).chain(prefixes).chain(servers);
        all.chain([self.solicit_at]).flatten().min()
    }

    /// The next message to send.
    pub fn poll_message(&mut self) -> Option<NetworkMessage> {
        self.messages.pop_front()
    }

    /// The next change of the groups that we must hear.
    pub fn poll_membership(&mut self) -> Option<Membership> {
        self.memberships.pop_front()
    }

    /// New routing tables when something has changed since the last call.
    pub fn take_routing(&mut self) -> Option<Routing> {
        std::mem::take(&mut self.changed).then(|| self.routing())
    }

    /// The routing tables as of now.
    pub fn routing(&self) -> Routing {
        let usable = self.addresses.iter().filter(|address| address.detection == Detection::Passed);
        let mut routes = self.routes.clone();
        let on_link = |prefix: &Learned<Cidr>| Route { destination: prefix.value, gateway: None };
        routes.extend(self.prefixes.iter().map(on_link));
        let default = |gateway: IpAddr| {
            let all = match gateway {
                IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            };
            Route { destination: Cidr::new(all, 0), gateway: Some(gateway) }
        };
        routes.extend(self.gateway_v4.map(|gateway| default(IpAddr::V4(gateway))));
        routes.extend(self.routers.first().map(|router| default(IpAddr::V6(router.value))));
        let own: Vec<(Cidr, bool, bool)> = usable
            .map(|address| {
                // Prefixes of advertisements are on the link only if they say so.
                let on_link = address.origin != Origin::RouterAdvertisement;
                (address.cidr, !address.deprecated, on_link)
            })
            .collect();
        Routing::with_states(&own, &routes)
    }

    /// All addresses, for display.
    pub fn summaries(&self) -> impl Iterator<Item = AddressSummary> + '_ {
        self.addresses.iter().map(|address| AddressSummary {
            cidr: address.cidr,
            origin: address.origin,
            state: match address.detection {
                Detection::Waits(_) | Detection::Probed(_) => AddressState::Tentative,
                Detection::Failed => AddressState::Duplicate,
                Detection::Passed if address.deprecated => AddressState::Deprecated,
                Detection::Passed => AddressState::Preferred,
            },
            valid_until: address.valid_until,
        })
    }

    /// Name servers that somebody told us of.
    pub fn name_servers(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.name_servers.iter().map(|server| server.value)
    }

    /// Routers for everything else.
    pub fn gateways(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let configured = self.routes.iter().filter(|route| route.destination.prefix_len == 0);
        let configured = configured.filter_map(|route| route.gateway);
        let learned = self.routers.iter().map(|router| IpAddr::V6(router.value));
        configured.chain(self.gateway_v4.map(IpAddr::V4)).chain(learned)
    }

    fn add(
        &mut self,
        probe_at: Instant,
        cidr: Cidr,
        origin: Origin,
        preferred_until: Option<Instant>,
        valid_until: Option<Instant>,
    ) {
        let detection = Detection::Waits(probe_at);
        self.addresses.push(Address {
            cidr,
            origin,
            detection,
            preferred_until,
            valid_until,
            deprecated: false,
        });
        if let IpAddr::V6(addr) = cidr.addr {
            self.memberships.push_back(Membership::Join(addr));
        }
        self.changed = true;
    }
}

/// Stores, prolongs or, with `None`, forgets something learned.
fn learn<T: Copy + PartialEq>(
    list: &mut Vec<Learned<T>>,
    value: T,
    until: Option<Option<Instant>>,
    limit: usize,
) {
    let Some(until) = until else {
        list.retain(|known| known.value != value);
        return;
    };
    let room = list.len() < limit;
    match list.iter_mut().find(|known| known.value == value) {
        Some(known) => known.until = until,
        None if room => list.push(Learned { value, until }),
        None => {}
    }
}

/// When a lifetime in seconds ends: `None` for at once, `Some(None)` for never.
fn lifetime(now: Instant, seconds: u32) -> Option<Option<Instant>> {
    match seconds {
        0 => None,
        u32::MAX => Some(None),
        seconds => Some(Some(now.plus_us(u64::from(seconds) * 1_000_000))),
    }
}

/// RFC 4862 section 5.5.3 e: a lifetime grows as told, but shrinks to two hours at most.
fn extended(now: Instant, current: Option<Instant>, offered: Option<Instant>) -> Option<Instant> {
    let floor = now.plus_us(TWO_HOURS_US);
    match (current, offered) {
        (_, None) => None,
        (Some(current), Some(offered)) if offered > floor || offered > current => Some(offered),
        (None, Some(offered)) if offered > floor => Some(offered),
        (Some(current), Some(_)) if current <= floor => Some(current),
        _ => Some(floor),
    }
}

/// An address with the modified EUI-64 of an Ethernet address (RFC 4291 appendix A).
fn with_interface_id(prefix: Ipv6Addr, mac: [u8; 6]) -> Ipv6Addr {
    let mut octets = prefix.octets();
    let [a, b, c, d, e, f] = mac;
    octets[8..].copy_from_slice(&[a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    Ipv6Addr::from(octets)
}

fn is_link_local(cidr: &Cidr) -> bool {
    matches!(cidr.addr, IpAddr::V6(addr) if addr.is_unicast_link_local())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes_shrink_to_two_hours_at_most() {
        let now = Instant::from_us(1_000_000);
        let at = |seconds: u64| Some(now.plus_us(seconds * 1_000_000));
        assert_eq!(extended(now, at(100), at(200)), at(200));
        assert_eq!(extended(now, at(200), at(100)), at(200));
        assert_eq!(extended(now, at(90_000), at(100)), at(7200));
        assert_eq!(extended(now, at(90_000), at(8000)), at(8000));
        assert_eq!(extended(now, None, at(5)), at(7200));
        assert_eq!(extended(now, at(5), None), None);
    }

    #[test]
    fn interface_ids_are_made_of_ethernet_addresses() {
        let addr = with_interface_id("2001:db8::".parse().expect("prefix"), [2, 0, 0, 0, 0, 1]);
        assert_eq!(addr, "2001:db8::ff:fe00:1".parse::<Ipv6Addr>().expect("address"));
    }
}
