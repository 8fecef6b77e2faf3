//! Which listener takes a SYN, and which two exclude each other.

use super::*;

struct Table {
    listeners: Listeners,
    next: u32,
}

impl Table {
    fn new() -> Table {
        Table { listeners: Listeners::new(5), next: 0 }
    }

    fn listen(&mut self, local: &str, v6only: bool, reuse: bool) -> Result<SocketId, ListenError> {
        let local = at(local);
        self.listeners.check(local, v6only, reuse)?;
        self.next += 1;
        let id = SocketId::new(self.next, 1);
        self.listeners.insert(id, local, v6only, reuse);
        Ok(id)
    }

    fn lookup(&self, local: &str) -> Option<SocketId> {
        self.listeners.lookup(at(local), 0)
    }
}

fn at(text: &str) -> SocketAddr {
    text.parse().expect("address")
}

#[test]
fn the_most_exact_listener_wins() {
    let mut table = Table::new();
    let all = table.listen("0.0.0.0:80", false, true).expect("free");
    let exact = table.listen("10.0.0.1:80", false, true).expect("shared");
    let six = table.listen("[::]:80", false, true).expect("shared");
    assert_eq!(table.lookup("10.0.0.1:80"), Some(exact));
    assert_eq!(table.lookup("10.0.0.2:80"), Some(all));
    assert_eq!(table.lookup("[2001:db8::1]:80"), Some(six));
    assert_eq!(table.lookup("10.0.0.1:81"), None);
}

#[test]
fn an_ipv6_wildcard_takes_ipv4_unless_told_not_to() {
    let mut table = Table::new();
    let both = table.listen("[::]:80", false, false).expect("free");
    let only = table.listen("[::]:81", true, false).expect("free");
    assert_eq!(table.lookup("10.0.0.1:80"), Some(both));
    assert_eq!(table.lookup("10.0.0.1:81"), None);
    assert_eq!(table.lookup("[::1]:81"), Some(only));
}

#[test]
fn overlapping_listeners_exclude_each_other_unless_all_share() {
    let mut table = Table::new();
    let _ = table.listen("10.0.0.1:80", false, false).expect("free");
    let in_use = Err(ListenError::AddressInUse);
    assert_eq!(table.listen("10.0.0.1:80", false, false), in_use);
    assert_eq!(table.listen("10.0.0.1:80", false, true), in_use);
    assert_eq!(table.listen("0.0.0.0:80", false, false), in_use);
    assert_eq!(table.listen("[::]:80", false, false), in_use);
    assert!(table.listen("[::]:80", true, false).is_ok());
    assert!(table.listen("10.0.0.2:80", false, false).is_ok());
    assert_eq!(table.listen("[::1]:80", false, false), in_use);
}

#[test]
fn a_group_is_spread_by_hash_and_shrinks() {
    let mut table = Table::new();
    let ids: Vec<SocketId> =
        (0..4).map(|_| table.listen("0.0.0.0:80", false, true).expect("shared")).collect();
    let mut counts = [0; 4];
    for n in 0..4000_u64 {
        let hash = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let id = table.listeners.lookup(at("10.0.0.1:80"), hash).expect("a member");
        counts[ids.iter().position(|other| *other == id).expect("known")] += 1;
    }
    assert!(counts.iter().all(|count| (900..1100).contains(count)), "{counts:?}");
    for id in ids {
        assert!(table.listeners.has_port(80));
        table.listeners.remove(id, at("0.0.0.0:80"), false);
    }
    assert!(!table.listeners.has_port(80));
    assert_eq!(table.lookup("10.0.0.1:80"), None);
    assert_eq!(table.listeners.groups.len(), 0);
}
