//! A builder that tries what a build must not be able to do and prints what the kernel answered, one line per attempt: `what: errno`, 0
//! for what was done. Compiled by the tests with a static C library; no crates. Its first argument names what it tries.

mod escape;
mod files;
mod network;

use std::arch::asm;
use std::io;

unsafe extern "C" {
    fn syscall(number: i64, ...) -> i64;
    fn mmap(at: *mut u8, length: usize, protection: i32, flags: i32, fd: i32, offset: i64) -> *mut u8;
}

/// One attempt: its name, the system call number, its arguments.
type Attempt = (&'static str, i64, [i64; 5]);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["calls"] => calls(),
        ["network", port, name] => network::attack(port.parse().expect("a port"), name),
        ["descriptors"] => escape::descriptors(),
        ["program", idle] => escape::program(idle),
        ["groups"] => escape::groups(),
        ["set-id", dir] => files::set_id(dir),
        ["deep", dir, levels] => files::deep(dir, levels.parse().expect("a number")),
        ["socket", path] => files::socket(path),
        ["memory", bytes] => println!("{}", vec![1_u8; bytes.parse().expect("a number")].iter().map(|byte| u64::from(*byte)).sum::<u64>()),
        ["threads", count] => escape::threads(count.parse().expect("a number")),
        _ => panic!("no such attack: {arguments:?}"),
    }
}

/// Says how an attempt ended.
fn told<T>(what: &str, ended: io::Result<T>) {
    println!("{what}: {}", ended.err().map_or(0, |err| err.raw_os_error().unwrap_or(-1)));
}

/// One system call. Pointers among its arguments must lead to what lives on.
fn call(number: i64, [a, b, c, d, e]: [i64; 5]) -> io::Result<i64> {
    // SAFETY: the callers pass pointers to literals or to their own buffers; the kernel refuses what it does not understand.
    let answer = unsafe { syscall(number, a, b, c, d, e) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

fn calls() {
    std::fs::write("/build/victim", "x").expect("write the victim");
    let file = c"/build/victim".as_ptr() as i64;
    let made = c"/build/made".as_ptr() as i64;
    let name = c"user.x".as_ptr() as i64;
    let cwd = -100;
    let attempts: [Attempt; 17] = [
        ("chmod 4755", 90, [file, 0o4755, 0, 0, 0]),
        ("fchmodat 2755", 268, [cwd, file, 0o2755, 0, 0]),
        ("fchmodat2 4755", 452, [cwd, file, 0o4755, 0, 0]),
        ("mknod 4755", 133, [made, 0o104_755, 0, 0, 0]),
        ("mknod device", 133, [made, 0o020_666, 0x103, 0, 0]),
        ("setxattr", 188, [file, name, name, 1, 0]),
        ("removexattr", 197, [file, name, 0, 0, 0]),
        ("setxattrat", 463, [cwd, file, 0, name, 0]),
        ("vsock", 41, [40, 1, 0, 0, 0]),
        ("io_uring_setup", 425, [8, 0, 0, 0, 0]),
        ("keyctl", 250, [0, -3, 0, 0, 0]),
        ("unshare user", 272, [0x1000_0000, 0, 0, 0, 0]),
        ("unshare mounts", 272, [0x2_0000, 0, 0, 0, 0]),
        ("setuid 0", 105, [0, 0, 0, 0, 0]),
        ("setgroups", 116, [0, 0, 0, 0, 0]),
        ("x32 chmod 4755", 0x4000_0000 | 90, [file, 0o4755, 0, 0, 0]),
        ("chmod 0755", 90, [file, 0o755, 0, 0, 0]),
    ];
    for (what, number, arguments) in attempts {
        told(what, call(number, arguments));
    }
    println!("i386 chmod 4755: {}", i386_chmod());
}

/// Enters the kernel the 32-bit way, which needs the path below 4 GiB.
fn i386_chmod() -> i64 {
    // SAFETY: an anonymous page of our own in the low half, filled before use; the call changes eax only.
    unsafe {
        let low = mmap(std::ptr::null_mut(), 4096, 3, 0x62, -1, 0);
        let path = b"/build/victim\0";
        std::ptr::copy_nonoverlapping(path.as_ptr(), low, path.len());
        let answer: i64;
        asm!("push rbx", "mov ebx, {path:e}", "int 0x80", "pop rbx", path = in(reg) low as u64, inlateout("rax") 15_i64 => answer, in("rcx") 0o4755_i64,
             out("r8") _, out("r9") _, out("r10") _, out("r11") _);
        -i64::from(answer as i32)
    }
}
