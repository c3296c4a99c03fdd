//! Workers.

use std::collections::BTreeMap;

use kiln_wire::{Standing, client};
use serde::Serialize;
use utoipa::ToSchema;

/// One worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Worker {
    /// Its name.
    pub worker: String,
    /// Whether its session is live.
    pub connected: bool,
    /// The systems that it builds for.
    pub systems: Vec<String>,
    /// Its features.
    pub features: Vec<String>,
    /// Builds that it takes at a time.
    pub slots: u32,
    /// Its cores.
    pub cores: u32,
    /// Its memory.
    #[serde(rename = "memoryMiB")]
    pub memory_mib: u64,
    /// Cores that its leases hold.
    pub cores_used: u32,
    /// Memory that its leases hold.
    #[serde(rename = "memoryUsedMiB")]
    pub memory_used_mib: u64,
    /// What its sandbox guarantees, in words.
    pub guarantees: BTreeMap<String, String>,
    /// What it runs, as base names of derivations; of a tenant's token, its own.
    pub running: Vec<String>,
    /// Why it takes nothing new at present, as it says.
    #[schema(required)]
    pub strain: Option<String>,
    /// Why the farm gives it nothing new, or little; none if it is well.
    #[schema(required)]
    pub ailing: Option<Ailing>,
}

/// Why the farm gives a worker less than it has room for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Ailing {
    /// `working`, `drained`, `resting`, `probation` or `quarantined`.
    pub state: String,
    /// Until when it rests.
    #[schema(required)]
    pub until: Option<u64>,
    /// How many times in a row it has rested.
    pub rests: u32,
    /// Jobs that failed there and count against it at present.
    pub failures: u32,
    /// What the last of these failures said.
    pub message: String,
}

impl Worker {
    /// Returns a worker as `--json` prints it.
    pub fn of(view: &client::WorkerView) -> Self {
        let offer = &view.offer;
        Self {
            worker: view.worker.to_string(),
            connected: view.connected,
            systems: offer.systems.iter().cloned().collect(),
            features: offer.features.iter().cloned().collect(),
            slots: offer.slots,
            cores: offer.capacity.cores,
            memory_mib: offer.capacity.memory_mib,
            cores_used: view.used.cores,
            memory_used_mib: view.used.memory_mib,
            guarantees: offer.guarantees.clone(),
            running: view.running.iter().map(|derivation| derivation.as_str().to_owned()).collect(),
            strain: view.strain.as_ref().map(|strain| strain.message.clone()),
            ailing: view.ailing.as_ref().map(Ailing::of),
        }
    }
}

impl Ailing {
    /// Returns how a worker stands.
    pub fn of(ailing: &kiln_wire::Ailing) -> Self {
        Self {
            state: Self::word(ailing).to_owned(),
            until: match ailing.standing {
                Standing::Resting { until } => Some(until.0),
                Standing::Working | Standing::Probation { .. } | Standing::Quarantined { .. } => None,
            },
            rests: ailing.rests,
            failures: ailing.failures,
            message: ailing.message.clone(),
        }
    }

    /// Returns in one word how a worker stands.
    pub fn word(ailing: &kiln_wire::Ailing) -> &'static str {
        match ailing.standing {
            _ if ailing.drained => "drained",
            Standing::Working => "working",
            Standing::Resting { .. } => "resting",
            Standing::Probation { .. } => "probation",
            Standing::Quarantined { .. } => "quarantined",
        }
    }
}
