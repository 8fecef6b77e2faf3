//! `syscall(2)`: the way round libc's functions that libuv, node, vsftpd and others take. The
//! numbers that concern descriptors go where the functions go; all others straight to the kernel.

use core::ffi::c_long;

use haypile_client::Errno;

use crate::raw::finish;
use crate::{confinement, data, files, names, options, process, splice, wait};

/// `syscall(2)`. Variadic in C; one number and six arguments here, which is all the kernel takes.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn syscall(
    number: c_long,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
) -> c_long {
    // SAFETY: the application's own call with its own arguments.
    unsafe {
        match number {
            libc::SYS_futex | libc::SYS_gettid | libc::SYS_getpid | libc::SYS_getrandom => {
                crate::raw::call(number, [a, b, c, d, e, f]) as c_long
            }
            libc::SYS_read => data::read(a as i32, b as *mut _, c) as c_long,
            libc::SYS_write => data::write(a as i32, b as *const _, c) as c_long,
            libc::SYS_readv => data::readv(a as i32, b as *const _, c as i32) as c_long,
            libc::SYS_writev => data::writev(a as i32, b as *const _, c as i32) as c_long,
            libc::SYS_close => c_long::from(files::close(a as i32)),
            libc::SYS_close_range => c_long::from(files::close_range(a as u32, b as u32, c as i32)),
            libc::SYS_dup => c_long::from(files::dup(a as i32)),
            libc::SYS_dup3 => c_long::from(files::dup3(a as i32, b as i32, c as i32)),
            libc::SYS_fcntl => c_long::from(options::fcntl(a as i32, b as i32, c)),
            libc::SYS_ioctl => c_long::from(options::ioctl(a as i32, b as u64, c)),
            libc::SYS_io_uring_setup => finish(Err(Errno::ENOSYS)) as c_long,
            libc::SYS_prctl => {
                c_long::from(confinement::prctl(a as i32, b as u64, c as u64, d as u64, e as u64))
            }
            libc::SYS_seccomp => confinement::seccomp(a as u32, b as u32, c) as c_long,
            libc::SYS_prlimit64 => {
                c_long::from(confinement::prlimit(a as i32, b as u32, c as *const _, d as *mut _))
            }
            libc::SYS_getrlimit => c_long::from(confinement::getrlimit(a as u32, b as *mut _)),
            libc::SYS_setrlimit => c_long::from(confinement::setrlimit(a as u32, b as *const _)),
            libc::SYS_clone => process::raw_clone([a, b, c, d, e]) as c_long,
            libc::SYS_clone3 => process::raw_clone3(a as *const _, b) as c_long,
            libc::SYS_execve => {
                c_long::from(process::execve(a as *const _, b as *const _, c as *const _))
            }
            libc::SYS_execveat => c_long::from(process::execveat(
                a as i32,
                b as *const _,
                c as *const _,
                d as *const _,
                e as i32,
            )),
            _ => sockets(number, [a, b, c, d, e, f]),
        }
    }
}

/// The numbers of sockets and waits.
///
/// # Safety
/// As [`syscall`].
unsafe fn sockets(number: c_long, [a, b, c, d, e, f]: [usize; 6]) -> c_long {
    // SAFETY: the caller's promise.
    unsafe {
        match number {
            libc::SYS_socket => c_long::from(names::socket(a as i32, b as i32, c as i32)),
            libc::SYS_bind => c_long::from(names::bind(a as i32, b as *const _, c as u32)),
            libc::SYS_listen => c_long::from(names::listen(a as i32, b as i32)),
            libc::SYS_accept => c_long::from(names::accept(a as i32, b as *mut _, c as *mut _)),
            libc::SYS_accept4 => {
                c_long::from(names::accept4(a as i32, b as *mut _, c as *mut _, d as i32))
            }
            libc::SYS_connect => c_long::from(names::connect(a as i32, b as *const _, c as u32)),
            libc::SYS_getsockname => {
                c_long::from(names::getsockname(a as i32, b as *mut _, c as *mut _))
            }
            libc::SYS_getpeername => {
                c_long::from(names::getpeername(a as i32, b as *mut _, c as *mut _))
            }
            libc::SYS_shutdown => c_long::from(names::shutdown(a as i32, b as i32)),
            libc::SYS_setsockopt => c_long::from(options::setsockopt(
                a as i32,
                b as i32,
                c as i32,
                d as *const _,
                e as u32,
            )),
            libc::SYS_getsockopt => c_long::from(options::getsockopt(
                a as i32,
                b as i32,
                c as i32,
                d as *mut _,
                e as *mut _,
            )),
            libc::SYS_sendto => {
                data::sendto(a as i32, b as *const _, c, d as i32, e as *const _, f as u32)
                    as c_long
            }
            libc::SYS_recvfrom => {
                data::recvfrom(a as i32, b as *mut _, c, d as i32, e as *mut _, f as *mut _)
                    as c_long
            }
            libc::SYS_sendmsg => data::sendmsg(a as i32, b as *const _, c as i32) as c_long,
            libc::SYS_recvmsg => data::recvmsg(a as i32, b as *mut _, c as i32) as c_long,
            libc::SYS_sendmmsg => {
                c_long::from(data::sendmmsg(a as i32, b as *mut _, c as u32, d as i32))
            }
            libc::SYS_recvmmsg => {
                c_long::from(data::recvmmsg(a as i32, b as *mut _, c as u32, d as i32, e as *mut _))
            }
            libc::SYS_sendfile => data::sendfile(a as i32, b as i32, c as *mut _, d) as c_long,
            libc::SYS_epoll_create1 => c_long::from(wait::epoll_create1(a as i32)),
            libc::SYS_epoll_ctl => {
                c_long::from(wait::epoll_ctl(a as i32, b as i32, c as i32, d as *mut _))
            }
            libc::SYS_epoll_pwait => c_long::from(wait::epoll_pwait(
                a as i32,
                b as *mut _,
                c as i32,
                d as i32,
                e as *const _,
            )),
            _ => pipes_and_waits(number, [a, b, c, d, e, f]),
        }
    }
}

/// The numbers of pipes, and of waits with a time and a mask.
///
/// # Safety
/// As [`syscall`].
unsafe fn pipes_and_waits(number: c_long, arguments: [usize; 6]) -> c_long {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: the caller's promise.
    unsafe {
        match number {
            libc::SYS_splice => {
                splice::splice(a as i32, b as *mut _, c as i32, d as *mut _, e, f as u32) as c_long
            }
            libc::SYS_tee => splice::tee(a as i32, b as i32, c, d as u32) as c_long,
            libc::SYS_ppoll => {
                c_long::from(wait::ppoll(a as *mut _, b as u64, c as *const _, d as *const _))
            }
            libc::SYS_epoll_pwait2 => c_long::from(wait::epoll_pwait2(
                a as i32,
                b as *mut _,
                c as i32,
                d as *const _,
                e as *const _,
            )),
            _ => old_numbers(number, arguments),
        }
    }
}

/// Numbers that only x86-64 has.
///
/// # Safety
/// As [`syscall`].
#[cfg(target_arch = "x86_64")]
unsafe fn old_numbers(number: c_long, arguments: [usize; 6]) -> c_long {
    let [a, b, c, d, ..] = arguments;
    // SAFETY: the caller's promise.
    unsafe {
        match number {
            libc::SYS_dup2 => c_long::from(files::dup2(a as i32, b as i32)),
            libc::SYS_select => c_long::from(wait::select(
                a as i32,
                b as *mut _,
                c as *mut _,
                d as *mut _,
                arguments[4] as *mut _,
            )),
            libc::SYS_poll => c_long::from(wait::poll(a as *mut _, b as u64, c as i32)),
            libc::SYS_epoll_create => c_long::from(wait::epoll_create(a as i32)),
            libc::SYS_epoll_wait => {
                c_long::from(wait::epoll_wait(a as i32, b as *mut _, c as i32, d as i32))
            }
            libc::SYS_fork | libc::SYS_vfork => {
                process::raw_clone([libc::SIGCHLD as usize, 0, 0, 0, 0]) as c_long
            }
            _ => crate::raw::call(number, arguments) as c_long,
        }
    }
}

/// Numbers that only x86-64 has: none here.
///
/// # Safety
/// As [`syscall`].
#[cfg(not(target_arch = "x86_64"))]
unsafe fn old_numbers(number: c_long, arguments: [usize; 6]) -> c_long {
    // SAFETY: the caller's promise.
    unsafe { crate::raw::call(number, arguments) as c_long }
}
