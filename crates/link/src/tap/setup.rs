//! Owns making a TAP: the device, its header, what it leaves to whom, the interface's addresses.
//! Called by `tap.rs`, when a queue is opened or taken over; nothing here runs once per packet.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use super::{Offload, TapConfig, TapFacts};
use crate::error::LinkError;
use crate::netlink::Netlink;
use crate::steering::{QUEUES_MAX, Rule, Steering, SteeringMap};
use crate::{sys, virtio};

/// The device of which every queue is an open file.
pub(super) const DEVICE: &str = "/dev/net/tun";
/// The kernel puts the first free number in place of `%d`.
const NAME_PATTERN: &str = "haypile%d";
const RANDOMNESS: &str = "/dev/urandom";
/// UDP batches over both IP versions (Linux 6.2 and newer).
const UDP_BATCHES: u32 = libc::TUN_F_USO4 | libc::TUN_F_USO6;

/// A queue, and what is known of it.
pub(super) type Queue = (File, TapFacts);

/// Makes the interface with its first queue and sets it up.
pub(super) fn open(config: &TapConfig) -> Result<(File, TapFacts), LinkError> {
    let (device, facts) = make(config)?;
    set_up_interface(facts.index, facts.multi_queue, config)?;
    Ok((device, facts))
}

/// Makes the interface, still down, and its first queue.
fn make(config: &TapConfig) -> Result<(File, TapFacts), LinkError> {
    let wanted = config.name.as_deref().unwrap_or(NAME_PATTERN);
    let device = open_device()?;
    let flags = interface_flags(config.multi_queue) | libc::IFF_TUN_EXCL;
    let name = sys::tun_set_interface(device.as_fd(), wanted, flags).map_err(|error| {
        LinkError::new(format!("create the interface {wanted} on {DEVICE}"), error)
    })?;
    set_header(&device, &name)?;
    let udp_batches_known = set_offload(&device, &name, config.offload)?;
    let facts = TapFacts {
        index: Netlink::open()?.link_by_name(&name)?.index,
        name,
        mtu: config.mtu,
        mac: config.mac,
        offload: config.offload,
        multi_queue: config.multi_queue,
        queues: 1,
        steering: None,
        udp_batches_known,
    };
    Ok((device, facts))
}

/// Makes the interface with several queues and tells the kernel how to choose among them, before
/// there is anything to choose for: it is set up last.
pub(super) fn open_queues(
    config: &TapConfig,
    count: u16,
) -> Result<(Vec<Queue>, Option<SteeringMap>), LinkError> {
    if !(1..=QUEUES_MAX).contains(&count) {
        return Err(LinkError::from_errno(format!("open {count} queues"), libc::EINVAL));
    }
    let multi_queue = config.multi_queue || count > 1;
    let (device, mut facts) = make(&TapConfig { multi_queue, ..config.clone() })?;
    facts.queues = count;
    let mut devices = vec![device];
    let mut map = None;
    for _ in 1..count {
        devices.push(open_further_queue(&facts)?);
    }
    if count > 1 {
        let steering = match &config.steering {
            Some(steering) => steering.clone(),
            None => own_steering(count)?,
        };
        if let Ok(made) = steer(devices[0].as_fd(), &steering) {
            (facts.steering, map) = (Some(steering), Some(made));
        }
    }
    set_up_interface(facts.index, facts.multi_queue, config)?;
    Ok((devices.into_iter().map(|device| (device, facts.clone())).collect(), map))
}

/// By a key of our own.
fn own_steering(queues: u16) -> Result<Steering, LinkError> {
    let mut key = [0; 8];
    File::open(RANDOMNESS)
        .and_then(|mut source| source.read_exact(&mut key))
        .map_err(|error| LinkError::new(format!("read {RANDOMNESS}"), error))?;
    Ok(Steering::new(u64::from_ne_bytes(key), Rule::Hash, queues))
}

/// Sets the program, if the kernel takes it.
pub(super) fn steer(device: BorrowedFd<'_>, steering: &Steering) -> io::Result<SteeringMap> {
    let map = SteeringMap::new(steering)?;
    let program = map.load_program(steering)?;
    sys::tun_set_steering(device, program.as_fd())?;
    Ok(map)
}

/// Opens one more queue; what the interface leaves to us is the same for all queues.
pub(super) fn open_further_queue(facts: &TapFacts) -> Result<File, LinkError> {
    let device = open_device()?;
    let attempt = || format!("open a further queue of {}", facts.name);
    if !facts.multi_queue {
        return Err(LinkError::from_errno(attempt(), libc::EINVAL));
    }
    sys::tun_set_interface(device.as_fd(), &facts.name, interface_flags(true))
        .map_err(|error| LinkError::new(attempt(), error))?;
    set_header(&device, &facts.name)?;
    Ok(device)
}

/// Whether a descriptor is what its facts say.
pub(super) fn check_queue(queue: &OwnedFd, facts: &TapFacts) -> Result<(), LinkError> {
    let attempt = || format!("take over a queue of {}", facts.name);
    let failed = |error| LinkError::new(attempt(), error);
    let (name, flags) = sys::tun_interface(queue.as_fd()).map_err(failed)?;
    let size = sys::tun_header_size(queue.as_fd()).map_err(failed)?;
    let wanted = interface_flags(facts.multi_queue);
    if name != facts.name || flags & wanted != wanted || size != virtio::HEADER_LEN as i32 {
        return Err(LinkError::from_errno(attempt(), libc::EBADFD));
    }
    Ok(())
}

fn open_device() -> Result<File, LinkError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(DEVICE)
        .map_err(|error| LinkError::new(format!("open {DEVICE}"), error))
}

fn interface_flags(multi_queue: bool) -> libc::c_int {
    let queues = if multi_queue { libc::IFF_MULTI_QUEUE } else { 0 };
    libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | queues
}

fn set_header(device: &File, name: &str) -> Result<(), LinkError> {
    sys::tun_set_header_size(device.as_fd(), virtio::HEADER_LEN as i32)
        .and_then(|()| sys::tun_set_header_little_endian(device.as_fd()))
        .map_err(|error| LinkError::new(format!("set the virtio-net header of {name}"), error))
}

/// Tells the kernel what it may leave undone; whether it knows batches of UDP datagrams.
fn set_offload(device: &File, name: &str, offload: Offload) -> Result<bool, LinkError> {
    let segmentation = libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
    let probe = libc::TUN_F_CSUM | segmentation | UDP_BATCHES;
    let udp_batches_known = sys::tun_set_offload(device.as_fd(), probe).is_ok();
    let flags = match offload {
        Offload::None => 0,
        Offload::Checksum => libc::TUN_F_CSUM,
        Offload::Segmentation => libc::TUN_F_CSUM | segmentation,
    };
    sys::tun_set_offload(device.as_fd(), flags)
        .map_err(|error| LinkError::new(format!("set the offloads of {name}"), error))?;
    Ok(udp_batches_known)
}

fn set_up_interface(index: u32, multi_queue: bool, config: &TapConfig) -> Result<(), LinkError> {
    let mut netlink = Netlink::open()?;
    netlink.set_mtu(index, u32::from(config.mtu))?;
    netlink.set_queue_len(index, config.queue_len)?;
    if multi_queue {
        // Without it the kernel has a queue in front of each that there could be.
        let _: Result<(), LinkError> = netlink.set_no_queue(index);
    }
    netlink.set_up(index)?;
    for &(address, prefix_len) in &config.host_addresses {
        netlink.add_address(index, address, prefix_len)?;
    }
    netlink.wait_until_running(index)?;
    for &(address, _) in &config.host_addresses {
        netlink.wait_until_local(address)?;
    }
    Ok(())
}
