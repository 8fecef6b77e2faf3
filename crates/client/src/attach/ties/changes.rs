//! Servers come and go while the process runs, and a word of the supervisor's says that they have. Calls that wait
//! or accept follow: they make the home where the name belongs now, open listeners at servers that have come, and
//! drop the ties to servers that have left. Until such a one has ended it is looked at like the others. A part of
//! `ties.rs`; read `docs/decisions/0017` and `0018`.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use haypile_shm::epoch::{self, EPOCH_SERVERS};
use haypile_shm::messages::home_of_name;
use haypile_shm::{EpochReader, Errno, sys};

use super::{
    ATTACHING, COUNT, Current, FOLLOWED, FOLLOWING, GROWTH, HOME, NAME, NONE, PATIENCE_US, PRESENT,
    REACH, existing, home, is_attached, is_forked, of, retire, servers, sleep_ms, tie,
};
use crate::attach::{Fate, door, now_ms};
use crate::errno::TO_KERNEL;

/// Whether servers have come or left, and this process has not followed yet.
#[inline]
pub(crate) fn has_changed() -> bool {
    GROWTH.get().is_some_and(|now| now.changes() != FOLLOWED.load(Ordering::Acquire))
}

/// Opens the listeners of this process at servers that have come since, and leaves those that have left, if any
/// have. Not to be called with a lock held.
#[inline]
pub(crate) fn follow_changes() {
    if has_changed() {
        follow();
    }
}

#[cold]
fn follow() {
    // Who is at it already comes by here again.
    let Ok(_one) = FOLLOWING.lock() else { return };
    if !is_attached() || !has_changed() {
        return;
    }
    let changes = GROWTH.get().map_or(0, EpochReader::changes);
    hear_of_changes();
    let at_home = is_forked() || go_home();
    let open = crate::everywhere::follow();
    drop_those_that_left();
    if at_home && open {
        FOLLOWED.store(changes, Ordering::Release);
    } else {
        // The server that is needed is about to be started again, or somebody else looks.
        sleep_ms(1);
    }
}

/// Takes note of how many servers there are now, and of those that are about to leave.
pub(crate) fn hear_of_changes() {
    let servers = GROWTH.get().map_or(0, EpochReader::servers).min(EPOCH_SERVERS);
    if servers > 0 {
        COUNT.store(servers.into(), Ordering::Release);
        let last = (servers..EPOCH_SERVERS).rev().find(|server| runs(*server));
        let reach = last.map_or(servers, |last| last + 1);
        REACH.fetch_max(reach.into(), Ordering::AcqRel);
    }
}

/// Whether a server lives, also one that this process is not attached to.
fn runs(server: u16) -> bool {
    let epoch = GROWTH.get().and_then(|now| now.of(server));
    epoch.is_some_and(|epoch| epoch::is_up(epoch.get()))
}

/// Whether a server is one that has left, or is about to.
pub(crate) fn leaves(server: u16) -> bool {
    GROWTH.get().is_some_and(|now| (1..=server).contains(&now.servers()))
}

/// Whether the home has left, or its ancestor's, and the service goes on without it: another home is to be had, if not
/// at this moment.
pub(super) fn is_awaited() -> bool {
    let first = GROWTH.get().and_then(|now| now.of(0));
    leaves(home())
        && first.is_some_and(|first| first.get() != epoch::ENDED)
        && !is_supervisor_gone()
}

/// Whether a server leaves or has left, and the service goes on: what this process had there is to be made elsewhere.
pub(crate) fn goes_on_without(server: u16) -> bool {
    if !leaves(server) {
        return false;
    }
    match tie(home()).link() {
        Some(home) if !leaves(home.server()) => home.fate() != Fate::Over,
        _ => is_awaited(),
    }
}

/// Who is at home with a server that has left hears nothing of the end of the others: looks whether their supervisor
/// holds the attach socket, twice a second.
fn is_supervisor_gone() -> bool {
    const INTERVAL_MS: u64 = 500;
    static LOOKED_MS: AtomicU64 = AtomicU64::new(0);
    static GONE: AtomicBool = AtomicBool::new(false);
    let (now_ms, looked_ms) = (now_ms(), LOOKED_MS.load(Ordering::Relaxed));
    if now_ms >= looked_ms + INTERVAL_MS {
        LOOKED_MS.store(now_ms, Ordering::Relaxed);
        let gone = matches!(door::reach_supervisor(0), Err(Errno::ECONNREFUSED | Errno::ENOENT));
        GONE.store(gone, Ordering::Relaxed);
    }
    GONE.load(Ordering::Relaxed)
}

/// Whether a server has left for good, so that what this process had there is to be made elsewhere.
pub(crate) fn has_left(server: u16) -> bool {
    // Where this process is not attached there may be connections that it is about to get from another.
    leaves(server) && existing(server).map_or(!runs(server), |attachment| attachment.is_gone())
}

/// Makes the home where the name of this process belongs now. False: that server cannot be reached.
#[cold]
fn go_home() -> bool {
    let wanted = home_of_name(NAME[0].load(Ordering::Relaxed), servers());
    if wanted == home() {
        return true;
    }
    let Ok(attachment) = of(wanted) else { return false };
    // One that is dead comes back; a home that has left does not.
    if attachment.is_gone() && !has_left(home()) {
        return false;
    }
    HOME.store(wanted.into(), Ordering::Relaxed);
    PRESENT.store(attachment.serial(), Ordering::Release);
    true
}

/// Gives up the attachments to servers that have left, but for a home that cannot be changed yet.
fn drop_those_that_left() {
    let past = servers()..REACH.load(Ordering::Acquire) as u16;
    let mut left = past.clone().filter(|server| *server != home() && has_left(*server)).peekable();
    if left.peek().is_none() {
        return;
    }
    let Ok(_one) = ATTACHING.lock() else { return };
    for server in left {
        tie(server).state.store(NONE, Ordering::Release);
        tie(server).at.store(u32::MAX, Ordering::Release);
    }
    if past.clone().all(|server| tie(server).link().is_none() && !runs(server)) {
        REACH.store(servers().into(), Ordering::Release);
    }
    retire();
}

/// The home has left before this process has followed.
#[cold]
pub(super) fn move_home(gone: Current) -> Result<Current, Errno> {
    if ATTACHING.is_held_by_caller() {
        return Ok(gone);
    }
    drop(gone);
    hear_of_changes();
    let until_us = sys::clock_monotonic_us() + PATIENCE_US;
    // The server where it would be may be about to be started again.
    while !go_home() && is_awaited() && sys::clock_monotonic_us() < until_us {
        sleep_ms(2);
    }
    tie(home()).link().ok_or(TO_KERNEL)
}
