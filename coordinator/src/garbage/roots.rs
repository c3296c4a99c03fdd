//! What is kept by itself: live work, ended builds by retention, pins, what clients hold, what was touched or written lately.

use std::collections::BTreeSet;

use kiln_core::BuildRecord;
use kiln_core::garbage::{EndedBuild, Graph, HashPart, Roots, Work};
use kiln_wire::{BuildId, StorePath};

use super::notes::{self, NoteError};
use crate::archive::ArchiveError;
use crate::parts::Parts;

/// Roots that do not depend on what the store holds.
pub(super) struct Kept {
    pub work: Work,
    pub builds: Vec<KeptBuild>,
    /// Builds whose time is over.
    pub retired: Vec<BuildId>,
    pins: Vec<notes::Pin>,
    held: BTreeSet<StorePath>,
}

/// An ended build that stays.
pub(super) struct KeptBuild {
    pub ended: EndedBuild,
    /// Derivations and outputs that it asked for.
    paths: Vec<StorePath>,
}

/// Roots that cannot be found. Nothing is deleted then.
#[derive(Debug, thiserror::Error)]
pub(super) enum RootsError {
    #[error(transparent)]
    Note(#[from] NoteError),
    #[error("read the builds that ended")]
    Archive(#[from] ArchiveError),
}

/// Finds what is kept. With `tidy`, what clients have ceased to hold is cleared away.
pub(super) async fn find(parts: &Parts, tidy: bool) -> Result<Kept, RootsError> {
    // Live work first: a build that ends meanwhile is in the archive before it leaves the farm.
    let work = parts.farm(|farm| farm.work());
    let now = parts.clock.now();
    let pins = notes::pins(parts).await?;
    let held = notes::held(parts, notes::now(parts).await?, tidy).await?.into_values().flatten().collect();
    let mut builds = Vec::new();
    for build in parts.archive.list().await? {
        if let Some(record) = parts.archive.get(build).await? {
            builds.push(KeptBuild::of(record));
        }
    }
    let ended: Vec<EndedBuild> = builds.iter().map(|build| build.ended.clone()).collect();
    let retired = parts.garbage.settings.retention().retired(&ended, now);
    builds.retain(|build| !retired.contains(&build.ended.build));
    Ok(Kept { work, builds, retired, pins, held })
}

impl KeptBuild {
    fn of(record: BuildRecord) -> Self {
        let derivations = record.roots.iter().map(|root| root.derivation.as_path().clone());
        let outputs = record.outputs.into_values().flat_map(|outputs| outputs.into_values());
        Self {
            paths: derivations.chain(outputs).collect(),
            ended: EndedBuild { build: record.build, name: record.name, ended_at: record.ended_at },
        }
    }

    fn reason(&self) -> String {
        format!("build {} ({})", self.ended.build, self.ended.name)
    }
}

impl Kept {
    /// Returns the roots, for a graph that was read after this was found.
    pub fn roots(&self, graph: &Graph, touched: impl IntoIterator<Item = HashPart>, young: impl IntoIterator<Item = HashPart>) -> Roots {
        let mut roots = Roots::default();
        for pin in &self.pins {
            roots.add(&format!("pin {}", pin.name), &pin.paths);
        }
        self.work.add_to(&mut roots, graph);
        for build in &self.builds {
            let reason = build.reason();
            roots.add(&reason, &build.paths);
            roots.add_parts(&reason, graph.outputs_of(&build.paths, false));
        }
        roots.add("a client that holds it", &self.held);
        roots.add_parts("asked for lately", touched);
        roots.add_parts("uploaded or built lately", young);
        roots
    }

    /// Returns what is named by people and builds: who keeps it, and what.
    pub fn named(&self) -> Vec<(String, StorePath)> {
        let pins = self.pins.iter().flat_map(|pin| pin.paths.iter().map(|path| (pin.name.clone(), path.clone())));
        let held = self.held.iter().map(|path| ("{kiln:client}".to_owned(), path.clone()));
        let ended = self
            .builds
            .iter()
            .flat_map(|build| build.paths.iter().map(|path| (format!("{{kiln:build:{}}}", build.ended.build), path.clone())));
        let live = self.work.roots.iter().map(|(_, path)| ("{kiln:live}".to_owned(), path.as_path().clone()));
        let outputs = self.work.outputs.iter().map(|info| ("{kiln:live}".to_owned(), info.path.clone()));
        pins.chain(held).chain(ended).chain(live).chain(outputs).collect()
    }
}
