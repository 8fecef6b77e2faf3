//! Messages: every kind survives, and any words are decoded or refused.

use proptest::prelude::*;

use super::*;
use crate::epoch::EPOCH_SERVERS;

fn every_request() -> Vec<RequestBody> {
    let address = "198.18.0.1:80".parse().unwrap();
    let remote = "[2001:db8::1]:443".parse().unwrap();
    vec![
        RequestBody::Bind { address, reuse_address: true, reuse_port: false, v6only: true },
        RequestBody::Bind {
            address: remote,
            reuse_address: false,
            reuse_port: true,
            v6only: false,
        },
        RequestBody::Listen {
            backlog: u32::MAX,
            v6only: true,
            reuse_port: false,
            cookie: 1 << 40,
            opening: true,
        },
        RequestBody::Connect { remote },
        RequestBody::Open { v6: true },
        RequestBody::Acceptor,
        RequestBody::NotAcceptor,
        RequestBody::Claim,
        RequestBody::Refuse,
        RequestBody::KickTx,
        RequestBody::KickRx,
        RequestBody::WantTx,
        RequestBody::Shutdown { how: Shutdown::Read },
        RequestBody::Shutdown { how: Shutdown::Write },
        RequestBody::Shutdown { how: Shutdown::Both },
        RequestBody::Close { abort: true },
        RequestBody::SetOption { option: 7, value: -3 },
        RequestBody::GetOption { option: u16::MAX },
        RequestBody::TcpInfo { part: 2 },
        RequestBody::DatagramErrorPayload { serial: 0xffff, part: 24 },
        RequestBody::Watch { watcher: 5, mask: ready::ALL, one_shot: true },
        RequestBody::Unwatch { watcher: 127 },
        RequestBody::Drained { watcher: 0 },
        RequestBody::Shared { cookie: u64::MAX - 1 },
        RequestBody::BindDatagram { address, reuse_address: true, reuse_port: false, v6only: true },
        RequestBody::ConnectDatagram { remote: Some(remote) },
        RequestBody::ConnectDatagram { remote: None },
        RequestBody::Route { remote: remote.ip() },
        RequestBody::TakeDatagramError,
        RequestBody::Address { index: u16::MAX },
        RequestBody::Arrive,
        RequestBody::Left,
        RequestBody::Group { join: true, group: remote.ip(), interface: address.ip() },
        RequestBody::Group { join: false, group: address.ip(), interface: remote.ip() },
    ]
}

#[test]
fn every_request_survives() {
    let mut kinds = std::collections::HashSet::new();
    for body in every_request() {
        let request = Request::about(1 << 31, u32::MAX, body).with_reply(63);
        let message = request.encode();
        assert_eq!(Request::decode(&message), Ok(request));
        kinds.insert(message[0] as u16);
    }
    assert_eq!(kinds.len(), 29, "every kind is in the list");
}

#[test]
fn events_and_replies_survive() {
    let event = Ready { slot: 1, generation: 2, bits: ready::IN | ready::HUP };
    assert_eq!(Ready::decode(&event.encode()), Ok(event));
    assert_eq!(Offer::decode(&event.encode()), Err(Malformed));
    let offer = Offer { listener: 1, listener_generation: 2, slot: 3, generation: 4 };
    assert_eq!(Offer::decode(&offer.encode()), Ok(offer));
    let local = Some("[::1]:9".parse().unwrap());
    let reply = SocketReply { errno: NOT_OURS, slot: 3, generation: 4, local };
    assert_eq!(SocketReply::decode(&reply.encode()), Ok(reply));
    let reply = OptionReply::value(&[9; 60]);
    assert_eq!(OptionReply::decode(&reply.encode()), Ok(reply));
    assert_eq!(reply.bytes(), [9; OPTION_BYTES]);
    assert_eq!(OptionReply::failure(22).bytes(), []);
    assert_eq!(OptionReply::decode(&[u64::MAX; 7]), Err(Malformed));
    let answer = RouteAnswer { mtu: 65_535, broadcast: true, local: false, interface: 9 };
    let reply = OptionReply::value(&answer.encode());
    assert_eq!(RouteAnswer::decode(reply.bytes()), Ok(answer));
    for address in ["198.18.0.2", "2001:db8::2"] {
        let address = address.parse().unwrap();
        let answer = AddressAnswer { address, prefix_len: 24, interface: 1 << 20 };
        let reply = OptionReply::value(&answer.encode());
        assert_eq!(AddressAnswer::decode(reply.bytes()), Ok(answer));
    }
    let error = DatagramError {
        errno: 111,
        origin: 2,
        kind: 3,
        code: 4,
        remote: "[2001:db8::1]:9".parse().unwrap(),
        mtu: 1280,
        offender: Some("198.18.0.1".parse().unwrap()),
        payload_len: 548,
        serial: 0xfffe,
    };
    for error in [error, DatagramError { offender: None, ..error }] {
        let reply = OptionReply::value(&error.encode());
        assert_eq!(DatagramError::decode(reply.bytes()), Ok(error));
    }
    assert_eq!(DatagramError::decode(&[0; OPTION_BYTES]), Err(Malformed));
}

#[test]
fn a_hello_without_a_name_says_its_version_where_it_always_stood() {
    let hello = ControlRequest::Hello {
        version: 9,
        build: 7,
        program: [0; 16],
        domain: [0; 16],
        name: 0,
        proof: 0,
    };
    assert_eq!((hello.encode()[1], hello.encode()[4]), (9, 7));
}

#[test]
fn a_server_that_is_none_of_so_many_is_refused() {
    for servers in [0, 3] {
        let home = ControlReply::Home { server: 3, servers };
        assert_eq!(ControlReply::decode(&home.encode()), Err(Malformed));
    }
}

#[test]
fn a_server_that_leaves_welcomes_whoever_has_a_connection_there() {
    let welcome = |server, servers| ControlReply::Welcome {
        epoch: 4,
        process_id: 7,
        spin_us: 50,
        domain: [1; 16],
        server,
        servers,
        name: 5,
        proof: 6,
    };
    // The second and the third of three, while programs come to the first alone.
    for leaving in [1, 2] {
        let welcome = welcome(leaving, 1);
        assert_eq!(ControlReply::decode(&welcome.encode()), Ok(welcome));
    }
    for (server, servers) in [(0, 0), (EPOCH_SERVERS, 1), (0, EPOCH_SERVERS + 1)] {
        assert_eq!(ControlReply::decode(&welcome(server, servers).encode()), Err(Malformed));
    }
}

#[test]
fn control_messages_survive() {
    let domain = core::array::from_fn(|index| index as u8 + 1);
    for request in [
        ControlRequest::Hello {
            version: 1,
            build: (1 << 48) - 1,
            program: [9; 16],
            domain,
            name: 0xffff_0000_0001,
            proof: u64::MAX,
        },
        ControlRequest::NewProgram { name: (1 << 48) - 1 },
        ControlRequest::Restore { shared: true },
        ControlRequest::Restore { shared: false },
        ControlRequest::Restored,
        ControlRequest::AttachChild,
        ControlRequest::MapTable { index: 3 },
        ControlRequest::MapArena { index: 4 },
        ControlRequest::NewWatcher { watcher: 5 },
        ControlRequest::DropWatcher { watcher: 6 },
        ControlRequest::Adopt,
        ControlRequest::Enter { server: EPOCH_SERVERS - 1 },
    ] {
        assert_eq!(ControlRequest::decode(&request.encode()), Ok(request));
        assert_eq!(ControlReply::decode(&request.encode()), Err(Malformed));
    }
    let (errno, version) = (-1, u32::MAX);
    for reply in [
        ControlReply::Refused { errno, version, build: 1 << 32 },
        ControlReply::Home { server: 1, servers: 2 },
        ControlReply::Welcome {
            epoch: 4,
            process_id: 7,
            spin_us: 50,
            domain,
            server: 62,
            servers: 63,
            name: 0xffff_1234_5678,
            proof: 1 << 63,
        },
        ControlReply::TableMapped { index: 1, errno },
        ControlReply::ArenaMapped { index: 2, errno: 12 },
        ControlReply::WatcherMade { watcher: 3, errno: 0 },
        ControlReply::Adopted { errno: 2, slot: 4, generation: 5, kind: SocketKind::Listener },
        ControlReply::Adopted { errno: 0, slot: 4, generation: 5, kind: SocketKind::Datagram },
    ] {
        assert_eq!(ControlReply::decode(&reply.encode()), Ok(reply));
        assert_eq!(ControlRequest::decode(&reply.encode()), Err(Malformed));
    }
}

proptest! {
    #[test]
    fn any_bytes_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        fuzz_decode(&bytes);
    }

    /// Known kinds with any words behind them: what random bytes alone would never reach.
    #[test]
    fn any_words_behind_a_known_kind(
        kind in prop_oneof![0u64..29, 0x100u64..0x104, 0x200u64..0x20d, 0x300u64..0x309],
        high in any::<u64>(),
        words in any::<[u64; 7]>(),
        small in any::<bool>(),
    ) {
        let words = words.map(|word| if small { word % 5 } else { word });
        let first = if kind < 29 { kind | high << 16 } else { kind };
        let message = [first, words[0], words[1], words[2], words[3], words[4], words[5], words[6]];
        fuzz_decode(message.map(u64::to_ne_bytes).as_flattened());
    }
}
