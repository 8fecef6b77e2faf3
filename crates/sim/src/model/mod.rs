//! An exhaustive model of the accept handshake between processes, transport servers and connection
//! managers: offer, claim, revocation, time-out, refusal, closing, every death, and the move of a
//! bucket, with every message arriving as late as it likes.
//!
//! [`state`] is what there is, [`steps`] what can happen, [`transport`] what a transport server does,
//! [`manager`] what a connection manager does (and the interface by which the real one takes its
//! place), [`search`] looks at every state that can be reached, [`walk`]
//! at some of those of larger worlds, and of worlds with the real manager ([`real`]). [`Design`] has the rules of the
//! handshake, one field each; the tests break each of them and expect to be told. The sizes and
//! findings are in `docs/models.md`. Source: the PIKA paper, section 3.2.

pub mod manager;
pub mod real;
pub mod search;
pub mod state;
pub mod steps;
pub mod transport;
pub mod walk;

pub use search::{Failure, Report, explore};

/// The rules of the handshake that can be got wrong. [`Design::SOUND`] has all of them.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Design {
    /// A revocation is a compare-and-swap: it asks the word whether the claim was first.
    pub revoke_asks_the_word: bool,
    /// The end of an offer is said once: a revocation of what is offered no more says nothing.
    pub offers_end_once: bool,
    /// A connection whose offer failed goes back to its queue.
    pub failed_offer_returns: bool,
    /// A connection that was refused goes back to its queue.
    pub refused_returns: bool,
    /// After a manager's restart a transport server says acceptors and waiting connections anew.
    pub resync: bool,
    /// It takes its offers back before that.
    pub resync_revokes: bool,
    /// The other managers say their best anew to a manager that has restarted.
    pub best_said_anew: bool,
    /// A closing listener resets a connection only if the word says that nobody was faster.
    pub close_asks_the_word: bool,
    /// Every transport server, and not the home alone, takes back what it had offered to the dead
    /// and closes what they had.
    pub death_is_everybodys: bool,
    /// Who finds its offer revoked registers again.
    pub late_claimer_registers: bool,
    /// Who refuses a connection registers again before it accepts the next.
    pub refuser_registers: bool,
    /// Who attaches to a server anew registers again: that it had been taken off the list stood in
    /// the memory of the server that is no more.
    pub attach_registers: bool,
    /// Processes that could not be reached are tried again after some time.
    pub full_ones_are_tried_again: bool,
    /// The home of a process is told when another manager waited for it in vain.
    pub home_hears_of_time_outs: bool,
    /// Who is too slow comes off the list when its offer is found revoked, and not before: a claim
    /// that beats the revocation does not know that there was one.
    pub dropped_when_revoked: bool,
    /// What takes a process off a list names its registration, and leaves newer ones alone.
    pub time_outs_name_the_registration: bool,
    /// Registrations with a manager that has restarted are not taken for those of the next one.
    pub registrations_end_with_their_manager: bool,
    /// The word is settled before a connection is moved.
    pub move_asks_the_word: bool,
    /// The bucket map is changed by the new owner once it has the bucket, not by the old one before.
    pub map_follows_the_bucket: bool,
    /// The old owner forwards what still comes to it.
    pub old_owner_forwards: bool,
}

impl Design {
    /// The handshake as it should be.
    pub const SOUND: Design = Design {
        revoke_asks_the_word: true,
        offers_end_once: true,
        failed_offer_returns: true,
        refused_returns: true,
        resync: true,
        resync_revokes: true,
        best_said_anew: true,
        close_asks_the_word: true,
        death_is_everybodys: true,
        late_claimer_registers: true,
        refuser_registers: true,
        attach_registers: true,
        full_ones_are_tried_again: true,
        home_hears_of_time_outs: true,
        dropped_when_revoked: true,
        time_outs_name_the_registration: true,
        registrations_end_with_their_manager: true,
        move_asks_the_word: true,
        map_follows_the_bucket: true,
        old_owner_forwards: true,
    };
}

/// How often the world may do what nobody asked for.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Budget {
    /// Processes that die.
    pub deaths: u8,
    /// Transport servers that die (and come again).
    pub server_deaths: u8,
    /// Connection managers that die (and come again).
    pub manager_deaths: u8,
    /// Times that the listener is closed.
    pub closes: u8,
    /// Times that it is opened again under the same name.
    pub reopens: u8,
    /// Claims by a process that then has no descriptor.
    pub refusals: u8,
    /// Offers that fail for want of memory.
    pub failures: u8,
    /// Connections that the peer resets before they are claimed.
    pub resets: u8,
    /// Buckets that are moved.
    pub moves: u8,
    /// Packets of established connections.
    pub packets: u8,
    /// Time-outs while messages are under way. Without any, time runs out only when all have come.
    pub early_timers: u8,
}

/// The size of a world.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Transport servers.
    pub transports: u8,
    /// Connection managers; transport server `t` reports to manager `t % managers`.
    pub managers: u8,
    /// Processes; the home of `p` is `p % transports`.
    pub processes: u8,
    /// Connections; `c` comes to `c % transports` until its bucket is moved.
    pub connections: u8,
    /// Offers that fit into the ring from one transport server to one process.
    pub offers_max: u8,
    /// A manager is one process with the transport server of its number: they call each other
    /// without delay, and die together.
    pub combined: bool,
    /// What may go wrong.
    pub budget: Budget,
    /// The rules.
    pub design: Design,
}

impl Shape {
    /// A sound world of this size in which nothing goes wrong.
    pub const fn new(transports: u8, managers: u8, processes: u8, connections: u8) -> Shape {
        Shape {
            transports,
            managers,
            processes,
            connections,
            offers_max: 2,
            combined: false,
            budget: Budget {
                deaths: 0,
                server_deaths: 0,
                manager_deaths: 0,
                closes: 0,
                reopens: 0,
                refusals: 0,
                failures: 0,
                resets: 0,
                moves: 0,
                packets: 0,
                early_timers: 1,
            },
            design: Design::SOUND,
        }
    }

    /// The home of a process.
    pub fn home(&self, process: u8) -> u8 {
        process % self.transports
    }

    /// Whether a transport server and its manager are one process.
    pub fn is_direct(&self, transport: u8) -> bool {
        self.combined && transport < self.managers
    }

    /// The manager of a transport server.
    pub fn manager_of(&self, transport: u8) -> u8 {
        transport % self.managers
    }
}
