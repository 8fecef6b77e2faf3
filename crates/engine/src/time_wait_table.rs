//! The TIME-WAIT records of a shard: bounded, all of the same age limit, oldest first.
//!
//! Every record waits equally long, so the order of entry is the order of expiry: a list is both
//! the timer and the choice of whom to forget when the table is full. Records that have come from another
//! server have waited there already, and stand in a heap beside it. What a record answers is in
//! `tcp/time_wait.rs`; the flow table leads here.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::flow_table::FlowKey;
use crate::lists::{Links, List};
use crate::slab::Slab;
use crate::socket_id::SocketId;
use crate::tcp::TimeWait;
use crate::time::Instant;

/// One record with its flow.
#[derive(Debug)]
pub struct Waiting {
    /// Addresses and ports.
    pub key: FlowKey,
    /// What is left of the connection.
    pub record: TimeWait,
    /// When the record may be forgotten.
    pub expires: Instant,
    /// Traffic class of its answers.
    pub type_of_service: u8,
    /// Hop limit of its answers.
    pub hop_limit: u8,
}

/// The table.
#[derive(Debug)]
pub struct TimeWaitTable {
    records: Slab<Waiting>,
    links: Links,
    by_age: List,
    /// Of records from elsewhere: when they expire. One that means a record no more is passed over.
    moved: BinaryHeap<Reverse<(Instant, SocketId)>>,
    duration_us: u64,
}

impl TimeWaitTable {
    /// An empty table for at most `limit` records that wait `duration_us` each.
    pub fn new(limit: usize, duration_us: u64) -> TimeWaitTable {
        TimeWaitTable {
            records: Slab::new(limit),
            links: Links::default(),
            by_age: List::new(),
            moved: BinaryHeap::new(),
            duration_us,
        }
    }

    /// Whether the next record takes the place of the oldest.
    pub fn is_full(&self) -> bool {
        self.records.is_full()
    }

    /// Adds a record, whose `expires` is set here; `None` when the table is full.
    pub fn insert(&mut self, now: Instant, mut waiting: Waiting) -> Option<SocketId> {
        waiting.expires = now.plus_us(self.duration_us);
        let name = self.records.insert_with(|_| waiting)?;
        self.links.push_back(&mut self.by_age, name.index());
        Some(name)
    }

    /// Adds a record that has waited elsewhere; it goes on waiting for what is left of the time at most.
    /// `None` when the table is full.
    pub fn insert_moved(&mut self, now: Instant, mut waiting: Waiting) -> Option<SocketId> {
        waiting.expires = waiting.expires.min(now.plus_us(self.duration_us));
        let expires = waiting.expires;
        let name = self.records.insert_with(|_| waiting)?;
        self.moved.push(Reverse((expires, name)));
        Some(name)
    }

    /// A record, to ask.
    pub fn get_mut(&mut self, name: SocketId) -> Option<&mut Waiting> {
        self.records.get_mut(name)
    }

    /// A record, to look at.
    pub fn get(&self, name: SocketId) -> Option<&Waiting> {
        self.records.get(name)
    }

    /// How long a record has waited, in microseconds.
    pub fn age_us(&self, now: Instant, waiting: &Waiting) -> u64 {
        self.duration_us.saturating_sub(waiting.expires.since(now))
    }

    /// Starts the wait anew.
    pub fn restart(&mut self, now: Instant, name: SocketId) {
        if let Some(waiting) = self.records.get_mut(name) {
            waiting.expires = now.plus_us(self.duration_us);
            self.links.remove(&mut self.by_age, name.index());
            self.links.push_back(&mut self.by_age, name.index());
            self.pass_over();
        }
    }

    /// Takes a record out.
    pub fn remove(&mut self, name: SocketId) -> Option<Waiting> {
        let waiting = self.records.remove(name)?;
        self.links.remove(&mut self.by_age, name.index());
        self.pass_over();
        Some(waiting)
    }

    /// Takes the oldest record out.
    pub fn pop_oldest(&mut self) -> Option<(SocketId, Waiting)> {
        let name = self.oldest()?;
        self.remove(name).map(|waiting| (name, waiting))
    }

    /// Takes the oldest record out if its wait is over.
    pub fn pop_expired(&mut self, now: Instant) -> Option<(SocketId, Waiting)> {
        if self.next_timeout()? <= now { self.pop_oldest() } else { None }
    }

    /// When the oldest record expires.
    pub fn next_timeout(&self) -> Option<Instant> {
        self.records.get(self.oldest()?).map(|waiting| waiting.expires)
    }

    /// All records, for listings.
    pub fn iter(&self) -> impl Iterator<Item = &Waiting> {
        self.records.iter().map(|(_, waiting)| waiting)
    }

    fn oldest(&self) -> Option<SocketId> {
        let first = self.by_age.first().and_then(|index| self.records.id_at(index));
        let Some(Reverse((expires, moved))) = self.moved.peek() else { return first };
        let earlier =
            |name: SocketId| self.records.get(name).is_some_and(|one| one.expires <= *expires);
        first.filter(|name| earlier(*name)).or(Some(*moved))
    }

    /// Sees that the first of the heap, if there is one, is a record that waits for that moment.
    fn pass_over(&mut self) {
        while let Some(Reverse((expires, name))) = self.moved.peek() {
            let stands = self.records.get(*name).is_some_and(|one| one.expires == *expires);
            if stands && !self.links.is_linked(name.index()) {
                return;
            }
            let _ = self.moved.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tcp::SeqNumber;

    fn waiting(port: u16) -> Waiting {
        let key = FlowKey::new(
            "10.0.0.1:80".parse().expect("address"),
            std::net::SocketAddr::new("10.0.0.2".parse().expect("address"), port),
        );
        let record = TimeWait {
            snd_nxt: SeqNumber::new(1),
            rcv_nxt: SeqNumber::new(2),
            receive_window: 1000,
            window_shift: 0,
            ts_recent: None,
            timestamp_offset: 0,
            answered_at: Instant::default(),
        };
        Waiting { key, record, expires: Instant::default(), type_of_service: 0, hop_limit: 64 }
    }

    #[test]
    fn records_expire_in_order_and_a_restart_moves_them_back() {
        let mut table = TimeWaitTable::new(10, 100);
        let at = Instant::from_us;
        let first = table.insert(at(0), waiting(1)).expect("room");
        let second = table.insert(at(10), waiting(2)).expect("room");
        assert_eq!(table.next_timeout(), Some(at(100)));
        table.restart(at(50), first);
        assert_eq!(table.next_timeout(), Some(at(110)));
        assert!(table.pop_expired(at(109)).is_none());
        assert_eq!(table.pop_expired(at(150)).map(|(name, _)| name), Some(second));
        assert_eq!(table.pop_expired(at(150)).map(|(name, _)| name), Some(first));
        assert!(table.pop_expired(at(1000)).is_none());
        assert_eq!(table.next_timeout(), None);
    }

    #[test]
    fn records_from_elsewhere_take_their_place_among_the_others() {
        let mut table = TimeWaitTable::new(10, 100);
        let at = Instant::from_us;
        let expiring = |port, us| Waiting { expires: at(us), ..waiting(port) };
        let own = table.insert(at(10), waiting(1)).expect("room");
        let early = table.insert_moved(at(20), expiring(2, 50)).expect("room");
        let late = table.insert_moved(at(20), expiring(3, 115)).expect("room");
        let bounded = table.insert_moved(at(20), expiring(4, 1_000)).expect("room");
        let restarted = table.insert_moved(at(20), expiring(5, 40)).expect("room");
        assert_eq!(table.next_timeout(), Some(at(40)));
        table.restart(at(30), restarted);
        assert_eq!(table.next_timeout(), Some(at(50)));
        let order: Vec<_> =
            std::iter::from_fn(|| table.pop_expired(at(130))).map(|(name, _)| name).collect();
        assert_eq!(order, [early, own, late, bounded, restarted]);
        assert_eq!(table.next_timeout(), None);
    }

    #[test]
    fn a_full_table_gives_up_its_oldest() {
        let mut table = TimeWaitTable::new(2, 100);
        for port in 1..=2 {
            assert!(table.insert(Instant::from_us(u64::from(port)), waiting(port)).is_some());
        }
        assert!(table.is_full());
        assert!(table.insert(Instant::from_us(3), waiting(3)).is_none());
        let (_, oldest) = table.pop_oldest().expect("a record");
        assert_eq!(oldest.key.remote().port(), 1);
        assert!(table.insert(Instant::from_us(3), waiting(3)).is_some());
    }
}
