//! How many of the connections here each application has, for the connection manager of its home, which chooses by
//! it: they are counted where they are, because they move.
//!
//! Kept by `sockets` and `freight`, as claimed connections come, close and move. A claim and a close are told one by
//! one (`accepting`); what changes otherwise is noted here, and `Core::tell_open` says the number once a turn.
//! Read `haypile_engine::control::messages`.

use haypile_engine::Instant;
use haypile_engine::control::messages::ToManager;
use haypile_engine::control::names::{ListenerName, ProcessName, ServerNumber};

use crate::server::Core;
use crate::slab::OwnMap;
use crate::sockets::Served;

/// An application, as managers know it.
type Application = (ListenerName, ProcessName);

/// The connections here that are applications', by application.
#[derive(Debug, Default)]
pub struct OpenCounts {
    /// Those that had some before stay for a while: a short connection is no reason to forget one.
    counts: Vec<(Application, u32)>,
    /// Their places.
    places: OwnMap<Application, usize>,
    /// The place that was changed last, which is often the next too.
    recent: usize,
    /// With so many of them it is looked which have any.
    many: usize,
    /// Of these the manager is to hear the number.
    changed: Vec<Application>,
}

/// So many applications at least.
const MANY: usize = 1024;

impl OpenCounts {
    /// One more. Whoever calls it says so, or notes it.
    pub fn add(&mut self, served: &Served) {
        match self.find(&application(served)) {
            Some(count) => *count += 1,
            None => self.add_first(application(served)),
        }
    }

    #[cold]
    fn add_first(&mut self, application: Application) {
        if self.counts.len() >= self.many {
            self.counts.retain(|(_, count)| *count > 0);
            let places = self.counts.iter().enumerate().map(|(place, (one, _))| (*one, place));
            self.places = places.collect();
            self.many = MANY.max(2 * self.counts.len());
        }
        self.places.insert(application, self.counts.len());
        self.counts.push((application, 1));
    }

    #[inline]
    fn find(&mut self, application: &Application) -> Option<&mut u32> {
        if self.counts.get(self.recent).is_none_or(|(one, _)| one != application) {
            self.recent = *self.places.get(application)?;
        }
        self.counts.get_mut(self.recent).map(|(_, count)| count)
    }

    /// One less, likewise.
    pub fn subtract(&mut self, served: &Served) {
        if let Some(count) = self.find(&application(served)) {
            *count = count.saturating_sub(1);
        }
    }

    /// The manager is to hear how many there are.
    pub fn note(&mut self, served: &Served) {
        self.changed.push(application(served));
    }

    /// A manager is new: all are told once more.
    pub fn tell_anew(&mut self) {
        let all: Vec<Application> = self.all().collect();
        self.changed.extend(all);
    }

    /// Those that have any.
    fn all(&self) -> impl Iterator<Item = Application> {
        self.counts.iter().filter(|(_, count)| *count > 0).map(|(application, _)| *application)
    }

    /// Whether `Core::tell_open` has something to say.
    #[inline]
    pub fn has_changed(&self) -> bool {
        !self.changed.is_empty()
    }

    fn take_changed(&mut self) -> Vec<(Application, u32)> {
        let mut changed = std::mem::take(&mut self.changed);
        changed.sort_unstable();
        changed.dedup();
        let mut count = |one: &Application| self.find(one).copied().unwrap_or_default();
        changed.into_iter().map(|one| (one, count(&one))).collect()
    }
}

fn application(served: &Served) -> Application {
    (served.listener, served.process)
}

impl Core {
    /// Tells managers what has come here or gone otherwise than by a claim or a close.
    #[inline]
    pub(crate) fn tell_open(&mut self, now: Instant) {
        if self.store.open.has_changed() {
            self.tell_all_open(now);
        }
    }

    #[cold]
    fn tell_all_open(&mut self, now: Instant) {
        for ((listener, process), open) in self.store.open.take_changed() {
            let server = self.managers.server();
            let message = ToManager::Open { listener, process, open, server };
            self.tell_manager(now, self.rings.roles().home_of(process), message);
        }
    }

    /// The managers of the applications that have connections here.
    pub(crate) fn managers_of_open(&self) -> Vec<(ListenerName, ProcessName, ServerNumber)> {
        let roles = self.rings.roles();
        let manager = |(listener, process): Application| {
            (listener, process, self.managers.manager_of(roles.home_of(process)))
        };
        self.store.open.all().map(manager).collect()
    }

    /// The plan has changed, and homes with it: the manager that an application had in `before` and has no more
    /// hears that it has nothing, the new one what it has.
    pub(crate) fn move_open(
        &mut self,
        now: Instant,
        before: Vec<(ListenerName, ProcessName, ServerNumber)>,
    ) {
        let server = self.managers.server();
        for (listener, process, manager) in before {
            let home = self.rings.roles().home_of(process);
            if self.managers.manager_of(home) == manager {
                continue;
            }
            let message = ToManager::Open { listener, process, open: 0, server };
            if self.managers.manager() == Some(manager) {
                self.manager.handle(now, message);
            } else {
                self.managers.to_manager(manager, message);
            }
        }
        self.store.open.tell_anew();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(number: u32) -> Served {
        let process = ProcessName::new(0, number);
        Served { process, listener: ListenerName(7), since: Instant::default() }
    }

    #[test]
    fn who_has_nothing_is_forgotten_in_time_and_who_has_something_is_not() {
        let mut open = OpenCounts::default();
        open.add(&served(1));
        open.add(&served(1));
        for number in 2..10 * MANY as u32 {
            open.add(&served(number));
            open.subtract(&served(number));
        }
        assert!(open.counts.len() <= 2 * MANY, "{}", open.counts.len());
        assert_eq!(open.all().count(), 1);
        open.subtract(&served(1));
        open.note(&served(1));
        open.note(&served(1));
        open.tell_anew();
        assert_eq!(open.take_changed(), [((ListenerName(7), ProcessName::new(0, 1)), 1)]);
        assert!(!open.has_changed());
    }
}
