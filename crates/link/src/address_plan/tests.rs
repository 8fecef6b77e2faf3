//! The choice on made-up machines, and reserving in namespaces that the tests make.

use std::os::fd::AsFd;

use super::*;
use crate::netlink::PeerNamespace;
use crate::netns::{self, Namespace};

fn address(text: &str, prefix_len: u8) -> Address {
    Address { link: 2, address: text.parse().unwrap(), prefix_len, flags: 0 }
}

fn route(text: &str, prefix_len: u8) -> Route {
    Route {
        destination: text.parse().unwrap(),
        prefix_len,
        gateway: None,
        link: Some(2),
        table: 254,
        kind: 1,
        priority: 0,
    }
}

fn number(addresses: &[Address], routes: &[Route]) -> Option<u8> {
    choose(addresses, routes, |_| false).map(|plan| plan.number)
}

#[test]
fn the_first_network_on_a_quiet_machine() {
    let routes = [route("0.0.0.0", 0), route("::", 0), route("10.0.0.0", 8)];
    let plan = choose(&[address("10.1.2.3", 8)], &routes, |_| false).unwrap();
    let text = |pairs: [(IpAddr, u8); 2]| pairs.map(|(ip, len)| format!("{ip}/{len}"));
    assert_eq!(text(plan.host()), ["198.18.0.1/24", "2001:2::1/64"]);
    assert_eq!(text(plan.service()), ["198.18.0.2/24", "2001:2::2/64"]);
    let tenth = AddressPlan { number: 16 };
    assert_eq!(text(tenth.service()), ["198.18.16.2/24", "2001:2:0:10::2/64"]);
}

#[test]
fn addresses_and_routes_of_either_family_push_it_on() {
    assert_eq!(number(&[address("198.18.0.9", 32)], &[]), Some(1));
    assert_eq!(number(&[address("198.18.0.9", 23)], &[]), Some(2));
    assert_eq!(number(&[address("2001:2::9", 128)], &[]), Some(1));
    assert_eq!(number(&[address("2001:2:0:1::9", 64)], &[]), Some(0));
    let both = [address("198.18.0.9", 24), address("2001:2:0:1::9", 64)];
    assert_eq!(number(&both, &[route("198.18.2.0", 24)]), Some(3));
    assert_eq!(number(&[], &[route("198.18.0.0", 17)]), Some(128));
}

#[test]
fn broad_routes_do_not_count_but_the_range_itself_does() {
    assert_eq!(number(&[], &[route("128.0.0.0", 1), route("2000::", 3)]), Some(0));
    assert_eq!(number(&[], &[route("198.18.0.0", 15)]), None);
    assert_eq!(number(&[], &[route("2001:2::", 48)]), None);
}

#[test]
fn refused_plans_are_passed_over() {
    let plan = choose(&[], &[], |plan| plan.number < 3);
    assert_eq!(plan.map(|plan| plan.number), Some(3));
    assert_eq!(choose(&[], &[], |_| true), None);
}

#[test]
fn reservations_differ_within_a_namespace_and_end_with_their_holder() {
    let namespace = match Namespace::create() {
        Ok(namespace) => namespace,
        Err(error) => return println!("skipped: {error}"),
    };
    netns::run_in(namespace.as_fd(), || {
        let (first, second) = (plan().unwrap(), plan().unwrap());
        assert_eq!((first.plan().number, second.plan().number), (0, 1));
        drop(first);
        let again = plan().unwrap();
        assert_eq!(again.plan().number, 0);
        drop(again);
        let mut netlink = Netlink::open().unwrap();
        netlink.create_veth("left", "right", PeerNamespace::Same).unwrap();
        let index = netlink.link_by_name("left").unwrap().index;
        for (address, prefix_len) in (AddressPlan { number: 0 }).host() {
            netlink.add_address(index, address, prefix_len).unwrap();
        }
        assert_eq!(plan().unwrap().plan().number, 2);
    })
    .unwrap();
}
