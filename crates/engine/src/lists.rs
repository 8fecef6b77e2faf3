//! Doubly linked lists through flat arrays: members are small indices, every step is O(1).
//!
//! Used for the ready list, the event list and the queues of listeners, where a connection has to
//! leave from the middle at once. One [`Links`] serves many lists whose members never overlap; it
//! remembers which list holds a member only as far as its caller does.

/// No member.
const NONE: u32 = u32::MAX;

/// Neighbours of one member.
#[derive(Copy, Clone, Debug)]
struct Link {
    previous: u32,
    next: u32,
    linked: bool,
}

const UNLINKED: Link = Link { previous: NONE, next: NONE, linked: false };

/// The links of all members, by index.
#[derive(Debug, Default)]
pub struct Links {
    links: Vec<Link>,
}

/// First and last member of one list.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct List {
    first: u32,
    last: u32,
    len: u32,
}

impl Default for List {
    fn default() -> List {
        List::new()
    }
}

impl List {
    /// An empty list.
    pub const fn new() -> List {
        List { first: NONE, last: NONE, len: 0 }
    }

    /// Members.
    pub const fn len(&self) -> u32 {
        self.len
    }

    /// Whether there is no member.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first member.
    pub const fn first(&self) -> Option<u32> {
        if self.first == NONE { None } else { Some(self.first) }
    }
}

impl Links {
    /// Whether the member is in some list.
    pub fn is_linked(&self, member: u32) -> bool {
        self.links.get(member as usize).is_some_and(|link| link.linked)
    }

    /// The member after this one in its list.
    pub fn next(&self, member: u32) -> Option<u32> {
        let link = self.links.get(member as usize).filter(|link| link.linked)?;
        (link.next != NONE).then_some(link.next)
    }

    /// Appends a member; one that is in a list already stays where it is.
    pub fn push_back(&mut self, list: &mut List, member: u32) {
        let at = member as usize;
        if at >= self.links.len() {
            self.links.resize(at + 1, UNLINKED);
        }
        if self.links[at].linked {
            return;
        }
        self.links[at] = Link { previous: list.last, next: NONE, linked: true };
        match list.last {
            NONE => list.first = member,
            last => self.links[last as usize].next = member,
        }
        list.last = member;
        list.len += 1;
    }

    /// Takes a member out of `list`, which must be the one that holds it, if any does.
    pub fn remove(&mut self, list: &mut List, member: u32) {
        if !self.is_linked(member) {
            return;
        }
        let Link { previous, next, linked: _ } = self.links[member as usize];
        match previous {
            NONE => list.first = next,
            previous => self.links[previous as usize].next = next,
        }
        match next {
            NONE => list.last = previous,
            next => self.links[next as usize].previous = previous,
        }
        self.links[member as usize] = UNLINKED;
        list.len -= 1;
    }

    /// Takes the first member out.
    pub fn pop_front(&mut self, list: &mut List) -> Option<u32> {
        let member = list.first()?;
        self.remove(list, member);
        Some(member)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    proptest! {
        #[test]
        fn it_behaves_as_a_queue(steps in prop::collection::vec((0_u8..3, 0_u32..20), 0..300)) {
            let mut links = Links::default();
            let mut list = List::new();
            let mut oracle: VecDeque<u32> = VecDeque::new();
            for (step, member) in steps {
                match step {
                    0 => {
                        links.push_back(&mut list, member);
                        if !oracle.contains(&member) {
                            oracle.push_back(member);
                        }
                    }
                    1 => {
                        links.remove(&mut list, member);
                        oracle.retain(|&m| m != member);
                    }
                    _ => prop_assert_eq!(links.pop_front(&mut list), oracle.pop_front()),
                }
                prop_assert_eq!(list.len() as usize, oracle.len());
                prop_assert_eq!(list.first(), oracle.front().copied());
                prop_assert_eq!(list.is_empty(), oracle.is_empty());
            }
        }
    }
}
