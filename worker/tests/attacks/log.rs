//! What a build writes, and how long it takes (attacks A16 and A17).

use std::time::Duration;

use kiln_worker::sandbox::{Status, Stop};

use crate::sandbox_support::Bench;

/// Ten gigabytes are asked for, or no end; what comes is bounded by the limit, and what is held at a time by a small buffer.
#[test]
fn a16_a_flood_ends_at_the_log_limit_whether_or_not_it_has_lines() {
    let flood = "head -c 10000000000";
    for script in [
        format!("{flood} /dev/zero"),
        "yes $(head -c 2000 /dev/zero | tr '\\0' y)".to_owned(),
        format!("{flood} /dev/urandom"),
        format!("{flood} /dev/zero >&2"),
    ] {
        let mut bench = Bench::new(&script);
        bench.spec.limits.log_bytes = 1_000_001;
        let (mut total, mut largest) = (0, 0);
        let ended =
            bench.try_run(&mut |bytes| (total, largest) = (total + bytes.len(), largest.max(bytes.len()))).expect("the sandbox stands");
        assert_eq!((ended.stopped, ended.status), (Some(Stop::LogBytes), Status::Signalled(libc::SIGKILL)), "{script}");
        assert_eq!((total, ended.usage.log_bytes), (1_000_001, 1_000_001), "{script}");
        assert!(largest <= 64 << 10, "{script}: {largest} bytes at a time");
    }
}

/// Nix tells success and failure of the set-up by lines of the log.
#[test]
fn a16_lines_that_look_like_the_launchers_or_the_farms_are_log() {
    let table: [(&str, &[u8], i32); 5] = [
        (r"printf '\002\n'; exit 3", b"\x02\n", 3),
        (r"printf '\001\nsetting up failed\n\002\n'; exit 0", b"\x01\nsetting up failed\n\x02\n", 0),
        (r#"echo '@nix {"action":"setPhase","phase":"done"}'; exit 4"#, b"@nix {\"action\":\"setPhase\",\"phase\":\"done\"}\n", 4),
        (r"printf '\033]0;title\007\377\376\033[2J'; exit 5", b"\x1b]0;title\x07\xff\xfe\x1b[2J", 5),
        // The launcher's own report: a step's number, an index, an error.
        (r"printf '\001\0\0\0\0\0\0\0\001\0\0\0'; exit 6", b"\x01\0\0\0\0\0\0\0\x01\0\0\0", 6),
    ];
    for (script, want, code) in table {
        let mut log = Vec::new();
        let ended = Bench::new(script).try_run(&mut |bytes| log.extend_from_slice(bytes)).expect("the sandbox stands");
        assert_eq!((ended.status, ended.stopped), (Status::Exited(code), None), "{script}");
        assert_eq!(log, want, "{script}");
    }
}

#[test]
fn a17_neither_silence_nor_a_slow_drip_nor_deafness_to_signals_outlasts_the_limits() {
    let table = [
        ("silence", "sleep 1000", Stop::Silence),
        ("deaf", "trap '' HUP INT QUIT TERM; sleep 1000 & while true; do wait; sleep 1000; done", Stop::Silence),
        ("stopped", "kill -STOP $$; sleep 1000", Stop::Silence),
        ("a drip", "while true; do printf .; sleep 0.1; done", Stop::Wall),
        ("a drip of empty writes", "while true; do printf ''; sleep 0.1; done", Stop::Silence),
        ("closed output", "exec >&- 2>&-; sleep 1000", Stop::Silence),
        ("a descendant that holds the log", "sleep 1000 & exec >&- 2>&-; sleep 1000", Stop::Silence),
    ];
    for (what, script, want) in table {
        let mut bench = Bench::new(script);
        if want == Stop::Wall {
            bench.spec.limits.wall = Duration::from_millis(900);
        } else {
            bench.spec.limits.silence = Duration::from_millis(400);
        }
        let ended = bench.run().ended;
        assert_eq!((ended.stopped, ended.status), (Some(want), Status::Signalled(libc::SIGKILL)), "{what}");
    }
}
