//! HELLO and WELCOME: a fresh control connection becomes an attachment, or the way to another
//! server. Called by `ties.rs`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use haypile_shm::limits::{BUILD_VERSION, PROTOCOL_VERSION, TABLE_SIZE, build_text};
use haypile_shm::messages::{ControlReply, ControlRequest};
use haypile_shm::spin;
use haypile_shm::sys::{self, Fd};
use haypile_shm::{AppChannel, AppStatus, Doorbell, EpochReader, Errno, Segment, control};

use super::{Attachment, DomainToken, ReplyFds};
use crate::accept::Offers;
use crate::internal::{self, Internal};
use crate::lock::Lock;
use crate::memory::Memory;

/// Longest wait for an answer on the control connection, in seconds. The service answers within a
/// turn; longer means that it is stopped, and the caller should hear so.
const CONTROL_LIMIT_S: i64 = 10;

/// Attachments made so far by this process.
static SERIAL: AtomicU32 = AtomicU32::new(0);

/// Why a process could not attach: for the one line that the shim prints.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum AttachError {
    /// There is nobody at the path, or we may not connect.
    Unreachable(Errno),
    /// The service is of another version.
    Version {
        /// Its protocol.
        protocol: u32,
        /// Its program.
        build: u64,
    },
    /// The service refused, or answered nonsense.
    Refused(Errno),
}

impl core::fmt::Display for AttachError {
    fn fmt(&self, out: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            AttachError::Unreachable(errno) => write!(out, "cannot reach the service ({errno})"),
            AttachError::Version { protocol, build } => write!(
                out,
                "the service is haypile {} with protocol {protocol}, this library {} with \
                 protocol {PROTOCOL_VERSION}; start both from one build",
                build_text(*build),
                build_text(BUILD_VERSION),
            ),
            AttachError::Refused(errno) => write!(out, "the service refused ({errno})"),
        }
    }
}

impl core::error::Error for AttachError {}

/// The name of this process in all servers, with what it shows with it.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Identity {
    /// 0: it has no home yet.
    pub(super) name: u64,
    pub(super) proof: u64,
}

/// What a server says to a HELLO.
pub(super) enum Greeting {
    /// Come in. There are so many servers.
    Welcome(Box<Attachment>, u16),
    /// This server is to be the home. Another HELLO on the connection is answered by a welcome.
    Home(u16, Fd),
}

/// Says HELLO on a fresh control connection. `before`: the memory of an attachment to the same
/// server in the same domain, which is still right if the server has not died since.
pub(super) fn greet(
    control: Fd,
    domain: DomainToken,
    identity: Identity,
    before: Option<&Arc<Memory>>,
) -> Result<Greeting, AttachError> {
    let refused = AttachError::Refused;
    // The socket may not block for ever, whatever the service does.
    let limit = [CONTROL_LIMIT_S.to_ne_bytes(), 0i64.to_ne_bytes()].concat();
    sys::setsockopt(control.raw(), libc::SOL_SOCKET, libc::SO_RCVTIMEO, &limit).map_err(refused)?;
    let flags = sys::fcntl_getfl(control.raw()).map_err(refused)?;
    sys::fcntl_setfl(control.raw(), flags & !libc::O_NONBLOCK).map_err(refused)?;
    let (version, build, program) = (PROTOCOL_VERSION, BUILD_VERSION, sys::thread_name());
    let Identity { name, proof } = identity;
    let hello = ControlRequest::Hello { version, build, program, domain, name, proof };
    control::send(control.raw(), &hello.encode(), &[]).map_err(refused)?;
    let received = control::receive(control.raw()).map_err(refused)?;
    let reply = ControlReply::decode(&received.message).map_err(|_| refused(Errno::EPROTO))?;
    match reply {
        ControlReply::Welcome { servers, .. } => {
            let attachment = enter(control, &reply, received.fds, before).map_err(refused)?;
            Ok(Greeting::Welcome(Box::new(attachment), servers))
        }
        ControlReply::Home { server, .. } => Ok(Greeting::Home(server, control)),
        ControlReply::Refused { errno: libc::EPROTO, version, build } => {
            Err(AttachError::Version { protocol: version, build })
        }
        ControlReply::Refused { errno, .. } => Err(refused(Errno(errno))),
        _ => Err(refused(Errno::EPROTO)),
    }
}

/// A welcome becomes an attachment.
fn enter(
    control: Fd,
    welcome: &ControlReply,
    fds: ReplyFds,
    before: Option<&Arc<Memory>>,
) -> Result<Attachment, Errno> {
    let &ControlReply::Welcome {
        epoch,
        process_id,
        spin_us,
        domain,
        server,
        servers: _,
        name,
        proof,
    } = welcome
    else {
        return Err(Errno::EPROTO);
    };
    let (channel, memory) = map_welcome(fds, server, epoch, before)?;
    let offers = Lock::new(Offers::new(channel.offers()));
    let spin_us = if spin::others_run() { spin_us.min(1000) } else { 0 };
    Ok(Attachment {
        serial: SERIAL.fetch_add(1, Ordering::Relaxed) + 1,
        server,
        identity: Identity { name, proof },
        control: Lock::new(Internal::new(control)),
        channel: Some(channel),
        offers,
        memory,
        process_id,
        spin_us,
        domain,
        gone: AtomicBool::new(false),
        gone_ms: AtomicU64::new(0),
        looked_ms: AtomicU64::new(0),
        reached: AtomicBool::new(false),
        tried_ms: AtomicU64::new(0),
        tries: AtomicU32::new(0),
        lost: AtomicBool::new(false),
    })
}

/// Channel, status, table 0, wake socket and epoch.
fn map_welcome(
    fds: ReplyFds,
    server: u16,
    epoch: u32,
    before: Option<&Arc<Memory>>,
) -> Result<(AppChannel, Arc<Memory>), Errno> {
    let [Some(channel), Some(status), Some(table), Some(wake), Some(now), ..] = fds else {
        return Err(Errno::EPROTO);
    };
    let same = |before: &&Arc<Memory>| before.server() == server && before.epoch() == epoch;
    let memory = match before.filter(same) {
        Some(before) => Arc::clone(before),
        None => {
            let table = Segment::from_fd(table, TABLE_SIZE, false)?;
            let now = EpochReader::open(now, server)?;
            Arc::new(Memory::new(server, epoch, now, table))
        }
    };
    let wake = Doorbell::guarded(internal::keep(wake));
    Ok((AppChannel::open(channel, AppStatus::open(status)?, wake)?, memory))
}
