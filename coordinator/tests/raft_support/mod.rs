//! What the tests of consensus share.

#![allow(dead_code, reason = "each test program uses a part of it")]

pub mod group;
pub mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use kiln_coordinator::raft::{Consensus, ConsensusConfig, EffectReceiver};
use kiln_core::Command;
use kiln_wire::worker::Offer;
use kiln_wire::{NodeId, Resources, Timestamp, WorkerId};

/// Small segments and snapshots, so that a short test meets many.
pub fn config(dir: &Path) -> ConsensusConfig {
    ConsensusConfig { segment_bytes: 32 << 10, snapshot_log_bytes: 64 << 10, keep_entries: 20, ..ConsensusConfig::new(dir, NodeId(1)) }
}

pub async fn start(dir: &Path) -> (Consensus, EffectReceiver) {
    Consensus::start(config(dir)).await.unwrap_or_else(|err| panic!("start: {}", chain(&err)))
}

/// A command that changes the farm: worker `number` registers.
pub fn register(number: u64) -> Command {
    Command::Register {
        worker: WorkerId::parse(&format!("w{number}")).expect("a worker's name"),
        offer: Offer {
            systems: BTreeSet::from(["x86_64-linux".into()]),
            features: BTreeSet::new(),
            capacity: Resources { cores: 4, memory_mib: 1024 },
            slots: 4,
            guarantees: BTreeMap::new(),
            ..Offer::default()
        },
        attempts: Vec::new(),
        since: None,
        judge: false,
        now: Timestamp(1000 + number),
    }
}

pub fn chain(err: &dyn std::error::Error) -> String {
    std::iter::successors(Some(err), |err| err.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
