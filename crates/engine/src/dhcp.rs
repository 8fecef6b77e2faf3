//! A DHCP client without a wire: what to ask for when, and what answers mean.
//!
//! `shard/dhcp.rs` brings messages, time and random numbers, sends what [`Client::poll_message`] gives,
//! and takes over the lease. Read first: RFC 2131 section 4.4 and figure 5.
//!
//! ```text
//!  INIT -DISCOVER-> SELECTING -offer, REQUEST-> REQUESTING -ACK-> PROBING -nobody answers-> BOUND
//!    ^                                              |                |                   T1 |   ^ ACK
//!    +------------------ NAK, no answer ------------+--- conflict ---+                      v   |
//!    +----- lease over, NAK ---- REBINDING <---------------- T2 ----------------------- RENEWING
//! ```

use std::net::Ipv4Addr;

use smoltcp::wire::{DhcpMessageType, DhcpPacket, DhcpRepr, EthernetAddress};

use crate::config::Cidr;
use crate::time::Instant;

/// First wait for an answer, doubled each time up to the last (RFC 2131 section 4.1).
const RETRANSMIT_US: u64 = 4_000_000;
const RETRANSMIT_MAX_US: u64 = 64_000_000;
/// Each wait is made this much longer or shorter.
const JITTER_US: u64 = 1_000_000;
/// Unanswered requests before it begins anew.
const REQUESTS_MAX: u8 = 4;
/// Least pause between renewals (RFC 2131 section 4.4.5).
const RENEW_MIN_US: u64 = 60_000_000;
/// Pause after an address that somebody else has (RFC 2131 section 3.1.5).
const DECLINE_US: u64 = 10_000_000;
/// ARP probes of an address, and the pause after each; shorter than RFC 5227's seconds, because a
/// server has usually looked already.
const PROBES: u8 = 2;
const PROBE_US: u64 = 250_000;
/// Subnet mask, router, name servers, renewal and rebinding time.
const WANTED: &[u8] = &[1, 3, 6, 58, 59];
/// Largest message we take (RFC 2132 section 9.10).
const MESSAGE_MAX: u16 = 1472;

/// What a server gave.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lease {
    /// The address with its network.
    pub cidr: Cidr,
    /// The default router.
    pub gateway: Option<Ipv4Addr>,
    /// Name servers, three at most.
    pub name_servers: Vec<Ipv4Addr>,
    /// Who gave it.
    pub server: Ipv4Addr,
    /// When the server is asked again.
    pub renew_at: Instant,
    /// When any server is asked.
    pub rebind_at: Instant,
    /// When it ends.
    pub expires_at: Instant,
}

/// What happened to the lease.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum News {
    /// A new lease, or the old one again for longer.
    Bound(Lease),
    /// There is none any more.
    Lost,
}

/// A message to send to port 67.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outgoing {
    /// Our address, or unspecified.
    pub source: Ipv4Addr,
    /// A server, or all.
    pub destination: Ipv4Addr,
    /// The message.
    pub payload: Vec<u8>,
}

#[derive(Clone, Debug)]
enum State {
    Init,
    Selecting,
    Requesting { address: Ipv4Addr, server: Ipv4Addr },
    Probing { lease: Lease, sent: u8 },
    Bound,
    Renewing,
    Rebinding,
}

/// The client.
#[derive(Debug)]
pub struct Client {
    mac: [u8; 6],
    state: State,
    transaction: u32,
    tries: u8,
    started: Instant,
    next: Instant,
    lease: Option<Lease>,
    outgoing: Vec<Outgoing>,
    probe: Option<Ipv4Addr>,
    news: Option<News>,
}

impl Client {
    /// A client that asks for a lease at once.
    pub fn new(now: Instant, mac: [u8; 6]) -> Client {
        Client {
            mac,
            state: State::Init,
            transaction: 0,
            tries: 0,
            started: now,
            next: now,
            lease: None,
            outgoing: Vec::new(),
            probe: None,
            news: None,
        }
    }

    /// The lease it has.
    pub fn lease(&self) -> Option<&Lease> {
        self.lease.as_ref()
    }

    /// When [`Client::handle_timers`] has something to do.
    pub fn next_timeout(&self) -> Instant {
        match &self.lease {
            Some(lease) => self.next.min(lease.expires_at),
            None => self.next,
        }
    }

    /// The next message to send.
    pub fn poll_message(&mut self) -> Option<Outgoing> {
        self.outgoing.pop()
    }

    /// An address that ARP is to ask for.
    pub fn poll_probe(&mut self) -> Option<Ipv4Addr> {
        self.probe.take()
    }

    /// What happened since the last call.
    pub fn poll_news(&mut self) -> Option<News> {
        self.news.take()
    }

    /// Does what is due. `random` must be unforeseeable.
    pub fn handle_timers(&mut self, now: Instant, random: u64) {
        if now < self.next_timeout() {
            return;
        }
        if self.lease.as_ref().is_some_and(|lease| lease.expires_at <= now) {
            self.lose(now);
        }
        match std::mem::replace(&mut self.state, State::Init) {
            State::Init => self.discover(now, random, true),
            State::Selecting => self.discover(now, random, false),
            State::Requesting { address, server } if self.tries < REQUESTS_MAX => {
                self.request(now, random, address, server);
            }
            State::Requesting { .. } => self.discover(now, random, true),
            State::Probing { lease, sent } if sent < PROBES => self.probe(now, lease, sent),
            State::Probing { lease, .. } => self.bind(lease),
            State::Bound => {
                self.transaction = random as u32;
                self.started = now;
                self.renew(now);
            }
            State::Renewing | State::Rebinding => self.renew(now),
        }
    }

    /// A message from port 67. False when it is not for this client now.
    pub fn handle_message(&mut self, now: Instant, payload: &[u8], random: u64) -> bool {
        let Ok(packet) = DhcpPacket::new_checked(payload) else { return false };
        let Ok(message) = DhcpRepr::parse(&packet) else { return false };
        let ours = message.transaction_id == self.transaction
            && message.client_hardware_address == EthernetAddress(self.mac);
        if !ours {
            return false;
        }
        match (&self.state, message.message_type) {
            (State::Selecting, DhcpMessageType::Offer) => {
                let Some(server) = message.server_identifier else { return false };
                if !is_host(message.your_ip) {
                    return false;
                }
                self.tries = 0;
                self.request(now, random, message.your_ip, server);
                true
            }
            (State::Requesting { server, .. }, DhcpMessageType::Ack) => {
                let server = *server;
                let Some(lease) = self.lease_of(now, &message, server) else { return false };
                self.probe(now, lease, 0);
                true
            }
            (State::Renewing | State::Rebinding, DhcpMessageType::Ack) => {
                let server = self.lease.as_ref().map(|lease| lease.server);
                let Some(server) = message.server_identifier.or(server) else { return false };
                let Some(lease) = self.lease_of(now, &message, server) else { return false };
                self.bind(lease);
                true
            }
            (
                State::Requesting { .. } | State::Renewing | State::Rebinding,
                DhcpMessageType::Nak,
            ) => {
                self.lose(now);
                self.begin_again(now.plus_us(RENEW_MIN_US / 60));
                true
            }
            _ => false,
        }
    }

    /// Somebody else has the address. True when it was being probed.
    pub fn handle_conflict(&mut self, now: Instant, address: Ipv4Addr) -> bool {
        let State::Probing { lease, .. } = &self.state else { return false };
        if lease.cidr.addr != std::net::IpAddr::V4(address) {
            return false;
        }
        let server = lease.server;
        let repr = DhcpRepr {
            requested_ip: Some(address),
            server_identifier: Some(server),
            ..self.message(now, DhcpMessageType::Decline)
        };
        self.send(&repr, Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST);
        self.begin_again(now.plus_us(DECLINE_US));
        true
    }

    fn begin_again(&mut self, at: Instant) {
        self.state = State::Init;
        self.next = at;
    }

    fn lose(&mut self, now: Instant) {
        if self.lease.take().is_some() {
            self.news = Some(News::Lost);
        }
        self.begin_again(now);
    }

    fn discover(&mut self, now: Instant, random: u64, anew: bool) {
        if anew {
            self.transaction = random as u32;
            self.started = now;
            self.tries = 0;
        }
        let repr = self.message(now, DhcpMessageType::Discover);
        let repr = DhcpRepr { parameter_request_list: Some(WANTED), ..repr };
        self.send(&repr, Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST);
        self.state = State::Selecting;
        self.wait(now, random);
    }

    fn request(&mut self, now: Instant, random: u64, address: Ipv4Addr, server: Ipv4Addr) {
        let repr = DhcpRepr {
            requested_ip: Some(address),
            server_identifier: Some(server),
            parameter_request_list: Some(WANTED),
            ..self.message(now, DhcpMessageType::Request)
        };
        self.send(&repr, Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST);
        self.state = State::Requesting { address, server };
        self.wait(now, random);
    }

    fn probe(&mut self, now: Instant, lease: Lease, sent: u8) {
        if let std::net::IpAddr::V4(address) = lease.cidr.addr {
            self.probe = Some(address);
        }
        self.state = State::Probing { lease, sent: sent + 1 };
        self.next = now.plus_us(PROBE_US);
    }

    fn bind(&mut self, lease: Lease) {
        self.next = lease.renew_at;
        self.news = Some(News::Bound(lease.clone()));
        self.lease = Some(lease);
        self.state = State::Bound;
    }

    /// Asks its server, or after T2 any server, to prolong the lease.
    fn renew(&mut self, now: Instant) {
        let Some(lease) = self.lease.clone() else { return self.begin_again(now) };
        let std::net::IpAddr::V4(own) = lease.cidr.addr else { return self.begin_again(now) };
        let rebinding = now >= lease.rebind_at;
        let repr = DhcpRepr {
            client_ip: own,
            broadcast: false,
            parameter_request_list: Some(WANTED),
            ..self.message(now, DhcpMessageType::Request)
        };
        let destination = if rebinding { Ipv4Addr::BROADCAST } else { lease.server };
        self.send(&repr, own, destination);
        let end = if rebinding { lease.expires_at } else { lease.rebind_at };
        self.state = if rebinding { State::Rebinding } else { State::Renewing };
        // Half of what is left, but not too often.
        let pause_us = (end.since(now) / 2).max(RENEW_MIN_US);
        self.next = now.plus_us(pause_us).min(end);
    }

    fn wait(&mut self, now: Instant, random: u64) {
        let base_us = (RETRANSMIT_US << self.tries.min(8)).min(RETRANSMIT_MAX_US);
        self.tries = self.tries.saturating_add(1);
        let jitter_us = (random >> 32) % (2 * JITTER_US);
        self.next = now.plus_us(base_us + jitter_us - JITTER_US);
    }

    fn message(&self, now: Instant, message_type: DhcpMessageType) -> DhcpRepr<'static> {
        DhcpRepr {
            message_type,
            transaction_id: self.transaction,
            secs: (now.since(self.started) / 1_000_000).min(0xffff) as u16,
            client_hardware_address: EthernetAddress(self.mac),
            client_ip: Ipv4Addr::UNSPECIFIED,
            your_ip: Ipv4Addr::UNSPECIFIED,
            server_ip: Ipv4Addr::UNSPECIFIED,
            router: None,
            subnet_mask: None,
            relay_agent_ip: Ipv4Addr::UNSPECIFIED,
            // Nothing reaches us by an address that is not ours yet.
            broadcast: true,
            requested_ip: None,
            client_identifier: Some(EthernetAddress(self.mac)),
            server_identifier: None,
            parameter_request_list: None,
            dns_servers: None,
            max_size: Some(MESSAGE_MAX),
            lease_duration: None,
            renew_duration: None,
            rebind_duration: None,
            additional_options: &[],
        }
    }

    fn send(&mut self, repr: &DhcpRepr<'_>, source: Ipv4Addr, destination: Ipv4Addr) {
        let mut payload = vec![0; repr.buffer_len()];
        // Fails only for a buffer that is too short.
        if repr.emit(&mut DhcpPacket::new_unchecked(&mut payload[..])).is_ok() {
            self.outgoing.insert(0, Outgoing { source, destination, payload });
        }
    }

    fn lease_of(&self, now: Instant, ack: &DhcpRepr<'_>, server: Ipv4Addr) -> Option<Lease> {
        if !is_host(ack.your_ip) {
            return None;
        }
        let seconds = |s: u32| now.plus_us(u64::from(s) * 1_000_000);
        let lease_s = ack.lease_duration.filter(|seconds| *seconds > 0)?;
        let renew_s = ack.renew_duration.unwrap_or(0);
        let rebind_s = ack.rebind_duration.unwrap_or(0);
        // RFC 2131 section 4.4.5: half and seven eighths, unless the server says better.
        let sound = renew_s > 0 && renew_s < rebind_s && rebind_s < lease_s;
        let (renew_s, rebind_s) = match sound {
            true => (renew_s, rebind_s),
            false => (lease_s / 2, (u64::from(lease_s) * 7 / 8) as u32),
        };
        let mask = ack.subnet_mask.map_or(0xffff_ff00, u32::from);
        let prefix_len = mask.leading_ones() as u8;
        if mask.leading_ones() + mask.trailing_zeros() != 32 {
            return None;
        }
        let cidr = Cidr::new(ack.your_ip.into(), prefix_len);
        let servers = ack.dns_servers.iter().flatten().copied().filter(|ip| is_host(*ip));
        (!cidr.is_broadcast(cidr.addr)).then(|| Lease {
            cidr,
            gateway: ack.router.filter(|router| is_host(*router)),
            name_servers: servers.collect(),
            server,
            renew_at: seconds(renew_s),
            rebind_at: seconds(rebind_s),
            expires_at: seconds(lease_s),
        })
    }
}

/// Whether a host can have the address.
fn is_host(addr: Ipv4Addr) -> bool {
    let first = addr.octets()[0];
    first != 0 && first != 127 && first < 224
}
