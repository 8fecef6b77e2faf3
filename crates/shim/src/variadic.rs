//! Functions with any number of arguments: `execl`, `execlp`, `execle`, `dprintf`. Rust can call such functions
//! but not define them, so these are a few instructions each, which put the arguments in a row in memory and
//! call a plain function with the address.
//!
//! The strings after the path are a row already once those in registers stand below those on the stack. For
//! `dprintf` the row is what `va_list` describes in the platform's call rules.

use core::ffi::{c_char, c_int};

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
