//! Owns every `unsafe` block of this crate: thin safe wrappers over the few system calls that the
//! standard library does not offer (ioctl of /dev/net/tun, netlink sockets, unshare, setns). Called
//! by `tap.rs`, `netlink.rs` and `netns.rs`; nothing here runs once per packet, but for `packet`.

pub(crate) mod packet;

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Length of an interface name with its final zero byte (`IFNAMSIZ`).
pub(crate) const INTERFACE_NAME_SIZE: usize = libc::IFNAMSIZ;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// TUNSETIFF: makes (or, for a further queue, joins) the interface; returns the name the kernel
/// gave it. `name` may end in `%d`: the kernel then takes the first free number.
pub(crate) fn tun_set_interface(
    device: BorrowedFd<'_>,
    name: &str,
    flags: libc::c_int,
) -> io::Result<String> {
    if name.is_empty() || name.len() >= INTERFACE_NAME_SIZE || name.contains('\0') {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: `ifreq` is plain data (integers, byte arrays, a nullable pointer in a union): all
    // zeros is a valid value of it.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (target, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *target = byte as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes exactly one `ifreq`, which lives until the call returns.
    check(unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &mut request) })?;
    interface_name(&request)
}

/// TUNGETIFF: the name of a queue's interface and its flags.
pub(crate) fn tun_interface(device: BorrowedFd<'_>) -> io::Result<(String, libc::c_int)> {
    // SAFETY: `ifreq` is plain data: all zeros is a valid value of it.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    // SAFETY: TUNGETIFF writes exactly one `ifreq`, which lives until the call returns.
    check(unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNGETIFF, &mut request) })?;
    let name = interface_name(&request)?;
    // SAFETY: TUNGETIFF has set the flags, which are a plain integer in the union.
    Ok((name, libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags })))
}

/// TUNGETVNETHDRSZ: the length of the header before each frame, in bytes.
pub(crate) fn tun_header_size(device: BorrowedFd<'_>) -> io::Result<i32> {
    let mut size: libc::c_int = 0;
    // SAFETY: the request writes one `int` through the pointer, which is valid during the call.
    check(unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNGETVNETHDRSZ, &mut size) })?;
    Ok(size)
}

fn interface_name(request: &libc::ifreq) -> io::Result<String> {
    let name: Vec<u8> =
        request.ifr_name.iter().map(|&c| c as u8).take_while(|&byte| byte != 0).collect();
    String::from_utf8(name).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// TUNSETVNETHDRSZ: the length of the header before each frame, in bytes.
pub(crate) fn tun_set_header_size(device: BorrowedFd<'_>, size: i32) -> io::Result<()> {
    // SAFETY: the request reads one `int` through the pointer, which is valid during the call.
    check(unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETVNETHDRSZ, &size) }).map(drop)
}

/// TUNSETVNETLE: the fields of that header are little-endian.
pub(crate) fn tun_set_header_little_endian(device: BorrowedFd<'_>) -> io::Result<()> {
    let enabled: libc::c_int = 1;
    // SAFETY: the request reads one `int` through the pointer, which is valid during the call.
    check(unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETVNETLE, &enabled) }).map(drop)
}

/// TUNSETOFFLOAD: what the kernel may leave undone in the frames it hands out (`TUN_F_*`).
pub(crate) fn tun_set_offload(device: BorrowedFd<'_>, flags: u32) -> io::Result<()> {
    // SAFETY: the request takes its argument by value; no memory is passed.
    check(unsafe {
        libc::ioctl(device.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags))
    })
    .map(drop)
}

/// The start of `union bpf_attr` for BPF_PROG_LOAD.
#[repr(C)]
struct ProgramLoad {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
}

/// The start of `union bpf_attr` for BPF_MAP_CREATE.
#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
}

/// The start of `union bpf_attr` for BPF_MAP_UPDATE_ELEM.
#[repr(C)]
struct MapUpdate {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_TYPE_SOCKET_FILTER: u32 = 1;

/// BPF_MAP_CREATE: an array with one value of this many bytes, all zero.
pub(crate) fn bpf_create_array(value_len: usize) -> io::Result<OwnedFd> {
    let attributes = MapCreate {
        map_type: BPF_MAP_TYPE_ARRAY,
        key_size: size_of::<u32>() as u32,
        value_size: value_len as u32,
        max_entries: 1,
        flags: 0,
    };
    // SAFETY: the kernel reads the attributes, which live until the call returns.
    let raw = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_MAP_CREATE,
            &raw const attributes,
            size_of_val(&attributes),
        )
    };
    let raw = check(raw as libc::c_int)?;
    // SAFETY: `raw` was just returned by bpf(2) and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// BPF_MAP_UPDATE_ELEM: sets the only value of an array that [`bpf_create_array`] made with as many
/// bytes as `value` has.
pub(crate) fn bpf_set_array(map: BorrowedFd<'_>, value: &[u16]) -> io::Result<()> {
    let key: u32 = 0;
    let attributes = MapUpdate {
        map: map.as_raw_fd() as u32,
        padding: 0,
        key: &raw const key as u64,
        value: value.as_ptr() as u64,
        flags: 0,
    };
    // SAFETY: the kernel reads the attributes, a key of four bytes and a value as long as the map was
    // made with, which the callers keep to; all live until the call returns.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_MAP_UPDATE_ELEM,
            &raw const attributes,
            size_of_val(&attributes),
        )
    };
    check(result as libc::c_int).map(drop)
}

/// BPF_PROG_LOAD of a program of the type `SOCKET_FILTER`, which can look at packets alone.
pub(crate) fn bpf_load_socket_filter(instructions: &[u64]) -> io::Result<OwnedFd> {
    let attributes = ProgramLoad {
        program_type: BPF_PROG_TYPE_SOCKET_FILTER,
        instruction_count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        // It calls nothing that would ask for another one.
        license: c"Dual MIT/GPL".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buffer: 0,
        kernel_version: 0,
        flags: 0,
    };
    // SAFETY: the kernel reads the attributes, the instructions and the licence, all of which live
    // until the call returns, and verifies the program before anybody runs it.
    let raw = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const attributes, size_of_val(&attributes))
    };
    let raw = check(raw as libc::c_int)?;
    // SAFETY: `raw` was just returned by bpf(2) and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// TUNSETSTEERINGEBPF: the program's result, modulo the number of queues, is the queue of a frame.
pub(crate) fn tun_set_steering(device: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let program: libc::c_int = program.as_raw_fd();
    // SAFETY: the request reads one `int` through the pointer, which is valid during the call.
    check(unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETSTEERINGEBPF, &program) }).map(drop)
}

/// TUNSETQUEUE: the interface has this queue no more; what was in it is dropped, and its last queue gets its
/// number. The descriptor stays, of no use.
pub(crate) fn tun_detach_queue(device: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: all bytes zero is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    request.ifr_ifru.ifru_flags = libc::IFF_DETACH_QUEUE as libc::c_short;
    // SAFETY: the request reads one `ifreq` through the pointer, which is valid during the call.
    check(unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETQUEUE, &request) }).map(drop)
}

/// The start of `union bpf_attr` for BPF_PROG_TEST_RUN.
#[cfg(test)]
#[repr(C)]
struct ProgramTest {
    program: u32,
    result: u32,
    input_len: u32,
    output_len: u32,
    input: u64,
    output: u64,
    repeat: u32,
    duration: u32,
}

/// BPF_PROG_TEST_RUN: what a program says of this packet.
#[cfg(test)]
pub(crate) fn bpf_test_run(program: BorrowedFd<'_>, input: &[u8]) -> io::Result<u32> {
    const BPF_PROG_TEST_RUN: libc::c_long = 10;
    let mut attributes = ProgramTest {
        program: program.as_raw_fd() as u32,
        result: 0,
        input_len: input.len() as u32,
        output_len: 0,
        input: input.as_ptr() as u64,
        output: 0,
        repeat: 1,
        duration: 0,
    };
    // SAFETY: the kernel reads the input and reads and writes the attributes; both live until the
    // call returns.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_TEST_RUN,
            &raw mut attributes,
            size_of_val(&attributes),
        )
    };
    check(result as libc::c_int)?;
    Ok(attributes.result)
}

/// epoll(7) over descriptors that become readable.
pub(crate) fn epoll_over(descriptors: &[BorrowedFd<'_>]) -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    let raw = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
    // SAFETY: `raw` was just returned by epoll_create1(2) and nothing else owns it.
    let epoll = unsafe { OwnedFd::from_raw_fd(raw) };
    for descriptor in descriptors {
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 0 };
        // SAFETY: the kernel reads `event`, which lives until the call returns.
        check(unsafe {
            libc::epoll_ctl(raw, libc::EPOLL_CTL_ADD, descriptor.as_raw_fd(), &mut event)
        })?;
    }
    Ok(epoll)
}

/// A netlink socket of the route family, in the calling thread's network namespace, with extended
/// and short acknowledgements, and a receive time-out so that no call waits for ever.
pub(crate) fn netlink_route_socket(timeout_s: i64) -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    let raw = check(unsafe {
        libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE)
    })?;
    // SAFETY: `raw` was just returned by socket(2) and nothing else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(raw) };
    let timeout = libc::timeval { tv_sec: timeout_s, tv_usec: 0 };
    // SAFETY: pointer and length describe `timeout`, which lives until the call returns.
    check(unsafe {
        libc::setsockopt(
            raw,
            libc::SOL_SOCKET,
            libc::SO_RCVTIMEO,
            (&raw const timeout).cast(),
            mem::size_of_val(&timeout) as libc::socklen_t,
        )
    })?;
    // Old kernels know neither; both only make errors more readable and shorter.
    for option in [NETLINK_CAP_ACK, NETLINK_EXT_ACK] {
        let enabled: libc::c_int = 1;
        // SAFETY: pointer and length describe `enabled`, which lives until the call returns.
        let _ = check(unsafe {
            libc::setsockopt(
                raw,
                libc::SOL_NETLINK,
                option,
                (&raw const enabled).cast(),
                mem::size_of_val(&enabled) as libc::socklen_t,
            )
        });
    }
    Ok(socket)
}

const NETLINK_CAP_ACK: libc::c_int = 10;
const NETLINK_EXT_ACK: libc::c_int = 11;

/// Sends one message to the kernel.
pub(crate) fn netlink_send(socket: BorrowedFd<'_>, message: &[u8]) -> io::Result<()> {
    // SAFETY: pointer and length describe `message`; a netlink socket without a peer sends to the
    // kernel.
    let sent = unsafe { libc::send(socket.as_raw_fd(), message.as_ptr().cast(), message.len(), 0) };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    if sent as usize != message.len() {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    Ok(())
}

/// Receives one datagram; returns its length and the sender's port (0 = the kernel). A datagram
/// longer than `buffer` is an error, never a silent cut.
pub(crate) fn netlink_receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
) -> io::Result<(usize, u32)> {
    // SAFETY: `sockaddr_nl` is plain integers: all zeros is a valid value of it.
    let mut sender: libc::sockaddr_nl = unsafe { mem::zeroed() };
    let mut sender_len = mem::size_of_val(&sender) as libc::socklen_t;
    // SAFETY: pointer and length describe `buffer`; `sender` and `sender_len` are valid for writes
    // of the size given in `sender_len`.
    let received = unsafe {
        libc::recvfrom(
            socket.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            libc::MSG_TRUNC,
            (&raw mut sender).cast(),
            &mut sender_len,
        )
    };
    if received < 0 {
        return Err(io::Error::last_os_error());
    }
    if received as usize > buffer.len() {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    Ok((received as usize, sender.nl_pid))
}

/// Gives the calling thread a view of the file system of its own, in which /sys shows its network
/// namespace. The thread must end after that.
pub(crate) fn mount_own_sysfs() -> io::Result<()> {
    unshare(libc::CLONE_NEWNS)?;
    let nothing = std::ptr::null();
    // SAFETY: both paths are constant strings that end with a zero; source, type and data may be
    // null for a change of propagation.
    check(unsafe {
        libc::mount(
            nothing,
            c"/".as_ptr(),
            nothing,
            libc::MS_REC | libc::MS_PRIVATE,
            nothing.cast(),
        )
    })?;
    // SAFETY: as above; sysfs takes no data.
    check(unsafe {
        libc::mount(c"sysfs".as_ptr(), c"/sys".as_ptr(), c"sysfs".as_ptr(), 0, nothing.cast())
    })
    .map(drop)
}

/// unshare(2): the calling thread (for user namespaces: the whole, single-threaded process) leaves
/// the named namespaces for new ones.
pub(crate) fn unshare(flags: libc::c_int) -> io::Result<()> {
    // SAFETY: no memory is passed; namespaces do not affect memory safety.
    check(unsafe { libc::unshare(flags) }).map(drop)
}

/// setns(2): the calling thread enters a network namespace.
pub(crate) fn set_network_namespace(namespace: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no memory is passed; the descriptor is borrowed for the call.
    check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) }).map(drop)
}

/// The capability sets of a thread, a bit for each capability.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct CapabilitySets {
    /// In force now.
    pub(crate) effective: u64,
    /// What may be put in force.
    pub(crate) permitted: u64,
    /// What may go on to programs.
    pub(crate) inheritable: u64,
}

/// `_LINUX_CAPABILITY_VERSION_3`, for the calling thread.
const CAPABILITY_HEADER: [u32; 2] = [0x2008_0522, 0];

/// capget(2) of the calling thread.
pub(crate) fn capabilities() -> io::Result<CapabilitySets> {
    let mut header = CAPABILITY_HEADER;
    // Effective, permitted, inheritable; the low halves first.
    let mut words = [0u32; 6];
    // SAFETY: version 3 reads and writes a header of two words and writes six, all of which live
    // until the call returns.
    let result =
        unsafe { libc::syscall(libc::SYS_capget, header.as_mut_ptr(), words.as_mut_ptr()) };
    check(result as libc::c_int)?;
    let set = |at: usize| u64::from(words[at]) | u64::from(words[at + 3]) << 32;
    Ok(CapabilitySets { effective: set(0), permitted: set(1), inheritable: set(2) })
}

/// capset(2) of the calling thread.
pub(crate) fn set_capabilities(sets: &CapabilitySets) -> io::Result<()> {
    let mut header = CAPABILITY_HEADER;
    let all = [sets.effective, sets.permitted, sets.inheritable];
    let mut words = [0u32; 6];
    for (at, set) in all.into_iter().enumerate() {
        (words[at], words[at + 3]) = (set as u32, (set >> 32) as u32);
    }
    // SAFETY: version 3 reads and writes a header of two words and reads six, all of which live until
    // the call returns.
    let result = unsafe { libc::syscall(libc::SYS_capset, header.as_mut_ptr(), words.as_ptr()) };
    check(result as libc::c_int).map(drop)
}

/// Adds a capability to the calling thread's ambient set, which programs get that it executes.
pub(crate) fn raise_ambient(capability: u32) -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe {
        libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, capability, 0, 0)
    })
    .map(drop)
}

/// Empties the calling thread's ambient set.
pub(crate) fn clear_ambient() -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) })
        .map(drop)
}

/// The effective user and group of the process.
pub(crate) fn effective_user_and_group() -> (u32, u32) {
    // SAFETY: both calls take nothing and cannot fail.
    unsafe { (libc::geteuid(), libc::getegid()) }
}

/// timerfd_create(2) on the monotonic clock, non-blocking and close-on-exec, disarmed.
pub(crate) fn timer_descriptor() -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    let raw = check(unsafe {
        libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_NONBLOCK | libc::TFD_CLOEXEC)
    })?;
    // SAFETY: `raw` was just returned by timerfd_create(2) and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Makes the timer readable in `after_ns` nanoseconds (0: disarms it).
pub(crate) fn set_timer(timer: BorrowedFd<'_>, after_ns: u64) -> io::Result<()> {
    let timespec = |ns: u64| libc::timespec {
        tv_sec: (ns / 1_000_000_000) as libc::time_t,
        tv_nsec: (ns % 1_000_000_000) as _,
    };
    let value = libc::itimerspec { it_interval: timespec(0), it_value: timespec(after_ns) };
    // SAFETY: the call reads one itimerspec, which lives until it returns.
    check(unsafe { libc::timerfd_settime(timer.as_raw_fd(), 0, &value, std::ptr::null_mut()) })
        .map(drop)
}
