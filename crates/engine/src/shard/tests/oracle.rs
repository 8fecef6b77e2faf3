//! UDP against another implementation: smoltcp's interface and sockets on the same wire.

use std::collections::VecDeque;

use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::udp;
use smoltcp::wire::{EthernetAddress, IpCidr, IpEndpoint};

use super::harness::*;
use crate::*;

/// The wire as smoltcp sees it.
#[derive(Default)]
struct Wire {
    to_them: VecDeque<Vec<u8>>,
    to_us: VecDeque<Vec<u8>>,
}

struct Arrived(Vec<u8>);
struct Leaving<'a>(&'a mut VecDeque<Vec<u8>>);

impl RxToken for Arrived {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Leaving<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.push_back(frame);
        result
    }
}

impl Device for Wire {
    type RxToken<'a> = Arrived;
    type TxToken<'a> = Leaving<'a>;

    fn receive(
        &mut self,
        _: smoltcp::time::Instant,
    ) -> Option<(Self::RxToken<'_>, Self::TxToken<'_>)> {
        let frame = self.to_them.pop_front()?;
        Some((Arrived(frame), Leaving(&mut self.to_us)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Self::TxToken<'_>> {
        Some(Leaving(&mut self.to_us))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = usize::from(MTU) + 14;
        capabilities
    }
}

/// Host 1 is ours, host 9 is smoltcp's.
struct Two {
    host: Host,
    wire: Wire,
    interface: Interface,
    sockets: SocketSet<'static>,
    now: Instant,
}

impl Two {
    fn new() -> Two {
        let mut wire = Wire::default();
        let time = smoltcp::time::Instant::from_micros(START.us() as i64);
        let mac = EthernetAddress([2, 0, 0, 0, 0, 9]);
        let mut interface = Interface::new(Config::new(mac.into()), &mut wire, time);
        interface.update_ip_addrs(|addresses| {
            for text in ["198.18.0.9/24", "2001:db8::9/64"] {
                let cidr: IpCidr = text.parse().expect("address");
                addresses.push(cidr).expect("room for an address");
            }
        });
        let sockets = SocketSet::new(Vec::new());
        Two { host: Host::new(config(1)), wire, interface, sockets, now: START }
    }

    fn open(&mut self, port: u16) -> smoltcp::iface::SocketHandle {
        let buffer =
            || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 64], vec![0; 65_536]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        socket.bind(port).expect("a free port");
        self.sockets.add(socket)
    }

    fn run(&mut self) {
        for _ in 0..200 {
            for frame in self.host.drain(self.now) {
                self.wire.to_them.push_back(frame);
            }
            let time = smoltcp::time::Instant::from_micros(self.now.us() as i64);
            let _ = self.interface.poll(time, &mut self.wire, &mut self.sockets);
            while let Some(frame) = self.wire.to_us.pop_front() {
                let Host { shard, memory, .. } = &mut self.host;
                shard.handle_frame(self.now, &frame, RxMeta::default(), memory);
            }
            self.now = self.now.plus_us(10_000);
        }
    }
}

#[test]
fn both_understand_each_other_at_every_length() {
    for (ours, theirs) in
        [("198.18.0.1:5000", "198.18.0.9:6000"), ("[2001:db8::1]:5000", "[2001:db8::9]:6000")]
    {
        let mut two = Two::new();
        let id = two.host.open(ours);
        let handle = two.open(6000);
        for len in (0..64).chain([100, 511, 512, 1451, 1452]) {
            let payload: Vec<u8> = (0..len).map(|n| (n * 31 + len) as u8).collect();
            two.host.send_to(two.now, id, theirs, &payload).expect("sent");
            two.run();
            let socket = two.sockets.get_mut::<udp::Socket>(handle);
            let (received, meta) = socket.recv().expect("a datagram");
            assert_eq!(received, &payload[..], "{len}");
            assert_eq!(meta.endpoint, IpEndpoint::from(at(ours)));
            let answer: Vec<u8> = received.iter().map(|byte| !byte).collect();
            socket.send_slice(&answer, meta.endpoint).expect("room");
            two.run();
            let got = two.host.take_datagrams(id);
            assert_eq!((got.len(), got[0].0.remote), (1, at(theirs)), "{len}");
            assert_eq!(got[0].1, answer, "{len}");
        }
        // It reports its groups to the routers, which we are not.
        let foreign = two.host.dropped(DropReason::Ipv6NotForUs);
        assert_eq!(two.host.shard.counters().dropped_total(), foreign);
        assert!(foreign <= 2, "{foreign}");
    }
}

#[test]
fn their_refusal_reaches_our_socket() {
    for (theirs, kind) in [("198.18.0.9:6001", 3), ("[2001:db8::9]:6001", 1)] {
        let mut two = Two::new();
        let id = two.host.open("[::]:5000");
        assert_eq!(two.host.shard.connect_datagram(id, Some(at(theirs))), Ok(()));
        let now = two.now;
        two.host.shard.send_datagram(now, id, &SendTo::default(), b"hello?").expect("sent");
        two.run();
        let told = two.host.datagram_errors();
        assert_eq!(told.len(), 1, "{theirs}");
        assert_eq!((told[0].1, told[0].2), (SocketError::ConnectionRefused, kind));
    }
}
