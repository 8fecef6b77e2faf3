//! A made-up DHCP server, a program on a simulated host that uses a UDP socket of the engine: offers
//! one address, acknowledges, refuses or keeps silent as it is told. For `tests/dhcp.rs`.

use crate::host::Host;
use haypile_engine::{DatagramOptions, Instant, SendTo, SocketId};
use std::net::{Ipv4Addr, SocketAddr};

const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const DECLINE: u8 = 4;
const ACK: u8 = 5;
const NAK: u8 = 6;

/// The server.
pub struct Server {
    socket: SocketId,
    own: Ipv4Addr,
    /// What it offers.
    pub address: Ipv4Addr,
    /// Length of its leases in seconds.
    pub lease_s: u32,
    /// Says nothing.
    pub silent: bool,
    /// Refuses requests.
    pub refuses: bool,
    /// Requests it has acknowledged.
    pub acknowledged: usize,
    /// Addresses that a client found taken.
    pub declined: usize,
}

impl Server {
    /// A server on a host that has the address `own`.
    ///
    /// # Errors
    /// When the host's port 67 is taken.
    pub fn new(host: &mut Host, own: Ipv4Addr, address: Ipv4Addr) -> Result<Server, String> {
        let options = DatagramOptions { broadcast: true, ..DatagramOptions::default() };
        let local = SocketAddr::from(([0, 0, 0, 0], 67));
        let socket = host.shard.open_datagram(local, options).map_err(|e| format!("{e:?}"))?;
        Ok(Server {
            socket,
            own,
            address,
            lease_s: 3600,
            silent: false,
            refuses: false,
            acknowledged: 0,
            declined: 0,
        })
    }

    /// Answers what has arrived.
    ///
    /// # Errors
    /// A message no sound client sends, or an answer that the host refused.
    pub fn run(&mut self, now: Instant, host: &mut Host) -> Result<(), String> {
        for received in std::mem::take(&mut host.memory.datagrams) {
            if received.id != self.socket || self.silent {
                continue;
            }
            let message = &received.payload;
            if message.len() < 240 || message[..4] != [1, 1, 6, 0] {
                return Err(format!("a strange message: {message:?}"));
            }
            let kind = option(message, 53).and_then(|value| value.first().copied());
            let answer = match kind.ok_or("a message without a type")? {
                DISCOVER => OFFER,
                REQUEST if self.refuses => NAK,
                REQUEST => self.judge(message)?,
                DECLINE => {
                    self.declined += 1;
                    continue;
                }
                other => return Err(format!("a message of type {other}")),
            };
            self.acknowledged += usize::from(answer == ACK);
            self.answer(now, host, message, answer)?;
        }
        Ok(())
    }

    /// A request must name the offered address, before it is bound with the server's name.
    fn judge(&self, message: &[u8]) -> Result<u8, String> {
        let client = Ipv4Addr::new(message[12], message[13], message[14], message[15]);
        let wanted = option(message, 50);
        match (wanted, client.is_unspecified()) {
            (Some(wanted), true) if option(message, 54) == Some(&self.own.octets()) => {
                Ok(if wanted == self.address.octets() { ACK } else { NAK })
            }
            (None, false) => Ok(if client == self.address { ACK } else { NAK }),
            _ => Err("a request that names no address, or two".into()),
        }
    }

    fn answer(
        &self,
        now: Instant,
        host: &mut Host,
        question: &[u8],
        kind: u8,
    ) -> Result<(), String> {
        let mut message = vec![2, 1, 6, 0];
        message.extend(&question[4..8]);
        message.extend([0, 0]);
        message.extend(&question[10..12]);
        message.extend(&question[12..16]);
        message.extend(if kind == NAK { [0; 4] } else { self.address.octets() });
        message.extend([0; 8]);
        message.extend(&question[28..44]);
        message.resize(236, 0);
        message.extend([99, 130, 83, 99, 53, 1, kind, 54, 4]);
        message.extend(self.own.octets());
        if kind != NAK {
            message.extend([51, 4]);
            message.extend(self.lease_s.to_be_bytes());
            message.extend([1, 4, 255, 255, 255, 0, 3, 4]);
            message.extend(self.own.octets());
            message.extend([6, 8]);
            message.extend(self.own.octets());
            message.extend([198, 18, 0, 53]);
        }
        message.push(255);
        let bound = question[12..16] != [0; 4];
        let to = if bound && kind != NAK { self.address } else { Ipv4Addr::BROADCAST };
        let to = SendTo { remote: Some(SocketAddr::from((to, 68))), ..SendTo::default() };
        host.shard
            .send_datagram(now, self.socket, &to, &message)
            .map_err(|error| format!("answer: {error}"))
    }
}

/// The value of an option.
fn option(message: &[u8], wanted: u8) -> Option<&[u8]> {
    let mut rest = message.get(240..)?;
    loop {
        let (kind, after) = rest.split_first()?;
        match kind {
            0 => rest = after,
            255 => return None,
            _ => {
                let (len, after) = after.split_first()?;
                let value = after.get(..usize::from(*len))?;
                if *kind == wanted {
                    return Some(value);
                }
                rest = &after[usize::from(*len)..];
            }
        }
    }
}
