//! What the farm says that a tenant holds is what the live leases of its builds come to, counted here from the leases alone.

use std::collections::{BTreeMap, BTreeSet};

use kiln_core::{Answer, Command, Effect, Farm};
use kiln_wire::client::{BuildState, EventKind};
use kiln_wire::worker::Offer;
use kiln_wire::{BuildId, Lease, RequestId, Resources, TenantName, WorkerId};

use super::{Invariant, Look};
use crate::client::tenant;
use crate::fact::Fact;

/// The whole check costs as much as many entries: it is made once in so many.
const EVERY: u64 = 16;

/// Of a million: what is lost where a lease is split among builds.
const TOLERATED_PPM: u64 = 50;

#[derive(Default)]
pub(super) struct UseIsWhatLeasesHold {
    seen: u64,
    asked: BTreeMap<RequestId, TenantName>,
    builds: BTreeMap<BuildId, TenantName>,
    /// Submissions that go on after a failure.
    going: BTreeSet<RequestId>,
    /// The others' builds.
    timid: BTreeSet<BuildId>,
    /// Those of them of which something has failed: what they still wait for is not told.
    stops: BTreeSet<BuildId>,
    offers: BTreeMap<WorkerId, Offer>,
    /// What each lease was given, and whether it takes no slot.
    granted: BTreeMap<Lease, (Resources, bool)>,
}

/// Cores, memory and slots, in millionths of one.
type Held = [u64; 3];

impl UseIsWhatLeasesHold {
    fn note(&mut self, command: &Command, effects: &[Effect]) {
        if let Command::Register { worker, offer, .. } = command {
            self.offers.insert(worker.clone(), offer.clone());
        }
        for effect in effects {
            match effect {
                Effect::Answer(Answer::Submitted { request, build }) => {
                    if !self.going.contains(request) {
                        self.timid.insert(*build);
                    }
                    if let Some(tenant) = self.asked.get(request) {
                        self.builds.insert(*build, tenant.clone());
                    }
                }
                Effect::Notify { builds, event } if matches!(event.kind, EventKind::Failed { .. } | EventKind::DependencyFailed { .. }) => {
                    self.stops.extend(builds.iter().filter(|build| self.timid.contains(build)));
                }
                Effect::Dispatch { lease, resources, .. } => {
                    let placements = match command {
                        Command::Assign { placements, .. } => placements.as_slice(),
                        Command::Copy { placement, .. } => std::slice::from_ref(placement),
                        _ => continue,
                    };
                    let light = placements.iter().any(|placement| placement.light && placement.derivation == lease.derivation);
                    self.granted.insert(lease.clone(), (*resources, light));
                }
                _ => {}
            }
        }
    }

    fn held(&self, farm: &Farm) -> BTreeMap<TenantName, Held> {
        let mut held: BTreeMap<TenantName, Held> = BTreeMap::new();
        for job in farm.jobs().filter(|job| job.state == "running") {
            let leases = farm.live_leases(&job.derivation);
            let granted = leases.iter().filter_map(|lease| self.granted.get(lease));
            let mut each: Held = [0; 3];
            for (resources, light) in granted {
                let of = [u64::from(resources.cores), resources.memory_mib, u64::from(!light)];
                each.iter_mut().zip(of).for_each(|(sum, of)| *sum += of);
            }
            let live: Vec<&BuildId> =
                job.builds.iter().filter(|build| farm.build_view(**build).is_some_and(|view| view.state == BuildState::Active)).collect();
            let parts = u64::try_from(live.len()).unwrap_or(u64::MAX).max(1);
            for tenant in live.iter().filter_map(|build| self.builds.get(build)) {
                let sum = held.entry(tenant.clone()).or_default();
                for (sum, of) in sum.iter_mut().zip(each) {
                    *sum += of * 1_000_000 / parts;
                }
            }
        }
        held
    }

    fn check(&self, farm: &Farm, look: &Look<'_>) -> Result<(), String> {
        let mut whole: Held = [0; 3];
        for (worker, _) in farm.registrations() {
            let Some(offer) = self.offers.get(worker) else { return Ok(()) };
            let of = [u64::from(offer.capacity.cores), offer.capacity.memory_mib, u64::from(offer.slots)];
            whole.iter_mut().zip(of).for_each(|(sum, of)| *sum += of);
        }
        if self.stops.iter().any(|build| farm.build_view(*build).is_some_and(|view| view.state == BuildState::Active)) {
            return Ok(());
        }
        let mut held = self.held(farm);
        let said = farm.share_views(farm.latest());
        for view in said.into_iter().filter(|view| view.project.is_none()) {
            let Some(tenant) = view.tenant else { continue };
            let own = held.remove(&tenant).unwrap_or_default();
            let ppm = own.iter().zip(whole).map(|(own, whole)| own / whole.max(1)).max().unwrap_or_default();
            if view.held_ppm.abs_diff(ppm) > TOLERATED_PPM {
                return Err(format!("{tenant} holds {ppm} ppm at {} us, {} are said", look.now_us, view.held_ppm));
            }
        }
        held.into_iter()
            .find(|(_, own)| *own != Held::default())
            .map_or(Ok(()), |(tenant, own)| Err(format!("{tenant} holds {own:?} untold")))
    }
}

impl Invariant for UseIsWhatLeasesHold {
    fn name(&self) -> &'static str {
        "a tenant is said to hold what the leases of its builds come to"
    }

    fn see(&mut self, fact: &Fact<'_>, look: &Look<'_>) -> Result<(), String> {
        match fact {
            Fact::Submits { submission } => {
                self.asked.insert(submission.request, tenant(submission.request));
                if submission.keep_going {
                    self.going.insert(submission.request);
                }
                Ok(())
            }
            Fact::Applied { command, effects, farm, .. } => {
                self.note(command, effects);
                self.seen += 1;
                if self.seen.is_multiple_of(EVERY) { self.check(farm, look) } else { Ok(()) }
            }
            _ => Ok(()),
        }
    }
}
