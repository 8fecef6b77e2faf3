//! The start of the library inside a program: attaches to the service that the environment names,
//! adopts the sockets that came through `exec`, registers the hooks around `fork`. Without
//! `HAYPILE_ATTACH` it does nothing and stays inert; if the service cannot be reached it says so in
//! one line and stays inert.
//!
//! Runs as a constructor. Calls may come before it (other libraries' constructors): they find an
//! empty table and go to the kernel.

use core::ffi::{CStr, c_void};
use core::sync::atomic::AtomicU32;
use std::sync::OnceLock;

use haypile_client as client;
use haypile_shm::control::{ATTACH_VARIABLE, DOMAIN_VARIABLE};
use haypile_shm::messages::DOMAIN_TOKEN_BYTES;

use crate::raw::raw;
use crate::{process, stdio};

const PRELOAD_VARIABLE: &str = "LD_PRELOAD";

/// A variable that programs started from here must have.
pub struct HandedOn {
    /// Its name.
    pub name: &'static [u8],
    value: Vec<u8>,
    /// The value is added to the one there is, rather than put in its place.
    adds: bool,
}

impl HandedOn {
    /// Whether an entry of an environment is this variable.
    pub fn replaces(&self, entry: &[u8]) -> bool {
        entry.strip_prefix(self.name).is_some_and(|rest| rest.first() == Some(&b'='))
    }

    /// The entry, with its 0 byte, given the value that the variable has.
    pub fn entry(&self, present: Option<&[u8]>) -> Vec<u8> {
        let mut entry = [self.name, b"="].concat();
        let present = present.filter(|present| self.adds && !present.is_empty());
        match present {
            Some(present) if contains(present, &self.value) => entry.extend_from_slice(present),
            Some(present) => {
                entry.extend_from_slice(&self.value);
                entry.push(b':');
                entry.extend_from_slice(present);
            }
            None => entry.extend_from_slice(&self.value),
        }
        entry.push(0);
        entry
    }
}

/// Whether a list of libraries, parted by colons or spaces, has this one.
fn contains(list: &[u8], library: &[u8]) -> bool {
    list.split(|byte| matches!(byte, b':' | b' ')).any(|one| one == library)
}

static HANDED_ON: OnceLock<[HandedOn; 3]> = OnceLock::new();

/// What programs started from here must have in their environment; nothing while inert.
pub fn handed_on() -> &'static [HandedOn] {
    HANDED_ON.get().map_or(&[], |all| &all[..])
}

#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = start;

extern "C" fn start() {
    process::resolve();
    let Some(path) = variable(ATTACH_VARIABLE) else { return };
    let domain = variable(DOMAIN_VARIABLE).map_or(Some([0; DOMAIN_TOKEN_BYTES]), parse_token);
    let Some(domain) = domain else {
        return complain("HAYPILE_DOMAIN is no token of 32 hexadecimal digits");
    };
    if let Err(error) = client::attach(path, domain) {
        return complain(&format!("{error} at {}", String::from_utf8_lossy(path)));
    }
    watch_for_forks();
    hand_on(path);
    client::adopt_inherited();
    stdio::prepare();
    // SAFETY: the hooks may run in any thread at any time after this.
    unsafe {
        libc::pthread_atfork(
            Some(before_fork),
            Some(after_fork_in_parent),
            Some(after_fork_in_child),
        )
    };
}

unsafe extern "C" fn before_fork() {
    client::before_fork();
}

unsafe extern "C" fn after_fork_in_parent() {
    client::after_fork_in_parent();
}

unsafe extern "C" fn after_fork_in_child() {
    client::after_fork_in_child();
}

/// The value of a variable, if it is set and not empty.
fn variable(name: &str) -> Option<&'static [u8]> {
    let mut with_end = [0u8; 32];
    with_end.get_mut(..name.len())?.copy_from_slice(name.as_bytes());
    // SAFETY: the name ends with a 0 byte; the value is copied before anybody can change it.
    let value = unsafe {
        let value = libc::getenv(with_end.as_ptr().cast());
        if value.is_null() {
            return None;
        }
        CStr::from_ptr(value).to_bytes().to_vec()
    };
    // Kept as long as the program: it is handed on.
    (!value.is_empty()).then(|| &*value.leak())
}

fn parse_token(text: &[u8]) -> Option<client::DomainToken> {
    let mut token = [0u8; DOMAIN_TOKEN_BYTES];
    if text.len() != 2 * token.len() {
        return None;
    }
    for (byte, digits) in token.iter_mut().zip(text.chunks_exact(2)) {
        let digit = |at: usize| char::from(digits[at]).to_digit(16);
        *byte = (digit(0)? * 16 + digit(1)?) as u8;
    }
    Some(token)
}

fn hand_on(path: &'static [u8]) {
    let token = client::domain().unwrap_or_default();
    let hex: String = token.iter().map(|byte| format!("{byte:02x}")).collect();
    // Functions that keep `environ` hand it on by themselves.
    let mut value = hex.clone().into_bytes();
    value.push(0);
    // SAFETY: both strings end with a 0 byte; a constructor runs before the program's threads.
    unsafe { libc::setenv(c"HAYPILE_DOMAIN".as_ptr(), value.as_ptr().cast(), 1) };
    let own = own_path().unwrap_or_default();
    let _ = HANDED_ON.set([
        HandedOn { name: PRELOAD_VARIABLE.as_bytes(), value: own, adds: true },
        HandedOn { name: ATTACH_VARIABLE.as_bytes(), value: path.to_vec(), adds: false },
        HandedOn { name: DOMAIN_VARIABLE.as_bytes(), value: hex.into_bytes(), adds: false },
    ]);
}

/// The path that this library was loaded from.
fn own_path() -> Option<Vec<u8>> {
    // SAFETY: all zero is a valid value; dladdr fills it for an address of ours.
    unsafe {
        let mut information: libc::Dl_info = core::mem::zeroed();
        let known = libc::dladdr(start as *const c_void, &mut information);
        (known != 0 && !information.dli_fname.is_null())
            .then(|| CStr::from_ptr(information.dli_fname).to_bytes().to_vec())
    }
}

/// A page that the kernel wipes in every child, so that forks without hooks are noticed.
fn watch_for_forks() {
    const PAGE: usize = 4096;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let page = raw!(SYS_mmap, 0, PAGE, protection, kind, -1isize, 0);
    if page == -1 || raw!(SYS_madvise, page, PAGE, libc::MADV_WIPEONFORK) == -1 {
        return;
    }
    // SAFETY: a fresh page of our own that is never unmapped, aligned, zero.
    let word: &'static AtomicU32 = unsafe { &*(page as *const AtomicU32) };
    client::set_wiped_word(word);
}

/// One line on the standard error.
fn complain(what: &str) {
    let line = format!("haypile: {what}; this program runs on the kernel's network\n");
    raw!(SYS_write, libc::STDERR_FILENO, line.as_ptr(), line.len());
}
