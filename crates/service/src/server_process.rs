//! A server as a process of its own: takes over what the supervisor holds, holds the listeners of
//! the server before, confines itself, and runs the event loop. Started by `supervisor` (the hidden
//! subcommand `server`), with the channel as standard input; read `supervisor::orders` for what is
//! said there.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use haypile_link::capture::Capture;
use haypile_link::port::Port;
use haypile_shm::spin;
use haypile_shm::sys::{self, Errno, Fd, PollFd, privilege};
use haypile_shm::{Doorbell, Ledger};

use crate::diag::Diag;
use crate::error::Error;
use crate::event_loop::{Ends, Service, now};
use crate::links;
use crate::obituary::Obituary;
use crate::report::Facts;
use crate::roles::Roles;
use crate::sandbox;
use crate::server::{Era, EraSegment, Foundation, Server, random};
use crate::supervisor::orders::{self, Fds, Order, Report, Start};

/// Exit status of a server in which an assertion of ours broke.
pub const PANIC_STATUS: i32 = 101;
/// How long the supervisor may take for an answer, in milliseconds.
const PATIENCE_MS: i32 = 5_000;
/// How long the other servers of the plan may take to start, in milliseconds.
const BEGIN_MS: i32 = 20_000;
/// The lowest number for descriptors that are not standard ones.
const ABOVE_STANDARD: RawFd = 3;

/// Runs a server until its supervisor says that it is to end.
///
/// # Errors
/// When its link goes, or its supervisor.
pub fn run() -> Result<ExitCode, Error> {
    // Found out before the filter forbids it.
    spin::others_run();
    // Fails only for the leader of a group, which its starter did not make it.
    let _: Result<(), Errno> = sys::setsid();
    let channel = take_channel().map(Rc::new).map_err(|errno| {
        let why = io::Error::from(errno);
        Error::new("take orders", why, "servers are started by haypile serve")
    })?;
    report_panics();
    match prepare(&channel) {
        Ok(mut service) => service.run().map(|()| ExitCode::SUCCESS),
        Err(error) => {
            let (what, why) = (error.what().to_string(), error.why().to_string());
            let report = Report::Failed { what, why, remedy: error.remedy().to_string() };
            // The supervisor says it; without one there is nobody to tell.
            let _: Result<(), Errno> = orders::send(channel.raw(), &report, &[]);
            Ok(ExitCode::FAILURE)
        }
    }
}

/// The channel, which comes as standard input; /dev/null takes its place. Whatever else the
/// supervisor was given by its starter is closed.
fn take_channel() -> Result<Fd, Errno> {
    if sys::so_type(0)? != libc::SOCK_SEQPACKET {
        return Err(Errno::EPROTOTYPE);
    }
    // What this number was before is none of ours.
    let channel = Fd::from_raw(sys::dup3(0, ABOVE_STANDARD, libc::O_CLOEXEC)?);
    privilege::close_from(ABOVE_STANDARD + 1)?;
    let null = std::fs::File::open("/dev/null")
        .map_err(|error| Errno(error.raw_os_error().unwrap_or(libc::EIO)))?;
    sys::dup3(null.as_raw_fd(), 0, 0)?;
    Ok(channel)
}

/// A broken assertion ends the server, with one line that says what and where.
fn report_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map_or("somewhere".to_string(), ToString::to_string);
        let what = panic.payload_as_str().unwrap_or("no message");
        // A log that takes no more is no reason to go on.
        drop(writeln!(io::stderr(), "haypile: a server failed at {place}: {what}"));
        privilege::end_process(PANIC_STATUS);
    }));
}

/// Orders that came while another answer was waited for.
pub type PutOff = RefCell<VecDeque<(Order, Fds)>>;

type Ready = Service<Box<dyn Port>>;

fn prepare(channel: &Rc<Fd>) -> Result<Ready, Error> {
    let (start, fds) = match next_order(channel.raw())? {
        (Order::Start(start), fds) => (*start, fds),
        _ => return Err(nonsense()),
    };
    let Start { config, roster, server: number, link, link_descriptors, .. } = start;
    let roles = Roles::of(roster, number).ok_or_else(nonsense)?;
    // The name that ps shows.
    let _: Result<(), Errno> = privilege::set_process_name(&format!("haypile-srv{number}"));
    let mut fds = fds.into_iter().flatten();
    let (segment, attach, ledger) = (fds.next().ok_or_else(nonsense)?, fds.next(), fds.next());
    let descriptors = take_link(channel.raw(), link_descriptors)?;
    let link = if roles.link().is_some() { link } else { link.absent() };
    let port = links::open(&config, link, descriptors)?;
    let failed = |errno: Errno| {
        Error::new("set up a server", io::Error::from(errno), "raise the limits of descriptors")
    };
    let put_off = Rc::new(PutOff::default());
    let opener = ask_for_notices(channel.raw(), Rc::clone(&put_off));
    let obituary = match ledger.map(Ledger::open).transpose().map_err(failed)? {
        Some((ledger, left)) => Obituary::new(now(), ledger, left),
        None => Obituary::default(),
    };
    let foundation = Foundation {
        roles,
        secret: start.secret,
        seed: u64::from_ne_bytes(random().map_err(failed)?),
        diag: Diag::with(opener).map_err(failed)?,
        era: Era { epoch: start.epoch, segment: EraSegment::Given(segment) },
        tells: true,
        tells_processes: start.tell_processes,
        obituary,
    };
    let link = port.describe();
    let mut server = Server::with(&config, Capture::new(port), now(), foundation)?;
    server.core.homes.open(start.open);
    hold_listeners(channel.raw(), &mut server)?;
    let (bell, theirs) = Doorbell::pair().map_err(failed)?;
    let confinement = sandbox::confine(&start.cell, channel.raw());
    let report = Report::Ready { confinement: confinement.clone(), link };
    let for_peers = [server.core.status.fd(), theirs.raw()];
    orders::send(channel.raw(), &report, &for_peers).map_err(failed)?;
    wait_for_begin(channel.raw(), &put_off)?;
    let texts = |list: &[haypile_engine::Cidr]| list.iter().map(ToString::to_string).collect();
    let facts = Facts {
        plan: config.plan.to_string(),
        addresses: texts(&config.addresses),
        host_addresses: texts(&config.host_addresses),
        name_servers: config.name_servers.clone(),
        server: number,
        confinement,
    };
    let ends = Ends { attach, channel: Rc::clone(channel), bell };
    Service::new(server, ends, facts, put_off)
}

/// Waits until applications may come: whoever attached before the epoch is ours would find it past.
/// The peers that are introduced meanwhile join in the first turn.
fn wait_for_begin(channel: RawFd, put_off: &PutOff) -> Result<(), Error> {
    loop {
        match next_order_within(channel, BEGIN_MS)? {
            (Order::Begin {}, _) => return Ok(()),
            (Order::End { .. }, _) => return Err(Error::new("start", "the service ends", "")),
            (
                order @ (Order::Peer { .. }
                | Order::PeerGone { .. }
                | Order::Servers { .. }
                | Order::Beside { .. }
                | Order::Open { .. }
                | Order::Share { .. }
                | Order::Part { .. }),
                fds,
            ) => {
                put_off.borrow_mut().push_back((order, fds));
            }
            _ => return Err(nonsense()),
        }
    }
}

/// Takes the descriptors of this server's part of the link.
fn take_link(channel: RawFd, count: u16) -> Result<Vec<Fd>, Error> {
    let mut descriptors = Vec::new();
    while descriptors.len() < usize::from(count) {
        match next_order(channel)? {
            (Order::Link { .. }, fds) => descriptors.extend(fds.into_iter().flatten()),
            _ => return Err(nonsense()),
        }
    }
    Ok(descriptors)
}

/// Takes the listeners of the server before, until the supervisor says that there are no more.
fn hold_listeners<P: Port>(channel: RawFd, server: &mut Server<P>) -> Result<(), Error> {
    loop {
        let now = now();
        server.core.now = now;
        match next_order(channel)?.0 {
            // One that cannot be held is the application's to miss.
            Order::Listener(record) => drop(server.core.hold_listener(now, &record)),
            Order::Beside { listener, .. } => drop(server.core.hold_beside(now, &listener)),
            Order::Run {} => return Ok(()),
            Order::End { .. } => {
                return Err(Error::new("start", "the service ends", ""));
            }
            _ => return Err(nonsense()),
        }
    }
}

/// Waits for an order.
fn next_order(channel: RawFd) -> Result<(Order, Fds), Error> {
    next_order_within(channel, PATIENCE_MS)
}

fn next_order_within(channel: RawFd, time_ms: i32) -> Result<(Order, Fds), Error> {
    loop {
        match orders::receive(channel, orders::decode::<Order>) {
            Ok(order) => return Ok(order),
            Err(Errno::EAGAIN) if wait(channel, time_ms) => {}
            Err(errno) => {
                let why = io::Error::from(errno);
                return Err(Error::new("hear from the supervisor", why, "start the service again"));
            }
        }
    }
}

fn wait(channel: RawFd, time_ms: i32) -> bool {
    let mut wanted = [PollFd { fd: channel, events: libc::POLLIN, revents: 0 }];
    let time = Duration::from_millis(time_ms as u64);
    // A signal ends the wait early, like a message.
    sys::ppoll(&mut wanted, Some(time)).is_ok_and(|ready| ready > 0)
}

/// Opens the kernel's notices in a network namespace through the supervisor, which has the right
/// to. Waits for the answer: it comes at once, and is asked for once a namespace. What the
/// supervisor says meanwhile is put off.
fn ask_for_notices(channel: RawFd, put_off: Rc<PutOff>) -> crate::diag::Opener {
    Box::new(move |pid, namespace| {
        orders::send(channel, &Report::WantNotices { pid, namespace }, &[]).ok()?;
        loop {
            match orders::receive(channel, orders::decode::<Order>) {
                Ok((Order::Notices { .. }, [fd, ..])) => return fd,
                Ok(other) => put_off.borrow_mut().push_back(other),
                Err(Errno::EAGAIN) if wait(channel, PATIENCE_MS) => {}
                Err(_) => return None,
            }
        }
    })
}

fn nonsense() -> Error {
    Error::new("understand the supervisor", "it spoke out of turn", "report this")
}
