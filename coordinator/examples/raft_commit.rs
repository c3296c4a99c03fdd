//! Prints what a commit costs here, beside what the disk itself takes, for groups of so many coordinators of this process:
//! `cargo run --release -p kiln-coordinator --example raft_commit -- DIR 1 3`.

use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kiln_coordinator::raft::{Consensus, ConsensusConfig};
use kiln_core::Command;
use kiln_link::{Authority, Identity, Listener, Role};
use kiln_wire::{BuildId, NodeId, Timestamp};

const SPAN: Duration = Duration::from_secs(3);
const IN_FLIGHT: [u64; 3] = [1, 64, 1024];

fn main() {
    let mut args = std::env::args().skip(1);
    let base = args.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let sizes: Vec<u64> = args.map(|size| size.parse().expect("how many coordinators")).collect();
    let dir = base.join(format!("kiln-raft-commit-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("make the directory");
    let raw = print("fdatasync alone, 4 KiB", syncs(&dir.join("raw")), None, None);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("start a runtime");
    for size in if sizes.is_empty() { vec![1] } else { sizes } {
        runtime.block_on(measure(&dir.join(size.to_string()), size, raw));
    }
    std::fs::remove_dir_all(&dir).expect("remove the directory");
}

async fn measure(dir: &Path, size: u64, raw: f64) {
    let authority = Authority::ephemeral(&"bench".parse().expect("a name")).expect("an authority");
    let first = start(dir, &authority, 1).await.0;
    let mut others = Vec::new();
    for number in 2..=size {
        let (node, addr) = start(dir, &authority, number).await;
        first.add(NodeId(number), addr.to_string()).await.expect("add a coordinator");
        while first.members().iter().filter(|member| member.votes).count() < others.len() + 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        others.push(node);
    }
    for in_flight in IN_FLIGHT {
        let before = first.metrics().sync.count;
        let times = commits(&first, in_flight).await;
        let syncs = first.metrics().sync.count - before;
        print(&format!("coordinators {size}, in flight {in_flight}"), times, Some(syncs), Some(raw));
    }
    first.shutdown().await;
    for node in others {
        node.shutdown().await;
    }
}

async fn start(dir: &Path, authority: &Authority, number: u64) -> (Consensus, SocketAddr) {
    let day = Duration::from_secs(86_400);
    let credentials = authority.issue(&Role::Coordinator(NodeId(number)), day).expect("issue a certificate");
    let identity = Identity::from_credentials(&credentials).expect("an identity");
    let listener = Arc::new(Listener::bind("127.0.0.1:0".parse().expect("an address"), &identity, None).expect("listen"));
    let addr = listener.local_addr();
    let config = ConsensusConfig {
        identity: Some(identity),
        link: addr.to_string(),
        join: number != 1,
        // What is measured is the log, not elections on a machine that is busy with it.
        heartbeat_ms: 500,
        election_ms: [5000, 8000],
        segment_bytes: 64 << 20,
        ..ConsensusConfig::new(dir.join(number.to_string()), NodeId(number))
    };
    let (consensus, _effects) = Consensus::start(config).await.expect("start consensus");
    let serving = consensus.clone();
    tokio::spawn(async move {
        while let Some(connection) = listener.accept().await {
            serving.serve(connection);
        }
    });
    (consensus, addr)
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
    let clients = (0..in_flight).map(|client| {
        let consensus = consensus.clone();
        tokio::spawn(async move {
            let mut times = Vec::new();
            while start.elapsed() < SPAN {
                let since = Instant::now();
                consensus.propose(vec![Command::Cancel { build: BuildId(client), now: Timestamp(0) }]).await.expect("commit");
                times.push(since.elapsed());
            }
            times
        })
    });
    let clients = futures::future::join_all(clients).await;
    clients.into_iter().flat_map(|times| times.expect("a client")).collect()
}

fn print(name: &str, mut times: Vec<Duration>, syncs: Option<u64>, raw: Option<f64>) -> f64 {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_micros();
    let rate = times.len() as f64 / SPAN.as_secs_f64();
    let batch = syncs.map(|syncs| format!(", {:.1} a sync", times.len() as f64 / syncs.max(1) as f64)).unwrap_or_default();
    let ratio = raw.map(|raw| format!(", {:.2} of fdatasync alone", rate / raw)).unwrap_or_default();
    println!("{name}: {rate:.0}/s, p50 {} us, p99 {} us{batch}{ratio}", at(50), at(99));
    rate
}
