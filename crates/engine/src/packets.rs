//! Buffers of packets that are made here and wait: replies, datagrams, packets to ourselves, packets
//! whose neighbour is being asked for.
//!
//! Buffers are used again, so that a reply allocates nothing once the shard is warm. Segments of
//! connections are not queued here: they are written straight into the frame that goes out.

use std::collections::VecDeque;
use std::net::IpAddr;

use crate::socket_id::SocketId;

/// Buffers that are kept for later use.
const SPARE_MAX: usize = 256;
/// Memory that they may hold; what is beyond goes back to the allocator.
const SPARE_BYTES_MAX: usize = 4 << 20;

/// Empty buffers.
#[derive(Debug, Default)]
pub struct Buffers {
    spare: Vec<Vec<u8>>,
    spare_bytes: usize,
}

impl Buffers {
    /// A buffer of `len` zero bytes.
    pub fn take(&mut self, len: usize) -> Vec<u8> {
        let mut buffer = self.spare.pop().unwrap_or_default();
        self.spare_bytes -= buffer.capacity();
        buffer.resize(len, 0);
        buffer
    }

    /// A buffer that is no longer needed.
    pub fn give(&mut self, mut buffer: Vec<u8>) {
        let bytes = self.spare_bytes + buffer.capacity();
        if self.spare.len() < SPARE_MAX && bytes <= SPARE_BYTES_MAX {
            self.spare_bytes = bytes;
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

/// A datagram of a UDP socket: an IP packet on its way out.
#[derive(Debug)]
pub struct OutgoingDatagram {
    /// The socket.
    pub owner: SocketId,
    /// Destination of the packet.
    pub destination: IpAddr,
    /// The IP packet.
    pub bytes: Vec<u8>,
    /// Larger packets are cut into fragments of this MTU.
    pub mtu: usize,
    /// Bytes of the IP payload that have been sent in fragments.
    pub sent: usize,
    /// Names the fragments.
    pub identification: u32,
}

/// Datagrams that wait to be sent, first come first served, bounded in number and bytes.
#[derive(Debug)]
pub struct DatagramQueue {
    datagrams: VecDeque<OutgoingDatagram>,
    bytes: usize,
    datagrams_max: usize,
    bytes_max: usize,
}

impl DatagramQueue {
    /// An empty queue.
    pub fn new(datagrams_max: usize, bytes_max: usize) -> DatagramQueue {
        DatagramQueue { datagrams: VecDeque::new(), bytes: 0, datagrams_max, bytes_max }
    }

    /// Whether `count` more datagrams of `bytes` bytes together fit.
    pub fn has_room(&self, count: usize, bytes: usize) -> bool {
        self.datagrams.len() + count <= self.datagrams_max && self.bytes + bytes <= self.bytes_max
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.datagrams.is_empty()
    }

    /// Appends a datagram; the caller has asked whether it fits.
    pub fn push_back(&mut self, datagram: OutgoingDatagram) {
        self.bytes += datagram.bytes.len();
        self.datagrams.push_back(datagram);
    }

    /// Puts back what was taken: it is not sent completely.
    pub fn push_front(&mut self, datagram: OutgoingDatagram) {
        self.bytes += datagram.bytes.len();
        self.datagrams.push_front(datagram);
    }

    /// Takes the first datagram.
    pub fn pop_front(&mut self) -> Option<OutgoingDatagram> {
        let datagram = self.datagrams.pop_front()?;
        self.bytes -= datagram.bytes.len();
        Some(datagram)
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
        for _ in 0..1000 {
            buffers.give(vec![7; 65_536]);
        }
        let kept: usize = buffers.spare.iter().map(Vec::capacity).sum();
        assert!(kept > SPARE_BYTES_MAX - 65_536 && kept <= SPARE_BYTES_MAX, "{kept}");
        assert_eq!(kept, buffers.spare_bytes);
    }
}
