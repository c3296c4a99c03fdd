//! Randomness and time of the simulated world, in the place of the system's: what the program draws follows from the seed, and clocks
//! stand where the simulation is.
//!
//! The C library's symbols are defined here, so that the standard library and every crate use these; `syscall`, `open` and
//! `read` among them, because the cryptography asks the kernel or reads its device, and the lengths of its signatures decide how many packets a handshake takes.
//! Threads other than the simulation's get the system's.
#![allow(unsafe_code, reason = "the C library's functions have no other form")]

use std::cell::Cell;
use std::ffi::CStr;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

#[derive(Clone, Copy, Debug)]
struct World {
    state: u64,
    elapsed: Duration,
    /// By how much the calendar clock of whoever runs is wrong.
    skew_ms: i64,
}

/// The first moment of every simulation, in seconds since 1970: a day of the year 2030.
const EPOCH_S: i64 = 1_900_000_000;

thread_local! {
    static WORLD: Cell<Option<World>> = const { Cell::new(None) };
}

/// Begins: from here on this thread draws from `seed`, and its clocks stand at [`EPOCH_S`].
pub fn begin(seed: u64) {
    WORLD.set(Some(World { state: seed ^ 0x6b69_6c6e, elapsed: Duration::ZERO, skew_ms: 0 }));
}

/// Moves the clocks.
pub fn advance(elapsed: Duration) {
    with(|world| world.elapsed = elapsed);
}

/// Sets the calendar clock wrong.
pub fn skew(ms: i64) {
    with(|world| world.skew_ms = ms);
}

/// Draws a number below `bound`.
pub fn draw(bound: u64) -> u64 {
    let mut drawn = 0;
    with(|world| drawn = next(world));
    drawn % bound.max(1)
}

fn with(change: impl FnOnce(&mut World)) {
    if let Some(mut world) = WORLD.get() {
        change(&mut world);
        WORLD.set(Some(world));
    }
}

/// SplitMix64. Source: Steele, Lea, Flood 2014.
fn next(world: &mut World) -> u64 {
    world.state = world.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = world.state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// The C library's `getrandom`.
///
/// # Safety
/// `buffer` has room for `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(buffer: *mut libc::c_void, length: libc::size_t, flags: libc::c_uint) -> libc::ssize_t {
    let Ok(Some(mut world)) = WORLD.try_with(Cell::get) else {
        // SAFETY: the caller's promise is handed on.
        return unsafe { ask_kernel(libc::SYS_getrandom, [buffer as i64, length as i64, flags.into(), 0, 0, 0]) } as libc::ssize_t;
    };
    for at in 0..length {
        // SAFETY: `at` is below `length`, for which the caller promised room.
        unsafe { buffer.cast::<u8>().add(at).write((next(&mut world) >> 56) as u8) };
    }
    WORLD.set(Some(world));
    length as libc::ssize_t
}

/// The C library's `clock_gettime`.
///
/// # Safety
/// `time` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> libc::c_int {
    let Ok(Some(world)) = WORLD.try_with(Cell::get) else {
        // SAFETY: the caller's promise is handed on.
        return unsafe { ask_kernel(libc::SYS_clock_gettime, [clock.into(), time as i64, 0, 0, 0, 0]) } as libc::c_int;
    };
    let elapsed_ms = i64::try_from(world.elapsed.as_millis()).unwrap_or(i64::MAX);
    let ms = match clock {
        libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE => EPOCH_S * 1000 + elapsed_ms + world.skew_ms,
        // A machine that has been up for a day.
        _ => 86_400_000 + elapsed_ms,
    };
    // SAFETY: the caller lets it be written.
    unsafe { time.write(libc::timespec { tv_sec: ms / 1000, tv_nsec: ms % 1000 * 1_000_000 }) };
    0
}

/// The descriptor of the kernel's random device, once somebody has opened it.
static DEVICE: AtomicI32 = AtomicI32::new(-1);

/// The C library's `open`.
///
/// # Safety
/// As the call itself.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn open(path: *const libc::c_char, flags: libc::c_int, mode: libc::mode_t) -> libc::c_int {
    // SAFETY: the caller's promise is handed on.
    let opened =
        unsafe { ask_kernel(libc::SYS_openat, [libc::AT_FDCWD.into(), path as i64, flags.into(), mode.into(), 0, 0]) } as libc::c_int;
    // SAFETY: the caller gives a string.
    if unsafe { CStr::from_ptr(path) } == c"/dev/urandom" {
        DEVICE.store(opened, Ordering::Relaxed);
    }
    opened
}

/// The C library's `read`.
///
/// # Safety
/// As the call itself.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn read(file: libc::c_int, buffer: *mut libc::c_void, length: libc::size_t) -> libc::ssize_t {
    if file >= 0 && file == DEVICE.load(Ordering::Relaxed) {
        // SAFETY: the caller's promise is handed on.
        return unsafe { getrandom(buffer, length, 0) };
    }
    // SAFETY: the caller's promise is handed on.
    unsafe { ask_kernel(libc::SYS_read, [file.into(), buffer as i64, length as i64, 0, 0, 0]) as libc::ssize_t }
}

/// The C library's `syscall`.
///
/// # Safety
/// As the call itself.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn syscall(number: i64, a: i64, b: i64, c: i64, d: i64, e: i64, f: i64) -> i64 {
    if number == libc::SYS_getrandom {
        // SAFETY: the caller's promise is handed on.
        return unsafe { getrandom(a as *mut libc::c_void, b as libc::size_t, c as libc::c_uint) } as i64;
    }
    // SAFETY: the caller's promise is handed on.
    unsafe { ask_kernel(number, [a, b, c, d, e, f]) }
}

/// Makes a system call, with errors as the C library tells them.
///
/// # Safety
/// As the call itself.
unsafe fn ask_kernel(number: i64, args: [i64; 6]) -> i64 {
    let [a, b, c, d, e, f] = args;
    let result: i64;
    // SAFETY: the registers are those of the kernel's convention on x86-64; what the call does is the caller's to answer for.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e, in("r9") f,
            lateout("rcx") _, lateout("r11") _,
        );
    }
    if (-4095..0).contains(&result) {
        // SAFETY: every thread has its own.
        unsafe { *libc::__errno_location() = -result as i32 };
        return -1;
    }
    result
}
