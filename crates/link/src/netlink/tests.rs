//! The parser against made-up and arbitrary bytes; the client against the kernel, in namespaces the
//! tests make.

use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::AsFd;
use std::time::Duration;

use proptest::prelude::*;

use super::message::{Malformed, set_sequence, u16_at};
use super::*;
use crate::netns::{self, Namespace};

const V4: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 18, 7, 1));
const V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 2, 0, 7, 0, 0, 0, 1));

/// Runs the test in a network namespace of its own, on a thread of its own.
fn in_namespace(test: impl FnOnce(&Namespace) + Send) {
    match Namespace::create() {
        Ok(namespace) => netns::run_in(namespace.as_fd(), || test(&namespace)).unwrap(),
        Err(error) => println!("skipped: {error}"),
    }
}

#[test]
fn request_layout() {
    let request = Request::new(16, 5, &[9; 4])
        .attribute_text(3, "lo")
        .nested(18, &[], |inner| inner.attribute(1, b"veth!"))
        .finish(77);
    assert_eq!(u32_at(&request, 0), Some(request.len() as u32));
    assert_eq!((u16_at(&request, 4), u16_at(&request, 6)), (Some(16), Some(5)));
    let message = messages(&request).next().unwrap().unwrap();
    assert_eq!((message.kind, message.flags, message.sequence), (16, 5, 77));
    let parsed: Vec<_> = attributes(&message.payload[4..]).collect();
    assert_eq!(parsed.len(), 2);
    assert_eq!(parsed[0], (3, b"lo\0".as_slice()));
    assert_eq!(parsed[1].0, 18);
    assert_eq!(attributes(parsed[1].1).collect::<Vec<_>>(), [(1, b"veth!".as_slice())]);
}

#[test]
fn malformed_messages_end_the_list() {
    let mut bytes = Request::new(16, 0, &[]).finish(1);
    assert_eq!(messages(&bytes).count(), 1);
    bytes[0..4].copy_from_slice(&15_u32.to_ne_bytes());
    assert!(matches!(messages(&bytes).next(), Some(Err(Malformed))));
    bytes[0..4].copy_from_slice(&17_u32.to_ne_bytes());
    let parsed: Vec<_> = messages(&bytes).collect();
    assert!(matches!(parsed.as_slice(), [Err(Malformed)]));
    // An attribute of length 0 would loop for ever in a careless parser.
    assert_eq!(attributes(&[0, 0, 1, 0, 0, 0, 1, 0]).count(), 0);
}

#[test]
fn error_messages_carry_errno_and_sentence() {
    let request = Request::new(16, 0, &[]).finish(5);
    let mut payload = (-libc::EEXIST).to_ne_bytes().to_vec();
    payload.extend_from_slice(&request);
    let plain = Request::new(NLMSG_ERROR, NLM_F_CAPPED, &payload).finish(5);
    let with_text = Request::new(NLMSG_ERROR, NLM_F_CAPPED | NLM_F_ACK_TLVS, &payload)
        .attribute_text(NLMSGERR_ATTR_MSG, "taken")
        .finish(5);
    for (bytes, sentence) in [(plain, None), (with_text, Some("taken".to_owned()))] {
        let message = messages(&bytes).next().unwrap().unwrap();
        match acknowledgement(&message) {
            Err(Refusal::Kernel(error, text)) => {
                assert_eq!(error.raw_os_error(), Some(libc::EEXIST));
                assert_eq!(text, sentence);
            }
            _ => panic!("not recognised as a refusal"),
        }
    }
}

proptest! {
    #[test]
    fn parser_is_total(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), len in 0_u32..300) {
        if bytes.len() >= 16 {
            bytes[0..4].copy_from_slice(&len.to_ne_bytes());
            set_sequence(&mut bytes, 1);
        }
        for message in messages(&bytes).flatten() {
            let _ = acknowledgement(&message);
            let _ = extended_message(&message);
        }
        let _ = (list::parse_link(&bytes), list::parse_address(&bytes));
        let _ = (list::parse_route(&bytes), list::parse_listed_route(&bytes));
        prop_assert!(attributes(&bytes).count() <= bytes.len() / 4 + 1);
    }
}

#[test]
fn a_new_namespace_holds_only_loopback() {
    in_namespace(|_| {
        let mut netlink = Netlink::open().unwrap();
        let loopback = netlink.link_by_name("lo").unwrap();
        assert!(loopback.is_loopback() && !loopback.is_up());
        assert!(netlink.addresses().unwrap().is_empty());
        netns::loopback_up().unwrap();
        assert!(netlink.link_by_name("lo").unwrap().is_up());
        let addresses = netlink.addresses().unwrap();
        assert!(addresses.iter().any(|a| a.address == IpAddr::V4(Ipv4Addr::LOCALHOST)));
        assert!(netlink.routes().unwrap().iter().any(|r| r.table == 255));
    });
}

#[test]
fn links_are_made_changed_and_removed() {
    in_namespace(|_| {
        let mut netlink = Netlink::open().unwrap();
        netlink.create_veth("left", "right", PeerNamespace::Same).unwrap();
        let left = netlink.link_by_name("left").unwrap();
        assert_eq!(left.kind.as_deref(), Some("veth"));
        netlink.set_name(left.index, "lefty").unwrap();
        netlink.set_mtu(left.index, 1400).unwrap();
        netlink.set_mac(left.index, [2, 0, 0, 0, 0, 7]).unwrap();
        netlink.set_queue_len(left.index, 77).unwrap();
        netlink.set_up(left.index).unwrap();
        let changed = netlink.link_by_name("lefty").unwrap();
        assert_eq!((changed.mtu, changed.mac), (1400, Some([2, 0, 0, 0, 0, 7])));
        assert!(changed.is_up());
        netlink.set_down(left.index).unwrap();
        assert!(!netlink.link_by_name("lefty").unwrap().is_up());
        netlink.delete_link(left.index).unwrap();
        assert!(netlink.link_by_name("right").is_err());
    });
}

#[test]
fn addresses_routes_and_neighbours_are_added_and_listed() {
    in_namespace(|_| {
        let mut netlink = Netlink::open().unwrap();
        netlink.create_veth("left", "right", PeerNamespace::Same).unwrap();
        let index = netlink.link_by_name("left").unwrap().index;
        netlink.set_up(index).unwrap();
        netlink.add_address(index, V4, 24).unwrap();
        netlink.add_address(index, V6, 64).unwrap();
        let addresses = netlink.addresses().unwrap();
        for (address, prefix_len) in [(V4, 24), (V6, 64)] {
            let found = addresses.iter().find(|a| a.address == address).unwrap();
            assert_eq!((found.link, found.prefix_len), (index, prefix_len));
        }
        let gateway = IpAddr::V4(Ipv4Addr::new(198, 18, 7, 2));
        let far = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 0));
        netlink.add_route(far, 24, Some(gateway), index).unwrap();
        let default = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        netlink.add_route(default, 0, None, index).unwrap();
        let near = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 0));
        netlink.add_route(near, 25, None, index).unwrap();
        let routes = netlink.routes().unwrap();
        let find = |address: IpAddr, prefix_len| {
            routes
                .iter()
                .find(|r| r.table == 254 && r.destination == address && r.prefix_len == prefix_len)
                .cloned()
        };
        assert_eq!(find(far, 24).unwrap().gateway, Some(gateway));
        assert_eq!(find(near, 25).unwrap().link, Some(index));
        assert_eq!(find(default, 0).unwrap().gateway, None);
        netlink.add_neighbour(index, gateway, [2, 0, 0, 0, 0, 9]).unwrap();
    });
}

#[test]
fn routes_to_an_address_tell_when_it_receives() {
    in_namespace(|_| {
        let mut netlink = Netlink::open().unwrap();
        assert_eq!(netlink.route_to(V4).unwrap(), None);
        assert_eq!(netlink.route_to(V6).unwrap(), None);
        netlink.create_veth("left", "right", PeerNamespace::Same).unwrap();
        let (left, right) =
            (netlink.link_by_name("left").unwrap(), netlink.link_by_name("right").unwrap());
        netlink.set_up(left.index).unwrap();
        netlink.set_up(right.index).unwrap();
        for (address, prefix_len) in [(V4, 24), (V6, 64)] {
            netlink.add_address(left.index, address, prefix_len).unwrap();
            netlink.wait_until_local(address).unwrap();
            assert!(netlink.route_to(address).unwrap().unwrap().is_local());
        }
        let neighbour = IpAddr::V4(Ipv4Addr::new(198, 18, 7, 2));
        let route = netlink.route_to(neighbour).unwrap().unwrap();
        assert_eq!((route.is_local(), route.link), (false, Some(left.index)));
        // It has waited, and been asked, and is not ours.
        let late = netlink.wait(
            Duration::from_millis(20),
            || "wait".into(),
            |netlink| Ok(netlink.route_to(neighbour)?.unwrap().is_local()),
        );
        assert_eq!(late.unwrap_err().errno(), Some(libc::ETIMEDOUT));
    });
}

#[test]
fn an_interface_runs_when_its_carrier_is_noted() {
    in_namespace(|_| {
        let mut netlink = Netlink::open().unwrap();
        netlink.create_veth("left", "right", PeerNamespace::Same).unwrap();
        let left = netlink.link_by_name("left").unwrap().index;
        let right = netlink.link_by_name("right").unwrap().index;
        netlink.add_address(left, V4, 24).unwrap();
        netlink.set_up(left).unwrap();
        assert!(!netlink.link_by_name("left").unwrap().is_running());
        netlink.wait_until_noted(left).unwrap();
        netlink.set_up(right).unwrap();
        netlink.wait_until_running(left).unwrap();
        netlink.wait_until_running(right).unwrap();
        netlink.wait_until_noted(left).unwrap();
        netlink.set_down(right).unwrap();
        assert!(!netlink.link_by_name("right").unwrap().is_running());
        netlink.delete_link(right).unwrap();
        assert_eq!(netlink.wait_until_running(left).unwrap_err().errno(), Some(libc::ENODEV));
    });
}

#[test]
fn errors_name_the_interface_and_what_to_do() {
    in_namespace(|_| {
        let mut netlink = Netlink::open().unwrap();
        netlink.create_veth("left", "right", PeerNamespace::Same).unwrap();
        let again = netlink.create_veth("left", "other", PeerNamespace::Same).unwrap_err();
        assert_eq!(again.errno(), Some(libc::EEXIST));
        assert!(again.to_string().contains("make the veth pair left and other"), "{again}");
        let index = netlink.link_by_name("left").unwrap().index;
        let refused = netlink.set_mtu(index, 17).unwrap_err();
        assert_eq!(refused.errno(), Some(libc::EINVAL));
        assert!(refused.to_string().contains("cannot set the MTU of left to 17"), "{refused}");
        netlink.add_address(index, V4, 24).unwrap();
        let twice = netlink.add_address(index, V4, 24).unwrap_err();
        assert!(twice.to_string().contains("198.18.7.1/24 to left"), "{twice}");
        let nobody = netlink.set_up(9999).unwrap_err();
        assert_eq!(nobody.errno(), Some(libc::ENODEV));
        // The socket still answers after refusals.
        assert!(netlink.links().unwrap().len() >= 3);
    });
}

#[test]
fn a_route_can_say_the_congestion_control() {
    in_namespace(|_| {
        let mut netlink = Netlink::open().unwrap();
        netlink.create_veth("left", "right", PeerNamespace::Same).unwrap();
        let index = netlink.link_by_name("left").unwrap().index;
        netlink.add_address(index, V4, 24).unwrap();
        netlink.set_up(index).unwrap();
        let peer = IpAddr::V4(Ipv4Addr::new(198, 18, 7, 2));
        // Every kernel has Reno.
        netlink.add_host_route_with_congestion_control(peer, index, "reno").unwrap();
        let routes = netlink.routes().unwrap();
        assert!(routes.iter().any(|route| route.destination == peer && route.prefix_len == 32));
        let unknown = netlink.add_host_route_with_congestion_control(V4, index, "no-such-one");
        assert!(unknown.unwrap_err().to_string().contains("left with no-such-one"));
    });
}

#[test]
fn a_veth_pair_joins_two_namespaces() {
    in_namespace(|near| {
        let far = Namespace::create().unwrap();
        let mut netlink = Netlink::open().unwrap();
        netlink.create_veth("near", "far", PeerNamespace::Descriptor(far.as_fd())).unwrap();
        let index = netlink.link_by_name("near").unwrap().index;
        assert!(netlink.link_by_name("far").is_err());
        netlink.set_up(index).unwrap();
        netlink.add_address(index, V4, 24).unwrap();
        let far_address = IpAddr::V4(Ipv4Addr::new(198, 18, 7, 2));
        let receiver = netns::run_in(far.as_fd(), || {
            let mut netlink = Netlink::open().unwrap();
            let index = netlink.link_by_name("far").unwrap().index;
            netlink.set_up(index).unwrap();
            netlink.add_address(index, far_address, 24).unwrap();
            netlink.wait_until_running(index).unwrap();
            UdpSocket::bind((far_address, 0)).unwrap()
        })
        .unwrap();
        netlink.wait_until_running(index).unwrap();
        // A socket stays in the namespace it was made in.
        receiver.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let sender = UdpSocket::bind((V4, 0)).unwrap();
        sender.send_to(b"across", receiver.local_addr().unwrap()).unwrap();
        let mut buffer = [0; 16];
        let (len, from) = receiver.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..len], from), (b"across".as_slice(), sender.local_addr().unwrap()));
        assert!(near.as_fd().try_clone_to_owned().is_ok());
    });
}
