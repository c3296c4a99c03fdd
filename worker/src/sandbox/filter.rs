//! The system call filter: what a build must not do even where the kernel would let it.
//!
//! Nix's list (set-id bits, extended attributes) and what escapes it: the `*xattrat` calls, `mknod` with set-id bits, sockets to
//! the hypervisor and the like, `io_uring` (whose operations pass by every filter), keyrings, and the x32 numbering of x86-64. Refusals are
//! the errors that a kernel without the facility gives, so that programs fall back. Never relied on alone: mounts are nosuid and
//! outputs are normalised.
//!
//! Written as one program by hand, because `seccompiler` has one error number per program and knows no i386, which a 64-bit build
//! can enter at will. Absences: x86-64 hosts only. `socketcall` of i386 hides the socket family behind a pointer: it is refused to
//! 64-bit builds and open to i686 ones, whose C library needs it.

#[cfg(not(target_arch = "x86_64"))]
compile_error!("the system call filter has numbers for x86-64 only");

use libc::{c_int, sock_filter};

/// What is refused, for one system call number.
struct Rule {
    number: u32,
    when: When,
    errno: c_int,
}

enum When {
    Always,
    /// The argument with this index has one of these bits.
    Bits(u32, u32),
    /// The argument with this index, as 32 bits, is one of these values.
    OneOf(u32, &'static [u32]),
}

/// Numbers that differ between the two ways into an x86-64 kernel.
struct Numbers {
    chmod: u32,
    fchmod: u32,
    fchmodat: u32,
    mknod: u32,
    mknodat: u32,
    /// First of `setxattr` … `fremovexattr`, which are twelve in a row.
    xattr_first: u32,
    socket: u32,
    add_key: u32,
    request_key: u32,
    keyctl: u32,
}

const X86_64: Numbers = Numbers {
    chmod: 90,
    fchmod: 91,
    fchmodat: 268,
    mknod: 133,
    mknodat: 259,
    xattr_first: 188,
    socket: 41,
    add_key: 248,
    request_key: 249,
    keyctl: 250,
};
const I386: Numbers = Numbers {
    chmod: 15,
    fchmod: 94,
    fchmodat: 306,
    mknod: 14,
    mknodat: 297,
    xattr_first: 226,
    socket: 359,
    add_key: 286,
    request_key: 287,
    keyctl: 288,
};
/// Same number everywhere.
const FCHMODAT2: u32 = 452;
/// Same number everywhere.
const IO_URING_SETUP: u32 = 425;
/// `setxattrat`, `getxattrat`, `listxattrat`, `removexattrat`: same numbers everywhere.
const XATTRAT: std::ops::RangeInclusive<u32> = 463..=466;
/// i386 only.
const SOCKETCALL: u32 = 102;

const SET_ID_BITS: u32 = libc::S_ISUID | libc::S_ISGID;
/// Families of sockets that no network namespace confines: to the hypervisor, and to the processors of the same board (`AF_QIPCRTR`,
/// which the C library's headers lack).
const FAMILIES_DENIED: [u32; 2] = [libc::AF_VSOCK as u32, 42];
/// Marks the numbers of the x32 calling convention.
const X32_BIT: u32 = 0x4000_0000;
const ARCH_X86_64: u32 = 0xc000_003e;
const ARCH_I386: u32 = 0x4000_0003;
/// Offsets in the kernel's `struct seccomp_data`.
const OFFSET_NUMBER: u32 = 0;
const OFFSET_ARCH: u32 = 4;
const OFFSET_ARGS: u32 = 16;

/// Returns the program for a build for `system`.
pub(super) fn program(system: &str) -> Vec<sock_filter> {
    let wide = block(&rules(&X86_64));
    let mut narrow_rules = rules(&I386);
    if system != "i686-linux" {
        narrow_rules.push(Rule { number: SOCKETCALL, when: When::Always, errno: libc::ENOSYS });
    }
    let x32 = [jump(libc::BPF_JSET, X32_BIT, 0, 1), refuse(libc::ENOSYS)];
    let to_narrow = u32::try_from(1 + x32.len() + wide.len()).expect("the filter has some hundred instructions");

    let mut program = vec![load(OFFSET_ARCH), jump(libc::BPF_JEQ, ARCH_X86_64, 1, 0), statement(libc::BPF_JMP | libc::BPF_JA, to_narrow)];
    program.push(load(OFFSET_NUMBER));
    program.extend(x32);
    program.extend(wide);
    program.extend([jump(libc::BPF_JEQ, ARCH_I386, 1, 0), statement(libc::BPF_RET, libc::SECCOMP_RET_KILL_PROCESS), load(OFFSET_NUMBER)]);
    program.extend(block(&narrow_rules));
    program
}

fn rules(numbers: &Numbers) -> Vec<Rule> {
    let set_id = |number, argument| Rule { number, when: When::Bits(argument, SET_ID_BITS), errno: libc::EPERM };
    let always = |number, errno| Rule { number, when: When::Always, errno };
    let mut rules = vec![
        set_id(numbers.chmod, 1),
        set_id(numbers.fchmod, 1),
        set_id(numbers.fchmodat, 2),
        set_id(FCHMODAT2, 2),
        set_id(numbers.mknod, 1),
        set_id(numbers.mknodat, 2),
        Rule { number: numbers.socket, when: When::OneOf(0, &FAMILIES_DENIED), errno: libc::EAFNOSUPPORT },
        always(IO_URING_SETUP, libc::ENOSYS),
    ];
    rules.extend([numbers.add_key, numbers.request_key, numbers.keyctl].map(|number| always(number, libc::ENOSYS)));
    rules.extend((numbers.xattr_first..numbers.xattr_first + 12).chain(XATTRAT).map(|number| always(number, libc::ENOTSUP)));
    rules
}

/// The rules in order; the accumulator holds the system call number until one of them matches.
fn block(rules: &[Rule]) -> Vec<sock_filter> {
    let mut block = Vec::new();
    for rule in rules {
        match rule.when {
            When::Always => block.extend([jump(libc::BPF_JEQ, rule.number, 0, 1), refuse(rule.errno)]),
            When::Bits(argument, mask) => block.extend(examined(rule, argument, libc::BPF_JSET, &[mask])),
            When::OneOf(argument, values) => block.extend(examined(rule, argument, libc::BPF_JEQ, values)),
        }
    }
    block.push(allow());
    block
}

/// The kernel takes modes and families as 32 bits, so the low half of the argument decides. No other rule is asked afterwards: there is
/// one for each number.
fn examined(rule: &Rule, argument: u32, test: u32, values: &[u32]) -> Vec<sock_filter> {
    let mut examined = vec![load(OFFSET_ARGS + 8 * argument)];
    examined.extend(values.iter().flat_map(|value| [jump(test, *value, 0, 1), refuse(rule.errno)]));
    examined.push(allow());
    let beyond = u8::try_from(examined.len()).expect("a rule names a few values");
    examined.insert(0, jump(libc::BPF_JEQ, rule.number, 0, beyond));
    examined
}

fn statement(code: u32, value: u32) -> sock_filter {
    sock_filter { code: u16::try_from(code).expect("an instruction code has 16 bits"), jt: 0, jf: 0, k: value }
}

fn load(offset: u32) -> sock_filter {
    statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset)
}

fn jump(test: u32, value: u32, if_true: u8, if_false: u8) -> sock_filter {
    sock_filter { jt: if_true, jf: if_false, ..statement(libc::BPF_JMP | test | libc::BPF_K, value) }
}

fn refuse(errno: c_int) -> sock_filter {
    statement(libc::BPF_RET, libc::SECCOMP_RET_ERRNO | errno.unsigned_abs())
}

fn allow() -> sock_filter {
    statement(libc::BPF_RET, libc::SECCOMP_RET_ALLOW)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the program as the kernel would.
    fn verdict(program: &[sock_filter], arch: u32, number: u32, args: [u64; 6]) -> u32 {
        let mut data = [number, arch, 0, 0].map(u32::to_le_bytes).concat();
        data.extend(args.iter().flat_map(|arg| arg.to_le_bytes()));
        let (mut at, mut accumulator) = (0_usize, 0_u32);
        loop {
            let op = program[at];
            let code = u32::from(op.code);
            at += 1;
            if code == libc::BPF_LD | libc::BPF_W | libc::BPF_ABS {
                let from = op.k as usize;
                accumulator = u32::from_le_bytes(data[from..from + 4].try_into().expect("four bytes"));
            } else if code == libc::BPF_RET {
                return op.k;
            } else if code == libc::BPF_JMP | libc::BPF_JA {
                at += op.k as usize;
            } else {
                let holds = if code & 0xf0 == libc::BPF_JEQ { accumulator == op.k } else { accumulator & op.k != 0 };
                at += usize::from(if holds { op.jt } else { op.jf });
            }
        }
    }

    #[test]
    fn each_forbidden_call_gets_its_own_error_and_the_rest_passes() {
        let errno = |errno: c_int| libc::SECCOMP_RET_ERRNO | errno.unsigned_abs();
        let (pass, kill) = (libc::SECCOMP_RET_ALLOW, libc::SECCOMP_RET_KILL_PROCESS);
        let x32 = X32_BIT | 90;
        let table = [
            ("read", ARCH_X86_64, 0, [0; 6], pass),
            ("chmod 0755", ARCH_X86_64, 90, [0, 0o755, 0, 0, 0, 0], pass),
            ("chmod 4755", ARCH_X86_64, 90, [0, 0o4755, 0, 0, 0, 0], errno(libc::EPERM)),
            ("chmod 4755 with high bits", ARCH_X86_64, 90, [0, 0x1_0000_0000 | 0o4755, 0, 0, 0, 0], errno(libc::EPERM)),
            ("fchmod 2755", ARCH_X86_64, 91, [0, 0o2755, 0, 0, 0, 0], errno(libc::EPERM)),
            ("fchmodat 2755", ARCH_X86_64, 268, [0, 0, 0o2755, 0, 0, 0], errno(libc::EPERM)),
            ("fchmodat2 4755", ARCH_X86_64, 452, [0, 0, 0o4755, 0, 0, 0], errno(libc::EPERM)),
            ("mknod 4755", ARCH_X86_64, 133, [0, 0o104_755, 0, 0, 0, 0], errno(libc::EPERM)),
            ("x32 chmod", ARCH_X86_64, x32, [0, 0o4755, 0, 0, 0, 0], errno(libc::ENOSYS)),
            ("i386 chmod 4755", ARCH_I386, 15, [0, 0o4755, 0, 0, 0, 0], errno(libc::EPERM)),
            ("i386 read", ARCH_I386, 3, [0; 6], pass),
            ("i386 setxattr", ARCH_I386, 226, [0; 6], errno(libc::ENOTSUP)),
            ("i386 fremovexattr", ARCH_I386, 237, [0; 6], errno(libc::ENOTSUP)),
            ("i386 socketcall", ARCH_I386, 102, [0; 6], errno(libc::ENOSYS)),
            ("setxattr", ARCH_X86_64, 188, [0; 6], errno(libc::ENOTSUP)),
            ("fremovexattr", ARCH_X86_64, 199, [0; 6], errno(libc::ENOTSUP)),
            ("tkill, the next number", ARCH_X86_64, 200, [0; 6], pass),
            ("setxattrat", ARCH_X86_64, 463, [0; 6], errno(libc::ENOTSUP)),
            ("removexattrat", ARCH_X86_64, 466, [0; 6], errno(libc::ENOTSUP)),
            ("unix socket", ARCH_X86_64, 41, [1, 0, 0, 0, 0, 0], pass),
            ("vsock socket", ARCH_X86_64, 41, [40, 0, 0, 0, 0, 0], errno(libc::EAFNOSUPPORT)),
            ("qipcrtr socket", ARCH_X86_64, 41, [42, 0, 0, 0, 0, 0], errno(libc::EAFNOSUPPORT)),
            ("i386 qipcrtr socket", ARCH_I386, 359, [42, 0, 0, 0, 0, 0], errno(libc::EAFNOSUPPORT)),
            ("io_uring_setup", ARCH_X86_64, 425, [0; 6], errno(libc::ENOSYS)),
            ("keyctl", ARCH_X86_64, 250, [0; 6], errno(libc::ENOSYS)),
            ("another architecture", 0x1234, 0, [0; 6], kill),
        ];
        let program = program("x86_64-linux");
        for (what, arch, number, args, want) in table {
            assert_eq!(verdict(&program, arch, number, args), want, "{what}");
        }
    }

    #[test]
    fn a_32_bit_build_keeps_socketcall() {
        assert_eq!(verdict(&program("i686-linux"), ARCH_I386, SOCKETCALL, [0; 6]), libc::SECCOMP_RET_ALLOW);
    }
}
