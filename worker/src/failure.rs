//! What an attempt's failure is called: its class, which decides what the farm does next, and one line for people.
//!
//! Pure. The words are those that Nix users know.

use std::error::Error;

use kiln_wire::limits::FAILURE_MESSAGE_BYTES_MAX;
use kiln_wire::{DrvPath, Failure, FailureClass, JobLimits, StoreDir};

use crate::sandbox::disk::Excess;
use crate::sandbox::{Ended, Status, Stop};

/// Returns a failure whose message ends with the whole chain of `error`.
pub fn caused(class: FailureClass, what: &str, error: &dyn Error) -> Failure {
    let chain = chain(error);
    let message = if what.is_empty() { chain } else { format!("{what}: {chain}") };
    failure(class, &message)
}

/// Returns an error with all its causes in one line.
pub fn chain(error: &dyn Error) -> String {
    let mut message = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        // Transparent errors repeat their source.
        if !message.ends_with(&text) {
            message.push_str(if message.is_empty() { "" } else { ": " });
            message.push_str(&text);
        }
        next = error.source();
    }
    message
}

/// Returns a failure with a message, cut to what replicated state keeps.
pub fn failure(class: FailureClass, message: &str) -> Failure {
    let mut end = message.len().min(FAILURE_MESSAGE_BYTES_MAX);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    Failure { class, message: message[..end].to_owned() }
}

/// Returns how a sandboxed run failed; `None` if the builder succeeded.
pub fn of_run(store_dir: &StoreDir, derivation: &DrvPath, ended: &Ended, limits: &JobLimits) -> Option<Failure> {
    let builder = format!("builder for `{}`", store_dir.join(derivation.as_path()));
    let exceeded = |text: String| Some(failure(FailureClass::LimitExceeded, &format!("{builder} {text}")));
    match ended.stopped {
        Some(Stop::Wall) => return exceeded(format!("timed out: it ran longer than its limit of {}", duration(limits.wall_ms_max))),
        Some(Stop::Silence) => {
            return exceeded(format!("timed out: it wrote no log for {}, its silence limit", duration(limits.silence_ms_max)));
        }
        Some(Stop::LogBytes) => return exceeded(format!("wrote more than {} bytes of log, its limit", limits.log_bytes_max)),
        Some(Stop::Processes { max }) => {
            let raise = "`limits.pids_max` of the worker raises it";
            return exceeded(format!("wanted more than {max} processes and threads at a time, its limit; {raise}"));
        }
        Some(Stop::Disk(excess)) => return Some(of_disk(&builder, excess)),
        Some(Stop::Cancelled) => {
            return Some(failure(FailureClass::Cancelled, &format!("{builder} was stopped because nobody wants it any more")));
        }
        None => {}
    }
    if ended.out_of_memory {
        return Some(failure(FailureClass::OutOfMemory, &format!("{builder} was killed by its memory limit{}", peak(ended))));
    }
    let text = match ended.status {
        Status::Exited(0) => return None,
        Status::Exited(code) => format!("failed with exit code {code}"),
        Status::Signalled(number) => format!("failed due to signal {number} ({})", signal_name(number)),
        Status::NotExecuted(number) => format!("could not be executed: {}", std::io::Error::from_raw_os_error(number)),
    };
    Some(failure(FailureClass::BuildFailure, &format!("{builder} {text}")))
}

fn of_disk(builder: &str, excess: Excess) -> Failure {
    match excess {
        Excess::Bytes { used, max } => {
            let text = format!("{builder} used {used} bytes of disk, its limit is {max}; `limits.disk_bytes_max` of the worker raises it");
            failure(FailureClass::LimitExceeded, &text)
        }
        Excess::Inodes { used, max } => {
            let text = format!(
                "{builder} made {used} files and directories, its limit is {max}; `limits.disk_inodes_max` of the worker raises it"
            );
            failure(FailureClass::LimitExceeded, &text)
        }
        Excess::Floor { free_bytes, free_bytes_min, used_bytes } => {
            let text = format!(
                "{builder} was stopped because the worker's disk is nearly full ({free_bytes} bytes are left, `disk_free_bytes_min` is \
                 {free_bytes_min}) and its {used_bytes} bytes are the most that a build has there"
            );
            failure(FailureClass::Infrastructure, &text)
        }
    }
}

fn peak(ended: &Ended) -> String {
    match ended.usage.memory_peak_bytes {
        0 => String::new(),
        bytes => format!(" (it used up to {} MiB)", bytes >> 20),
    }
}

fn duration(ms: u64) -> String {
    match ms {
        ms if ms % 3_600_000 == 0 => format!("{} h", ms / 3_600_000),
        ms if ms % 60_000 == 0 => format!("{} min", ms / 60_000),
        ms if ms % 1000 == 0 => format!("{} s", ms / 1000),
        ms => format!("{ms} ms"),
    }
}

fn signal_name(number: i32) -> &'static str {
    nix::sys::signal::Signal::try_from(number).map_or("unknown signal", nix::sys::signal::Signal::as_str)
}

#[cfg(test)]
mod tests {
    use kiln_wire::Usage;

    use super::*;

    #[test]
    fn every_end_of_a_run_has_its_class_and_its_words() {
        let limits = JobLimits { wall_ms_max: 7_200_000, silence_ms_max: 90_000, log_bytes_max: 100, output_bytes_max: 0 };
        let run = |status, stopped, out_of_memory| Ended {
            status,
            stopped,
            out_of_memory,
            usage: Usage { memory_peak_bytes: 64 << 20, ..Usage::default() },
        };
        let table = [
            (run(Status::Exited(1), None, false), FailureClass::BuildFailure, "failed with exit code 1"),
            (run(Status::Signalled(9), None, false), FailureClass::BuildFailure, "failed due to signal 9 (SIGKILL)"),
            (run(Status::Signalled(99), None, false), FailureClass::BuildFailure, "failed due to signal 99 (unknown signal)"),
            (
                run(Status::NotExecuted(2), None, false),
                FailureClass::BuildFailure,
                "could not be executed: No such file or directory (os error 2)",
            ),
            (run(Status::Signalled(9), None, true), FailureClass::OutOfMemory, "was killed by its memory limit (it used up to 64 MiB)"),
            (run(Status::Exited(0), None, true), FailureClass::OutOfMemory, "was killed by its memory limit (it used up to 64 MiB)"),
            (
                run(Status::Signalled(9), Some(Stop::Wall), false),
                FailureClass::LimitExceeded,
                "timed out: it ran longer than its limit of 2 h",
            ),
            (
                run(Status::Signalled(9), Some(Stop::Silence), false),
                FailureClass::LimitExceeded,
                "timed out: it wrote no log for 90 s, its silence limit",
            ),
            (
                run(Status::Exited(0), Some(Stop::LogBytes), false),
                FailureClass::LimitExceeded,
                "wrote more than 100 bytes of log, its limit",
            ),
            (
                run(Status::Exited(2), Some(Stop::Processes { max: 64 }), false),
                FailureClass::LimitExceeded,
                "wanted more than 64 processes and threads at a time, its limit; `limits.pids_max` of the worker raises it",
            ),
            (
                run(Status::Exited(2), Some(Stop::Disk(Excess::Bytes { used: 9, max: 8 })), false),
                FailureClass::LimitExceeded,
                "used 9 bytes of disk, its limit is 8; `limits.disk_bytes_max` of the worker raises it",
            ),
            (
                run(Status::Signalled(9), Some(Stop::Disk(Excess::Inodes { used: 9, max: 8 })), false),
                FailureClass::LimitExceeded,
                "made 9 files and directories, its limit is 8; `limits.disk_inodes_max` of the worker raises it",
            ),
            (
                run(Status::Signalled(9), Some(Stop::Disk(Excess::Floor { free_bytes: 1, free_bytes_min: 2, used_bytes: 3 })), false),
                FailureClass::Infrastructure,
                "was stopped because the worker's disk is nearly full (1 bytes are left, `disk_free_bytes_min` is 2) and its 3 bytes are \
                 the most that a build has there",
            ),
            (
                run(Status::Signalled(9), Some(Stop::Cancelled), false),
                FailureClass::Cancelled,
                "was stopped because nobody wants it any more",
            ),
        ];
        let derivation = DrvPath::parse("0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar.drv").expect("a path");
        for (ended, class, words) in table {
            let found = of_run(&StoreDir::default(), &derivation, &ended, &limits).expect("failed");
            let expect = format!("builder for `/nix/store/0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar.drv` {words}");
            assert_eq!((found.class, found.message), (class, expect));
        }
        assert_eq!(of_run(&StoreDir::default(), &derivation, &run(Status::Exited(0), None, false), &limits), None);
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let found = failure(FailureClass::BuildFailure, &"é".repeat(FAILURE_MESSAGE_BYTES_MAX));
        assert!(found.message.len() <= FAILURE_MESSAGE_BYTES_MAX && found.message.chars().all(|c| c == 'é'));
    }

    #[test]
    fn a_cause_is_told_once() {
        let inner = std::io::Error::other("disk full");
        let error = crate::cache::CacheError::Open { path: "/x".into(), err: inner };
        assert_eq!(
            caused(FailureClass::Infrastructure, "start", &error).message,
            "start: open the store cache's directory `/x`: disk full"
        );
    }
}
