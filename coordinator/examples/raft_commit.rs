//! Prints what a commit costs here, beside what the disk itself takes: `cargo run --release --example raft_commit [DIR]`.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kiln_coordinator::raft::{Consensus, ConsensusConfig};
use kiln_core::Command;
use kiln_wire::{BuildId, NodeId, Timestamp};

const SPAN: Duration = Duration::from_secs(3);

fn main() {
    let base = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = base.join(format!("kiln-raft-commit-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("make the directory");
    print("fdatasync alone", syncs(&dir.join("raw")), None);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("start a runtime");
    for in_flight in [1, 64] {
        runtime.block_on(async {
            let config = ConsensusConfig::new(dir.join(in_flight.to_string()), NodeId(1));
            let (consensus, _effects) = Consensus::start(config).await.expect("start consensus");
            let before = consensus.metrics().sync.count;
            let times = commits(&consensus, in_flight).await;
            print(&format!("{in_flight} in flight"), times, Some(consensus.metrics().sync.count - before));
            consensus.shutdown().await;
        });
    }
    std::fs::remove_dir_all(&dir).expect("remove the directory");
}

/// Overwrites zeros 4 KiB at a time, each waited for.
fn syncs(path: &Path) -> Vec<Duration> {
    let file = File::create(path).expect("create a file");
    file.write_all_at(&vec![0; 16 << 20], 0).and_then(|()| file.sync_all()).expect("fill it");
    let (start, block) = (Instant::now(), [7; 4096]);
    let mut times = Vec::new();
    while start.elapsed() < SPAN {
        let at = (times.len() as u64 * 4096) % (16 << 20);
        let since = Instant::now();
        file.write_all_at(&block, at).and_then(|()| file.sync_data()).expect("write");
        times.push(since.elapsed());
    }
    times
}

async fn commits(consensus: &Consensus, in_flight: u64) -> Vec<Duration> {
    let start = Instant::now();
    let clients = (0..in_flight).map(|client| async move {
        let mut times = Vec::new();
        while start.elapsed() < SPAN {
            let since = Instant::now();
            consensus.propose(vec![Command::Cancel { build: BuildId(client), now: Timestamp(0) }]).await.expect("commit");
            times.push(since.elapsed());
        }
        times
    });
    futures::future::join_all(clients).await.concat()
}

fn print(name: &str, mut times: Vec<Duration>, syncs: Option<u64>) {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_micros();
    let rate = times.len() as f64 / SPAN.as_secs_f64();
    let batch = syncs.map(|syncs| format!(", {:.1} a sync", times.len() as f64 / syncs as f64)).unwrap_or_default();
    println!("{name}: {rate:.0}/s, p50 {} us, p99 {} us{batch}", at(50), at(99));
}
