//! System calls as the processor takes them, for a child that shares the worker's memory: the C library would write their errors to
//! `errno`, which is the parent thread's at that moment.
#![allow(unsafe_code)]

use std::arch::asm;
use std::io;

use libc::{c_int, c_long};

/// Largest error number; the kernel returns errors as their negation.
const ERRNO_MAX: c_long = 4095;

/// One system call. Returns its value, or its error number.
///
/// # Safety
/// The arguments must be what the call of this number takes, and memory that they lead to must be there for it.
pub(super) unsafe fn call(number: c_long, [a, b, c, d, e]: [c_long; 5]) -> Result<c_long, c_int> {
    let value: c_long;
    // SAFETY: the kernel changes nothing but these registers, and the memory that the caller speaks for.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => value,
            in("rdi") a,
            in("rsi") b,
            in("rdx") c,
            in("r10") d,
            in("r8") e,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result(value)
}

/// `clone3` for a child with a stack of its own in the same memory, which starts in `entry(argument)`. Returns the child's id.
///
/// # Safety
/// `arguments` must ask for shared memory and name a stack that lives until the child has ended or executed a program, as must
/// what `argument` leads to. `entry` must use nothing that belongs to the calling thread.
pub(super) unsafe fn clone3<T>(arguments: &mut libc::clone_args, entry: extern "C" fn(&T) -> !, argument: &T) -> io::Result<libc::pid_t> {
    let value: c_long;
    // SAFETY: in the parent, only the named registers change. The child begins behind `syscall` with the new stack, whose end is
    // aligned to 16 as at any call, and never comes back here: `entry` does not return.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r9",
            "call r8",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 => value,
            in("rdi") std::ptr::from_mut(arguments),
            in("rsi") size_of::<libc::clone_args>(),
            in("r8") entry,
            in("r9") std::ptr::from_ref(argument),
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    let pid = result(value).map_err(io::Error::from_raw_os_error)?;
    Ok(libc::pid_t::try_from(pid).expect("a process id fits"))
}

fn result(value: c_long) -> Result<c_long, c_int> {
    if (-ERRNO_MAX..0).contains(&value) { Err(c_int::try_from(-value).expect("at most 4095")) } else { Ok(value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_returns_its_value_or_its_error_and_leaves_errno_alone() {
        // SAFETY: neither call leads to memory.
        let (own, refused) = unsafe { (call(libc::SYS_getpid, [0; 5]), call(libc::SYS_close, [-1, 0, 0, 0, 0])) };
        assert_eq!(own, Ok(c_long::from(std::process::id())));
        assert_eq!(refused, Err(libc::EBADF));
        // SAFETY: sets and reads this thread's own `errno`.
        let errno = unsafe {
            *libc::__errno_location() = 7;
            let _ = call(libc::SYS_close, [-1, 0, 0, 0, 0]);
            *libc::__errno_location()
        };
        assert_eq!(errno, 7);
    }
}
