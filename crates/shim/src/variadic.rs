//! Functions with any number of arguments: `execl`, `execlp`, `execle`, `dprintf`. Rust can call such functions
//! but not define them, so these are a few instructions each, which put the arguments in a row in memory and
//! call a plain function with the address.
//!
//! The strings after the path are a row already once those in registers stand below those on the stack. For
//! `dprintf` the row is what `va_list` describes in the platform's call rules (System V ABI for x86-64, 3.5.7;
//! AAPCS64, appendix B); the C library makes the text, which is written as by write(2).

use core::ffi::{c_char, c_int, c_void};

use crate::data::write;
use crate::process::{current_environment, execve, execvp};

type Strings = *const *const c_char;

/// # Safety
/// `arguments` ends with null.
unsafe extern "C" fn execl_row(path: *const c_char, arguments: Strings) -> c_int {
    // SAFETY: the application's arguments.
    unsafe { execve(path, arguments, current_environment()) }
}

/// # Safety
/// `arguments` ends with null.
unsafe extern "C" fn execlp_row(file: *const c_char, arguments: Strings) -> c_int {
    // SAFETY: the application's arguments.
    unsafe { execvp(file, arguments) }
}

/// The environment follows the null.
///
/// # Safety
/// `arguments` ends with null, and one more pointer follows.
unsafe extern "C" fn execle_row(path: *const c_char, arguments: Strings) -> c_int {
    // SAFETY: the application's arguments.
    unsafe {
        let mut end = arguments;
        while !(*end).is_null() {
            end = end.add(1);
        }
        execve(path, arguments, *end.add(1).cast())
    }
}

/// Defines one function of the family: the path, then strings up to a null.
macro_rules! strings {
    ($name:ident, $row:ident) => {
        #[doc = concat!("`", stringify!($name), "(3)`.")]
        ///
        /// # Safety
        /// As libc's.
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        #[cfg(target_arch = "x86_64")]
        pub unsafe extern "C" fn $name() -> c_int {
            core::arch::naked_asm!(
                // The return address stands between the two halves of the row: out of the way.
                "pop r10",
                "push r9",
                "push r8",
                "push rcx",
                "push rdx",
                "push rsi",
                "mov rsi, rsp",
                "push rbp",
                "push r10",
                "mov rbp, rsp",
                "and rsp, -16",
                "call {row}",
                "mov rsp, rbp",
                "pop r10",
                "pop rbp",
                "add rsp, 40",
                "push r10",
                "ret",
                row = sym $row,
            )
        }

        #[doc = concat!("`", stringify!($name), "(3)`.")]
        ///
        /// # Safety
        /// As libc's.
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        #[cfg(target_arch = "aarch64")]
        pub unsafe extern "C" fn $name() -> c_int {
            core::arch::naked_asm!(
                "sub sp, sp, #80",
                "stp x29, x30, [sp]",
                "mov x29, sp",
                "str x1, [sp, #24]",
                "stp x2, x3, [sp, #32]",
                "stp x4, x5, [sp, #48]",
                "stp x6, x7, [sp, #64]",
                "add x1, sp, #24",
                "bl {row}",
                "ldp x29, x30, [sp]",
                "add sp, sp, #80",
                "ret",
                row = sym $row,
            )
        }
    };
}
strings!(execl, execl_row);
strings!(execlp, execlp_row);
strings!(execle, execle_row);

unsafe extern "C" {
    fn vasprintf(text: *mut *mut c_char, format: *const c_char, list: *mut c_void) -> c_int;
    fn __vasprintf_chk(
        text: *mut *mut c_char,
        flag: c_int,
        format: *const c_char,
        list: *mut c_void,
    ) -> c_int;
}

/// Writes a text of the C library and frees it: its length, or -1.
///
/// # Safety
/// `text` holds `length` bytes from `malloc`, unless `length` is negative.
unsafe fn print(fd: c_int, text: *mut c_char, length: c_int) -> c_int {
    let Ok(total) = usize::try_from(length) else { return -1 };
    let mut written = 0;
    // SAFETY: the text is that long, and nobody else's.
    unsafe {
        while written < total {
            match usize::try_from(write(fd, text.add(written).cast(), total - written)) {
                Ok(more) => written += more,
                Err(_) => break,
            }
        }
        libc::free(text.cast());
    }
    if written < total { -1 } else { length }
}

/// `vdprintf(3)`.
///
/// # Safety
/// As libc's; `list` is how C passes a `va_list`, which is the address of one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdprintf(fd: c_int, format: *const c_char, list: *mut c_void) -> c_int {
    let mut text = core::ptr::null_mut();
    // SAFETY: the application's arguments.
    unsafe {
        let length = vasprintf(&mut text, format, list);
        print(fd, text, length)
    }
}

/// `vdprintf(3)` with a checked format.
///
/// # Safety
/// As [`vdprintf`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __vdprintf_chk(
    fd: c_int,
    flag: c_int,
    format: *const c_char,
    list: *mut c_void,
) -> c_int {
    let mut text = core::ptr::null_mut();
    // SAFETY: the application's arguments.
    unsafe {
        let length = __vasprintf_chk(&mut text, flag, format, list);
        print(fd, text, length)
    }
}

/// Defines a function with so many arguments before the `...`, by one that takes a `va_list` in the register
/// after theirs.
macro_rules! list {
    ($name:ident, $row:ident, $named:literal, $x86_register:literal, $arm_register:literal) => {
        #[doc = concat!("`", stringify!($name), "(3)`.")]
        ///
        /// # Safety
        /// As libc's.
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        #[cfg(target_arch = "x86_64")]
        pub unsafe extern "C" fn $name() -> c_int {
            core::arch::naked_asm!(
                "push rbp",
                "mov rbp, rsp",
                // 176 bytes of registers, then the list.
                "sub rsp, 208",
                "mov [rsp], rdi",
                "mov [rsp + 8], rsi",
                "mov [rsp + 16], rdx",
                "mov [rsp + 24], rcx",
                "mov [rsp + 32], r8",
                "mov [rsp + 40], r9",
                // How many vector registers are in use.
                "test al, al",
                "je 2f",
                "movaps [rsp + 48], xmm0",
                "movaps [rsp + 64], xmm1",
                "movaps [rsp + 80], xmm2",
                "movaps [rsp + 96], xmm3",
                "movaps [rsp + 112], xmm4",
                "movaps [rsp + 128], xmm5",
                "movaps [rsp + 144], xmm6",
                "movaps [rsp + 160], xmm7",
                "2:",
                "mov dword ptr [rsp + 176], {named} * 8",
                "mov dword ptr [rsp + 180], 48",
                "lea rax, [rbp + 16]",
                "mov [rsp + 184], rax",
                "mov [rsp + 192], rsp",
                concat!("lea ", $x86_register, ", [rsp + 176]"),
                "call {row}",
                "leave",
                "ret",
                named = const $named,
                row = sym $row,
            )
        }

        #[doc = concat!("`", stringify!($name), "(3)`.")]
        ///
        /// # Safety
        /// As libc's.
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        #[cfg(target_arch = "aarch64")]
        pub unsafe extern "C" fn $name() -> c_int {
            core::arch::naked_asm!(
                "stp x29, x30, [sp, #-256]!",
                "mov x29, sp",
                // 64 bytes of general registers, 128 of vector registers, then the list.
                "stp x0, x1, [sp, #16]",
                "stp x2, x3, [sp, #32]",
                "stp x4, x5, [sp, #48]",
                "stp x6, x7, [sp, #64]",
                "stp q0, q1, [sp, #80]",
                "stp q2, q3, [sp, #112]",
                "stp q4, q5, [sp, #144]",
                "stp q6, q7, [sp, #176]",
                "add x9, sp, #256",
                "str x9, [sp, #208]",
                "add x9, sp, #80",
                "str x9, [sp, #216]",
                "add x9, sp, #208",
                "str x9, [sp, #224]",
                "mov w9, #({named} * 8 - 64)",
                "str w9, [sp, #232]",
                "mov w9, #-128",
                "str w9, [sp, #236]",
                concat!("add ", $arm_register, ", sp, #208"),
                "bl {row}",
                "ldp x29, x30, [sp], #256",
                "ret",
                named = const $named,
                row = sym $row,
            )
        }
    };
}
list!(dprintf, vdprintf, 2, "rdx", "x2");
list!(__dprintf_chk, __vdprintf_chk, 3, "rcx", "x3");
