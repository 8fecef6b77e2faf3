//! Without root: a user and network namespace of its own, and a veth pair made in it. Has its own
//! `main`, because a process with several threads cannot make a user namespace.

use haypile_link::netlink::{Netlink, PeerNamespace};
use haypile_link::netns;

fn main() {
    if let Err(error) = netns::new_user_and_network_namespace() {
        println!("skipped: {error}");
        return;
    }
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc is mounted");
    let users = status.lines().find(|line| line.starts_with("Uid:")).expect("every status has it");
    assert_eq!(users, "Uid:\t0\t0\t0\t0", "the user appears as root");
    netns::loopback_up().expect("the loopback is ours");
    let mut netlink = Netlink::open().expect("netlink opens");
    netlink.create_veth("left", "right", PeerNamespace::Same).expect("the namespace is ours");
    let index = netlink.link_by_name("left").expect("it was made").index;
    let address = "198.18.0.1".parse().expect("an address");
    netlink.add_address(index, address, 24).expect("the interface is ours");
    netlink.set_up(index).expect("the interface is ours");
    let found = netlink.addresses().expect("the list is readable");
    assert!(found.iter().any(|entry| entry.address == address));
    println!("test user and network namespace ... ok");
}
