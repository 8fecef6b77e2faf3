//! A stub resolver without a wire: questions to recursive name servers, answers checked, a small
//! cache.
//!
//! `shard/resolver.rs` opens a UDP socket with a port nobody can foresee for each attempt, sends what
//! [`Resolver::poll_attempt`] gives, and brings answers and time. An answer that was cut short is an
//! error that says so: there is no way over TCP. Read first: RFC 1035 sections 4 and 7, RFC 5452
//! (what makes an answer believable), RFC 6891 (larger answers).

use std::net::IpAddr;

use smoltcp::wire::{
    DnsFlags, DnsOpcode, DnsPacket, DnsQueryType, DnsRcode, DnsRecord, DnsRecordData, DnsRepr,
};

use crate::socket_id::SocketId;
use crate::time::Instant;

/// How long an attempt waits for its answer.
const ATTEMPT_US: u64 = 2_000_000;
/// Attempts at each server.
const ROUNDS: usize = 2;
/// CNAME records followed from the first name.
const CHAIN_MAX: u8 = 8;
/// Questions at a time.
const QUERIES_MAX: usize = 64;
/// Answers kept, and the longest time for it.
const CACHE_MAX: usize = 128;
const CACHE_S_MAX: u32 = 3600;
/// UDP payload that we say we can take: what passes unfragmented nearly everywhere.
const PAYLOAD_MAX: u16 = 1232;
/// Records in one answer that are looked at.
const RECORDS_MAX: u16 = 64;
const NAME_MAX: usize = 255;
const PTR: u16 = 12;

/// What is asked for.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum RecordKind {
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
    /// Names of an address.
    Ptr,
}

impl RecordKind {
    fn query_type(self) -> DnsQueryType {
        match self {
            RecordKind::A => DnsQueryType::A,
            RecordKind::Aaaa => DnsQueryType::Aaaa,
            RecordKind::Ptr => DnsQueryType::Unknown(PTR),
        }
    }
}

/// What a name server answered.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Answer {
    /// Addresses, in the server's order.
    pub addresses: Vec<IpAddr>,
    /// Names, in the server's order.
    pub names: Vec<String>,
    /// Seconds that this may be kept.
    pub ttl_s: u32,
}

/// Why there is no answer.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum ResolveError {
    /// Not a name: a label is empty or longer than 63 bytes, or all are longer than 253.
    BadName,
    /// No name server is known.
    NoServer,
    /// The name does not exist (NXDOMAIN).
    NoSuchName,
    /// The name has no record of this kind.
    NoData,
    /// Every server refused or failed.
    ServerFailed,
    /// No server answered.
    TimedOut,
    /// The answer was too long for a datagram.
    Truncated,
    /// The name is an alias of an alias, and so on without end.
    ChainTooLong,
    /// Too many questions at a time.
    Busy,
}

impl std::fmt::Display for ResolveError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            ResolveError::BadName => "not a possible name",
            ResolveError::NoServer => "no name server is known",
            ResolveError::NoSuchName => "no such name",
            ResolveError::NoData => "no record of this kind",
            ResolveError::ServerFailed => "the name servers refuse or fail",
            ResolveError::TimedOut => "no name server answers",
            ResolveError::Truncated => "the answer is too long for a datagram",
            ResolveError::ChainTooLong => "too many aliases in a row",
            ResolveError::Busy => "too many questions at a time",
        })
    }
}

impl std::error::Error for ResolveError {}

/// Names a question until its answer is taken.
#[derive(Copy, Clone, PartialEq, Eq, Debug, PartialOrd, Ord, Hash)]
pub struct QueryId(u64);

/// A question to send to a server, from a socket of its own.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attempt {
    /// Which question.
    pub id: QueryId,
    /// The name server.
    pub server: IpAddr,
    /// The message.
    pub payload: Vec<u8>,
}

#[derive(Debug)]
struct Query {
    id: QueryId,
    /// In wire format, lower case; changes along a chain of aliases.
    name: Vec<u8>,
    /// As first asked.
    asked: Vec<u8>,
    kind: RecordKind,
    servers: Vec<IpAddr>,
    attempts: usize,
    transaction: u16,
    chain: u8,
    ttl_s: u32,
    deadline: Instant,
    socket: Option<SocketId>,
    failure: ResolveError,
    outcome: Option<Result<Answer, ResolveError>>,
    /// An attempt is due.
    due: bool,
}

#[derive(Debug)]
struct Cached {
    name: Vec<u8>,
    kind: RecordKind,
    answer: Answer,
    until: Instant,
}

/// All questions and the cache.
#[derive(Debug, Default)]
pub struct Resolver {
    queries: Vec<Query>,
    cache: Vec<Cached>,
    next: u64,
    finished: Vec<QueryId>,
}

impl Resolver {
    /// Asks. The outcome is told by [`Resolver::poll_finished`], never at once.
    ///
    /// # Errors
    /// [`ResolveError::BadName`], [`ResolveError::NoServer`] and [`ResolveError::Busy`].
    pub fn ask(
        &mut self,
        now: Instant,
        name: &str,
        kind: RecordKind,
        servers: Vec<IpAddr>,
    ) -> Result<QueryId, ResolveError> {
        let name = encode(name).ok_or(ResolveError::BadName)?;
        if self.queries.len() >= QUERIES_MAX {
            return Err(ResolveError::Busy);
        }
        self.cache.retain(|cached| cached.until > now);
        let cached = self.cache.iter().find(|cached| cached.name == name && cached.kind == kind);
        let outcome = cached.map(|cached| {
            let ttl_s = (cached.until.since(now) / 1_000_000) as u32;
            Ok(Answer { ttl_s, ..cached.answer.clone() })
        });
        if outcome.is_none() && servers.is_empty() {
            return Err(ResolveError::NoServer);
        }
        self.next += 1;
        let id = QueryId(self.next);
        if outcome.is_some() {
            self.finished.push(id);
        }
        self.queries.push(Query {
            id,
            asked: name.clone(),
            name,
            kind,
            servers,
            attempts: 0,
            transaction: 0,
            chain: 0,
            ttl_s: CACHE_S_MAX,
            deadline: now,
            socket: None,
            failure: ResolveError::TimedOut,
            due: outcome.is_none(),
            outcome,
        });
        Ok(id)
    }

    /// The outcome of a question, once; the question is forgotten with it.
    pub fn take(&mut self, id: QueryId) -> Option<Result<Answer, ResolveError>> {
        let at = self.queries.iter().position(|query| query.id == id && query.outcome.is_some())?;
        self.queries.swap_remove(at).outcome
    }

    /// A question whose outcome is known now.
    pub fn poll_finished(&mut self) -> Option<QueryId> {
        self.finished.pop()
    }

    /// The next attempt to make. `random` must be unforeseeable.
    pub fn poll_attempt(&mut self, now: Instant, random: u64) -> Option<Attempt> {
        let query = self.queries.iter_mut().find(|query| query.due)?;
        query.due = false;
        query.transaction = random as u16;
        query.deadline = now.plus_us(ATTEMPT_US);
        let server = query.servers[query.attempts % query.servers.len()];
        query.attempts += 1;
        Some(Attempt { id: query.id, server, payload: question(query) })
    }

    /// Which socket an attempt is made from.
    pub fn set_socket(&mut self, id: QueryId, socket: SocketId) {
        if let Some(query) = self.queries.iter_mut().find(|query| query.id == id) {
            query.socket = Some(socket);
        }
    }

    /// Whether a socket is of an attempt.
    pub fn owns(&self, socket: SocketId) -> bool {
        !self.queries.is_empty() && self.queries.iter().any(|query| query.socket == Some(socket))
    }

    /// Sockets that are no longer needed, one at a time.
    pub fn poll_socket(&mut self) -> Option<SocketId> {
        let over = |query: &&mut Query| query.due || query.outcome.is_some();
        let mut queries = self.queries.iter_mut().filter(over);
        queries.find_map(|query| query.socket.take())
    }

    /// A datagram from the server that an attempt went to. False when it is not its answer.
    pub fn handle_message(&mut self, now: Instant, socket: SocketId, payload: &[u8]) -> bool {
        let found = |query: &&mut Query| query.socket == Some(socket) && !query.due;
        let Some(query) = self.queries.iter_mut().find(found) else { return false };
        let Some(verdict) = judge(query, payload) else { return false };
        match verdict {
            Verdict::Done(answer) => {
                let cached = Cached {
                    name: query.asked.clone(),
                    kind: query.kind,
                    answer: answer.clone(),
                    until: now.plus_us(u64::from(answer.ttl_s) * 1_000_000),
                };
                query.outcome = Some(Ok(answer));
                self.finished.push(query.id);
                self.remember(cached);
            }
            Verdict::Failed(error) => {
                query.outcome = Some(Err(error));
                self.finished.push(query.id);
            }
            Verdict::Alias(name) => {
                query.name = name;
                query.attempts = 0;
                query.due = true;
            }
            Verdict::NextServer => {
                query.failure = ResolveError::ServerFailed;
                let id = query.id;
                self.try_again(id);
            }
        }
        true
    }

    /// The server of an attempt cannot be reached.
    pub fn handle_error(&mut self, socket: SocketId) {
        let found = self.queries.iter().find(|query| query.socket == Some(socket) && !query.due);
        if let Some(id) = found.map(|query| query.id) {
            self.try_again(id);
        }
    }

    /// An attempt could not be sent.
    pub fn fail_attempt(&mut self, id: QueryId) {
        self.try_again(id);
    }

    /// Ends attempts whose time is over.
    pub fn handle_timers(&mut self, now: Instant) {
        let waits = |query: &&Query| query.outcome.is_none() && !query.due && query.deadline <= now;
        while let Some(id) = self.queries.iter().find(waits).map(|query| query.id) {
            self.try_again(id);
        }
    }

    /// When [`Resolver::handle_timers`] has something to do.
    pub fn next_timeout(&self) -> Option<Instant> {
        let waiting = self.queries.iter().filter(|query| query.outcome.is_none() && !query.due);
        waiting.map(|query| query.deadline).min()
    }

    fn try_again(&mut self, id: QueryId) {
        let Some(query) = self.queries.iter_mut().find(|query| query.id == id) else { return };
        if query.attempts < query.servers.len() * ROUNDS {
            query.due = true;
        } else {
            query.outcome = Some(Err(query.failure));
            self.finished.push(id);
        }
    }

    fn remember(&mut self, cached: Cached) {
        if cached.answer.ttl_s == 0 {
            return;
        }
        self.cache.retain(|old| old.name != cached.name || old.kind != cached.kind);
        if self.cache.len() >= CACHE_MAX {
            let _ = self.cache.remove(0);
        }
        self.cache.push(cached);
    }
}

/// What an answer means for its question.
enum Verdict {
    Done(Answer),
    Failed(ResolveError),
    /// The chain of aliases leads on.
    Alias(Vec<u8>),
    NextServer,
}

/// The message that asks: one question, recursion wanted, and an OPT record (RFC 6891).
fn question(query: &Query) -> Vec<u8> {
    let repr = DnsRepr {
        transaction_id: query.transaction,
        opcode: DnsOpcode::Query,
        flags: DnsFlags::RECURSION_DESIRED,
        question: smoltcp::wire::DnsQuestion { name: &query.name, type_: query.kind.query_type() },
    };
    let mut payload = vec![0; repr.buffer_len()];
    let mut packet = DnsPacket::new_unchecked(&mut payload[..]);
    repr.emit(&mut packet);
    packet.set_additional_record_count(1);
    payload.extend([0, 0, 41]);
    payload.extend(PAYLOAD_MAX.to_be_bytes());
    payload.extend([0; 6]);
    payload
}

/// Checks that a message answers the question; `None` when it does not.
fn judge(query: &mut Query, payload: &[u8]) -> Option<Verdict> {
    let packet = DnsPacket::new_checked(payload).ok()?;
    let sound = packet.flags().contains(DnsFlags::RESPONSE)
        && packet.opcode() == DnsOpcode::Query
        && packet.transaction_id() == query.transaction
        && packet.question_count() == 1;
    if !sound {
        return None;
    }
    let (rest, asked) = smoltcp::wire::DnsQuestion::parse(packet.payload()).ok()?;
    let same_name = decode(&packet, asked.name).as_deref() == Some(&query.name[..]);
    if !same_name || asked.type_ != query.kind.query_type() {
        return None;
    }
    match packet.rcode() {
        DnsRcode::NoError => {}
        DnsRcode::NXDomain => return Some(Verdict::Failed(ResolveError::NoSuchName)),
        _ => return Some(Verdict::NextServer),
    }
    if packet.flags().contains(DnsFlags::TRUNCATED) {
        return Some(Verdict::Failed(ResolveError::Truncated));
    }
    let records = records(&packet, rest)?;
    Some(follow(query, &packet, &records))
}

/// The records of the answer section with their names; `None` when one is malformed.
fn records<'a>(
    packet: &'a DnsPacket<&'a [u8]>,
    mut rest: &'a [u8],
) -> Option<Vec<(Vec<u8>, DnsRecord<'a>)>> {
    let mut records = Vec::new();
    for _ in 0..packet.answer_record_count().min(RECORDS_MAX) {
        let (after, record) = DnsRecord::parse(rest).ok()?;
        records.push((decode(packet, record.name)?, record));
        rest = after;
    }
    Some(records)
}

/// Follows aliases within the answer to the records that were asked for.
fn follow(
    query: &mut Query,
    packet: &DnsPacket<&[u8]>,
    records: &[(Vec<u8>, DnsRecord<'_>)],
) -> Verdict {
    let mut name = query.name.clone();
    loop {
        let own = records.iter().filter(|(owner, _)| *owner == name);
        let mut answer = Answer { ttl_s: query.ttl_s, ..Answer::default() };
        let mut alias = None;
        for (_, record) in own {
            match (&record.data, query.kind) {
                (DnsRecordData::A(addr), RecordKind::A) => answer.addresses.push((*addr).into()),
                (DnsRecordData::Aaaa(addr), RecordKind::Aaaa) => {
                    answer.addresses.push((*addr).into());
                }
                (DnsRecordData::Other(DnsQueryType::Unknown(PTR), data), RecordKind::Ptr) => {
                    answer.names.extend(decode(packet, data).map(|name| display(&name)));
                }
                (DnsRecordData::Cname(data), _) => alias = decode(packet, data),
                _ => continue,
            }
            answer.ttl_s = answer.ttl_s.min(record.ttl);
            query.ttl_s = query.ttl_s.min(record.ttl);
        }
        if !answer.addresses.is_empty() || !answer.names.is_empty() {
            return Verdict::Done(answer);
        }
        let Some(target) = alias else { break };
        query.chain += 1;
        if query.chain > CHAIN_MAX {
            return Verdict::Failed(ResolveError::ChainTooLong);
        }
        name = target;
    }
    let moved = name != query.name && !records.iter().any(|(owner, _)| *owner == name);
    if moved { Verdict::Alias(name) } else { Verdict::Failed(ResolveError::NoData) }
}

/// A name in wire format, lower case.
fn encode(text: &str) -> Option<Vec<u8>> {
    let text = text.strip_suffix('.').unwrap_or(text);
    let mut name = Vec::new();
    for label in text.split('.') {
        let possible =
            (1..64).contains(&label.len()) && label.bytes().all(|byte| byte.is_ascii_graphic());
        if !possible {
            return None;
        }
        name.push(label.len() as u8);
        name.extend(label.bytes().map(|byte| byte.to_ascii_lowercase()));
    }
    name.push(0);
    (name.len() <= NAME_MAX).then_some(name)
}

/// A name of a message, pointers followed, in wire format and lower case.
fn decode(packet: &DnsPacket<&[u8]>, bytes: &[u8]) -> Option<Vec<u8>> {
    let mut name = Vec::new();
    for label in packet.parse_name(bytes) {
        let label = label.ok()?;
        if name.len() + label.len() + 2 > NAME_MAX {
            return None;
        }
        name.push(label.len() as u8);
        name.extend(label.iter().map(u8::to_ascii_lowercase));
    }
    name.push(0);
    Some(name)
}

/// A name as text; bytes that could deceive a terminal are escaped.
fn display(name: &[u8]) -> String {
    let mut text = String::new();
    let mut rest = name;
    while let Some((&len, after)) = rest.split_first().filter(|(len, _)| **len > 0) {
        let (label, after) = after.split_at(usize::from(len).min(after.len()));
        if !text.is_empty() {
            text.push('.');
        }
        for byte in label {
            text.extend(std::ascii::escape_default(*byte).map(char::from));
        }
        rest = after;
    }
    text
}

/// The name under which the names of an address are found (RFC 1035 section 3.5, RFC 3596).
pub fn reverse_name(addr: IpAddr) -> String {
    match addr {
        IpAddr::V4(addr) => {
            let [a, b, c, d] = addr.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(addr) => {
            let octets = addr.octets();
            let digits =
                octets.iter().rev().map(|byte| format!("{:x}.{:x}.", byte & 15, byte >> 4));
            digits.collect::<String>() + "ip6.arpa"
        }
    }
}

#[cfg(test)]
mod tests;
