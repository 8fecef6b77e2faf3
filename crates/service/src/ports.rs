//! Which local addresses and ports applications have bound. The engine knows listeners and
//! connections; this table knows what is merely bound, and refuses what Linux refuses. Called by
//! `requests` for BIND, LISTEN and the end of a socket. Read bind(2) and socket(7), SO_REUSEADDR.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use crate::slab::Key;

/// How a socket is bound.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// Address (may be unspecified) and port.
    pub address: SocketAddr,
    /// SO_REUSEADDR.
    pub reuse_address: bool,
    /// SO_REUSEPORT.
    pub reuse_port: bool,
    /// IPV6_V6ONLY: an unspecified IPv6 address does not cover IPv4.
    pub v6_only: bool,
}

/// All bindings.
#[derive(Debug, Default)]
pub struct Ports {
    bound: HashMap<u16, Vec<Entry>>,
    /// Where the search for a free port goes on.
    next: u16,
}

#[derive(Debug)]
struct Entry {
    socket: Key,
    binding: Binding,
    listening: bool,
}

const EPHEMERAL_FIRST: u16 = haypile_engine::limits::EPHEMERAL_FIRST;
const EPHEMERAL_LAST: u16 = haypile_engine::limits::EPHEMERAL_LAST;

impl Ports {
    /// Starts the search for free ports at a place that depends on `seed`.
    pub fn new(seed: u64) -> Ports {
        let span = u64::from(EPHEMERAL_LAST - EPHEMERAL_FIRST) + 1;
        Ports { bound: HashMap::new(), next: EPHEMERAL_FIRST + (seed % span) as u16 }
    }

    /// Binds; port 0 is replaced by a free one. `None`: the address is in use.
    pub fn bind(&mut self, socket: Key, mut binding: Binding) -> Option<SocketAddr> {
        if binding.address.port() == 0 {
            binding.address.set_port(self.free_port(&binding)?);
        } else if self.is_taken(&binding, false) {
            return None;
        }
        let entry = Entry { socket, binding, listening: false };
        self.bound.entry(binding.address.port()).or_default().push(entry);
        Some(binding.address)
    }

    /// A bound socket starts to listen. False: another one listens there.
    pub fn listen(&mut self, socket: Key, port: u16) -> bool {
        let Some(own) = self.find(socket, port) else { return false };
        if own.listening {
            return true;
        }
        let binding = own.binding;
        let others = self.bound.get(&port).into_iter().flatten();
        let clash = others.filter(|entry| entry.socket != socket && entry.listening).any(|entry| {
            let shared = entry.binding.reuse_port && binding.reuse_port;
            !shared && overlap(&entry.binding, &binding)
        });
        if clash {
            return false;
        }
        for entry in self.bound.get_mut(&port).into_iter().flatten() {
            entry.listening |= entry.socket == socket;
        }
        true
    }

    /// A socket listens no more, and stays bound.
    pub fn listen_no_more(&mut self, socket: Key, port: u16) {
        for entry in self.bound.get_mut(&port).into_iter().flatten() {
            entry.listening &= entry.socket != socket;
        }
    }

    /// The socket is gone.
    pub fn release(&mut self, socket: Key, port: u16) {
        if let Some(entries) = self.bound.get_mut(&port) {
            entries.retain(|entry| entry.socket != socket);
            if entries.is_empty() {
                self.bound.remove(&port);
            }
        }
    }

    fn find(&self, socket: Key, port: u16) -> Option<&Entry> {
        self.bound.get(&port)?.iter().find(|entry| entry.socket == socket)
    }

    /// `strict`: no sharing, whatever the options say (for ports that the service chooses).
    fn is_taken(&self, binding: &Binding, strict: bool) -> bool {
        let entries = self.bound.get(&binding.address.port()).into_iter().flatten();
        entries.filter(|entry| overlap(&entry.binding, binding)).any(|entry| {
            let both_ports = entry.binding.reuse_port && binding.reuse_port;
            let both_addresses =
                entry.binding.reuse_address && binding.reuse_address && !entry.listening;
            strict || !(both_ports || both_addresses)
        })
    }

    fn free_port(&mut self, binding: &Binding) -> Option<u16> {
        for _ in EPHEMERAL_FIRST..=EPHEMERAL_LAST {
            let port = self.next;
            self.next = if port >= EPHEMERAL_LAST { EPHEMERAL_FIRST } else { port + 1 };
            let mut wanted = *binding;
            wanted.address.set_port(port);
            if !self.is_taken(&wanted, true) {
                return Some(port);
            }
        }
        None
    }
}

/// Whether a packet could be for both.
fn overlap(one: &Binding, other: &Binding) -> bool {
    covers(one, other.address.ip()) || covers(other, one.address.ip())
}

fn covers(binding: &Binding, address: IpAddr) -> bool {
    let own = binding.address.ip();
    if own == address {
        return true;
    }
    own.is_unspecified()
        && (own.is_ipv4() == address.is_ipv4() || (own.is_ipv6() && !binding.v6_only))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slab::Slab;

    fn binding(text: &str) -> Binding {
        Binding {
            address: text.parse().unwrap(),
            reuse_address: false,
            reuse_port: false,
            v6_only: false,
        }
    }

    fn keys() -> [Key; 3] {
        let mut slab = Slab::default();
        [slab.insert(()), slab.insert(()), slab.insert(())]
    }

    #[test]
    fn overlapping_addresses_clash() {
        let [a, b, _] = keys();
        for (first, second, clash) in [
            ("198.18.0.1:80", "198.18.0.1:80", true),
            ("198.18.0.1:80", "198.18.0.2:80", false),
            ("198.18.0.1:80", "198.18.0.1:81", false),
            ("0.0.0.0:80", "198.18.0.1:80", true),
            ("[::]:80", "198.18.0.1:80", true),
            ("[::]:80", "0.0.0.0:80", true),
            ("[2001:2::1]:80", "0.0.0.0:80", false),
        ] {
            let mut ports = Ports::new(0);
            assert!(ports.bind(a, binding(first)).is_some());
            assert_eq!(ports.bind(b, binding(second)).is_none(), clash, "{first} {second}");
        }
        let mut ports = Ports::new(0);
        ports.bind(a, Binding { v6_only: true, ..binding("[::]:80") });
        assert!(ports.bind(b, binding("0.0.0.0:80")).is_some());
    }

    #[test]
    fn reused_addresses_may_not_both_listen_and_reused_ports_may() {
        let [a, b, c] = keys();
        let mut ports = Ports::new(0);
        let reuse = Binding { reuse_address: true, ..binding("0.0.0.0:80") };
        assert!(ports.bind(a, reuse).is_some() && ports.bind(b, reuse).is_some());
        assert!(ports.listen(a, 80) && ports.listen(a, 80));
        assert!(!ports.listen(b, 80));
        assert!(ports.bind(c, reuse).is_none());
        ports.release(a, 80);
        assert!(ports.listen(b, 80));
        let mut ports = Ports::new(0);
        let shared = Binding { reuse_port: true, ..binding("0.0.0.0:80") };
        for key in [a, b, c] {
            assert!(ports.bind(key, shared).is_some());
            assert!(ports.listen(key, 80));
        }
    }

    #[test]
    fn port_zero_finds_a_free_one_until_there_is_none() {
        let [a, b, _] = keys();
        let mut ports = Ports::new(7);
        let shared = Binding { reuse_address: true, ..binding("0.0.0.0:0") };
        let mut seen = std::collections::HashSet::new();
        for _ in EPHEMERAL_FIRST..=EPHEMERAL_LAST {
            let bound = ports.bind(a, shared).unwrap();
            assert!(bound.port() >= EPHEMERAL_FIRST && seen.insert(bound.port()));
        }
        assert!(ports.bind(b, shared).is_none());
    }
}
