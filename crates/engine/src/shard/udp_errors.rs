//! ICMP errors about datagrams of ours: to the socket that sent them, and into the cache of path
//! MTUs.
//!
//! Called by `icmp.rs` for messages, and for neighbours that do not answer. Who hears of what is
//! Linux's rule: a connected socket of errors that are final, one that asks for errors of all. Read
//! first: RFC 1122 sections 3.2.2 and 4.1.3.3, RFC 4443 section 3, RFC 8899 section 4.6.1.

use std::net::IpAddr;

use super::Shard;
use super::entry::Socket;
use super::headers::{UDP, read_u32};
use super::icmp::{Quote, quoted};
use super::lifecycle::QueuedEvent;
use super::receive::IpPacket;
use crate::counters::Counter;
use crate::datagram::PathMtu;
use crate::drop_reason::DropReason;
use crate::error::SocketError;
use crate::event::{DatagramReport, Event, QUOTED_MAX};

/// Least MTU believed of a router (Linux's `min_pmtu`).
const MTU_MIN_V4: u32 = 552;

/// What an error means.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
struct Meaning {
    error: SocketError,
    /// No later attempt will fare better.
    fatal: bool,
}

const fn fatal(error: SocketError) -> Option<Meaning> {
    Some(Meaning { error, fatal: true })
}

const fn passing(error: SocketError) -> Option<Meaning> {
    Some(Meaning { error, fatal: false })
}

/// One error about a datagram.
#[derive(Copy, Clone, Debug)]
struct Report {
    kind: u8,
    code: u8,
    mtu: u32,
    offender: Option<IpAddr>,
}

/// A datagram of ours, from the start of its packet.
pub(super) fn quoted_datagram(packet: &[u8]) -> Option<Quote<'_>> {
    quoted(packet).filter(|quote| quote.protocol == UDP)
}

impl Shard {
    /// An ICMP or ICMPv6 error about a datagram.
    pub(super) fn handle_datagram_error(
        &mut self,
        packet: &IpPacket<'_>,
        datagram: &Quote<'_>,
    ) -> Result<(), DropReason> {
        let [kind, code, ..] = *packet.payload else { return Err(DropReason::IcmpMalformed) };
        let word = read_u32(packet.payload, 4);
        let mtu = match (packet.source.is_ipv4(), kind, code) {
            (true, 3, 4) => (word & 0xffff).max(MTU_MIN_V4),
            (false, 2, _) => word,
            _ => 0,
        };
        let report = Report { kind, code, mtu, offender: Some(packet.source) };
        self.report_to_datagram(datagram, report)
    }

    /// The neighbour that a datagram waited for did not answer.
    pub(super) fn report_silent_neighbour(&mut self, datagram: &Quote<'_>) {
        let (kind, code) = if datagram.remote.is_ipv4() { (3, 1) } else { (1, 3) };
        let report = Report { kind, code, mtu: 0, offender: None };
        let _: Result<(), DropReason> = self.report_to_datagram(datagram, report);
    }

    fn report_to_datagram(
        &mut self,
        datagram: &Quote<'_>,
        report: Report,
    ) -> Result<(), DropReason> {
        let Quote { local, remote, rest, .. } = *datagram;
        let id = self.datagrams.lookup(local, remote).ok_or(DropReason::IcmpErrorUnmatched)?;
        let socket = self.sockets.get(id).and_then(Socket::datagram);
        let options = socket.ok_or(DropReason::IcmpErrorUnmatched)?.options;
        let connected = socket.is_some_and(|socket| socket.remote.is_some());
        let mode = options.dont_fragment;
        let ignores_mtu = matches!(mode, PathMtu::Interface | PathMtu::Omit);
        if report.mtu != 0 && !ignores_mtu && (report.mtu as usize) < self.path_mtu(remote.ip()) {
            self.path_mtus.learn(self.now, remote.ip(), report.mtu as usize);
            self.counters.count(Counter::PathMtusLearned);
        }
        let meaning = match remote.is_ipv4() {
            true => meaning_v4(report.kind, report.code, mode),
            false => meaning_v6(report.kind, report.code, mode),
        };
        let Meaning { error, fatal } = meaning.ok_or(DropReason::IcmpUnknownType)?;
        if self.resolver.owns(id) {
            self.handle_name_error(id);
            return Ok(());
        }
        if options.receive_errors || (connected && fatal) {
            self.counters.count(Counter::UdpErrorsReported);
            let quoted = if options.receive_errors { rest } else { &[] };
            let report = Box::new(DatagramReport {
                remote,
                icmp_type: report.kind,
                icmp_code: report.code,
                mtu: report.mtu,
                offender: report.offender,
                payload: quoted[..quoted.len().min(QUOTED_MAX)].into(),
            });
            self.events.push_back(QueuedEvent::Ready(Event::DatagramError { id, error, report }));
        }
        Ok(())
    }
}

/// What an ICMP error means for a datagram (RFC 1122 section 4.1.3.3; final ones as on Linux).
fn meaning_v4(kind: u8, code: u8, mode: PathMtu) -> Option<Meaning> {
    use SocketError::*;
    match (kind, code) {
        (3, 0 | 11) => passing(NetworkUnreachable),
        (3, 1 | 5 | 12) => passing(HostUnreachable),
        (3, 2) => fatal(ProtocolUnreachable),
        (3, 3) => fatal(ConnectionRefused),
        (3, 4) if mode == PathMtu::Dont => passing(MessageTooLong),
        (3, 4) => fatal(MessageTooLong),
        (3, 6 | 9) => fatal(NetworkUnreachable),
        (3, 7 | 8 | 10 | 13..=15) => fatal(HostUnreachable),
        (11, _) => passing(HostUnreachable),
        (12, _) => fatal(ProtocolError),
        _ => None,
    }
}

/// The same for ICMPv6 (RFC 4443 section 3).
fn meaning_v6(kind: u8, code: u8, mode: PathMtu) -> Option<Meaning> {
    use SocketError::*;
    match (kind, code) {
        (1, 0) => passing(NetworkUnreachable),
        (1, 1 | 5 | 6) => fatal(PermissionDenied),
        (1, 2 | 3) => passing(HostUnreachable),
        (1, 4) => fatal(ConnectionRefused),
        (2, _) if mode == PathMtu::Dont => passing(MessageTooLong),
        (2, _) => fatal(MessageTooLong),
        (3, _) => passing(HostUnreachable),
        (4, _) => fatal(ProtocolError),
        _ => None,
    }
}
