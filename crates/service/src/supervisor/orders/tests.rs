//! Messages come back as sent; nonsense is refused whole.

use haypile_engine::steering::{Rule, Steering};
use haypile_link::tap::TapFacts;

use super::*;
use crate::roster::Roster;

fn record() -> ListenerRecord {
    ListenerRecord {
        owner: 9,
        domain: [7; 16],
        cookie: u64::MAX,
        address: "[2001:2::1]:80".parse().unwrap(),
        backlog: 511,
        v6only: true,
        reuse_address: true,
        reuse_port: false,
        options: vec![(0x0106, 1), (0x0008, -1)],
    }
}

fn start() -> Start {
    let text = "addresses = [\"198.18.0.1/24\", \"2001:2::1/64\"]\n\
                [[route]]\ndestination = \"10.0.0.0/8\"\ngateway = \"198.18.0.9\"\n";
    let flags = crate::config::Flags::default();
    Start {
        config: Config::from_text(text, &flags, "/run/haypile".as_ref()).unwrap(),
        roster: Roster::of(&"TS2+LS1+CM1".parse().unwrap()),
        server: 3,
        open: 2,
        link: LinkFacts::Tap(TapFacts {
            queues: 9,
            name: "haypile0".into(),
            index: 7,
            mtu: 1500,
            mac: [2, 0, 0, 0, 0, 1],
            offload: haypile_link::tap::Offload::Segmentation,
            multi_queue: false,
            udp_batches_known: true,
            steering: Some(Steering::new(u64::MAX, Rule::Low12, 9)),
        }),
        link_descriptors: 9,
        attaches: true,
        secret: [9; 32],
        epoch: 4,
        cell: Cell { user: Some((65534, 65534)), core: Some(1), filter: true },
        tell_processes: true,
    }
}

#[test]
fn orders_come_back_as_sent() {
    let orders = [
        Order::Start(Box::new(start())),
        Order::Listener(record()),
        Order::Link { count: 8 },
        Order::Run {},
        Order::Peer { server: 63, frames: true },
        Order::PeerGone { server: 1 },
        Order::Servers { roster: Box::new(Roster::of(&"TS4LS4CM2".parse().unwrap())) },
        Order::Beside { listener: record(), open: false },
        Order::Open { servers: 4 },
        Order::Share { first: 2 },
        Order::Begin {},
        Order::Client {},
        Order::Newcomer {},
        Order::Notices { granted: false },
        Order::End { patience_us: 5 },
    ];
    for order in orders {
        let back: Order = decode(&encode(&order)).unwrap();
        assert_eq!(format!("{back:?}"), format!("{order:?}"));
    }
}

#[test]
fn reports_come_back_as_sent() {
    let confinement = Confinement::default();
    let reports = [
        Report::Ready { confinement, link: "tap".into() },
        Report::Listening(record()),
        Report::NotListening { domain: [1; 16], cookie: 5 },
        Report::WantNotices { pid: 17, namespace: 4 },
        Report::Attached {},
        Report::Used { used: true },
    ];
    for report in reports {
        assert_eq!(decode_report(&encode(&report)), Ok(report));
    }
    let mut forbidden = FORBIDDEN_CALL_MARK.to_ne_bytes().to_vec();
    forbidden.extend_from_slice(&41u32.to_ne_bytes());
    assert_eq!(decode_report(&forbidden), Ok(Report::Forbidden { number: 41 }));
}

#[test]
fn another_version_length_or_field_is_refused() {
    let good = encode(&Order::End { patience_us: 5 });
    assert!(decode::<Order>(&good).is_ok());
    for at in 0..HEADER_LEN {
        let mut bad = good.clone();
        bad[at] ^= 1;
        assert!(decode::<Order>(&bad).is_err(), "byte {at}");
    }
    for len in 0..good.len() {
        assert!(decode::<Order>(&good[..len]).is_err(), "{len} bytes");
    }
    let framed = |json: &str| {
        let mut bytes = Vec::new();
        for word in [MARK, VERSION, json.len() as u32] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(json.as_bytes());
        bytes
    };
    for json in [
        "",
        "{}",
        "\"run\"",
        "{\"run\":{\"now\":true}}",
        "{\"fly\":{}}",
        "{\"end\":{\"patience_us\":-1}}",
        "{\"end\":{\"patience_us\":5},\"run\":{}}",
        "{\"listener\":{\"domain\":[1],\"cookie\":5}}",
        "{\"end\":{\"patience_us\":5}} ;",
    ] {
        assert!(decode::<Order>(&framed(json)).is_err(), "{json}");
    }
    assert!(decode::<Order>(&framed("{\"run\":{}}")).is_ok());
}

/// Every byte of good messages changed, cut and doubled: the decoder says no or gives a message,
/// and never panics.
#[test]
fn damaged_messages_do_no_harm() {
    let messages = [
        encode(&Order::Start(Box::new(start()))),
        encode(&Order::Listener(record())),
        encode(&Report::Ready { confinement: Confinement::default(), link: String::new() }),
    ];
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as usize % below
    };
    for message in &messages {
        for _ in 0..3000 {
            let mut bytes = message.clone();
            for _ in 0..=random(3) {
                let at = random(bytes.len());
                match random(3) {
                    0 => bytes[at] = random(256) as u8,
                    1 => bytes.truncate(at.max(1)),
                    _ => bytes.insert(at, random(256) as u8),
                }
            }
            let _: Result<Order, Malformed> = decode(&bytes);
            let _: Result<Report, Malformed> = decode_report(&bytes);
            // With the length put right the words themselves are looked at.
            if bytes.len() >= HEADER_LEN {
                let len = (bytes.len() - HEADER_LEN) as u32;
                bytes[8..12].copy_from_slice(&len.to_le_bytes());
                let _: Result<Order, Malformed> = decode(&bytes);
                let _: Result<Report, Malformed> = decode_report(&bytes);
            }
        }
    }
}

#[test]
fn descriptors_are_counted() {
    let (left, right) = sys::socketpair_seqpacket().unwrap();
    send(left.raw(), &Order::Client {}, &[left.raw()]).unwrap();
    let (order, fds) = receive(right.raw(), decode::<Order>).unwrap();
    assert!(matches!(order, Order::Client {}));
    assert!(fds[0].is_some() && fds[1].is_none());
    drop(fds);
    for (order, fds) in [(Order::Client {}, 0), (Order::Client {}, 2), (Order::Run {}, 1)] {
        send(left.raw(), &order, &vec![left.raw(); fds]).unwrap();
        assert_eq!(receive(right.raw(), decode::<Order>).err(), Some(Errno::EPROTO));
    }
    assert_eq!(receive(right.raw(), decode::<Order>).err(), Some(Errno::EAGAIN));
    drop(left);
    assert_eq!(receive(right.raw(), decode::<Order>).err(), Some(Errno::EPIPE));
}
