//! The watchers of an epoll set, one for each server that knows one of its sockets, and which socket
//! each of their reports is about. Each has a doorbell in the kernel's set, whose end is also how
//! the death of its server is heard. Used by `interest.rs`.

use std::os::fd::RawFd;

use haypile_shm::Errno;
use haypile_shm::limits::NO_SLOT;
use haypile_shm::messages::RequestBody;
use haypile_shm::messages::ready::ANSWER;
use haypile_shm::sys;

use super::interest::Map;
use super::{BELL, mark};
use crate::attach::{self, Attachment};
use crate::entry::{FullName, Socket};
use crate::fork;
use crate::memory;
use crate::watchers::Watcher;

/// A record: which server keeps it, and its name there.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Name {
    pub(super) server: u16,
    slot: u32,
    generation: u32,
}

impl Name {
    /// The record of a socket with the server of this attachment.
    pub(super) fn of(socket: &Socket, attachment: &Attachment) -> Option<Name> {
        let (slot, generation) = socket.name_in(attachment)?;
        Some(Name { server: attachment.server(), slot, generation })
    }
}

/// Whether a registration with this name is tied to the record that its socket has now. (Without a name it is
/// if nobody knows the socket.)
pub(super) fn is_tied(name: Option<Name>, now: FullName) -> bool {
    let server = memory::server_of(now.life);
    match name {
        Some(name) => {
            (name.server, name.slot, name.generation) == (server, now.slot, now.generation)
        }
        None => {
            let known = attach::existing(server).is_some_and(|keeper| keeper.life() == now.life);
            now.slot == NO_SLOT || !known
        }
    }
}

/// What a set has to do with one server.
#[derive(Debug)]
struct Post {
    server: u16,
    /// `None` while its server is dead, or where there can be no more.
    watcher: Option<Watcher>,
    /// Socket and generation of a record, by slot.
    by_slot: Map<u32, (u32, u32)>,
    /// Every socket was looked at since it became clear that the server is gone for good.
    over_told: bool,
}

/// The watchers of an epoll set.
#[derive(Debug, Default)]
pub(super) struct Posts {
    posts: Vec<Post>,
    /// Sockets whose record has made room for another one before they were looked at: a report about them that is
    /// on the ring leads nowhere.
    displaced: Vec<u32>,
}

impl Posts {
    pub(super) fn len(&self) -> usize {
        self.posts.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.posts.is_empty()
    }

    pub(super) fn server_at(&self, at: usize) -> Option<u16> {
        self.posts.get(at).map(|post| post.server)
    }

    fn of(&self, server: u16) -> Option<&Post> {
        self.posts.iter().find(|post| post.server == server)
    }

    fn of_mut(&mut self, server: u16) -> Option<&mut Post> {
        self.posts.iter_mut().find(|post| post.server == server)
    }

    /// Whether a server is one of those that report to the set, or would if it lived.
    pub(super) fn has(&self, server: u16) -> bool {
        self.of(server).is_some()
    }

    /// From now on a server is one of those.
    pub(super) fn expect(&mut self, server: u16) {
        if !self.has(server) {
            let by_slot = Map::default();
            self.posts.push(Post { server, watcher: None, by_slot, over_told: false });
        }
    }

    /// Whether the set has a watcher over this attachment.
    pub(super) fn is_kept(&self, attachment: &Attachment) -> bool {
        let post = self.of(attachment.server());
        let watcher = post.and_then(|post| post.watcher.as_ref());
        watcher.is_some_and(|watcher| watcher.belongs_to(attachment))
    }

    /// True the first time that a server is found to be gone for good.
    pub(super) fn tell_of_end(&mut self, server: u16) -> bool {
        self.expect(server);
        self.of_mut(server).is_some_and(|post| !std::mem::replace(&mut post.over_told, true))
    }

    /// Makes the watcher over an attachment.
    pub(super) fn enter(&mut self, epoll: RawFd, attachment: &Attachment) -> Result<(), Errno> {
        self.expect(attachment.server());
        let watcher = Watcher::new(attachment)?;
        let data = mark(BELL, attachment.process_mark());
        sys::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, watcher.bell(), libc::EPOLLIN as u32, data)?;
        if let Some(post) = self.of_mut(attachment.server()) {
            (post.watcher, post.over_told) = (Some(watcher), false);
        }
        Ok(())
    }

    /// The watcher's server is gone, or it is not our own.
    pub(super) fn leave(&mut self, epoll: RawFd, server: u16) {
        let Some(post) = self.of_mut(server) else { return };
        if let Some(watcher) = post.watcher.take() {
            // A forked child may hold a copy of the bell, which would ring on in a shared set.
            let _: Result<(), Errno> =
                sys::epoll_ctl(epoll, libc::EPOLL_CTL_DEL, watcher.bell(), 0, 0);
        }
    }

    /// A server has left for good.
    pub(super) fn close(&mut self, epoll: RawFd, server: u16) {
        self.leave(epoll, server);
        self.posts.retain(|post| post.server != server);
    }

    /// In a forked child: the watchers are the parent's.
    pub(super) fn forget(&mut self) {
        self.posts.iter_mut().for_each(|post| post.watcher = None);
    }

    // --- names ---------------------------------------------------------------------------------

    /// A record belongs to a socket. Its slot may have been that of a socket which has moved: by a call, so that its
    /// registrations do not know.
    pub(super) fn tie(&mut self, name: Option<Name>, socket: u32) {
        let Some(name) = name else { return };
        let Some(post) = self.of_mut(name.server) else { return };
        let before = post.by_slot.insert(name.slot, (socket, name.generation));
        if let Some((other, _)) = before.filter(|(other, _)| *other != socket) {
            self.displaced.push(other);
        }
    }

    /// A record belongs to the socket no more.
    pub(super) fn untie(&mut self, name: Option<Name>, socket: u32) {
        let Some(name) = name else { return };
        if let Some(post) = self.of_mut(name.server)
            && post.by_slot.get(&name.slot).is_some_and(|(of, _)| *of == socket)
        {
            post.by_slot.remove(&name.slot);
        }
    }

    /// No record of a server has a socket.
    pub(super) fn forget_names(&mut self, server: u16) {
        if let Some(post) = self.of_mut(server) {
            post.by_slot.clear();
        }
    }

    /// The watcher of a server over its present attachment, with that.
    fn present(&self, server: u16) -> Option<(&Watcher, attach::Current)> {
        let watcher = self.of(server)?.watcher.as_ref()?;
        let attachment = attach::existing(server)?;
        watcher.belongs_to(&attachment).then_some((watcher, attachment))
    }

    /// Has the server report a record.
    pub(super) fn watch(&self, name: Name, mask: u32) {
        if let Some((watcher, attachment)) = self.present(name.server) {
            let body = RequestBody::Watch { watcher: watcher.number(), mask, one_shot: false };
            // A server that is gone shows in the sockets themselves.
            let _: Result<(), Errno> = attachment.tell(name.slot, name.generation, body);
        }
    }

    /// Has the server report a record no more.
    pub(super) fn unwatch(&self, name: Name) {
        if let Some((watcher, attachment)) = self.present(name.server) {
            let body = RequestBody::Unwatch { watcher: watcher.number() };
            let _: Result<(), Errno> = attachment.tell(name.slot, name.generation, body);
        }
    }

    // --- reports -------------------------------------------------------------------------------

    /// Takes all reports; `visit` is told of the sockets that they are about, and whether something is said to
    /// have happened there: else the report answers WATCH or DRAINED.
    pub(super) fn take_reports(&mut self, mut visit: impl FnMut(u32, bool)) {
        self.displaced.drain(..).for_each(|socket| visit(socket, true));
        for post in &mut self.posts {
            let (Some(watcher), by_slot) = (&mut post.watcher, &post.by_slot) else { continue };
            if watcher.is_empty() {
                continue;
            }
            let Some(attachment) = attach::existing(post.server) else { continue };
            if !watcher.belongs_to(&attachment) {
                continue;
            }
            watcher.drain(&attachment, |report| {
                if let Some((socket, generation)) = by_slot.get(&report.slot)
                    && *generation == report.generation
                {
                    visit(*socket, report.bits & ANSWER == 0);
                }
            });
        }
    }

    /// Takes the rings of the doorbells. True: a server has died; its bell would ring on and is gone.
    /// `heard`: the kernel has just said that one of them rings.
    pub(super) fn quiet(&mut self, epoll: RawFd, heard: bool) -> bool {
        // Of several it is not known which, and a copy would keep a closed one ringing.
        let known = heard && self.posts.len() == 1 && !fork::has_forked();
        let mut died = false;
        for at in 0..self.posts.len() {
            let post = &self.posts[at];
            let Some(watcher) = &post.watcher else { continue };
            let lives = if known { watcher.quiet_rung_bell() } else { watcher.quiet_bell() };
            if lives {
                continue;
            }
            let server = post.server;
            if let Some(attachment) = attach::existing(server)
                && watcher.belongs_to(&attachment)
            {
                attachment.note_gone();
            }
            self.leave(epoll, server);
            died = true;
        }
        died
    }

    // --- sleep ---------------------------------------------------------------------------------

    /// Whether anybody reports.
    pub(super) fn any_watcher(&self) -> bool {
        self.posts.iter().any(|post| post.watcher.is_some())
    }

    fn watchers(&self) -> impl Iterator<Item = &Watcher> {
        self.posts.iter().filter_map(|post| post.watcher.as_ref())
    }

    /// Announces sleep to all servers: look once more after this.
    pub(super) fn prepare_sleep(&self) {
        self.watchers().for_each(Watcher::prepare_sleep);
    }

    /// The sleep is over.
    pub(super) fn awake(&self) {
        self.watchers().for_each(Watcher::awake);
    }

    /// Whether there are reports to take.
    pub(super) fn has_news(&mut self) -> bool {
        let mut watchers = self.posts.iter_mut().filter_map(|post| post.watcher.as_mut());
        !self.displaced.is_empty() || watchers.any(|watcher| !watcher.is_empty())
    }

    /// Whether a server is dead, and what follows is not known yet.
    pub(super) fn is_uncertain(&self) -> bool {
        self.posts.iter().any(|post| {
            // One that could not be reached at all is asked again, too.
            !post.over_told && (post.watcher.is_none() || attach::is_gone(post.server))
        })
    }

    /// The doorbells' numbers.
    pub(super) fn bells(&self) -> Vec<RawFd> {
        self.watchers().map(Watcher::bell).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_moved_and_lost_its_slot_is_looked_at() {
        let name = |generation| Some(Name { server: 1, slot: 5, generation });
        let mut posts = Posts::default();
        posts.expect(1);
        posts.tie(name(1), 7);
        posts.tie(name(2), 7);
        assert!(!posts.has_news(), "its own next record");
        // Socket 7 is with another server, and its report still on the ring, when socket 8 gets the slot.
        posts.tie(name(3), 8);
        assert!(posts.has_news());
        let mut seen = Vec::new();
        posts.take_reports(|socket, happened| seen.push((socket, happened)));
        assert_eq!(seen, [(7, true)]);
        assert!(!posts.has_news());
        posts.untie(name(1), 7);
        assert_eq!(posts.of(1).and_then(|post| post.by_slot.get(&5)), Some(&(8, 3)));
    }
}
