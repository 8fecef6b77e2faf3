//! Socket options between applications and the engine.
//!
//! An option is named by level and name of setsockopt(2) in one number (`number`). Owns the table
//! of those the service knows; what an option means beyond that is the engine's business, and
//! options without effect on the wire stay in the application. Also `struct tcp_info`, laid out as
//! in linux/tcp.h. Called by `requests`.

use haypile_engine::{SocketOption, SocketOptions, TcpInfo};

/// The number of an option in SET_OPTION and GET_OPTION: level in the high byte, name in the low.
pub const fn number(level: i32, name: i32) -> u16 {
    (level as u16) << 8 | (name as u16 & 0xff)
}

/// `SO_LINGER`: the value is the time in seconds, negative for off. Acted on by `requests`.
pub const LINGER: u16 = number(libc::SOL_SOCKET, libc::SO_LINGER);

const SO_SNDBUF: u16 = number(libc::SOL_SOCKET, libc::SO_SNDBUF);
const SO_RCVBUF: u16 = number(libc::SOL_SOCKET, libc::SO_RCVBUF);
const SO_KEEPALIVE: u16 = number(libc::SOL_SOCKET, libc::SO_KEEPALIVE);
const TCP_NODELAY: u16 = number(libc::IPPROTO_TCP, libc::TCP_NODELAY);
const TCP_MAXSEG: u16 = number(libc::IPPROTO_TCP, libc::TCP_MAXSEG);
const TCP_CORK: u16 = number(libc::IPPROTO_TCP, libc::TCP_CORK);
const TCP_KEEPIDLE: u16 = number(libc::IPPROTO_TCP, libc::TCP_KEEPIDLE);
const TCP_KEEPINTVL: u16 = number(libc::IPPROTO_TCP, libc::TCP_KEEPINTVL);
const TCP_KEEPCNT: u16 = number(libc::IPPROTO_TCP, libc::TCP_KEEPCNT);
const TCP_SYNCNT: u16 = number(libc::IPPROTO_TCP, libc::TCP_SYNCNT);
const TCP_LINGER2: u16 = number(libc::IPPROTO_TCP, libc::TCP_LINGER2);
const TCP_DEFER_ACCEPT: u16 = number(libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT);
const TCP_QUICKACK: u16 = number(libc::IPPROTO_TCP, libc::TCP_QUICKACK);
const TCP_USER_TIMEOUT: u16 = number(libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT);
const IP_TOS: u16 = number(libc::IPPROTO_IP, libc::IP_TOS);
const IP_TTL: u16 = number(libc::IPPROTO_IP, libc::IP_TTL);
const IPV6_UNICAST_HOPS: u16 = number(libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS);
const IPV6_TCLASS: u16 = number(libc::IPPROTO_IPV6, libc::IPV6_TCLASS);

const HOP_LIMIT_DEFAULT: u8 = 64;

/// The engine's option for a number and value.
///
/// # Errors
/// EINVAL for a value out of range, ENOPROTOOPT for an option that the service does not know.
pub fn parse(option: u16, value: i64) -> Result<SocketOption, i32> {
    let on = value != 0;
    Ok(match option {
        // Linux doubles the wish, to have room for its own overhead, and tells the double.
        SO_SNDBUF => SocketOption::SendBuffer(doubled(value)),
        SO_RCVBUF => SocketOption::ReceiveBuffer(doubled(value)),
        SO_KEEPALIVE => SocketOption::KeepAlive(on),
        TCP_NODELAY => SocketOption::NoDelay(on),
        TCP_CORK => SocketOption::Cork(on),
        TCP_QUICKACK => SocketOption::QuickAck(on),
        TCP_MAXSEG => SocketOption::MaxSegment(match value {
            0 => 0,
            value => within(value, 88, 32_767)? as u16,
        }),
        TCP_KEEPIDLE => SocketOption::KeepIdle(within(value, 1, 32_767)? as u32),
        TCP_KEEPINTVL => SocketOption::KeepInterval(within(value, 1, 32_767)? as u32),
        TCP_KEEPCNT => SocketOption::KeepCount(within(value, 1, 127)? as u32),
        TCP_SYNCNT => SocketOption::SynCount(within(value, 1, 127)? as u8),
        TCP_LINGER2 => SocketOption::FinWait2(value.clamp(0, i64::from(i32::MAX)) as u32),
        TCP_DEFER_ACCEPT => SocketOption::DeferAccept(value.clamp(0, i64::from(i32::MAX)) as u32),
        TCP_USER_TIMEOUT => {
            SocketOption::UserTimeout(within(value, 0, i64::from(i32::MAX))? as u32)
        }
        IP_TOS => SocketOption::TypeOfService(value as u8),
        IPV6_TCLASS => SocketOption::TypeOfService(match value {
            -1 => 0,
            value => within(value, 0, 255)? as u8,
        }),
        IP_TTL | IPV6_UNICAST_HOPS => SocketOption::HopLimit(match value {
            -1 => HOP_LIMIT_DEFAULT,
            value => within(value, 1, 255)? as u8,
        }),
        _ => return Err(libc::ENOPROTOOPT),
    })
}

/// The value of an option, as getsockopt(2) gives it; `mss` is the connection's, if there is one.
///
/// # Errors
/// ENOPROTOOPT for an option that the service does not know.
pub fn value(option: u16, options: &SocketOptions, mss: Option<u16>) -> Result<i32, i32> {
    let number = |value: u32| i32::try_from(value).unwrap_or(i32::MAX);
    Ok(match option {
        SO_SNDBUF => number(options.send_buffer),
        SO_RCVBUF => number(options.receive_buffer),
        SO_KEEPALIVE => i32::from(options.keep_alive),
        TCP_NODELAY => i32::from(options.no_delay),
        TCP_CORK => i32::from(options.cork),
        TCP_QUICKACK => i32::from(options.quick_ack),
        TCP_MAXSEG => i32::from(mss.unwrap_or(match options.max_segment {
            0 => MSS_UNCONNECTED,
            chosen => chosen,
        })),
        TCP_KEEPIDLE => number(options.keep_idle_s),
        TCP_KEEPINTVL => number(options.keep_interval_s),
        TCP_KEEPCNT => number(options.keep_count),
        TCP_SYNCNT => match options.syn_count {
            0 => SYN_COUNT_USUAL,
            chosen => i32::from(chosen),
        },
        TCP_LINGER2 => number(options.fin_wait_2_s),
        TCP_DEFER_ACCEPT => number(options.defer_accept_s),
        TCP_USER_TIMEOUT => number(options.user_timeout_ms),
        IP_TOS | IPV6_TCLASS => i32::from(options.type_of_service),
        IP_TTL | IPV6_UNICAST_HOPS => i32::from(options.hop_limit),
        _ => return Err(libc::ENOPROTOOPT),
    })
}

/// What Linux says when nothing was chosen (`net.ipv4.tcp_syn_retries`).
const SYN_COUNT_USUAL: i32 = 6;

/// The options of a listener that are not as by default, as SET_OPTION would set them.
pub fn changed(options: &SocketOptions) -> Vec<(u16, i64)> {
    const ALL: [u16; 14] = [
        SO_SNDBUF,
        SO_RCVBUF,
        SO_KEEPALIVE,
        TCP_NODELAY,
        TCP_CORK,
        TCP_QUICKACK,
        TCP_KEEPIDLE,
        TCP_KEEPINTVL,
        TCP_KEEPCNT,
        TCP_SYNCNT,
        TCP_LINGER2,
        TCP_DEFER_ACCEPT,
        TCP_USER_TIMEOUT,
        IP_TOS,
    ];
    let default = SocketOptions::default();
    let differs = |option: &u16| value(*option, options, None) != value(*option, &default, None);
    let set = |option: u16| {
        let value = i64::from(value(option, options, None).ok()?);
        // What parse doubles.
        let halved = matches!(option, SO_SNDBUF | SO_RCVBUF);
        Some((option, if halved { value / 2 } else { value }))
    };
    let mut changed: Vec<(u16, i64)> = ALL.into_iter().filter(differs).filter_map(set).collect();
    if options.max_segment != default.max_segment {
        changed.push((TCP_MAXSEG, i64::from(options.max_segment)));
    }
    if options.hop_limit != default.hop_limit {
        changed.push((IP_TTL, i64::from(options.hop_limit)));
    }
    changed
}

/// What Linux says of an unconnected socket's segment size.
const MSS_UNCONNECTED: u16 = 536;

fn within(value: i64, low: i64, high: i64) -> Result<i64, i32> {
    if (low..=high).contains(&value) { Ok(value) } else { Err(libc::EINVAL) }
}

fn doubled(value: i64) -> u32 {
    value.clamp(0, i64::from(u32::MAX / 2)) as u32 * 2
}

/// Bytes of [`tcp_info`].
pub const TCP_INFO_BYTES: usize = 280;

/// `struct tcp_info` of linux/tcp.h. What the engine does not know is 0.
pub fn tcp_info(info: &TcpInfo) -> [u8; TCP_INFO_BYTES] {
    let mut bytes = [0; TCP_INFO_BYTES];
    let (send_scale, receive_scale) = info.window_scale.unwrap_or((0, 0));
    let mss = u32::from(info.send_mss).max(1);
    let flags = u8::from(info.timestamps)
        | u8::from(info.sack_permitted) << 1
        | u8::from(info.window_scale.is_some()) << 2;
    bytes[0] = state_number(info.state);
    bytes[1] = info.congestion_state;
    bytes[4] = info.backoff;
    bytes[5] = flags;
    bytes[6] = send_scale & 0xf | receive_scale << 4;
    let known_rtt = if info.min_rtt_us == u32::MAX { 0 } else { info.min_rtt_us };
    let in_segments =
        |length: u64| u32::try_from(length.div_ceil(u64::from(mss))).unwrap_or(u32::MAX);
    let since = |us: u64| u32::try_from(us / 1000).unwrap_or(u32::MAX);
    let words = [
        (8, info.rto_us),
        (16, u32::from(info.send_mss)),
        (20, u32::from(info.receive_mss)),
        (24, in_segments(info.unacknowledged)),
        (28, in_segments(info.sacked)),
        (32, in_segments(info.lost)),
        (36, in_segments(info.retransmitted)),
        (44, since(info.last_data_sent_us)),
        (52, since(info.last_data_received_us)),
        (60, info.path_mtu),
        (64, u32::from(info.send_mss)),
        (68, info.srtt_us),
        (72, info.rttvar_us),
        (76, if info.ssthresh == u32::MAX { i32::MAX as u32 } else { info.ssthresh / mss }),
        (80, (info.cwnd / mss).max(1)),
        (84, u32::from(info.send_mss)),
        (88, u32::from(info.reordering)),
        (96, info.receive_window),
        (100, info.retransmits),
        (144, u32::try_from(info.not_sent).unwrap_or(u32::MAX)),
        (148, known_rtt),
        (228, info.send_window),
        (232, info.receive_window),
    ];
    for (at, word) in words {
        bytes[at..at + 4].copy_from_slice(&word.to_ne_bytes());
    }
    for (at, word) in [(120, info.bytes_acked), (128, info.bytes_received)] {
        bytes[at..at + 8].copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

/// Linux's numbers of TCP states.
fn state_number(state: haypile_engine::State) -> u8 {
    use haypile_engine::State;
    match state {
        State::Established => 1,
        State::SynSent => 2,
        State::SynReceived => 3,
        State::FinWait1 => 4,
        State::FinWait2 => 5,
        State::TimeWait => 6,
        State::Closed => 7,
        State::CloseWait => 8,
        State::LastAck => 9,
        State::Closing => 11,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_can_be_read() {
        for (option, value_set, value_read) in [
            (SO_RCVBUF, 100_000, 200_000),
            (SO_SNDBUF, 1, 4096),
            (SO_KEEPALIVE, 1, 1),
            (TCP_NODELAY, 7, 1),
            (TCP_KEEPIDLE, 30, 30),
            (TCP_MAXSEG, 1000, 1000),
            (IP_TTL, -1, 64),
            (IPV6_TCLASS, 0xb8, 0xb8),
        ] {
            let mut options = SocketOptions::default();
            options.set(parse(option, value_set).unwrap());
            assert_eq!(value(option, &options, None), Ok(value_read), "{option:#x}");
        }
    }

    #[test]
    fn changed_options_make_the_same_again() {
        assert_eq!(changed(&SocketOptions::default()), []);
        let mut options = SocketOptions::default();
        let set = [
            (SO_RCVBUF, 100_000),
            (SO_SNDBUF, 70_000),
            (SO_KEEPALIVE, 1),
            (TCP_NODELAY, 1),
            (TCP_KEEPIDLE, 30),
            (TCP_KEEPCNT, 3),
            (TCP_MAXSEG, 1000),
            (TCP_DEFER_ACCEPT, 5),
            (TCP_USER_TIMEOUT, 1234),
            (IP_TTL, 9),
            (IP_TOS, 0x10),
        ];
        for (option, value) in set {
            options.set(parse(option, value).unwrap());
        }
        let mut again = SocketOptions::default();
        for (option, value) in changed(&options) {
            again.set(parse(option, value).unwrap());
        }
        assert_eq!(again, options);
    }

    #[test]
    fn nonsense_is_refused() {
        assert_eq!(parse(0xffff, 1), Err(libc::ENOPROTOOPT));
        assert_eq!(parse(TCP_KEEPCNT, 0), Err(libc::EINVAL));
        assert_eq!(parse(TCP_MAXSEG, 5), Err(libc::EINVAL));
        assert_eq!(parse(IP_TTL, 256), Err(libc::EINVAL));
        assert_eq!(value(0xffff, &SocketOptions::default(), None), Err(libc::ENOPROTOOPT));
    }
}
