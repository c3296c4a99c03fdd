//! kill -9 in the middle of commits: a second process proposes and prints what was committed to it; nothing of that may be lost.

mod raft_support;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use kiln_coordinator::raft::{Consensus, ConsensusError};
use raft_support::{config, register, start};
use tempfile::TempDir;

const DIR: &str = "KILN_RAFT_CRASH_DIR";
const FIRST: &str = "KILN_RAFT_CRASH_FIRST";

/// The second process. Does nothing when the whole file is run as tests.
#[tokio::test]
async fn propose_until_killed() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let first: u64 = std::env::var(FIRST).expect("set with the directory").parse().expect("a number");
    let (consensus, _) = start(Path::new(&dir)).await;
    let mut out = std::io::stdout();
    for round in 0.. {
        let pending: Vec<_> = (0..5).map(|i| consensus.propose_nowait(vec![register(first + round * 5 + i)]).expect("takes it")).collect();
        for (i, pending) in (0..).zip(pending) {
            pending.applied().await.expect("commits");
            writeln!(out, "committed {}", first + round * 5 + i).expect("prints");
        }
    }
}

fn spawn(dir: &Path, first: u64) -> Child {
    Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "propose_until_killed", "--nocapture"])
        .envs([(DIR, dir.as_os_str()), (FIRST, first.to_string().as_ref())])
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts")
}

#[tokio::test]
async fn nothing_committed_is_lost_by_kill_9() {
    let dir = TempDir::new().expect("a directory");
    let mut committed = 0;
    for (round, want) in [1u64, 3, 40, 7, 333, 12, 90, 600, 2, 150].into_iter().enumerate() {
        let mut child = spawn(dir.path(), committed);
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines().map(|line| line.expect("reads"));
        let mut seen = lines.filter_map(|line| line.rsplit_once("committed ").and_then(|(_, number)| number.parse::<u64>().ok()));
        let mut last = None;
        for _ in 0..want {
            last = seen.next();
        }
        if round == 0 {
            let busy = Consensus::start(config(dir.path())).await;
            assert!(matches!(busy, Err(ConsensusError::InUse { .. })), "two processes, one directory: {busy:?}");
        }
        child.kill().expect("kills");
        last = seen.last().or(last);
        child.wait().expect("ends");
        let last = last.expect("at least one was committed");
        let (consensus, _) = start(dir.path()).await;
        let have: std::collections::BTreeSet<String> =
            consensus.read(|farm| farm.registrations().map(|(worker, _)| worker.to_string()).collect());
        let missing: Vec<u64> = (0..=last).filter(|number| !have.contains(&format!("w{number}"))).collect();
        assert!(missing.is_empty(), "round {round}: {missing:?} of {last} were committed and are lost");
        committed = last + 1;
        consensus.shutdown().await;
    }
}
