//! `haypile resolve`: names looked up by the service's own resolver, for clients of the control socket.
//!
//! Called by `event_loop`, which keeps one [`Lookup`] for each client that waits.

use std::net::IpAddr;

use haypile_engine::resolver::{Answer, QueryId, RecordKind, ResolveError, reverse_name};
use haypile_engine::{Instant, Shard};
use serde::{Deserialize, Serialize};

use crate::control::ClientId;

/// The answer to `haypile resolve`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolved {
    /// What was asked for.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<String>,
    /// The names of an address.
    pub names: Vec<String>,
    /// Seconds that the answer may be kept.
    pub ttl_s: u32,
    /// Why nothing was found.
    pub error: Option<String>,
}

impl Resolved {
    /// Nothing was found.
    pub fn failure(name: &str, error: ResolveError) -> Resolved {
        Resolved { name: name.to_string(), error: Some(error.to_string()), ..Resolved::default() }
    }
}

/// A client that waits for an answer.
#[derive(Debug)]
pub struct Lookup {
    /// Who.
    pub client: ClientId,
    name: String,
    waiting: Vec<QueryId>,
    answers: Vec<Answer>,
    failure: Option<ResolveError>,
}

impl Lookup {
    /// Asks for IPv4 and IPv6 addresses of a name, or for the names of an address.
    ///
    /// # Errors
    /// Why nobody could be asked.
    pub fn start(
        client: ClientId,
        name: &str,
        servers: &[IpAddr],
        shard: &mut Shard,
        now: Instant,
    ) -> Result<Lookup, ResolveError> {
        let mut lookup = Lookup {
            client,
            name: name.to_string(),
            waiting: Vec::new(),
            answers: Vec::new(),
            failure: None,
        };
        match name.parse::<IpAddr>() {
            Ok(addr) => {
                let name = reverse_name(addr);
                lookup.waiting.push(shard.look_up(now, &name, RecordKind::Ptr, servers)?);
            }
            Err(_) => {
                lookup.waiting.push(shard.look_up(now, name, RecordKind::A, servers)?);
                lookup.waiting.push(shard.look_up(now, name, RecordKind::Aaaa, servers)?);
            }
        }
        Ok(lookup)
    }

    /// Takes what has come; the outcome once all has.
    pub fn poll(&mut self, shard: &mut Shard) -> Option<Resolved> {
        let Lookup { waiting, answers, failure, .. } = self;
        waiting.retain(|id| match shard.take_answer(*id) {
            None => true,
            Some(Ok(answer)) => {
                answers.push(answer);
                false
            }
            Some(Err(error)) => {
                // That there is none of one kind says less than that servers fail.
                let replaced = failure.is_none_or(|known| known == ResolveError::NoData);
                *failure = if replaced { Some(error) } else { *failure };
                false
            }
        });
        if !waiting.is_empty() {
            return None;
        }
        if answers.is_empty() {
            return Some(Resolved::failure(&self.name, failure.unwrap_or(ResolveError::NoData)));
        }
        let addresses = answers.iter().flat_map(|answer| &answer.addresses);
        Some(Resolved {
            name: self.name.clone(),
            addresses: addresses.map(ToString::to_string).collect(),
            names: answers.iter().flat_map(|answer| answer.names.clone()).collect(),
            ttl_s: answers.iter().map(|answer| answer.ttl_s).min().unwrap_or(0),
            error: None,
        })
    }
}
