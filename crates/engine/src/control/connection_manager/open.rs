//! What applications have open: connections that they have claimed and not closed, also while they are no
//! acceptors. Transport servers say so, each of its own. A part of [`connection_manager`](super); read that first.

use super::super::OwnMap;
use super::super::estimator::{Estimator, OpenConnections};
use super::super::names::{ListenerName, ServerNumber};
use super::super::queue::{Acceptor, Queue, Source, Taker};
use super::ConnectionManager;
use crate::time::Instant;

impl ConnectionManager {
    /// A transport server says what it has of an application: connections have come there or have
    /// moved from there, or it says everything anew.
    pub(super) fn has_open(&mut self, now: Instant, taker: Taker, open: u32, server: ServerNumber) {
        let Some((group, estimator)) = self.estimator_of(taker) else {
            return self.change_open(taker, |entry| entry.set(server, open));
        };
        estimator.open.set(server, open);
        if open > 1
            && let Some(acceptor) = self.find_acceptor(group, taker)
        {
            acceptor.takes_several = true;
        }
        self.may_announce_soon(now, group);
    }

    pub(super) fn estimator_of(&mut self, taker: Taker) -> Option<(ListenerName, &mut Estimator)> {
        let group = self.group_of(taker.listener)?;
        match &mut self.find_acceptor(group, taker)?.source {
            Source::Local(estimator) => Some((group, estimator)),
            Source::Offer { .. } => None,
        }
    }

    /// Connections of an application that is no acceptor; it may become one again.
    pub(super) fn change_open(&mut self, taker: Taker, change: impl FnOnce(&mut OpenConnections)) {
        let open = self.open.entry(taker).or_default();
        change(open);
        if open.total() == 0 {
            self.open.remove(&taker);
        }
    }
}

/// Drops local acceptors of a queue, but for what they have; what another manager offers is its to take back, and
/// it would not say again what it has said. Whether there were any.
pub(super) fn drop_from(
    queue: &mut Queue,
    open: &mut OwnMap<Taker, OpenConnections>,
    which: impl Fn(&Acceptor) -> bool,
) -> bool {
    let before = queue.acceptors.len();
    queue.acceptors.retain_mut(|acceptor| {
        let goes = acceptor.is_local() && which(acceptor);
        if goes
            && let Source::Local(estimator) = &mut acceptor.source
            && estimator.open() > 0
        {
            open.insert(acceptor.taker, std::mem::take(&mut estimator.open));
        }
        !goes
    });
    queue.acceptors.len() < before
}
