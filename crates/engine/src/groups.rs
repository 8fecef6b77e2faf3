//! Which multicast groups this host is in, and when to tell the routers: the host's part of IGMPv2
//! and MLDv1, without any packet.
//!
//! `shard/groups.rs` tells what sockets join and leave, what queries and reports arrive, and fetches
//! messages to send. Routers that speak later versions understand these. Read first: RFC 2236
//! sections 3 and 6, RFC 2710 section 4.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hashbrown::HashMap;

use crate::time::Instant;

/// Unsolicited Report Interval, RFC 2236 section 8.10, RFC 2710 section 7.10.
const UNSOLICITED_INTERVAL_US: u64 = 10_000_000;
/// Reports of a new membership (robustness variable, RFC 2236 section 8.1).
const UNSOLICITED_REPORTS: u8 = 2;

/// A group that sockets here are in.
#[derive(Debug)]
struct Group {
    /// Sockets in it.
    members: u32,
    /// When to report it.
    report_at: Option<Instant>,
    /// Unsolicited reports still to send.
    reports_left: u8,
    /// Nobody else has reported it since we did: a leave message is due at the end.
    last_reporter: bool,
}

/// A message for the routers.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// We are in this group.
    Report(IpAddr),
    /// The last of us left this group.
    Leave(IpAddr),
}

/// All groups.
#[derive(Debug)]
pub struct Groups {
    groups: HashMap<IpAddr, Group, foldhash::quality::FixedState>,
    limit: usize,
    messages: VecDeque<Message>,
    /// Not later than the earliest report.
    next: Option<Instant>,
    /// Groups have come or gone.
    changed: bool,
}

impl Groups {
    /// No groups; at most `limit`.
    pub fn new(seed: u64, limit: usize) -> Groups {
        let groups = HashMap::with_hasher(foldhash::quality::FixedState::with_seed(seed));
        Groups { groups, limit, messages: VecDeque::new(), next: None, changed: false }
    }

    /// There may be more groups from now on.
    pub fn raise_limit(&mut self, limit: usize) {
        self.limit = self.limit.max(limit);
    }

    /// A socket joins; true when it is the first, `None` without room. `random` decides when the
    /// second report goes.
    pub fn join(&mut self, now: Instant, group: IpAddr, random: u64) -> Option<bool> {
        if let Some(known) = self.groups.get_mut(&group) {
            known.members += 1;
            return Some(false);
        }
        if self.groups.len() >= self.limit {
            return None;
        }
        self.changed = true;
        let mut new = Group { members: 1, report_at: None, reports_left: 0, last_reporter: false };
        if is_reported(group) {
            let at = now.plus_us(random % UNSOLICITED_INTERVAL_US);
            new.report_at = Some(at);
            new.reports_left = UNSOLICITED_REPORTS - 1;
            new.last_reporter = true;
            self.messages.push_back(Message::Report(group));
            self.wake(at);
        }
        let _ = self.groups.insert(group, new);
        Some(true)
    }

    /// A socket leaves.
    pub fn leave(&mut self, group: IpAddr) {
        let Some(known) = self.groups.get_mut(&group) else { return };
        known.members -= 1;
        if known.members == 0 {
            self.changed = true;
            if known.last_reporter {
                self.messages.push_back(Message::Leave(group));
            }
            let _ = self.groups.remove(&group);
        }
    }

    /// Whether somebody here is in the group.
    pub fn contains(&self, group: IpAddr) -> bool {
        !self.groups.is_empty() && self.groups.contains_key(&group)
    }

    /// Whether groups have come or gone since the last call.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// The groups that somebody here is in.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.groups.keys().copied()
    }

    /// A router asks for one group or, with `None`, for all of a family, and wants answers within
    /// `within_us`. `random` gives each answer its time.
    pub fn handle_query(
        &mut self,
        now: Instant,
        group: Option<IpAddr>,
        v4: bool,
        within_us: u64,
        random: u64,
    ) {
        let latest = now.plus_us(within_us);
        let mut next = self.next;
        for (number, (addr, known)) in self.groups.iter_mut().enumerate() {
            let asked = group.map_or(addr.is_ipv4() == v4, |group| group == *addr);
            // RFC 2236 section 3: a timer that runs is only ever shortened.
            let late = known.report_at.is_none_or(|at| at > latest);
            if asked && is_reported(*addr) && late {
                let spread = random.wrapping_add((number as u64).wrapping_mul(SPREAD));
                let at = now.plus_us((spread >> 16) % within_us.max(1));
                known.report_at = Some(at);
                known.reports_left = known.reports_left.max(1);
                next = Some(next.map_or(at, |next| next.min(at)));
            }
        }
        self.next = next;
    }

    /// Another host reports a group: ours need not. False when we are not in it.
    pub fn handle_report(&mut self, group: IpAddr) -> bool {
        let Some(known) = self.groups.get_mut(&group) else { return false };
        if known.report_at.take().is_some() {
            known.reports_left = 0;
        }
        known.last_reporter = false;
        true
    }

    /// Queues the reports that are due.
    pub fn handle_timers(&mut self, now: Instant) {
        if self.next.is_none_or(|next| next > now) {
            return;
        }
        let mut next: Option<Instant> = None;
        for (addr, known) in &mut self.groups {
            match known.report_at {
                Some(at) if at <= now => {
                    known.report_at = None;
                    known.reports_left = known.reports_left.saturating_sub(1);
                    known.last_reporter = true;
                    self.messages.push_back(Message::Report(*addr));
                }
                Some(at) => next = Some(next.map_or(at, |next| next.min(at))),
                None => {}
            }
        }
        self.next = next;
    }

    /// When [`Groups::handle_timers`] has something to do.
    pub fn next_timeout(&self) -> Option<Instant> {
        self.next
    }

    /// The next message to send.
    pub fn poll_message(&mut self) -> Option<Message> {
        self.messages.pop_front()
    }

    fn wake(&mut self, at: Instant) {
        self.next = Some(self.next.map_or(at, |next| next.min(at)));
    }
}

/// Spreads the answers to one query.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// Groups that every router takes for granted are not reported (RFC 2236 section 6, RFC 2710
/// section 5), nor are those that never leave the interface.
fn is_reported(group: IpAddr) -> bool {
    match group {
        IpAddr::V4(addr) => addr != Ipv4Addr::new(224, 0, 0, 1),
        IpAddr::V6(addr) => {
            let scope = addr.octets()[1] & 0xf;
            scope > 1 && addr != Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: IpAddr = IpAddr::V4(Ipv4Addr::new(239, 1, 2, 3));
    const START: Instant = Instant::from_us(1_000);

    #[test]
    fn a_membership_is_reported_twice_and_left_once() {
        let mut groups = Groups::new(1, 4);
        assert_eq!(groups.join(START, GROUP, 77), Some(true));
        assert_eq!(groups.join(START, GROUP, 78), Some(false));
        assert_eq!(groups.poll_message(), Some(Message::Report(GROUP)));
        let at = groups.next_timeout().expect("a second report");
        assert!(at.since(START) < UNSOLICITED_INTERVAL_US);
        groups.handle_timers(at);
        assert_eq!(groups.poll_message(), Some(Message::Report(GROUP)));
        assert_eq!(groups.next_timeout(), None);
        groups.leave(GROUP);
        assert_eq!(groups.poll_message(), None);
        groups.leave(GROUP);
        assert_eq!(groups.poll_message(), Some(Message::Leave(GROUP)));
        assert!(!groups.contains(GROUP));
    }

    #[test]
    fn queries_are_answered_in_time_unless_another_host_did() {
        let mut groups = Groups::new(1, 4);
        let _ = groups.join(START, GROUP, 0);
        groups.handle_timers(START.plus_us(UNSOLICITED_INTERVAL_US));
        while groups.poll_message().is_some() {}
        let later = START.plus_us(90_000_000);
        groups.handle_query(later, None, true, 1_000_000, 0x1234_5678_9abc);
        let at = groups.next_timeout().expect("a report");
        assert!(at.since(later) < 1_000_000);
        assert!(groups.handle_report(GROUP));
        groups.handle_timers(at);
        assert_eq!(groups.poll_message(), None);
        groups.leave(GROUP);
        assert_eq!(groups.poll_message(), None, "another host is still there");
    }

    #[test]
    fn groups_that_all_are_in_are_not_reported() {
        let mut groups = Groups::new(1, 2);
        for text in ["224.0.0.1", "ff02::1", "ff01::7"] {
            let group: IpAddr = text.parse().expect("group");
            assert_eq!(groups.join(START, group, 1), Some(true));
            assert_eq!(groups.poll_message(), None, "{text}");
            groups.leave(group);
            assert_eq!(groups.poll_message(), None, "{text}");
        }
        let _ = groups.join(START, GROUP, 1);
        let _ = groups.join(START, "ff05::9".parse().expect("group"), 1);
        assert_eq!(groups.join(START, "ff05::8".parse().expect("group"), 1), None);
    }
}
