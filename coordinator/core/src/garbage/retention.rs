//! Retention: which ended builds are kept, and with them what they asked for.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use kiln_wire::{BuildId, Timestamp};

/// How long ended builds are kept. A build stays as long as either rule keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Of each name so many, the newest.
    pub per_name: u32,
    /// Those that ended at most so many milliseconds ago, whatever their number.
    pub age_ms: u64,
    /// Of those that their age alone keeps, so many at most, the newest; all of them if there is no bound.
    pub others_max: Option<u32>,
}

/// What retention looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndedBuild {
    /// Which. A later build has a higher number.
    pub build: BuildId,
    /// What people call it.
    pub name: String,
    /// When it ended.
    pub ended_at: Timestamp,
}

impl Retention {
    /// Returns the builds that are no longer kept.
    pub fn retired(&self, builds: &[EndedBuild], now: Timestamp) -> Vec<BuildId> {
        let mut by_name: BTreeMap<&str, Vec<&EndedBuild>> = BTreeMap::new();
        for build in builds {
            by_name.entry(&build.name).or_default().push(build);
        }
        let (mut retired, mut others) = (Vec::new(), Vec::new());
        for mut named in by_name.into_values() {
            named.sort_by_key(|build| core::cmp::Reverse(build.build));
            for build in named.into_iter().skip(self.per_name as usize) {
                match now.0.saturating_sub(build.ended_at.0) > self.age_ms {
                    true => retired.push(build.build),
                    false => others.push(build.build),
                }
            }
        }
        others.sort_unstable_by_key(|build| core::cmp::Reverse(*build));
        let others_max = self.others_max.map_or(usize::MAX, |max| max as usize);
        retired.extend(others.into_iter().skip(others_max));
        retired.sort();
        retired
    }
}
