//! Owns the TAP port: an Ethernet interface of the kernel whose other end is this process. Called by
//! the service, and by tests and benches inside namespaces of their own. Frames carry the virtio-net
//! header (`virtio.rs`); the interface is set up by `netlink.rs`. It is gone when the last
//! descriptor is closed, also by a kill. Read Documentation/networking/tuntap.rst of the kernel.

#[cfg(test)]
mod tests;

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use haypile_shm::pool::FramePool;

use crate::error::LinkError;
use crate::netlink::Netlink;
use crate::port::{
    ETHERNET_HEADER_LEN, Features, Port, PortCounters, RxFrame, TX_HEADROOM, TxFrame, VLAN_TAG_LEN,
};
use crate::{sys, virtio};

const DEVICE: &str = "/dev/net/tun";
/// The kernel puts the first free number in place of `%d`.
const NAME_PATTERN: &str = "haypile%d";
/// Where a received frame starts in its chunk: as for sent frames, so that the IP header is aligned.
const RX_FRAME_OFFSET: usize = TX_HEADROOM;
const RX_HEADER_OFFSET: usize = RX_FRAME_OFFSET - virtio::HEADER_LEN;
/// A call that a signal cut short is made again at most this often.
const INTERRUPTED_MAX: u32 = 8;

const _: () = assert!(TX_HEADROOM >= virtio::HEADER_LEN);

/// How to make a TAP.
#[derive(Clone, Debug)]
pub struct TapConfig {
    /// Name of the interface, at most 15 bytes, not taken yet; `None` = the first free of haypile0,
    /// haypile1, ...
    pub name: Option<String>,
    /// Largest IP packet, in bytes: 68..=65521 (1280 at least for IPv6).
    pub mtu: u16,
    /// Ethernet address of our end (the host's end keeps the one the kernel chose).
    pub mac: [u8; 6],
    /// Addresses of the host's end with their prefix lengths.
    pub host_addresses: Vec<(IpAddr, u8)>,
    /// How many frames may wait for us before the kernel drops, 1 at least.
    pub queue_len: u32,
    /// Lets the kernel hand out frames whose transport checksum is unfinished (they come with
    /// `checksum_valid`), which spares it the work.
    pub receive_checksum: bool,
    /// Allows [`Tap::another_queue`].
    pub multi_queue: bool,
}

impl TapConfig {
    /// A TAP with the first free name, without host addresses, checksum offload or further queues.
    /// Its queue holds a frame of each of many thousand connections, because they do speak at once
    /// and each frame that the kernel drops costs its sender a time-out.
    pub fn new(mtu: u16, mac: [u8; 6]) -> TapConfig {
        TapConfig {
            name: None,
            mtu,
            mac,
            host_addresses: Vec::new(),
            queue_len: 16_384,
            receive_checksum: false,
            multi_queue: false,
        }
    }
}

/// One queue of a TAP interface.
#[derive(Debug)]
pub struct Tap {
    device: File,
    name: String,
    index: u32,
    mtu: u16,
    mac: [u8; 6],
    receive_checksum: bool,
    multi_queue: bool,
    counters: PortCounters,
}

/// What became of one frame to be sent.
enum Sent {
    Done,
    Blocked,
    Gone(io::Error),
}

impl Tap {
    /// Makes the interface in the calling thread's network namespace, sets it up and gives it its
    /// host addresses, which can be bound and receive when this returns.
    ///
    /// # Errors
    /// When the device cannot be opened, the name is taken, or the kernel refuses a setting; nothing
    /// is left behind then.
    pub fn open(config: &TapConfig) -> Result<Tap, LinkError> {
        let wanted = config.name.as_deref().unwrap_or(NAME_PATTERN);
        let device = open_device()?;
        let flags = interface_flags(config.multi_queue) | libc::IFF_TUN_EXCL;
        let name = sys::tun_set_interface(device.as_fd(), wanted, flags).map_err(|error| {
            LinkError::new(format!("create the interface {wanted} on {DEVICE}"), error)
        })?;
        set_header(&device, &name)?;
        let offload = if config.receive_checksum { libc::TUN_F_CSUM } else { 0 };
        sys::tun_set_offload(device.as_fd(), offload)
            .map_err(|error| LinkError::new(format!("set the offloads of {name}"), error))?;
        let index = set_up_interface(&name, config)?;
        Ok(Tap {
            device,
            name,
            index,
            mtu: config.mtu,
            mac: config.mac,
            receive_checksum: config.receive_checksum,
            multi_queue: config.multi_queue,
            counters: PortCounters::default(),
        })
    }

    /// Opens a further queue of the same interface. A flow's frames come on the queue that last
    /// sent a frame of that flow.
    ///
    /// # Errors
    /// EINVAL when the TAP was made without `multi_queue`; else as [`Tap::open`]. Must be called in
    /// the namespace the TAP was made in.
    pub fn another_queue(&self) -> Result<Tap, LinkError> {
        let device = open_device()?;
        let attempt = || format!("open a further queue of {}", self.name);
        if !self.multi_queue {
            return Err(LinkError::from_errno(attempt(), libc::EINVAL));
        }
        sys::tun_set_interface(device.as_fd(), &self.name, interface_flags(true))
            .map_err(|error| LinkError::new(attempt(), error))?;
        set_header(&device, &self.name)?;
        Ok(Tap {
            device,
            name: self.name.clone(),
            index: self.index,
            mtu: self.mtu,
            mac: self.mac,
            receive_checksum: self.receive_checksum,
            multi_queue: true,
            counters: PortCounters::default(),
        })
    }

    /// Name of the interface.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The kernel's number of the interface, in the namespace it was made in.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Length of a chunk that holds every frame of this MTU, and shows when one is longer.
    fn chunk_len_min(&self) -> usize {
        RX_FRAME_OFFSET + ETHERNET_HEADER_LEN + VLAN_TAG_LEN + usize::from(self.mtu) + 1
    }

    /// Judges what was read: `received` bytes with the header into a buffer of `capacity`. Returns
    /// the frame's length and whether its checksum is valid; `None` = dropped and counted.
    fn judge(&mut self, header: &[u8], received: usize, capacity: usize) -> Option<(usize, bool)> {
        // The kernel cuts what does not fit without a word: a full buffer may be a cut frame.
        if received >= capacity {
            self.counters.rx_too_long += 1;
            return None;
        }
        let (Some(len), Some(header)) =
            (received.checked_sub(virtio::HEADER_LEN), virtio::parse(header))
        else {
            self.counters.rx_too_short += 1;
            return None;
        };
        if len < ETHERNET_HEADER_LEN {
            self.counters.rx_too_short += 1;
            return None;
        }
        if header.unsegmented {
            self.counters.rx_unsegmented += 1;
            return None;
        }
        self.counters.rx_partial_checksum += u64::from(header.needs_checksum);
        self.counters.rx_frames += 1;
        self.counters.rx_bytes += len as u64;
        Some((len, header.data_valid || header.needs_checksum))
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        for _ in 0..INTERRUPTED_MAX {
            match (&self.device).read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn send(&mut self, pool: &mut FramePool, frame: &mut TxFrame) -> Sent {
        let (offset, len) = (usize::from(frame.offset), frame.len as usize);
        if len < ETHERNET_HEADER_LEN {
            self.counters.tx_too_short += 1;
            return Sent::Done;
        }
        let chunk = pool.bytes_mut(&mut frame.frame);
        let too_long = len > ETHERNET_HEADER_LEN + usize::from(self.mtu);
        if too_long || offset < virtio::HEADER_LEN || offset + len > chunk.len() {
            self.counters.tx_too_long += 1;
            return Sent::Done;
        }
        let bytes = &mut chunk[offset - virtio::HEADER_LEN..offset + len];
        bytes[..virtio::HEADER_LEN].copy_from_slice(&virtio::COMPLETE);
        self.write(bytes, len)
    }

    fn write(&mut self, bytes: &[u8], len: usize) -> Sent {
        for _ in 0..INTERRUPTED_MAX {
            let Err(error) = (&self.device).write(bytes) else {
                self.counters.tx_frames += 1;
                self.counters.tx_bytes += len as u64;
                return Sent::Done;
            };
            match (error.kind(), error.raw_os_error()) {
                (io::ErrorKind::Interrupted, _) => {}
                (io::ErrorKind::WouldBlock, _) => break,
                (_, Some(libc::EIO)) => {
                    self.counters.interface_down += 1;
                    return Sent::Done;
                }
                (_, Some(libc::EBADFD | libc::ENODEV)) => return Sent::Gone(error),
                _ => {
                    self.counters.tx_refused += 1;
                    return Sent::Done;
                }
            }
        }
        self.counters.tx_blocked += 1;
        Sent::Blocked
    }
}

impl Port for Tap {
    fn rx_burst(
        &mut self,
        pool: &mut FramePool,
        out: &mut Vec<RxFrame>,
        max: usize,
    ) -> io::Result<usize> {
        let mut received = 0;
        // Dropped frames count towards `max` too, so that a flood of them cannot hold the caller.
        for _ in 0..max {
            let Some(mut frame) = pool.alloc() else {
                self.counters.rx_no_chunk += 1;
                break;
            };
            let chunk = pool.bytes_mut(&mut frame);
            if chunk.len() < self.chunk_len_min() {
                pool.free(frame);
                return Err(small_chunks());
            }
            let buffer = &mut chunk[RX_HEADER_OFFSET..];
            let result = self.read(buffer);
            let accepted = match &result {
                Ok(len) => self.judge(buffer, *len, buffer.len()),
                Err(_) => None,
            };
            let Some((len, checksum_valid)) = accepted else {
                pool.free(frame);
                match result {
                    Ok(_) => continue,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) if error.raw_os_error() == Some(libc::EIO) => {
                        self.counters.interface_down += 1;
                        break;
                    }
                    Err(error) => return Err(error),
                }
            };
            let offset = RX_FRAME_OFFSET as u16;
            out.push(RxFrame { frame, offset, len: len as u32, checksum_valid, segment_size: 0 });
            received += 1;
        }
        Ok(received)
    }

    fn tx_burst(&mut self, pool: &mut FramePool, frames: &mut Vec<TxFrame>) -> io::Result<usize> {
        let mut done = 0;
        let mut gone = None;
        for frame in frames.iter_mut() {
            match self.send(pool, frame) {
                Sent::Done => done += 1,
                Sent::Blocked => break,
                Sent::Gone(error) => {
                    gone = Some(error);
                    break;
                }
            }
        }
        for sent in frames.drain(..done) {
            pool.free(sent.frame);
        }
        gone.map_or(Ok(done), Err)
    }

    fn features(&self) -> Features {
        Features {
            rx_checksum: self.receive_checksum,
            multi_queue: self.multi_queue,
            ..Features::default()
        }
    }

    fn mtu(&self) -> u16 {
        self.mtu
    }

    fn mac(&self) -> [u8; 6] {
        self.mac
    }

    fn wait_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }

    fn counters(&self) -> PortCounters {
        self.counters
    }

    fn describe(&self) -> String {
        format!(
            "tap {}: MTU {}, {}, virtio-net header, receive checksum offload {}, no transmit \
             offloads, one read or write a frame",
            self.name,
            self.mtu,
            if self.multi_queue { "multi-queue" } else { "one queue" },
            if self.receive_checksum { "on" } else { "off" },
        )
    }
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

fn set_up_interface(name: &str, config: &TapConfig) -> Result<u32, LinkError> {
    let mut netlink = Netlink::open()?;
    let index = netlink.link_by_name(name)?.index;
    netlink.set_mtu(index, u32::from(config.mtu))?;
    netlink.set_queue_len(index, config.queue_len)?;
    netlink.set_up(index)?;
    for &(address, prefix_len) in &config.host_addresses {
        netlink.add_address(index, address, prefix_len)?;
    }
    for &(address, _) in &config.host_addresses {
        netlink.wait_until_local(address)?;
    }
    Ok(index)
}

fn small_chunks() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        "the frame pool's chunks are smaller than the MTU needs; lower the MTU or enlarge them",
    )
}
