//! Without root: a user and network namespace of its own, and a veth pair made in it. Has its own
//! `main`, because a process with several threads cannot make a user namespace.

use haypile_link::capabilities::{self, Capability};
use haypile_link::netlink::{Netlink, PeerNamespace};
use haypile_link::netns;
use haypile_link::packet::{Attachment, Packet, PacketConfig};
use haypile_link::port::local_mac;
use haypile_link::tap::Offload;

fn users() -> String {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc is mounted");
    let line = status.lines().find(|line| line.starts_with("Uid:"));
    line.expect("every status has it").to_string()
}

fn main() {
    let before = users();
    if let Err(error) = netns::new_user_and_network_namespace() {
        println!("skipped: {error}");
        return;
    }
    assert_eq!(users(), before, "the user stays who it is");
    assert!(Capability::NetAdmin.is_effective());
    netns::loopback_up().expect("the loopback is ours");
    let mut netlink = Netlink::open().expect("netlink opens");
    netlink.create_veth("left", "right", PeerNamespace::Same).expect("the namespace is ours");
    let index = netlink.link_by_name("left").expect("it was made").index;
    let address = "198.18.0.1".parse().expect("an address");
    netlink.add_address(index, address, 24).expect("the interface is ours");
    netlink.set_up(index).expect("the interface is ours");
    let found = netlink.addresses().expect("the list is readable");
    assert!(found.iter().any(|entry| entry.address == address));
    let port = Packet::open(&PacketConfig {
        attachment: Attachment::Pair(vec![("198.18.1.1".parse().expect("an address"), 24)]),
        mtu: 1500,
        mac: local_mac("test"),
        offload: Offload::Segmentation,
    });
    port.expect("a packet port takes nothing more");
    capabilities::hand_on(&[Capability::NetAdmin]).expect("ours");
    capabilities::give_up().expect("given up");
    netlink.set_down(index).expect_err("no more rights");
    println!("test user and network namespace ... ok");
}
