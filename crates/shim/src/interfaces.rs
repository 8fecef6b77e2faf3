//! `getifaddrs(3)`: programs that look which addresses they could listen on see those of the service too,
//! before those of the kernel. They belong to the interface by which the kernel reaches the service, if there is
//! one.

use core::ffi::{CStr, c_char, c_int};
use core::mem::{size_of, zeroed};
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};
use std::net::IpAddr;

use haypile_client as client;
use libc::{ifaddrs, sockaddr, sockaddr_storage};

use crate::process::Behind;

pub static LIST: Behind = Behind::new(c"getifaddrs");
pub static FREE: Behind = Behind::new(c"freeifaddrs");

type ListFunction = unsafe extern "C" fn(*mut *mut ifaddrs) -> c_int;
type FreeFunction = unsafe extern "C" fn(*mut ifaddrs);

/// The name where the kernel has no interface that leads to the service.
const NAME: &CStr = c"haypile";
/// Lists that a program has at a time with addresses of ours; more of them have the kernel's alone.
const LISTS_MAX: usize = 64;

/// What of a list is ours: its first entry, and the kernel's list behind ours.
struct Given {
    first: AtomicPtr<ifaddrs>,
    rest: AtomicPtr<ifaddrs>,
}

static GIVEN: [Given; LISTS_MAX] = [const {
    Given { first: AtomicPtr::new(ptr::null_mut()), rest: AtomicPtr::new(ptr::null_mut()) }
}; LISTS_MAX];

/// A place that is being filled.
const RESERVED: *mut ifaddrs = ptr::without_provenance_mut(1);

/// An entry with what it points to. Never moved once it is in the list.
#[repr(C)]
struct Entry {
    head: ifaddrs,
    address: sockaddr_storage,
    mask: sockaddr_storage,
    broadcast: sockaddr_storage,
    name: [c_char; libc::IFNAMSIZ],
}

/// `getifaddrs(3)`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn getifaddrs(list: *mut *mut ifaddrs) -> c_int {
    let behind = LIST.address();
    if behind == 0 {
        // SAFETY: the calling thread's own variable.
        unsafe { *libc::__errno_location() = libc::ENOSYS };
        return -1;
    }
    // SAFETY: libc's function of this name and type, with the caller's pointer.
    let outcome = unsafe { core::mem::transmute::<usize, ListFunction>(behind)(list) };
    if outcome == 0 && client::is_attached() {
        // SAFETY: libc has just written a list there.
        unsafe { *list = with_ours(*list) };
    }
    outcome
}

/// `freeifaddrs(3)`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn freeifaddrs(list: *mut ifaddrs) {
    let ours =
        GIVEN.iter().find(|given| !list.is_null() && given.first.load(Ordering::Acquire) == list);
    let rest = match ours {
        Some(given) => {
            let rest = given.rest.swap(ptr::null_mut(), Ordering::AcqRel);
            given.first.store(ptr::null_mut(), Ordering::Release);
            // SAFETY: the block that `with_ours` allocated, which the caller gives up.
            unsafe { libc::free(list.cast()) };
            rest
        }
        None => list,
    };
    let behind = FREE.address();
    if behind != 0 {
        // SAFETY: libc's function of this name and type, with a list of libc's.
        unsafe { core::mem::transmute::<usize, FreeFunction>(behind)(rest) };
    }
}

/// The service's addresses, and the kernel's list behind them; the kernel's alone if there are none.
fn with_ours(rest: *mut ifaddrs) -> *mut ifaddrs {
    let addresses = client::own_addresses();
    let free = |given: &&Given| {
        let reserved = (ptr::null_mut(), RESERVED);
        given
            .first
            .compare_exchange(reserved.0, reserved.1, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    };
    if addresses.is_empty() {
        return rest;
    }
    let Some(given) = GIVEN.iter().find(free) else { return rest };
    // SAFETY: plain allocation; zeros are valid for every field of an entry.
    let entries = unsafe { libc::calloc(addresses.len(), size_of::<Entry>()) }.cast::<Entry>();
    if entries.is_null() {
        given.first.store(ptr::null_mut(), Ordering::Release);
        return rest;
    }
    for (place, one) in addresses.iter().enumerate() {
        let last = place + 1 == addresses.len();
        // SAFETY: inside the block, which has one entry an address and is nobody else's yet.
        unsafe {
            let entry = entries.add(place);
            let next = if last { rest } else { entries.add(place + 1).cast() };
            fill(&mut *entry, one.address, one.prefix_len, one.interface, next);
        }
    }
    given.rest.store(rest, Ordering::Release);
    given.first.store(entries.cast(), Ordering::Release);
    entries.cast()
}

fn fill(entry: &mut Entry, address: IpAddr, prefix_len: u8, interface: u32, next: *mut ifaddrs) {
    // SAFETY: room for a name of IFNAMSIZ bytes, which is what the function writes at most.
    let named = interface != 0
        && !unsafe { libc::if_indextoname(interface, entry.name.as_mut_ptr()) }.is_null();
    if !named {
        for (to, from) in entry.name.iter_mut().zip(NAME.to_bytes_with_nul()) {
            *to = *from as c_char;
        }
    }
    let broadcast = match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix_len)).unwrap_or(0);
            write(&mut entry.mask, IpAddr::V4(mask.into()), 0);
            write(&mut entry.broadcast, IpAddr::V4((u32::from(address) | !mask).into()), 0);
            ptr::from_mut(&mut entry.broadcast).cast::<sockaddr>()
        }
        IpAddr::V6(_) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix_len)).unwrap_or(0);
            write(&mut entry.mask, IpAddr::V6(mask.into()), 0);
            ptr::null_mut()
        }
    };
    write(&mut entry.address, address, interface);
    let up = libc::IFF_UP | libc::IFF_RUNNING | libc::IFF_BROADCAST | libc::IFF_MULTICAST;
    entry.head = ifaddrs {
        ifa_next: next,
        ifa_name: entry.name.as_mut_ptr(),
        ifa_flags: up as u32,
        ifa_addr: ptr::from_mut(&mut entry.address).cast(),
        ifa_netmask: ptr::from_mut(&mut entry.mask).cast(),
        ifa_ifu: broadcast,
        ifa_data: ptr::null_mut(),
    };
}

/// An address as the kernel writes it; a link-local one with its interface.
fn write(out: &mut sockaddr_storage, address: IpAddr, interface: u32) {
    match address {
        IpAddr::V4(address) => {
            // SAFETY: zeros are valid.
            let mut name: libc::sockaddr_in = unsafe { zeroed() };
            name.sin_family = libc::AF_INET as libc::sa_family_t;
            name.sin_addr.s_addr = u32::from_ne_bytes(address.octets());
            // SAFETY: a storage holds every kind of name, and is aligned for it.
            unsafe { ptr::from_mut(out).cast::<libc::sockaddr_in>().write(name) };
        }
        IpAddr::V6(address) => {
            // SAFETY: zeros are valid.
            let mut name: libc::sockaddr_in6 = unsafe { zeroed() };
            name.sin6_family = libc::AF_INET6 as libc::sa_family_t;
            name.sin6_addr.s6_addr = address.octets();
            let local = address.segments()[0] & 0xffc0 == 0xfe80;
            name.sin6_scope_id = if local { interface } else { 0 };
            // SAFETY: as above.
            unsafe { ptr::from_mut(out).cast::<libc::sockaddr_in6>().write(name) };
        }
    }
}
