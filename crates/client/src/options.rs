//! Socket options: which the service acts on, which are only kept, which are left to the kernel's
//! placeholder. One table, by what programs are seen to use.
//!
//! Until a socket is known to be Haypile's, an option goes to the placeholder, which checks it as
//! the kernel does, and is kept here to be replayed. Afterwards the options of the service's list
//! go there; of the others most need no effect, and the placeholder checks and keeps them. Connections
//! that were accepted share one placeholder's file; one gets its own when such an option is set.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use haypile_shm::Errno;
use haypile_shm::messages::{OPTION_BYTES, RequestBody};
use haypile_shm::stream::status;
use haypile_shm::sys;
use libc::{IPPROTO_IP, IPPROTO_IPV6, IPPROTO_TCP, SOL_SOCKET};

use crate::entry::{self, Phase, Pinned, Socket, flag};
use crate::{datagram, placeholder, socket};

/// Bytes of the name of a congestion control, with its end (`TCP_CA_NAME_MAX`).
const CONGESTION_BYTES: usize = 16;
/// What connections of the service do.
const CONGESTION_USUAL: [u8; CONGESTION_BYTES] = *b"cubic\0\0\0\0\0\0\0\0\0\0\0";

/// What an option does here.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Effect {
    /// The service acts on it; the range of values that Linux takes.
    Service(i32, i32),
    /// As `Service`, and it must be known before the SYN is sent.
    ServiceEarly(i32, i32),
    /// Read by this crate, at bind, listen, close or while reading.
    Local,
    /// Kept and given back.
    Kept,
}

use Effect::{Kept, Local, Service, ServiceEarly};

const ANY: i32 = i32::MAX;

/// The options with an integer value that are kept here. Names that libc does not have carry their
/// number from the kernel's headers.
const TABLE: [(i32, i32, Effect); 45] = [
    (SOL_SOCKET, libc::SO_REUSEADDR, Local),
    (SOL_SOCKET, libc::SO_REUSEPORT, Local),
    (SOL_SOCKET, libc::SO_LINGER, Local),
    (IPPROTO_IPV6, libc::IPV6_V6ONLY, Local),
    (SOL_SOCKET, libc::SO_SNDBUF, ServiceEarly(i32::MIN, ANY)),
    (SOL_SOCKET, libc::SO_RCVBUF, ServiceEarly(i32::MIN, ANY)),
    (SOL_SOCKET, libc::SO_KEEPALIVE, Service(i32::MIN, ANY)),
    (IPPROTO_TCP, libc::TCP_NODELAY, Service(i32::MIN, ANY)),
    (IPPROTO_TCP, libc::TCP_CORK, Service(i32::MIN, ANY)),
    (IPPROTO_TCP, libc::TCP_QUICKACK, Service(i32::MIN, ANY)),
    (IPPROTO_TCP, libc::TCP_MAXSEG, ServiceEarly(0, 32_767)),
    (IPPROTO_TCP, libc::TCP_KEEPIDLE, Service(1, 32_767)),
    (IPPROTO_TCP, libc::TCP_KEEPINTVL, Service(1, 32_767)),
    (IPPROTO_TCP, libc::TCP_KEEPCNT, Service(1, 127)),
    (IPPROTO_TCP, libc::TCP_SYNCNT, ServiceEarly(1, 127)),
    (IPPROTO_TCP, libc::TCP_LINGER2, Service(i32::MIN, ANY)),
    (IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, Service(i32::MIN, ANY)),
    (IPPROTO_TCP, libc::TCP_USER_TIMEOUT, ServiceEarly(0, ANY)),
    (IPPROTO_IP, libc::IP_TOS, ServiceEarly(i32::MIN, ANY)),
    (IPPROTO_IP, libc::IP_TTL, ServiceEarly(-1, 255)),
    (IPPROTO_IPV6, libc::IPV6_TCLASS, ServiceEarly(-1, 255)),
    (IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, ServiceEarly(-1, 255)),
    (SOL_SOCKET, libc::SO_BROADCAST, Kept),
    (SOL_SOCKET, libc::SO_OOBINLINE, Kept),
    (SOL_SOCKET, libc::SO_PRIORITY, Kept),
    (SOL_SOCKET, libc::SO_DONTROUTE, Kept),
    (SOL_SOCKET, libc::SO_RCVLOWAT, Local),
    (SOL_SOCKET, libc::SO_PEEK_OFF, Local),
    (IPPROTO_TCP, TCP_INQ, Local),
    (SOL_SOCKET, libc::SO_TIMESTAMP, Kept),
    (SOL_SOCKET, libc::SO_BUSY_POLL, Kept),
    (SOL_SOCKET, libc::SO_INCOMING_CPU, Kept),
    (IPPROTO_TCP, libc::TCP_WINDOW_CLAMP, Kept),
    (IPPROTO_TCP, libc::TCP_FASTOPEN, Kept),
    (IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, Kept),
    (IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, Kept),
    (IPPROTO_TCP, libc::TCP_THIN_LINEAR_TIMEOUTS, Kept),
    (IPPROTO_IP, libc::IP_MTU_DISCOVER, Kept),
    (IPPROTO_IP, libc::IP_RECVERR, Kept),
    (IPPROTO_IP, libc::IP_PKTINFO, Kept),
    (IPPROTO_IP, libc::IP_FREEBIND, Kept),
    (IPPROTO_IP, libc::IP_TRANSPARENT, Kept),
    (IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, Kept),
    (IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, Kept),
    (IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, Kept),
];

const _: () = assert!(TABLE.len() <= 64, "one bit each");

/// Options that would ask for what a Haypile connection cannot do. The error makes programs do
/// without; it comes before it is known whose the socket will be.
const REFUSED: [(i32, i32); 7] = [
    (SOL_SOCKET, libc::SO_ZEROCOPY),
    (IPPROTO_TCP, libc::TCP_ULP),
    (IPPROTO_TCP, libc::TCP_REPAIR),
    (IPPROTO_TCP, libc::TCP_MD5SIG),
    (IPPROTO_TCP, TCP_ZEROCOPY_RECEIVE),
    (SOL_SOCKET, libc::SO_ATTACH_FILTER),
    (SOL_SOCKET, libc::SO_ATTACH_BPF),
];
const TCP_ZEROCOPY_RECEIVE: i32 = 35;
const TCP_INQ: i32 = 36;
/// In `TCP_INFO`: the MTU of the path.
const PATH_MTU_OFFSET: usize = 60;

/// `SO_LINGER` as kept: the time plus one; negative if it is off, when Linux remembers the time.
fn kept_linger(on: bool, time_s: i32, before: i32) -> i32 {
    if on { time_s.clamp(0, i32::MAX - 1) + 1 } else { -before.abs() }
}

fn place(level: i32, name: i32) -> Option<usize> {
    TABLE.iter().position(|(of, known, _)| (*of, *known) == (level, name))
}

/// As [`place`], of an option that the table has.
const fn place_of(level: i32, name: i32) -> usize {
    let mut place = 0;
    while TABLE[place].0 != level || TABLE[place].1 != name {
        place += 1;
    }
    place
}

/// The number of an option in messages: level in the high byte, name in the low.
fn number(level: i32, name: i32) -> u16 {
    (level as u16) << 8 | (name as u16 & 0xff)
}

/// Values set on one socket.
#[derive(Debug)]
pub(crate) struct Stored {
    values: [AtomicI32; TABLE.len()],
    /// One bit a place: a value was set.
    set: AtomicU64,
    /// `TCP_CONGESTION`: the name that was set, filled up with 0.
    congestion: [AtomicU64; 2],
}

impl Default for Stored {
    fn default() -> Self {
        Stored {
            values: [const { AtomicI32::new(0) }; TABLE.len()],
            set: AtomicU64::new(0),
            congestion: [const { AtomicU64::new(0) }; 2],
        }
    }
}

impl Stored {
    pub(crate) fn reset(&self) {
        self.set.store(0, Ordering::Relaxed);
        self.put_congestion(&[]);
    }

    fn put_congestion(&self, name: &[u8]) {
        let mut padded = [0; CONGESTION_BYTES];
        let len = name.len().min(CONGESTION_BYTES - 1);
        padded[..len].copy_from_slice(&name[..len]);
        for (word, bytes) in self.congestion.iter().zip(padded.as_chunks::<8>().0) {
            word.store(u64::from_ne_bytes(*bytes), Ordering::Relaxed);
        }
    }

    /// The name, filled up with 0; `None` if none was set.
    fn congestion(&self) -> Option<[u8; CONGESTION_BYTES]> {
        let mut name = [0; CONGESTION_BYTES];
        for (word, bytes) in self.congestion.iter().zip(name.as_chunks_mut::<8>().0) {
            *bytes = word.load(Ordering::Relaxed).to_ne_bytes();
        }
        (name[0] != 0).then_some(name)
    }

    fn put(&self, place: usize, value: i32) {
        self.values[place].store(value, Ordering::Relaxed);
        self.set.fetch_or(1 << place, Ordering::Release);
    }

    fn get(&self, place: usize) -> Option<i32> {
        let set = self.set.load(Ordering::Acquire) & 1 << place != 0;
        set.then(|| self.values[place].load(Ordering::Relaxed))
    }

    fn is_on(&self, level: i32, name: i32) -> bool {
        place(level, name).and_then(|place| self.get(place)).is_some_and(|value| value != 0)
    }

    /// `SO_REUSEADDR`
    pub(crate) fn reuse_address(&self) -> bool {
        self.is_on(SOL_SOCKET, libc::SO_REUSEADDR)
    }

    /// `SO_REUSEPORT`
    pub(crate) fn reuse_port(&self) -> bool {
        self.is_on(SOL_SOCKET, libc::SO_REUSEPORT)
    }

    /// `IPV6_V6ONLY`
    pub(crate) fn v6only(&self) -> bool {
        self.is_on(IPPROTO_IPV6, libc::IPV6_V6ONLY)
    }

    /// Sets `IPV6_V6ONLY` if `only`; else leaves it.
    pub(crate) fn note_v6only(&self, only: bool) {
        if let Some(place) = place(IPPROTO_IPV6, libc::IPV6_V6ONLY).filter(|_| only) {
            self.put(place, 1);
        }
    }

    /// `SO_LINGER`: the time in seconds, `None` if off.
    pub(crate) fn linger_s(&self) -> Option<u32> {
        let value = self.linger_word();
        (value > 0).then(|| (value - 1) as u32)
    }

    fn linger_word(&self) -> i32 {
        let place = place(SOL_SOCKET, libc::SO_LINGER);
        place.and_then(|place| self.get(place)).unwrap_or(0)
    }

    /// `SO_PEEK_OFF`: how many bytes the next look skips; `None` if it is off.
    pub(crate) fn peek_offset(&self) -> Option<u32> {
        const PLACE: usize = place_of(SOL_SOCKET, libc::SO_PEEK_OFF);
        self.get(PLACE).and_then(|offset| u32::try_from(offset).ok())
    }

    /// So many bytes were looked at, or taken: the next look begins where the last one ended.
    pub(crate) fn move_peek_offset(&self, peeked: bool, bytes: usize) {
        const PLACE: usize = place_of(SOL_SOCKET, libc::SO_PEEK_OFF);
        let Some(offset) = self.peek_offset() else { return };
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let offset =
            if peeked { offset.saturating_add(bytes) } else { offset.saturating_sub(bytes) };
        self.values[PLACE].store(offset.min(i32::MAX as u32) as i32, Ordering::Relaxed);
    }

    /// `TCP_INQ`
    pub(crate) fn tells_rest(&self) -> bool {
        self.get(const { place_of(IPPROTO_TCP, TCP_INQ) }) == Some(1)
    }

    /// Whether an option was set that the service must know before the SYN.
    pub(crate) fn any_early(&self) -> bool {
        (0..TABLE.len())
            .any(|place| matches!(TABLE[place].2, ServiceEarly(..)) && self.get(place).is_some())
    }

    /// Takes over what an accepted connection inherits from its listener.
    pub(crate) fn inherit(&self, listener: &Stored) {
        let set = listener.set.load(Ordering::Acquire);
        for (place, (own, theirs)) in self.values.iter().zip(&listener.values).enumerate() {
            if set & 1 << place != 0 {
                own.store(theirs.load(Ordering::Relaxed), Ordering::Relaxed);
            }
        }
        self.set.store(set, Ordering::Release);
        for (own, theirs) in self.congestion.iter().zip(&listener.congestion) {
            own.store(theirs.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }
}

/// Tells the service every option that was set before it knew the socket.
pub(crate) fn replay(socket: &Socket) {
    for (place, (level, name, effect)) in TABLE.iter().enumerate() {
        if !matches!(effect, Service(..) | ServiceEarly(..)) {
            continue;
        }
        if let Some(value) = socket.stored.get(place) {
            let option = number(*level, *name);
            let value = i64::from(value);
            let _: Result<(), Errno> = socket.tell(RequestBody::SetOption { option, value });
        }
    }
    if socket.stored.linger_s().is_some() {
        let _: Result<(), Errno> = tell_linger(socket);
    }
}

/// The service must know what the last close means: it may hear of that from the kernel alone.
fn tell_linger(socket: &Socket) -> Result<(), Errno> {
    let option = number(SOL_SOCKET, libc::SO_LINGER);
    let value = socket.stored.linger_s().map_or(-1, i64::from);
    socket.tell(RequestBody::SetOption { option, value })
}

/// Sets `SO_LINGER` on a placeholder, for whoever gets it next.
pub(crate) fn write_linger(socket: &Socket, placeholder: RawFd) {
    if let Some(time_s) = socket.stored.linger_s() {
        let value = [1, time_s as i32].map(i32::to_ne_bytes).concat();
        // A placeholder without it only makes the next holder's answer wrong.
        let _: Result<(), Errno> =
            sys::setsockopt(placeholder, SOL_SOCKET, libc::SO_LINGER, &value);
    }
}

/// Takes `SO_LINGER` over from the placeholder of an adopted socket.
pub(crate) fn read_linger(socket: &Socket, placeholder: RawFd) {
    let mut value = [0; 8];
    let got = sys::getsockopt(placeholder, SOL_SOCKET, libc::SO_LINGER, &mut value);
    let (Ok(8), Some(place)) = (got, place(SOL_SOCKET, libc::SO_LINGER)) else { return };
    if let (Ok(on), Ok(time_s)) = (integer(&value), integer(&value[4..]))
        && on != 0
    {
        socket.stored.put(place, kept_linger(true, time_s, 0));
    }
}

/// Whether the placeholder of a socket is its own, so that options can be kept there.
fn has_own_placeholder(socket: &Socket) -> bool {
    !socket.has(flag::TEMPLATE)
}

fn integer(value: &[u8]) -> Result<i32, Errno> {
    let bytes = value.get(..4).ok_or(Errno::EINVAL)?;
    Ok(i32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

/// setsockopt(2).
///
/// # Errors
/// `TO_KERNEL`, or the errno.
pub fn setsockopt(fd: RawFd, level: i32, name: i32, value: &[u8]) -> Result<(), Errno> {
    let socket = entry::ours(fd)?;
    if REFUSED.contains(&(level, name)) {
        return Err(Errno::EOPNOTSUPP);
    }
    if socket.has(flag::DATAGRAM) {
        return datagram::options::set(&socket, fd, level, name, value);
    }
    if level == SOL_SOCKET && matches!(name, libc::SO_RCVTIMEO | libc::SO_SNDTIMEO) {
        return set_timeout(&socket, name, value);
    }
    let name = match (level, name) {
        (SOL_SOCKET, libc::SO_RCVBUFFORCE) => libc::SO_RCVBUF,
        (SOL_SOCKET, libc::SO_SNDBUFFORCE) => libc::SO_SNDBUF,
        _ => name,
    };
    let Some(place) = place(level, name) else {
        placeholder::materialise(&socket)?;
        sys::setsockopt(fd, level, name, value)?;
        if (level, name) == (IPPROTO_TCP, libc::TCP_CONGESTION) {
            socket.stored.put_congestion(value.split(|byte| *byte == 0).next().unwrap_or_default());
        }
        return Ok(());
    };
    if level == IPPROTO_IPV6 && socket.domain() != libc::AF_INET6 {
        return Err(Errno::ENOPROTOOPT);
    }
    if TABLE[place].2 == Kept {
        return keep(&socket, fd, place, value);
    }
    if (level, name) == (SOL_SOCKET, libc::SO_LINGER) {
        return set_linger(&socket, place, value);
    }
    // The kernel's own placeholder checks what it is given.
    if has_own_placeholder(&socket) && !socket.has_record() {
        sys::setsockopt(fd, level, name, value)?;
    }
    // IP_TOS and the like may be one byte.
    let value = match value {
        [byte] if level == IPPROTO_IP => i32::from(*byte),
        _ => integer(value)?,
    };
    let (low, high) = match TABLE[place].2 {
        Service(low, high) | ServiceEarly(low, high) => (low, high),
        Local | Kept => (i32::MIN, i32::MAX),
    };
    let refused = match (level, name) {
        (IPPROTO_IP, libc::IP_TTL) => value == 0,
        (IPPROTO_TCP, TCP_INQ) => !matches!(value, 0 | 1),
        _ => false,
    };
    if refused || !(low..=high).contains(&value) {
        return Err(Errno::EINVAL);
    }
    socket.stored.put(place, value);
    match (level, name) {
        (SOL_SOCKET, libc::SO_RCVLOWAT) => set_receive_low(&socket, value)?,
        // These let go what MSG_MORE has held back.
        (IPPROTO_TCP, libc::TCP_NODELAY) if value != 0 => drop(socket.clear(flag::MORE)),
        (IPPROTO_TCP, libc::TCP_CORK) => drop(socket.clear(flag::MORE)),
        _ => {}
    }
    if socket.has_record() && matches!(TABLE[place].2, Service(..) | ServiceEarly(..)) {
        let option = number(level, name);
        socket.tell(RequestBody::SetOption { option, value: i64::from(value) })?;
    }
    Ok(())
}

/// An option without effect here: the placeholder, if need be made this socket's own, checks the
/// value and says what has become of it.
fn keep(socket: &Pinned, fd: RawFd, place: usize, value: &[u8]) -> Result<(), Errno> {
    let (level, name, _) = TABLE[place];
    let opens = matches!(name, libc::TCP_FASTOPEN | libc::TCP_FASTOPEN_CONNECT);
    if level == IPPROTO_TCP && opens && socket.phase() == Phase::Stream {
        return Err(Errno::EINVAL);
    }
    placeholder::materialise(socket)?;
    sys::setsockopt(fd, level, name, value)?;
    let mut kept = [0; 4];
    sys::getsockopt(fd, level, name, &mut kept)?;
    socket.stored.put(place, i32::from_ne_bytes(kept));
    Ok(())
}

fn set_linger(socket: &Pinned, place: usize, value: &[u8]) -> Result<(), Errno> {
    let (on, time_s) = (integer(value)?, integer(value.get(4..).unwrap_or_default())?);
    socket.stored.put(place, kept_linger(on != 0, time_s, socket.stored.linger_word()));
    if socket.has_record() {
        tell_linger(socket)?;
    }
    if has_own_placeholder(socket) {
        sys::setsockopt(socket.number(), SOL_SOCKET, libc::SO_LINGER, value)?;
    }
    Ok(())
}

/// `SO_RCVLOWAT`, held to half of the receive buffer, because more may never come at once. The
/// buffer grows with it unless it was chosen, as on Linux.
fn set_receive_low(socket: &Pinned, value: i32) -> Result<(), Errno> {
    let wanted = if value < 0 { u32::MAX } else { value.max(1) as u32 };
    let chosen = place(SOL_SOCKET, libc::SO_RCVBUF).and_then(|place| socket.stored.get(place));
    let limit = chosen.map_or(RECEIVE_LOW_MAX, |chosen| {
        // The buffer is twice what was asked for.
        (chosen.max(0) as u32).clamp(RECEIVE_LOW_MIN, RECEIVE_LOW_MAX)
    });
    let low = wanted.min(limit);
    socket.receive_low.store(low, Ordering::Relaxed);
    if let Some(place) = place(SOL_SOCKET, libc::SO_RCVLOWAT) {
        socket.stored.put(place, low as i32);
    }
    if chosen.is_none() && low > RECEIVE_LOW_FREE && socket.has_record() {
        let option = number(SOL_SOCKET, libc::SO_RCVBUF);
        socket.tell(RequestBody::SetOption { option, value: i64::from(low) })?;
    }
    Ok(())
}

/// Half of the smallest, the usual and the largest receive buffer of the service.
const RECEIVE_LOW_MIN: u32 = 2048;
const RECEIVE_LOW_FREE: u32 = 128 * 1024;
const RECEIVE_LOW_MAX: u32 = 480 * 1024;

/// What a negative time limit is kept as: the shortest there is. Linux tells it as 0.
const NEGATIVE_US: u64 = 1;
const LONGEST_S: i64 = 1 << 43;

pub(crate) fn set_timeout(socket: &Pinned, name: i32, value: &[u8]) -> Result<(), Errno> {
    let word = |at: usize| {
        let bytes = value.get(at..at + 8).ok_or(Errno::EINVAL)?;
        let mut whole = [0; 8];
        whole.copy_from_slice(bytes);
        Ok::<i64, Errno>(i64::from_ne_bytes(whole))
    };
    let (seconds, micros) = (word(0)?, word(8)?);
    if !(0..1_000_000).contains(&micros) {
        return Err(Errno(libc::EDOM));
    }
    let time_us = match seconds {
        ..0 => NEGATIVE_US,
        // Longer than the kernel can count: no limit.
        LONGEST_S.. => 0,
        0 if micros == 1 => 2,
        _ => seconds as u64 * 1_000_000 + micros as u64,
    };
    let place = if name == libc::SO_RCVTIMEO {
        &socket.receive_timeout_us
    } else {
        &socket.send_timeout_us
    };
    place.store(time_us, Ordering::Relaxed);
    // So that it survives exec, and holds if the socket turns out to be the kernel's.
    if has_own_placeholder(socket) {
        sys::setsockopt(socket.number(), SOL_SOCKET, name, value)?;
    }
    Ok(())
}

/// Copies a value out, cut to the room there is.
fn give(value: &[u8], out: &mut [u8]) -> Result<usize, Errno> {
    let len = value.len().min(out.len());
    out[..len].copy_from_slice(&value[..len]);
    Ok(len)
}

pub(crate) fn give_integer(value: i32, out: &mut [u8]) -> Result<usize, Errno> {
    give(&value.to_ne_bytes(), out)
}

/// getsockopt(2). Returns the length of the value.
///
/// # Errors
/// `TO_KERNEL`, or the errno.
pub fn getsockopt(fd: RawFd, level: i32, name: i32, out: &mut [u8]) -> Result<usize, Errno> {
    let socket = entry::ours(fd)?;
    if socket.has(flag::DATAGRAM) {
        return datagram::options::get(&socket, fd, level, name, out);
    }
    if level == IPPROTO_IPV6 && socket.domain() != libc::AF_INET6 {
        return Err(Errno::EOPNOTSUPP);
    }
    match (level, name) {
        // Its identity: the placeholder must be its own.
        (SOL_SOCKET, libc::SO_COOKIE) => {
            placeholder::materialise(&socket)?;
            sys::getsockopt(fd, level, name, out)
        }
        (SOL_SOCKET, libc::SO_PEERNAME) => {
            let mut encoded = [0; sys::ADDRESS_BYTES];
            let len = sys::encode_address(&socket::remote_address(fd)?, &mut encoded);
            if len < out.len() { Err(Errno::EINVAL) } else { give(&encoded[..len], out) }
        }
        // A name that was set; else that of what is done.
        (IPPROTO_TCP, libc::TCP_CONGESTION) if socket.has_record() => {
            give(&socket.stored.congestion().unwrap_or(CONGESTION_USUAL), out)
        }
        (IPPROTO_TCP, libc::TCP_LINGER2) => give_integer(linger_2(&socket), out),
        (SOL_SOCKET, libc::SO_ERROR) => give_integer(take_error(&socket), out),
        (SOL_SOCKET, libc::SO_ACCEPTCONN) => {
            give_integer(i32::from(socket.phase() == Phase::Listening), out)
        }
        (SOL_SOCKET, libc::SO_RCVTIMEO) => give_timeout(&socket.receive_timeout_us, out),
        (SOL_SOCKET, libc::SO_SNDTIMEO) => give_timeout(&socket.send_timeout_us, out),
        (SOL_SOCKET, libc::SO_LINGER) => {
            let word = socket.stored.linger_word();
            let value = [i32::from(word > 0), (word.abs() - 1).max(0)];
            give(&value.map(i32::to_ne_bytes).concat(), out)
        }
        (IPPROTO_TCP, libc::TCP_INFO) if socket.has_record() => tcp_info(&socket, out),
        // No IP options, no ancillary data kept.
        (IPPROTO_IP, libc::IP_OPTIONS | IP_PKTOPTIONS) => Ok(0),
        (IPPROTO_IP, libc::IP_MTU) | (IPPROTO_IPV6, libc::IPV6_MTU)
            if socket.phase() == Phase::Stream =>
        {
            let mut info = [0; PATH_MTU_OFFSET + 4];
            tcp_info(&socket, &mut info)?;
            give(&info[PATH_MTU_OFFSET..], out)
        }
        _ => get_known(&socket, fd, level, name, out),
    }
}

const IP_PKTOPTIONS: i32 = 9;

/// `TCP_LINGER2` as Linux tells it: the usual time instead of 0, and never more than the longest.
fn linger_2(socket: &Socket) -> i32 {
    let place = place(IPPROTO_TCP, libc::TCP_LINGER2);
    match place.and_then(|place| socket.stored.get(place)).unwrap_or(0) {
        ..0 => -1,
        0 => FIN_WAIT_2_USUAL_S,
        time_s => time_s.min(FIN_WAIT_2_MAX_S),
    }
}

/// `net.ipv4.tcp_fin_timeout`, and the kernel's limit for the option.
const FIN_WAIT_2_USUAL_S: i32 = 60;
const FIN_WAIT_2_MAX_S: i32 = 120;

fn get_known(
    socket: &Pinned,
    fd: RawFd,
    level: i32,
    name: i32,
    out: &mut [u8],
) -> Result<usize, Errno> {
    let Some(place) = place(level, name) else { return sys::getsockopt(fd, level, name, out) };
    let by_service = matches!(TABLE[place].2, Service(..) | ServiceEarly(..));
    if by_service && socket.has_record() {
        return give_integer(ask_integer(socket, number(level, name))?, out);
    }
    match socket.stored.get(place) {
        // The kernel knows its own minimum and maximum.
        Some(value) if !(has_own_placeholder(socket) && by_service) => give_integer(value, out),
        _ => sys::getsockopt(fd, level, name, out),
    }
}

fn ask_integer(socket: &Pinned, option: u16) -> Result<i32, Errno> {
    let reply = socket.ask_option(RequestBody::GetOption { option })?;
    integer(reply.bytes())
}

/// `SO_ERROR`: takes the pending error.
pub(crate) fn take_error(socket: &Socket) -> i32 {
    socket.present().map_or(0, |stream| stream.take_error())
}

fn give_timeout(place: &AtomicU64, out: &mut [u8]) -> Result<usize, Errno> {
    let time_us = match place.load(Ordering::Relaxed) {
        NEGATIVE_US => 0,
        time_us => time_us,
    };
    let words = [(time_us / 1_000_000) as i64, (time_us % 1_000_000) as i64];
    give(&words.map(i64::to_ne_bytes).concat(), out)
}

/// `TCP_INFO`, in as many parts as there is room for.
fn tcp_info(socket: &Pinned, out: &mut [u8]) -> Result<usize, Errno> {
    let mut done = 0;
    for part in 0..8 {
        if done >= out.len() {
            break;
        }
        let reply = socket.ask_option(RequestBody::TcpInfo { part })?;
        done += give(reply.bytes(), &mut out[done..])?;
        if reply.bytes().len() < OPTION_BYTES {
            break;
        }
    }
    Ok(done)
}

/// Whether a connection is established or has been.
pub(crate) fn is_connected(socket: &Socket) -> bool {
    let connected = status::CONNECTED;
    socket.phase() == Phase::Stream
        && socket.observe(|stream| stream.status() & connected != 0).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_has_its_own_number() {
        let mut seen = std::collections::BTreeSet::new();
        for (level, name, _) in TABLE {
            assert!((0..256).contains(&level) && (0..256).contains(&name), "{level} {name}");
            assert!(seen.insert(number(level, name)), "{level} {name} twice");
        }
    }

    #[test]
    fn values_are_kept_and_inherited() {
        let listener = Stored::default();
        let (nodelay, linger) = (
            place(IPPROTO_TCP, libc::TCP_NODELAY).unwrap(),
            place(SOL_SOCKET, libc::SO_LINGER).unwrap(),
        );
        listener.put(nodelay, 1);
        listener.put(linger, 1);
        let accepted = Stored::default();
        accepted.inherit(&listener);
        assert_eq!(accepted.get(nodelay), Some(1));
        assert_eq!(accepted.linger_s(), Some(0));
        assert!(!accepted.reuse_address() && !accepted.any_early());
        accepted.reset();
        assert_eq!(accepted.linger_s(), None);
    }
}
