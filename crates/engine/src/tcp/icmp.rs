//! ICMP errors about a connection's own segments.
//!
//! Owns the plausibility checks of RFC 5927 and the reactions of RFC 1122 section 4.2.3.9: on a
//! synchronised connection nothing that ICMP says ends it. The shard has matched the quoted packet
//! to the connection.

use super::connection::Connection;
use super::seam::{IcmpError, State, TcpCounters, Unreachable};
use super::segment::SeqNumber;
use crate::{Instant, SocketError};

/// Least segment size that is believed: from Linux's least path MTU of 552, and RFC 8200's 1280.
const PATH_MSS_MIN_V4: u16 = 552 - 40;
const PATH_MSS_MIN_V6: u16 = 1280 - 60;

impl Connection {
    /// An ICMP error that quotes a segment of ours with this sequence number. Returns false when it
    /// was not believed: the number is not in flight (RFC 5927 section 4.1).
    pub fn handle_icmp(
        &mut self,
        _now: Instant,
        error: IcmpError,
        quoted_seq: SeqNumber,
        counters: &mut TcpCounters,
    ) -> bool {
        let seq = self.send.space.offset(quoted_seq, self.send.nxt);
        if self.is_over() || seq < self.send.una || seq >= self.send.nxt {
            counters.drop_bad_icmp += 1;
            return false;
        }
        match error {
            IcmpError::Unreachable(kind) => self.handle_unreachable(kind),
            IcmpError::PacketTooBig { mss } => self.lower_path_mtu(mss, counters),
        }
        true
    }

    /// An opening fails; anything else goes on and remembers the reason for a later time-out.
    fn handle_unreachable(&mut self, kind: Unreachable) {
        let error = match kind {
            Unreachable::Network => SocketError::NetworkUnreachable,
            Unreachable::Host => SocketError::HostUnreachable,
            Unreachable::Port => SocketError::ConnectionRefused,
            Unreachable::Protocol => SocketError::ProtocolUnreachable,
            Unreachable::Denied => SocketError::PermissionDenied,
            Unreachable::Header => SocketError::ProtocolError,
        };
        if self.state == State::SynSent {
            self.finish(State::Closed, Some(error));
        } else if matches!(kind, Unreachable::Network | Unreachable::Host) {
            self.soft_error = Some(error);
        }
    }

    /// RFC 1191, RFC 8201: sends smaller segments from now on, and at once what was too big.
    fn lower_path_mtu(&mut self, mss: u16, counters: &mut TcpCounters) {
        let least = if self.ipv6 { PATH_MSS_MIN_V6 } else { PATH_MSS_MIN_V4 };
        let mss = mss.max(least);
        self.path_mss = self.path_mss.min(mss);
        if mss >= self.send.mss {
            return;
        }
        counters.path_mtu_reductions += 1;
        self.send.mss = mss;
        self.resend_for_smaller_segments();
    }
}
