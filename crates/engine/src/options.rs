//! Socket options as the engine understands them, with Linux's defaults.
//!
//! The service translates `setsockopt` into [`SocketOption`]; a listener's [`SocketOptions`] are
//! the template of the connections it accepts, as on Linux.

use crate::carry::carried;

/// How to end a socket.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Close {
    /// FIN after all data; data that arrives later is answered with a reset (RFC 1122 4.2.2.13).
    Graceful,
    /// Reset now; unsent data is discarded (RFC 9293 section 3.10.5).
    Abort,
}

/// How a listener behaves.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct ListenOptions {
    /// Connections that may wait for `accept` are this number plus one, as on Linux.
    pub backlog: u32,
    /// An unspecified IPv6 listener with `false` takes IPv4 connections too (RFC 3493 section 5.3).
    pub v6only: bool,
    /// Several listeners may share the address when all of them say so; flows are spread by hash.
    pub reuse_port: bool,
    /// Options that accepted connections start with.
    pub template: SocketOptions,
}

impl Default for ListenOptions {
    fn default() -> ListenOptions {
        ListenOptions {
            backlog: 128,
            v6only: false,
            reuse_port: false,
            template: SocketOptions::default(),
        }
    }
}

/// All options of one connection.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct SocketOptions {
    /// TCP_NODELAY: send small segments at once.
    pub no_delay: bool,
    /// TCP_CORK: send full segments only, for at most 200 ms.
    pub cork: bool,
    /// TCP_QUICKACK: acknowledge without delay.
    pub quick_ack: bool,
    /// SO_KEEPALIVE.
    pub keep_alive: bool,
    /// TCP_KEEPIDLE, seconds of silence before the first probe, 1..=32767.
    pub keep_idle_s: u32,
    /// TCP_KEEPINTVL, seconds between probes, 1..=32767.
    pub keep_interval_s: u32,
    /// TCP_KEEPCNT, unanswered probes before the connection is dropped, 1..=127.
    pub keep_count: u32,
    /// TCP_USER_TIMEOUT, milliseconds that sent data may stay unacknowledged; 0 = the default.
    pub user_timeout_ms: u32,
    /// TCP_MAXSEG, 88..=32767; 0 = from the MTU.
    pub max_segment: u16,
    /// SO_RCVBUF, bytes of the receive window.
    pub receive_buffer: u32,
    /// SO_SNDBUF, bytes of unacknowledged and unsent data.
    pub send_buffer: u32,
    /// IP_TOS and IPV6_TCLASS: traffic class of outgoing packets (the two ECN bits are ours).
    pub type_of_service: u8,
    /// IP_TTL and IPV6_UNICAST_HOPS, 1..=255.
    pub hop_limit: u8,
    /// TCP_DEFER_ACCEPT, seconds to wait for data before a connection is accepted; 0 = off.
    pub defer_accept_s: u32,
    /// TCP_SYNCNT, retransmissions of a SYN, 1..=127; 0 = the default.
    pub syn_count: u8,
    /// TCP_LINGER2, seconds an orphan stays in FIN-WAIT-2; 0 = the default.
    pub fin_wait_2_s: u32,
}

impl Default for SocketOptions {
    fn default() -> SocketOptions {
        SocketOptions {
            no_delay: false,
            cork: false,
            quick_ack: false,
            keep_alive: false,
            keep_idle_s: 7200,
            keep_interval_s: 75,
            keep_count: 9,
            user_timeout_ms: 0,
            max_segment: 0,
            receive_buffer: crate::limits::RECEIVE_BUFFER_DEFAULT,
            send_buffer: crate::limits::SEND_BUFFER_DEFAULT,
            type_of_service: 0,
            hop_limit: 64,
            defer_accept_s: 0,
            syn_count: 0,
            fin_wait_2_s: 0,
        }
    }
}

/// One option to change; the fields of [`SocketOptions`] say what each means and its range.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum SocketOption {
    /// TCP_NODELAY.
    NoDelay(bool),
    /// TCP_CORK.
    Cork(bool),
    /// TCP_QUICKACK.
    QuickAck(bool),
    /// SO_KEEPALIVE.
    KeepAlive(bool),
    /// TCP_KEEPIDLE, seconds.
    KeepIdle(u32),
    /// TCP_KEEPINTVL, seconds.
    KeepInterval(u32),
    /// TCP_KEEPCNT.
    KeepCount(u32),
    /// TCP_USER_TIMEOUT, milliseconds.
    UserTimeout(u32),
    /// TCP_MAXSEG, bytes.
    MaxSegment(u16),
    /// SO_RCVBUF, bytes.
    ReceiveBuffer(u32),
    /// SO_SNDBUF, bytes.
    SendBuffer(u32),
    /// IP_TOS or IPV6_TCLASS.
    TypeOfService(u8),
    /// IP_TTL or IPV6_UNICAST_HOPS.
    HopLimit(u8),
    /// TCP_DEFER_ACCEPT, seconds.
    DeferAccept(u32),
    /// TCP_SYNCNT.
    SynCount(u8),
    /// TCP_LINGER2, seconds.
    FinWait2(u32),
}

impl SocketOptions {
    /// Stores one option, brought into its range.
    pub fn set(&mut self, option: SocketOption) {
        match option {
            SocketOption::NoDelay(on) => self.no_delay = on,
            SocketOption::Cork(on) => self.cork = on,
            SocketOption::QuickAck(on) => self.quick_ack = on,
            SocketOption::KeepAlive(on) => self.keep_alive = on,
            SocketOption::KeepIdle(s) => self.keep_idle_s = s.clamp(1, 32_767),
            SocketOption::KeepInterval(s) => self.keep_interval_s = s.clamp(1, 32_767),
            SocketOption::KeepCount(count) => self.keep_count = count.clamp(1, 127),
            SocketOption::UserTimeout(ms) => self.user_timeout_ms = ms,
            SocketOption::MaxSegment(0) => self.max_segment = 0,
            SocketOption::MaxSegment(bytes) => self.max_segment = bytes.clamp(88, 32_767),
            SocketOption::ReceiveBuffer(bytes) => {
                self.receive_buffer = crate::limits::clamp_receive_buffer(bytes);
            }
            SocketOption::SendBuffer(bytes) => {
                self.send_buffer = crate::limits::clamp_send_buffer(bytes);
            }
            SocketOption::TypeOfService(class) => self.type_of_service = class & 0xfc,
            SocketOption::HopLimit(hops) => self.hop_limit = hops.max(1),
            SocketOption::DeferAccept(s) => self.defer_accept_s = s,
            SocketOption::SynCount(count) => self.syn_count = count.min(127),
            SocketOption::FinWait2(s) => self.fin_wait_2_s = s,
        }
    }
}

carried!(struct SocketOptions {
    no_delay,
    cork,
    quick_ack,
    keep_alive,
    keep_idle_s,
    keep_interval_s,
    keep_count,
    user_timeout_ms,
    max_segment,
    receive_buffer,
    send_buffer,
    type_of_service,
    hop_limit,
    defer_accept_s,
    syn_count,
    fin_wait_2_s,
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_brought_into_range() {
        let mut options = SocketOptions::default();
        options.set(SocketOption::KeepIdle(0));
        options.set(SocketOption::MaxSegment(1));
        options.set(SocketOption::HopLimit(0));
        options.set(SocketOption::TypeOfService(0xff));
        options.set(SocketOption::ReceiveBuffer(u32::MAX));
        assert_eq!(options.keep_idle_s, 1);
        assert_eq!(options.max_segment, 88);
        assert_eq!(options.hop_limit, 1);
        assert_eq!(options.type_of_service, 0xfc);
        assert_eq!(options.receive_buffer, crate::limits::RECEIVE_BUFFER_MAX);
    }
}
