//! What a farm's live work keeps.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use kiln_wire::{DrvPath, PathInfo, StorePath};

use super::{Graph, Roots};
use crate::farm::Farm;

/// What live work needs of the store.
#[derive(Clone, Debug, Default)]
pub struct Work {
    /// Derivations that are built or may be, with their inputs' outputs and sources; those too that are built in place of others.
    pub jobs: Vec<DrvPath>,
    /// Derivations that builds ask for, with their outputs.
    pub roots: Vec<(String, DrvPath)>,
    /// Committed outputs, published or not.
    pub outputs: Vec<PathInfo>,
}

impl Work {
    /// Adds what this work keeps of a graph. The graph was read after the work.
    pub fn add_to(&self, roots: &mut Roots, graph: &Graph) {
        roots.add("a job of a live build", self.jobs.iter().map(DrvPath::as_path));
        roots.add_parts("an output or input of a job of a live build", graph.outputs_of(self.jobs.iter().map(DrvPath::as_path), true));
        for (reason, derivation) in &self.roots {
            roots.add(reason, [derivation.as_path()]);
            roots.add_parts(reason, graph.outputs_of([derivation.as_path()], false));
        }
        let paths = self.outputs.iter().flat_map(|info| [&info.path].into_iter().chain(&info.references));
        roots.add("a committed output of a live build", paths.collect::<Vec<&StorePath>>());
    }
}

impl Farm {
    /// Returns what live work needs of the store: that of jobs, of submissions on their way, and of builds that have not left the farm.
    pub fn work(&self) -> Work {
        let staged = self.facts.stages.values().flat_map(|stage| stage.jobs.keys().cloned());
        let jobs = self.facts.jobs.values();
        let outputs = jobs.clone().filter_map(|job| job.built_outputs()).flatten().map(|output| output.info.clone()).collect();
        let of_build = |(id, build): (&kiln_wire::BuildId, &crate::build::Build)| {
            let reason = format!("live build {id} ({})", build.name);
            build.roots.iter().map(move |root| (reason.clone(), root.derivation.clone())).collect::<Vec<_>>()
        };
        let roots = self.facts.builds.iter().flat_map(of_build).collect();
        let resolved = jobs.clone().filter_map(|job| job.resolved().cloned());
        Work { jobs: jobs.map(|job| (*job.derivation).clone()).chain(resolved).chain(staged).collect(), roots, outputs }
    }
}
