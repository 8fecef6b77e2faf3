//! Buffers of packets that are made here and wait: replies, packets to ourselves, packets whose
//! neighbour is being asked for.
//!
//! Buffers are used again, so that a reply allocates nothing once the shard is warm. Segments of
//! connections are not queued here: they are written straight into the frame that goes out.

use std::collections::VecDeque;
use std::net::IpAddr;

/// Buffers that are kept for later use.
const SPARE_MAX: usize = 256;
/// Larger buffers are given back to the allocator.
const SPARE_BYTES_MAX: usize = 16 * 1024;

/// Empty buffers.
#[derive(Debug, Default)]
pub struct Buffers {
    spare: Vec<Vec<u8>>,
}

impl Buffers {
    /// A buffer of `len` zero bytes.
    pub fn take(&mut self, len: usize) -> Vec<u8> {
        let mut buffer = self.spare.pop().unwrap_or_default();
        buffer.resize(len, 0);
        buffer
    }

    /// A buffer that is no longer needed.
    pub fn give(&mut self, mut buffer: Vec<u8>) {
        if self.spare.len() < SPARE_MAX && buffer.capacity() <= SPARE_BYTES_MAX {
            buffer.clear();
            self.spare.push(buffer);
        }
    }
}

/// Where a reply goes.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Destination {
    /// An IP packet, to be routed.
    Routed(IpAddr),
    /// What follows the Ethernet header: destination and type are known.
    Link([u8; 6], u16),
}

/// One reply.
#[derive(Debug)]
pub struct Reply {
    /// Where it goes.
    pub destination: Destination,
    /// An IP packet, which may be larger than the MTU, or the body of an Ethernet frame.
    pub bytes: Vec<u8>,
    /// Bytes of the IP payload that have been sent in fragments.
    pub sent: usize,
}

/// Replies that wait to be sent, first come first served, bounded in number and bytes.
#[derive(Debug)]
pub struct ReplyQueue {
    replies: VecDeque<Reply>,
    bytes: usize,
    replies_max: usize,
    bytes_max: usize,
}

impl ReplyQueue {
    /// An empty queue.
    pub fn new(replies_max: usize, bytes_max: usize) -> ReplyQueue {
        ReplyQueue { replies: VecDeque::new(), bytes: 0, replies_max, bytes_max }
    }

    /// Whether a reply of `len` bytes fits.
    pub fn has_room(&self, len: usize) -> bool {
        self.replies.len() < self.replies_max && self.bytes + len <= self.bytes_max
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.replies.is_empty()
    }

    /// Appends a reply; the caller has asked whether it fits.
    pub fn push_back(&mut self, destination: Destination, bytes: Vec<u8>) {
        self.bytes += bytes.len();
        self.replies.push_back(Reply { destination, bytes, sent: 0 });
    }

    /// Puts back what was taken: it is not sent completely.
    pub fn push_front(&mut self, reply: Reply) {
        self.bytes += reply.bytes.len();
        self.replies.push_front(reply);
    }

    /// Takes the first reply.
    pub fn pop_front(&mut self) -> Option<Reply> {
        let reply = self.replies.pop_front()?;
        self.bytes -= reply.bytes.len();
        Some(reply)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queue_keeps_order_and_bounds() {
        let mut queue = ReplyQueue::new(3, 100);
        let to = Destination::Link([1; 6], 0x0806);
        assert!(queue.has_room(100));
        assert!(!queue.has_room(101));
        queue.push_back(to, vec![1; 60]);
        queue.push_back(to, vec![2; 30]);
        assert!(!queue.has_room(11));
        let first = queue.pop_front().expect("a reply");
        assert_eq!(first.bytes[0], 1);
        queue.push_front(first);
        assert_eq!(queue.pop_front().map(|reply| reply.bytes[0]), Some(1));
        assert_eq!(queue.pop_front().map(|reply| reply.bytes[0]), Some(2));
        assert!(queue.is_empty());
        assert_eq!(queue.bytes, 0);
    }

    #[test]
    fn buffers_come_back_clean() {
        let mut buffers = Buffers::default();
        buffers.give(vec![7; 50]);
        assert_eq!(buffers.take(20), vec![0; 20]);
        buffers.give(vec![7; 100_000]);
        assert!(buffers.take(0).capacity() < 100_000);
    }
}
