//! The rules one by one, and all together against a scan of everything.

use super::*;
use proptest::prelude::*;

fn at(text: &str) -> SocketAddr {
    text.parse().expect("socket address")
}

fn place(number: u32, local: &str) -> Place {
    Place {
        id: SocketId::new(number, 1),
        local: at(local),
        remote: None,
        v6only: false,
        reuse_address: false,
        reuse_port: false,
    }
}

#[test]
fn the_most_exact_socket_wins() {
    let mut table = DatagramTable::new(1);
    let connected = Place { remote: Some(at("10.0.0.9:7")), ..place(4, "10.0.0.1:53") };
    for place in [place(1, "[::]:53"), place(2, "0.0.0.0:53"), place(3, "10.0.0.1:53"), connected] {
        table.insert(place);
    }
    let found =
        |local: &str, remote: &str| table.lookup(at(local), at(remote)).map(|id| id.index());
    assert_eq!(found("10.0.0.1:53", "10.0.0.9:7"), Some(4));
    assert_eq!(found("10.0.0.1:53", "10.0.0.9:8"), Some(3));
    assert_eq!(found("10.0.0.2:53", "10.0.0.9:7"), Some(2));
    assert_eq!(found("[2001:db8::1]:53", "[2001:db8::2]:9"), Some(1));
    assert_eq!(found("10.0.0.1:54", "10.0.0.9:7"), None);
    table.remove(&place(2, "0.0.0.0:53"));
    let found = table.lookup(at("10.0.0.2:53"), at("10.0.0.9:7"));
    assert_eq!(found, Some(SocketId::new(1, 1)));
    table.remove(&connected);
    assert_eq!(table.lookup(at("10.0.0.1:53"), at("10.0.0.9:7")), Some(SocketId::new(3, 1)));
}

#[test]
fn v6only_takes_no_ipv4() {
    let mut table = DatagramTable::new(1);
    table.insert(Place { v6only: true, ..place(1, "[::]:53") });
    assert_eq!(table.lookup(at("10.0.0.1:53"), at("10.0.0.9:7")), None);
    assert_eq!(table.check(&place(2, "0.0.0.0:53")), Ok(()));
    assert_eq!(table.check(&place(2, "[::1]:53")), Err(ListenError::AddressInUse));
}

#[test]
fn sharing_needs_both_and_spreads_evenly() {
    let mut table = DatagramTable::new(1);
    let member = |number| Place { reuse_port: true, ..place(number, "0.0.0.0:53") };
    table.insert(member(0));
    assert_eq!(table.check(&place(1, "10.0.0.1:53")), Err(ListenError::AddressInUse));
    assert_eq!(table.check(&member(1)), Ok(()));
    for number in 1..4 {
        table.insert(member(number));
    }
    let mut hits = [0; 4];
    for port in 1..=4000 {
        let remote = SocketAddr::new([10, 0, 0, 9].into(), port);
        let id = table.lookup(at("10.0.0.1:53"), remote).expect("a member");
        assert_eq!(table.lookup(at("10.0.0.1:53"), remote), Some(id), "not stable");
        hits[id.index() as usize] += 1;
    }
    assert!(hits.iter().all(|&hits| (800..1200).contains(&hits)), "{hits:?}");
}

#[test]
fn the_last_of_equals_gets_a_unicast_datagram_and_all_get_a_group() {
    let mut table = DatagramTable::new(1);
    for number in 0..3 {
        table.insert(Place { reuse_address: true, ..place(number, "0.0.0.0:53") });
    }
    let found = table.lookup(at("10.0.0.1:53"), at("10.0.0.9:7"));
    assert_eq!(found, Some(SocketId::new(2, 1)));
    table.insert(Place { remote: Some(at("10.0.0.8:7")), ..place(7, "0.0.0.0:53") });
    let mut all = Vec::new();
    table.lookup_all(at("224.1.1.1:53"), at("10.0.0.9:7"), &mut all);
    assert_eq!(all.len(), 3);
    all.clear();
    table.lookup_all(at("224.1.1.1:53"), at("10.0.0.8:7"), &mut all);
    assert_eq!(all.len(), 4);
}

const ADDRESSES: [&str; 6] =
    ["0.0.0.0", "::", "10.0.0.1", "10.0.0.2", "2001:db8::1", "2001:db8::2"];

/// The rules as a score, the way Linux computes it.
fn score(place: &Place, local: SocketAddr, remote: SocketAddr) -> Option<u8> {
    if place.local.port() != local.port() {
        return None;
    }
    let mut score = u8::from(place.local.is_ipv4() == local.is_ipv4());
    if place.local.ip().is_unspecified() {
        let mapped = local.is_ipv4() && place.local.is_ipv6() && !place.v6only;
        if score == 0 && !mapped {
            return None;
        }
    } else if place.local.ip() == local.ip() {
        score += 4;
    } else {
        return None;
    }
    match place.remote {
        Some(peer) if peer == remote => score += 8,
        Some(_) => return None,
        None => {}
    }
    Some(score)
}

proptest! {
    #[test]
    fn lookups_agree_with_a_scan(
        steps in prop::collection::vec(
            (0_usize..6, 1_u16..3, prop::option::of((0_usize..6, 1_u16..3)), any::<bool>(), any::<bool>()),
            1..40,
        ),
    ) {
        let mut table = DatagramTable::new(5);
        let mut all: Vec<Place> = Vec::new();
        let socket = |address: usize, port| {
            SocketAddr::new(ADDRESSES[address].parse().expect("address"), port)
        };
        for (number, (address, port, remote, v6only, remove)) in steps.into_iter().enumerate() {
            if remove && !all.is_empty() {
                let gone = all.remove(number % all.len());
                table.remove(&gone);
                continue;
            }
            let local = socket(address, port);
            // Only a socket with an address of its own is connected.
            let remote = remote.map(|(address, port)| socket(address, port)).filter(|remote| {
                let fixed = !local.ip().is_unspecified() && !remote.ip().is_unspecified();
                fixed && remote.is_ipv4() == local.is_ipv4()
            });
            let id = SocketId::new(number as u32, 1);
            let new = Place { id, local, remote, v6only, reuse_address: true, reuse_port: false };
            prop_assert_eq!(table.check(&new), Ok(()));
            table.insert(new);
            all.push(new);
        }
        for (to, from) in [(2, 3), (3, 2), (4, 5), (5, 4)] {
            for (to_port, from_port) in [(1, 1), (1, 2), (2, 1)] {
                let (local, remote) = (socket(to, to_port), socket(from, from_port));
                let best = all
                    .iter()
                    .filter_map(|place| score(place, local, remote).map(|score| (score, place.id)))
                    .max();
                prop_assert_eq!(table.lookup(local, remote), best.map(|(_, id)| id));
            }
        }
    }
}
