//! ARP in and out: RFC 826, with RFC 5227's probes answered and gratuitous messages distrusted.
//!
//! Called by `receive.rs` for frames and by `transmit.rs` for requests. What is learned is decided in
//! `neighbours.rs`.

use std::net::{IpAddr, Ipv4Addr};

use smoltcp::wire::{ArpOperation, ArpPacket, ArpRepr, EthernetAddress};

use super::Shard;
use super::headers::TYPE_ARP;
use crate::counters::Counter;
use crate::drop_reason::DropReason;
use crate::neighbours::{Answer, Request};
use crate::packets::Destination;

/// Bytes of an ARP packet for Ethernet and IPv4.
const ARP_LEN: usize = 28;

/// An ARP packet taken apart.
#[derive(Copy, Clone, Debug)]
struct Message {
    request: bool,
    sender_mac: [u8; 6],
    sender: Ipv4Addr,
    target: Ipv4Addr,
}

impl Shard {
    /// An ARP packet arrived.
    pub(super) fn handle_arp(&mut self, body: &[u8]) -> Result<(), DropReason> {
        let message = parse(body).ok_or(DropReason::ArpMalformed)?;
        let claimed = if message.sender.is_unspecified() { message.target } else { message.sender };
        self.find_dhcp_conflict(claimed, message.sender_mac);
        if message.sender.is_unspecified() {
            // An address probe (RFC 5227 section 2.1.1).
            return self.answer_without_learning(&message, DropReason::ArpNotForUs);
        }
        let sender = IpAddr::V4(message.sender);
        let possible = !EthernetAddress(message.sender_mac).is_multicast()
            && message.sender_mac != [0; 6]
            && !message.sender.is_multicast()
            && !message.sender.is_loopback()
            && !self.routing.is_broadcast(message.sender)
            && !self.routing.is_ours(sender);
        if !possible {
            return Err(DropReason::ArpBadSender);
        }
        if !self.routing.is_on_link(sender) {
            // A router asks with any of its addresses (Linux's arp_announce 0).
            return self.answer_without_learning(&message, DropReason::ArpBadSender);
        }
        let ours = self.routing.is_ours(IpAddr::V4(message.target));
        let result = match (message.request, ours) {
            (true, true) if !self.is_speaker() => {
                let (now, mac) = (self.now, message.sender_mac);
                self.neighbours.hear_request(now, sender, mac, &mut self.counters);
                Ok(())
            }
            (true, true) => {
                let (now, mac) = (self.now, message.sender_mac);
                self.neighbours.hear_request(now, sender, mac, &mut self.counters);
                self.reply_arp(&message)
            }
            (false, true) => self.hear_arp_answer(sender, &message),
            (_, false) => self.hear_arp_announcement(sender, &message),
        };
        self.release_neighbours();
        result
    }

    /// A message whose sender is no neighbour that could be remembered: a question about us is answered, anything
    /// else dropped.
    fn answer_without_learning(
        &mut self,
        message: &Message,
        useless: DropReason,
    ) -> Result<(), DropReason> {
        let asked = message.request && self.routing.is_ours(IpAddr::V4(message.target));
        match (asked, self.is_speaker()) {
            (true, true) => self.reply_arp(message),
            (true, false) => Err(DropReason::SpeakerOnly),
            (false, _) => Err(self.useless_copy(useless)),
        }
    }

    fn hear_arp_answer(&mut self, sender: IpAddr, message: &Message) -> Result<(), DropReason> {
        let answer = Answer { mac: Some(message.sender_mac), solicited: true, replace: true };
        if self.neighbours.hear_answer(self.now, sender, answer, &mut self.counters) {
            Ok(())
        } else {
            Err(self.useless_copy(DropReason::ArpUnsolicited))
        }
    }

    /// A message that is not for us; one about the sender itself is an announcement to all.
    fn hear_arp_announcement(
        &mut self,
        sender: IpAddr,
        message: &Message,
    ) -> Result<(), DropReason> {
        if message.target != message.sender {
            return Err(self.useless_copy(DropReason::ArpNotForUs));
        }
        let mac = message.sender_mac;
        if self.neighbours.hear_announcement(self.now, sender, mac, &mut self.counters) {
            Ok(())
        } else {
            Err(self.useless_copy(DropReason::ArpUnsolicited))
        }
    }

    /// Why a neighbour message is dropped: one that only the speaker need understand is no fault.
    pub(super) fn useless_copy(&self, reason: DropReason) -> DropReason {
        if self.is_speaker() { reason } else { DropReason::CopyForOthers }
    }

    fn reply_arp(&mut self, request: &Message) -> Result<(), DropReason> {
        if !self.replies.has_room(ARP_LEN) {
            self.counters.count(Counter::RepliesDropped);
            return Err(DropReason::ReplyQueueFull);
        }
        let mut body = self.buffers.take(ARP_LEN);
        let reply = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Reply,
            source_hardware_addr: EthernetAddress(self.mac),
            source_protocol_addr: request.target,
            target_hardware_addr: EthernetAddress(request.sender_mac),
            target_protocol_addr: request.sender,
        };
        reply.emit(&mut ArpPacket::new_unchecked(&mut body[..]));
        self.counters.count(Counter::ArpRepliesSent);
        self.replies.push_back(Destination::Link(request.sender_mac, TYPE_ARP), body);
        Ok(())
    }

    /// Writes a request after the place of the Ethernet header; gives where to send it, and the
    /// length of the body.
    pub(super) fn emit_arp_request(
        &mut self,
        request: &Request,
        target: Ipv4Addr,
        body: &mut [u8],
    ) -> Option<([u8; 6], usize)> {
        let Some(IpAddr::V4(source)) = self.routing.source_for(request.addr) else { return None };
        let message = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Request,
            source_hardware_addr: EthernetAddress(self.mac),
            source_protocol_addr: source,
            target_hardware_addr: EthernetAddress(request.probe.unwrap_or([0; 6])),
            target_protocol_addr: target,
        };
        message.emit(&mut ArpPacket::new_unchecked(&mut body[..ARP_LEN]));
        self.counters.count(Counter::ArpRequestsSent);
        Some((request.probe.unwrap_or([0xff; 6]), ARP_LEN))
    }
}

fn parse(body: &[u8]) -> Option<Message> {
    let packet = ArpPacket::new_checked(body).ok()?;
    let ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr,
        source_protocol_addr,
        target_hardware_addr: _,
        target_protocol_addr,
    } = ArpRepr::parse(&packet).ok()?
    else {
        return None;
    };
    let request = match operation {
        ArpOperation::Request => true,
        ArpOperation::Reply => false,
        ArpOperation::Unknown(_) => return None,
    };
    Some(Message {
        request,
        sender_mac: source_hardware_addr.0,
        sender: source_protocol_addr,
        target: target_protocol_addr,
    })
}
