//! UDP in the fake service: every datagram that is sent comes back from where it went.

use haypile_shm::datagram::RECORD_PAYLOAD_MAX;
use haypile_shm::messages::RouteAnswer;

use super::*;

/// Whether the fake service brings datagrams there.
fn ours(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V4(v4) if v4.octets()[0] == 198 && v4.octets()[1] & !1 == 18)
}

impl State {
    pub(super) fn datagram_request(&mut self, slot: u32, body: &RequestBody) -> [u64; 7] {
        match *body {
            RequestBody::Route { remote } if ours(remote) || remote.is_unspecified() => {
                let answer =
                    RouteAnswer { mtu: 1500, broadcast: false, local: false, interface: 7 };
                OptionReply::value(&answer.encode()).encode()
            }
            RequestBody::Route { .. } => OptionReply::failure(NOT_OURS).encode(),
            RequestBody::TakeDatagramError => OptionReply::failure(libc::EAGAIN).encode(),
            RequestBody::BindDatagram { address, .. }
                if !ours(address.ip()) && !address.ip().is_unspecified() =>
            {
                SocketReply::failure(NOT_OURS).encode()
            }
            RequestBody::BindDatagram { address, .. }
                if self.elsewhere.iter().any(|(port, _)| *port == address.port()) =>
            {
                let found = self.elsewhere.iter().find(|(port, _)| *port == address.port());
                SocketReply::elsewhere(found.unwrap().1).encode()
            }
            RequestBody::BindDatagram { address, .. } => {
                let slot = self.open_datagrams(address);
                self.reply_about(slot)
            }
            RequestBody::ConnectDatagram { remote } => {
                let anywhere = "0.0.0.0:0".parse().unwrap();
                let slot = if slot == NO_SLOT { self.open_datagrams(anywhere) } else { slot };
                let stream = &mut self.socket(slot).stream;
                stream.set_remote(remote);
                stream.set_status(if remote.is_some() { status::CONNECTED } else { 0 });
                self.reply_about(slot)
            }
            _ => SocketReply::failure(0).encode(),
        }
    }

    fn open_datagrams(&mut self, mut local: SocketAddr) -> u32 {
        if local.port() == 0 {
            self.next_port += 1;
            local.set_port(self.next_port);
        }
        let slot = self.open();
        let State { sockets, arena, .. } = self;
        let socket = sockets.get_mut(&slot).unwrap();
        socket.kind = SocketKind::Datagram;
        socket.local = Some(local);
        socket.stream.set_local(Some(local));
        socket.stream.settle_records(SEND_BUFFER, arena);
        slot
    }

    fn reply_about(&mut self, slot: u32) -> [u64; 7] {
        let socket = self.socket(slot);
        let generation = socket.stream.generation();
        SocketReply { errno: 0, slot, generation, local: socket.local }.encode()
    }

    /// Sends everything back.
    pub(super) fn echo(&mut self, slot: u32) {
        let State { sockets, arena, .. } = self;
        let Some(Socket { stream, local, .. }) = sockets.get_mut(&slot) else { return };
        let mut payload = vec![0; RECORD_PAYLOAD_MAX];
        stream.observe_tx_tail().unwrap();
        while let Some(mut header) = stream.peek_record(&mut payload, arena).unwrap() {
            stream.take_record(&header);
            let payload = &payload[..usize::from(header.len)];
            header.remote = header.remote.or(Some("198.18.0.9:9".parse().unwrap()));
            header.local = *local;
            header.hop_limit = header.hop_limit.or(Some(64));
            stream.push_record(&header, payload, SEND_BUFFER, arena).unwrap();
        }
        stream.publish_records();
        let writable = stream.settle_records(SEND_BUFFER, arena);
        self.announce(slot, if writable { ready::IN | ready::OUT } else { ready::IN });
    }
}
