//! Calls that make processes or replace them. Forks run the client's three hooks (registered with
//! `pthread_atfork` in `start.rs`); calls that start another program first tell the service which
//! sockets it may inherit, and hand the library on in the environment.

use core::ffi::{CStr, c_char, c_int, c_void};
use core::sync::atomic::{AtomicUsize, Ordering};

use haypile_client::{self as client, Errno};
use libc::{FILE, pid_t, posix_spawn_file_actions_t, posix_spawnattr_t, size_t};

use crate::raw::{finish, raw};
use crate::start;

/// A function of libc that lies behind ours.
pub struct Behind {
    name: &'static CStr,
    address: AtomicUsize,
}

impl Behind {
    pub const fn new(name: &'static CStr) -> Behind {
        Behind { name, address: AtomicUsize::new(0) }
    }

    /// Looks the function up; done for all of them in the constructor.
    pub fn address(&self) -> usize {
        let known = self.address.load(Ordering::Acquire);
        if known != 0 {
            return known;
        }
        // SAFETY: a valid name.
        let found = unsafe { libc::dlsym(libc::RTLD_NEXT, self.name.as_ptr()) } as usize;
        self.address.store(found, Ordering::Release);
        found
    }
}

static FORK_WITHOUT_HOOKS: Behind = Behind::new(c"_Fork");
static CLONE: Behind = Behind::new(c"clone");
static SPAWN: Behind = Behind::new(c"posix_spawn");
static SPAWN_BY_NAME: Behind = Behind::new(c"posix_spawnp");
static SYSTEM: Behind = Behind::new(c"system");
static OPEN_PIPE: Behind = Behind::new(c"popen");
static EXEC_BY_NAME: Behind = Behind::new(c"execvpe");
static CLOSE_FILE: Behind = Behind::new(c"fclose");

/// Looks all functions up.
pub fn resolve() {
    let all = [
        &FORK_WITHOUT_HOOKS,
        &CLONE,
        &SPAWN,
        &SPAWN_BY_NAME,
        &SYSTEM,
        &OPEN_PIPE,
        &EXEC_BY_NAME,
        &CLOSE_FILE,
        &crate::stdio::OPEN_NUMBER,
        &crate::interfaces::LIST,
        &crate::interfaces::FREE,
    ];
    for function in all {
        function.address();
    }
}

type Strings = *const *const c_char;
type SpawnFunction = unsafe extern "C" fn(
    *mut pid_t,
    *const c_char,
    *const posix_spawn_file_actions_t,
    *const posix_spawnattr_t,
    *const *mut c_char,
    *const *mut c_char,
) -> c_int;

/// `fork(2)` as a raw system call, with the hooks around it.
fn fork_around(make: impl FnOnce() -> isize) -> isize {
    client::before_fork();
    let result = make();
    if result == 0 {
        client::after_fork_in_child();
    } else {
        client::after_fork_in_parent();
    }
    result
}

/// `vfork(2)` as `fork`: a child that shares our memory would take the parent's books apart.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn vfork() -> pid_t {
    // SAFETY: plain fork.
    unsafe { libc::fork() }
}

/// `vfork(2)` under another name.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn __vfork() -> pid_t {
    vfork()
}

/// `_Fork(3)`: a fork that runs no handlers, but ours.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn _Fork() -> pid_t {
    let address = FORK_WITHOUT_HOOKS.address();
    fork_around(|| {
        if address == 0 {
            return raw!(SYS_clone, libc::SIGCHLD, 0, 0, 0, 0);
        }
        // SAFETY: libc's function of this name has this type.
        let function: unsafe extern "C" fn() -> pid_t = unsafe { core::mem::transmute(address) };
        // SAFETY: as the application's own call.
        unsafe { function() as isize }
    }) as pid_t
}

/// What of the caller's memory and table of descriptors a new process is to share.
enum Shares {
    /// It is a thread, or as good as one: it goes by our books.
    Books,
    /// It gets a copy, as by `fork`; with these flags.
    Nothing(c_int),
}

/// What `clone(2)` with these flags is to us. A child that would run on its parent's memory until it
/// becomes another program is a fork, as by `vfork`; so is one that would share the descriptors but
/// not the memory, which no two books could keep.
fn shares(flags: c_int) -> Shares {
    const BORROWED: c_int = libc::CLONE_VM | libc::CLONE_VFORK;
    if flags & libc::CLONE_THREAD != 0 || flags & BORROWED == libc::CLONE_VM {
        return Shares::Books;
    }
    Shares::Nothing(flags & !(BORROWED | libc::CLONE_FILES))
}

type StartFunction = unsafe extern "C" fn(*mut c_void) -> c_int;
type CloneFunction =
    unsafe extern "C" fn(StartFunction, *mut c_void, c_int, *mut c_void, ...) -> c_int;

/// What a child made by `clone` begins with.
struct Start {
    function: StartFunction,
    argument: *mut c_void,
}

/// # Safety
/// `start` is a [`Start`], of which a forked child has a copy.
unsafe extern "C" fn begin(start: *mut c_void) -> c_int {
    client::after_fork_in_child();
    // SAFETY: the caller's promise, and the application's function with its argument.
    unsafe {
        let Start { function, argument } = *start.cast::<Start>();
        function(argument)
    }
}

/// `clone(2)`, libc's function. Variadic in C: up to three arguments more.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn clone(
    function: Option<StartFunction>,
    stack: *mut c_void,
    flags: c_int,
    argument: *mut c_void,
    parent: *mut c_void,
    tls: *mut c_void,
    child: *mut c_void,
) -> c_int {
    let (address, Some(function)) = (CLONE.address(), function) else {
        return finish(Err(Errno::EINVAL)) as c_int;
    };
    if address == 0 {
        return finish(Err(Errno::ENOSYS)) as c_int;
    }
    // SAFETY: libc's function of this name has this type.
    let make: CloneFunction = unsafe { core::mem::transmute(address) };
    match shares(flags) {
        // SAFETY: the application's own call.
        Shares::Books => unsafe { make(function, stack, flags, argument, parent, tls, child) },
        Shares::Nothing(flags) => {
            let mut start = Start { function, argument };
            let start = core::ptr::from_mut(&mut start).cast();
            client::before_fork();
            // SAFETY: the application's call; the child has memory of its own, with a copy of `start`.
            let process = unsafe { make(begin, stack, flags, start, parent, tls, child) };
            client::after_fork_in_parent();
            process
        }
    }
}

/// `syscall(SYS_clone)`: with the hooks if it makes a process of its own.
///
/// # Safety
/// As the system call.
pub unsafe fn raw_clone([flags, stack, parent, child, tls]: [usize; 5]) -> isize {
    match shares(flags as c_int) {
        Shares::Nothing(own) if stack == 0 => {
            fork_around(|| raw!(SYS_clone, own, 0, parent, child, tls))
        }
        _ => raw!(SYS_clone, flags, stack, parent, child, tls),
    }
}

/// `syscall(SYS_clone3)`: likewise. The flags stand first in the arguments, the stack at byte 40.
///
/// # Safety
/// As the system call.
pub unsafe fn raw_clone3(arguments: *const u64, len: size_t) -> isize {
    let make = || raw!(SYS_clone3, arguments, len);
    if arguments.is_null() || len < 64 {
        return make();
    }
    // SAFETY: the application's arguments are that long.
    let (flags, stack) = unsafe { (*arguments, *arguments.add(5)) };
    let shared = (libc::CLONE_VM | libc::CLONE_FILES | libc::CLONE_THREAD) as u64;
    if flags & shared != 0 || stack != 0 { make() } else { fork_around(make) }
}

/// The environment for another program: the one given, with what the library needs. Never freed:
/// the process is about to be replaced, or the call fails.
struct Environment {
    _strings: Vec<Vec<u8>>,
    pointers: Vec<*const c_char>,
}

impl Environment {
    /// # Safety
    /// `given` is null or a valid array of strings that ends with null.
    unsafe fn from_given(given: Strings) -> Environment {
        let additions = start::handed_on();
        let mut pointers = Vec::with_capacity(64);
        let mut at = given;
        // SAFETY: the caller's promise.
        unsafe {
            while !at.is_null() && !(*at).is_null() {
                let entry = CStr::from_ptr(*at).to_bytes();
                let replaced = additions.iter().any(|addition| addition.replaces(entry));
                if !replaced {
                    pointers.push(*at);
                }
                at = at.add(1);
            }
        }
        let strings: Vec<Vec<u8>> = additions
            .iter()
            // SAFETY: the caller's promise.
            .map(|addition| addition.entry(unsafe { value_in(given, addition.name) }))
            .collect();
        pointers.extend(strings.iter().map(|entry| entry.as_ptr().cast()));
        pointers.push(core::ptr::null());
        Environment { _strings: strings, pointers }
    }

    fn as_ptr(&self) -> Strings {
        self.pointers.as_ptr()
    }
}

/// The value of a variable in an array of strings.
///
/// # Safety
/// `given` is null or a valid array of strings that ends with null, and lives long enough.
unsafe fn value_in<'a>(given: Strings, name: &[u8]) -> Option<&'a [u8]> {
    let mut at = given;
    // SAFETY: the caller's promise.
    unsafe {
        while !at.is_null() && !(*at).is_null() {
            let entry: &'a [u8] = CStr::from_ptr(*at).to_bytes();
            if let Some(value) = entry.strip_prefix(name).and_then(|rest| rest.strip_prefix(b"=")) {
                return Some(value);
            }
            at = at.add(1);
        }
    }
    None
}

unsafe extern "C" {
    static environ: Strings;
}

/// `environ`.
pub fn current_environment() -> Strings {
    // SAFETY: libc's own variable; reading the pointer is what its functions do.
    unsafe { environ }
}

/// Runs `replace` as the last act of this program; comes back only if it failed.
fn replacing(replace: impl FnOnce() -> c_int) -> c_int {
    client::before_exec();
    let result = replace();
    client::after_spawn();
    result
}

/// `execve(2)`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn execve(
    path: *const c_char,
    arguments: Strings,
    environment: Strings,
) -> c_int {
    if !client::is_attached() {
        return raw!(SYS_execve, path, arguments, environment) as c_int;
    }
    // SAFETY: the application's environment.
    let environment = unsafe { Environment::from_given(environment) };
    replacing(|| raw!(SYS_execve, path, arguments, environment.as_ptr()) as c_int)
}

/// `execv(3)`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn execv(path: *const c_char, arguments: Strings) -> c_int {
    // SAFETY: the application's arguments.
    unsafe { execve(path, arguments, current_environment()) }
}

/// `execvpe(3)`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn execvpe(
    file: *const c_char,
    arguments: Strings,
    environment: Strings,
) -> c_int {
    let address = EXEC_BY_NAME.address();
    if address == 0 {
        return crate::raw::finish(Err(client::Errno::ENOSYS)) as c_int;
    }
    // SAFETY: libc's function of this name has this type.
    let function: unsafe extern "C" fn(*const c_char, Strings, Strings) -> c_int =
        unsafe { core::mem::transmute(address) };
    if !client::is_attached() {
        // SAFETY: the application's own call.
        return unsafe { function(file, arguments, environment) };
    }
    // SAFETY: the application's environment.
    let environment = unsafe { Environment::from_given(environment) };
    // SAFETY: the application's own call.
    replacing(|| unsafe { function(file, arguments, environment.as_ptr()) })
}

/// `execvp(3)`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn execvp(file: *const c_char, arguments: Strings) -> c_int {
    // SAFETY: the application's arguments.
    unsafe { execvpe(file, arguments, current_environment()) }
}

/// `execveat(2)`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn execveat(
    directory: c_int,
    path: *const c_char,
    arguments: Strings,
    environment: Strings,
    flags: c_int,
) -> c_int {
    if !client::is_attached() {
        return raw!(SYS_execveat, directory, path, arguments, environment, flags) as c_int;
    }
    // SAFETY: the application's environment.
    let environment = unsafe { Environment::from_given(environment) };
    replacing(|| {
        raw!(SYS_execveat, directory, path, arguments, environment.as_ptr(), flags) as c_int
    })
}

/// `fexecve(3)`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn fexecve(
    fd: c_int,
    arguments: Strings,
    environment: Strings,
) -> c_int {
    // SAFETY: the application's arguments.
    unsafe { execveat(fd, c"".as_ptr(), arguments, environment, libc::AT_EMPTY_PATH) }
}

/// # Safety
/// As libc's posix_spawn.
unsafe fn spawn(
    behind: &Behind,
    pid: *mut pid_t,
    path: *const c_char,
    actions: *const posix_spawn_file_actions_t,
    attributes: *const posix_spawnattr_t,
    arguments: *const *mut c_char,
    environment: *const *mut c_char,
) -> c_int {
    let address = behind.address();
    if address == 0 {
        return libc::ENOSYS;
    }
    // SAFETY: libc's functions of these names have this type.
    let function: SpawnFunction = unsafe { core::mem::transmute(address) };
    if !client::is_attached() {
        // SAFETY: the application's own call.
        return unsafe { function(pid, path, actions, attributes, arguments, environment) };
    }
    // SAFETY: the application's environment.
    let environment = unsafe { Environment::from_given(environment.cast()) };
    // File actions may copy any descriptor to a number that survives.
    client::before_spawn(!actions.is_null());
    // SAFETY: the application's own call, with our environment.
    let result =
        unsafe { function(pid, path, actions, attributes, arguments, environment.as_ptr().cast()) };
    client::after_spawn();
    result
}

/// `posix_spawn(3)`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn posix_spawn(
    pid: *mut pid_t,
    path: *const c_char,
    actions: *const posix_spawn_file_actions_t,
    attributes: *const posix_spawnattr_t,
    arguments: *const *mut c_char,
    environment: *const *mut c_char,
) -> c_int {
    // SAFETY: the application's own call.
    unsafe { spawn(&SPAWN, pid, path, actions, attributes, arguments, environment) }
}

/// `posix_spawnp(3)`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn posix_spawnp(
    pid: *mut pid_t,
    file: *const c_char,
    actions: *const posix_spawn_file_actions_t,
    attributes: *const posix_spawnattr_t,
    arguments: *const *mut c_char,
    environment: *const *mut c_char,
) -> c_int {
    // SAFETY: the application's own call.
    unsafe { spawn(&SPAWN_BY_NAME, pid, file, actions, attributes, arguments, environment) }
}

/// `system(3)`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn system(command: *const c_char) -> c_int {
    let address = SYSTEM.address();
    if address == 0 {
        return crate::raw::finish(Err(client::Errno::ENOSYS)) as c_int;
    }
    // SAFETY: libc's function of this name has this type.
    let function: unsafe extern "C" fn(*const c_char) -> c_int =
        unsafe { core::mem::transmute(address) };
    client::before_spawn(false);
    // SAFETY: the application's own call.
    let result = unsafe { function(command) };
    client::after_spawn();
    result
}

/// `popen(3)`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn popen(command: *const c_char, mode: *const c_char) -> *mut FILE {
    let address = OPEN_PIPE.address();
    if address == 0 {
        crate::raw::set_errno(client::Errno::ENOSYS);
        return core::ptr::null_mut();
    }
    // SAFETY: libc's function of this name has this type.
    let function: unsafe extern "C" fn(*const c_char, *const c_char) -> *mut c_void =
        unsafe { core::mem::transmute(address) };
    client::before_spawn(false);
    // SAFETY: the application's own call.
    let result = unsafe { function(command, mode) };
    client::after_spawn();
    result.cast()
}

/// `fclose(3)`: libc closes the descriptor inside, so what was known of it is forgotten first, unless the
/// stream is ours and closes it through us.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn fclose(file: *mut FILE) -> c_int {
    let address = CLOSE_FILE.address();
    if address == 0 {
        return crate::raw::finish(Err(client::Errno::ENOSYS)) as c_int;
    }
    if client::is_attached() {
        // SAFETY: the application's own file.
        let fd = unsafe { libc::fileno(file) };
        let known = !client::is_kernel(fd) && !client::is_internal(fd);
        if known && !crate::stdio::is_ours(fd) {
            client::forget_number(fd);
        }
    }
    // SAFETY: libc's function of this name has this type.
    let function: unsafe extern "C" fn(*mut FILE) -> c_int =
        unsafe { core::mem::transmute(address) };
    // SAFETY: the application's own call.
    unsafe { function(file) }
}
