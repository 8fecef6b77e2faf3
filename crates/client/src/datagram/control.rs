//! Control data of datagrams, as cmsg(3) lays it out: read from what a program sends, written to what
//! it receives. Works on byte slices; the shim has the pointers. Sources: ip(7), ipv6(7), udp(7),
//! socket(7); the order of messages is the kernel's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use haypile_shm::Errno;
use haypile_shm::sys::{self, ADDRESS_BYTES, encode_address};
use libc::{IPPROTO_IP, IPPROTO_IPV6, SOL_SOCKET};

use super::receive::{Arrival, Failure};
use super::routes;

/// What may be wanted with a datagram, one bit each.
pub(super) mod want {
    pub const PKTINFO: u32 = 1 << 0;
    pub const TTL: u32 = 1 << 1;
    pub const TOS: u32 = 1 << 2;
    pub const ORIGDST: u32 = 1 << 3;
    pub const PKTINFO_V6: u32 = 1 << 4;
    pub const HOP_LIMIT: u32 = 1 << 5;
    pub const TRAFFIC_CLASS: u32 = 1 << 6;
    pub const ORIGDST_V6: u32 = 1 << 7;
    pub const TIMESTAMP: u32 = 1 << 8;
    pub const TIMESTAMP_NS: u32 = 1 << 9;
    pub const DROPS: u32 = 1 << 10;
}

/// `struct cmsghdr`: length, level, type.
const HEADER: usize = 16;
/// `UDP_SEGMENT` of linux/udp.h.
pub(super) const UDP_SEGMENT: i32 = 103;

/// What a program says beside a datagram to be sent.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct SendControl {
    /// Source address (`IP_PKTINFO`, `IPV6_PKTINFO`).
    pub source: Option<IpAddr>,
    /// `IP_TTL`, `IPV6_HOPLIMIT`
    pub hop_limit: Option<u8>,
    /// `IP_TOS`, `IPV6_TCLASS`
    pub type_of_service: Option<u8>,
    /// `UDP_SEGMENT`
    pub segment_size: Option<u16>,
}

fn word(data: &[u8]) -> Result<i32, Errno> {
    let bytes = data.get(..4).ok_or(Errno::EINVAL)?;
    Ok(i32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

fn octet(data: &[u8], lowest: i32) -> Result<Option<u8>, Errno> {
    match word(data)? {
        -1 => Ok(None),
        value if (lowest..=255).contains(&value) => Ok(Some(value as u8)),
        _ => Err(Errno::EINVAL),
    }
}

impl SendControl {
    /// Reads the control data of a message.
    ///
    /// # Errors
    /// `EINVAL` for what the kernel refuses.
    pub fn parse(mut control: &[u8]) -> Result<SendControl, Errno> {
        let mut parsed = SendControl::default();
        while control.len() >= HEADER {
            let mut len = [0; 8];
            len.copy_from_slice(&control[..8]);
            let len = usize::try_from(u64::from_ne_bytes(len)).unwrap_or(usize::MAX);
            if len < HEADER || len > control.len() {
                return Err(Errno::EINVAL);
            }
            let (level, kind) = (word(&control[8..])?, word(&control[12..])?);
            parsed.take(level, kind, &control[HEADER..len])?;
            control = control.get(len.next_multiple_of(8)..).unwrap_or_default();
        }
        Ok(parsed)
    }

    fn take(&mut self, level: i32, kind: i32, data: &[u8]) -> Result<(), Errno> {
        match (level, kind) {
            (IPPROTO_IP, libc::IP_PKTINFO) => {
                let [_, _, _, _, a, b, c, d, ..] = *data else { return Err(Errno::EINVAL) };
                if data.len() != 12 {
                    return Err(Errno::EINVAL);
                }
                let source = Ipv4Addr::new(a, b, c, d);
                self.source = (!source.is_unspecified()).then_some(source.into());
            }
            (IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                let octets: [u8; 16] = data
                    .get(..16)
                    .and_then(|octets| octets.try_into().ok())
                    .ok_or(Errno::EINVAL)?;
                if data.len() < 20 {
                    return Err(Errno::EINVAL);
                }
                let source = Ipv6Addr::from(octets);
                let given = !IpAddr::from(source).to_canonical().is_unspecified();
                self.source = given.then_some(source.into());
            }
            (IPPROTO_IP, libc::IP_TTL) => self.hop_limit = octet(data, 1)?,
            (IPPROTO_IPV6, libc::IPV6_HOPLIMIT) => {
                // 0 is allowed and goes nowhere; the least that the wire knows is 1.
                self.hop_limit = octet(data, 0)?.map(|hops| hops.max(1));
            }
            (IPPROTO_IP, libc::IP_TOS) => {
                self.type_of_service = match *data {
                    [value] => Some(value),
                    _ => octet(data, 0)?,
                };
            }
            (IPPROTO_IPV6, libc::IPV6_TCLASS) => self.type_of_service = octet(data, 0)?,
            (libc::SOL_UDP, UDP_SEGMENT) => {
                let [a, b] = *data else { return Err(Errno::EINVAL) };
                self.segment_size = Some(u16::from_ne_bytes([a, b]));
            }
            // Time stamps of sent packets and marks have no effect here.
            (SOL_SOCKET, _) => {}
            _ => return Err(Errno::EINVAL),
        }
        Ok(())
    }
}

/// Writes messages one after the other into a program's buffer, as far as it goes.
struct Writer<'a> {
    out: &'a mut [u8],
    used: usize,
    truncated: bool,
}

impl Writer<'_> {
    /// The kernel's put_cmsg: what does not fit is cut, and that is said.
    fn put(&mut self, level: i32, kind: i32, data: &[u8]) {
        let room = self.out.len() - self.used;
        if room < HEADER {
            self.truncated = true;
            return;
        }
        let len = (HEADER + data.len()).min(room);
        self.truncated |= len < HEADER + data.len();
        let place = &mut self.out[self.used..self.used + len];
        place[..8].copy_from_slice(&(len as u64).to_ne_bytes());
        place[8..12].copy_from_slice(&level.to_ne_bytes());
        place[12..16].copy_from_slice(&kind.to_ne_bytes());
        place[HEADER..].copy_from_slice(&data[..len - HEADER]);
        self.used += len.next_multiple_of(8).min(room);
    }

    fn done(&self) -> (usize, bool) {
        (self.used, self.truncated)
    }
}

/// Writes `TCP_CM_INQ`: bytes used, and whether something did not fit.
pub(crate) fn put_rest(out: &mut [u8], rest: i32) -> (usize, bool) {
    let mut writer = Writer { out, used: 0, truncated: false };
    writer.put(libc::IPPROTO_TCP, TCP_CM_INQ, &rest.to_ne_bytes());
    writer.done()
}

/// Of linux/tcp.h.
const TCP_CM_INQ: i32 = 36;

fn mapped(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

impl Arrival {
    /// Writes the control data that the socket wants into `out`: bytes used, and whether something
    /// did not fit.
    pub fn control(&self, out: &mut [u8]) -> (usize, bool) {
        let mut writer = Writer { out, used: 0, truncated: false };
        if self.wants != 0 {
            self.put_socket(&mut writer);
            let local = self.header.local.map(|local| local.ip());
            let v4 = local.is_some_and(|ip| ip.is_ipv4());
            if self.domain == libc::AF_INET6 {
                self.put_pktinfo_v6(&mut writer, local);
            }
            if v4 {
                self.put_v4(&mut writer, local);
            } else {
                self.put_v6(&mut writer);
            }
        }
        writer.done()
    }

    fn wants(&self, bit: u32) -> bool {
        self.wants & bit != 0
    }

    fn put_socket(&self, writer: &mut Writer<'_>) {
        if self.wants(want::TIMESTAMP | want::TIMESTAMP_NS) {
            let time_ns = match self.header.time_ns {
                0 => sys::clock_realtime_ns(),
                time_ns => time_ns,
            };
            let (seconds, rest) = (time_ns / 1_000_000_000, time_ns % 1_000_000_000);
            let nanos = self.wants(want::TIMESTAMP_NS);
            let (kind, rest) = if nanos {
                (libc::SO_TIMESTAMPNS, rest)
            } else {
                (libc::SO_TIMESTAMP, rest / 1000)
            };
            writer.put(SOL_SOCKET, kind, [seconds, rest].map(u64::to_ne_bytes).as_flattened());
        }
        if self.wants(want::DROPS) && self.header.drops != 0 {
            writer.put(SOL_SOCKET, libc::SO_RXQ_OVFL, &self.header.drops.to_ne_bytes());
        }
    }

    fn put_pktinfo_v6(&self, writer: &mut Writer<'_>, local: Option<IpAddr>) {
        if self.wants(want::PKTINFO_V6)
            && let Some(local) = local
        {
            let mut data = [0; 20];
            data[..16].copy_from_slice(&mapped(local).octets());
            data[16..].copy_from_slice(&routes::interface().to_ne_bytes());
            writer.put(IPPROTO_IPV6, libc::IPV6_PKTINFO, &data);
        }
    }

    fn put_v4(&self, writer: &mut Writer<'_>, local: Option<IpAddr>) {
        let Some(IpAddr::V4(local)) = local else { return };
        if self.wants(want::PKTINFO) {
            let mut data = [0; 12];
            data[..4].copy_from_slice(&routes::interface().to_ne_bytes());
            // Answers go out from the address that was asked, unless that was one of many.
            let many = local.is_multicast() || local.is_broadcast();
            if !many {
                data[4..8].copy_from_slice(&local.octets());
            }
            data[8..].copy_from_slice(&local.octets());
            writer.put(IPPROTO_IP, libc::IP_PKTINFO, &data);
        }
        if self.wants(want::TTL)
            && let Some(hops) = self.header.hop_limit
        {
            writer.put(IPPROTO_IP, libc::IP_TTL, &i32::from(hops).to_ne_bytes());
        }
        if self.wants(want::TOS)
            && let Some(class) = self.header.type_of_service
        {
            writer.put(IPPROTO_IP, libc::IP_TOS, &[class]);
        }
        if self.wants(want::ORIGDST) {
            self.put_address(writer, IPPROTO_IP, libc::IP_ORIGDSTADDR);
        }
    }

    fn put_v6(&self, writer: &mut Writer<'_>) {
        if self.wants(want::HOP_LIMIT)
            && let Some(hops) = self.header.hop_limit
        {
            writer.put(IPPROTO_IPV6, libc::IPV6_HOPLIMIT, &i32::from(hops).to_ne_bytes());
        }
        if self.wants(want::TRAFFIC_CLASS)
            && let Some(class) = self.header.type_of_service
        {
            writer.put(IPPROTO_IPV6, libc::IPV6_TCLASS, &i32::from(class).to_ne_bytes());
        }
        if self.wants(want::ORIGDST_V6) {
            self.put_address(writer, IPPROTO_IPV6, libc::IPV6_ORIGDSTADDR);
        }
    }

    fn put_address(&self, writer: &mut Writer<'_>, level: i32, kind: i32) {
        if let Some(local) = &self.header.local {
            let mut bytes = [0; ADDRESS_BYTES];
            let len = encode_address(local, &mut bytes);
            writer.put(level, kind, &bytes[..len]);
        }
    }
}

impl Failure {
    /// There was no room for all of the payload.
    pub fn is_short(&self) -> bool {
        self.copied < self.error.payload_len.into()
    }

    /// Writes the `sock_extended_err` and its offender into `out`: bytes used, and whether something
    /// did not fit.
    pub fn control(&self, out: &mut [u8]) -> (usize, bool) {
        let mut writer = Writer { out, used: 0, truncated: false };
        let error = &self.error;
        let mut data = [0; 44];
        data[..4].copy_from_slice(&u32::from(error.errno).to_ne_bytes());
        data[4..7].copy_from_slice(&[error.origin, error.kind, error.code]);
        data[8..12].copy_from_slice(&error.mtu.to_ne_bytes());
        let v6 = self.domain == libc::AF_INET6;
        let offender = error.offender.map(|ip| {
            let ip = if v6 { IpAddr::V6(mapped(ip)) } else { ip };
            SocketAddr::new(ip, 0)
        });
        let offender_len = if v6 { 28 } else { 16 };
        if let Some(offender) = offender {
            let mut bytes = [0; ADDRESS_BYTES];
            let len = encode_address(&offender, &mut bytes).min(offender_len);
            data[16..16 + len].copy_from_slice(&bytes[..len]);
        }
        let (level, kind) =
            if v6 { (IPPROTO_IPV6, libc::IPV6_RECVERR) } else { (IPPROTO_IP, libc::IP_RECVERR) };
        writer.put(level, kind, &data[..16 + offender_len]);
        writer.done()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use haypile_shm::DatagramHeader;

    fn message(level: i32, kind: i32, data: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; HEADER + data.len().next_multiple_of(8)];
        let mut writer = Writer { out: &mut bytes, used: 0, truncated: false };
        writer.put(level, kind, data);
        bytes
    }

    #[test]
    fn what_is_sent_is_understood() {
        let parts = [
            message(IPPROTO_IP, libc::IP_PKTINFO, &[9, 0, 0, 0, 198, 18, 0, 2, 0, 0, 0, 0]),
            message(IPPROTO_IP, libc::IP_TTL, &7i32.to_ne_bytes()),
            message(IPPROTO_IP, libc::IP_TOS, &[0xb8]),
            message(libc::SOL_UDP, UDP_SEGMENT, &1200u16.to_ne_bytes()),
        ];
        let expected = SendControl {
            source: Some("198.18.0.2".parse().unwrap()),
            hop_limit: Some(7),
            type_of_service: Some(0xb8),
            segment_size: Some(1200),
        };
        assert_eq!(SendControl::parse(&parts.concat()), Ok(expected));
        assert_eq!(SendControl::parse(&[]), Ok(SendControl::default()));
    }

    #[test]
    fn nonsense_is_refused() {
        let bad = [
            message(IPPROTO_IP, libc::IP_TTL, &0i32.to_ne_bytes()),
            message(IPPROTO_IP, libc::IP_TTL, &[1]),
            message(IPPROTO_IP, libc::IP_PKTINFO, &[0; 4]),
            message(IPPROTO_IPV6, libc::IPV6_TCLASS, &256i32.to_ne_bytes()),
            message(libc::SOL_UDP, UDP_SEGMENT, &[1]),
            message(99, 1, &[]),
        ];
        for bytes in bad {
            assert_eq!(SendControl::parse(&bytes), Err(Errno::EINVAL), "{bytes:?}");
        }
        let mut long = message(IPPROTO_IP, libc::IP_TTL, &[1, 0, 0, 0]);
        long[0] = 200;
        assert_eq!(SendControl::parse(&long), Err(Errno::EINVAL));
    }

    #[test]
    fn what_is_wanted_is_written_and_cut_where_there_is_no_room() {
        let header = DatagramHeader {
            local: Some("198.18.0.2:53".parse().unwrap()),
            hop_limit: Some(63),
            type_of_service: Some(4),
            drops: 5,
            time_ns: 3_000_002_000,
            ..DatagramHeader::default()
        };
        let wants = want::TTL | want::TOS | want::DROPS | want::TIMESTAMP;
        let arrival =
            Arrival { remote: None, copied: 0, len: 0, header, wants, domain: libc::AF_INET };
        let mut room = [0; 256];
        let (used, truncated) = arrival.control(&mut room);
        let expected = [
            message(SOL_SOCKET, libc::SO_TIMESTAMP, [3u64, 2].map(u64::to_ne_bytes).as_flattened()),
            message(SOL_SOCKET, libc::SO_RXQ_OVFL, &5u32.to_ne_bytes()),
            message(IPPROTO_IP, libc::IP_TTL, &63i32.to_ne_bytes()),
            message(IPPROTO_IP, libc::IP_TOS, &[4]),
        ];
        assert_eq!(&room[..used], expected.concat());
        assert!(!truncated);
        let (used, truncated) = arrival.control(&mut room[..33]);
        assert!(used <= 33 && truncated);
        assert_eq!(arrival.control(&mut []), (0, true));
    }
}
