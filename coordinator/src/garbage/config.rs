//! `[gc]` of the configuration: how long things are kept, and when garbage is collected.

use kiln_core::garbage::{Retention, Rules};
use serde::Deserialize;

/// What is kept, and when the rest is deleted. Every coordinator of a farm needs the same.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gc {
    /// Collect by itself every so many hours, from 1 on. Default: never; `kiln gc` does it when it is asked.
    pub every_hours: Option<u32>,
    /// Of each name, keep so many ended builds, the newest. Default 10: a week of nightly builds and some by hand.
    pub keep_builds: u32,
    /// Keep ended builds that are not older than so many days, whatever their number. Default 30: who built something last month finds it.
    pub keep_days: u32,
    /// Keep the outputs of all derivations that are kept, also those that were needed to build only, so that what is kept is not built
    /// again in parts when it changes a little. Default true, unlike Nix: a farm is there to build nothing twice.
    pub keep_outputs: bool,
    /// Keep the derivations that made what is kept, and what they were made of. Default true, as Nix.
    pub keep_derivations: bool,
    /// Keep what was uploaded, built or asked for in the last so many seconds: somebody may be about to use it. Default 3600; 0 only where
    /// nobody uploads meanwhile.
    pub grace_seconds: u64,
    /// Seconds between the deletion of narinfos and that of their NARs: who has read a narinfo then still gets the NAR. Default 300, which
    /// is what proxies may keep a narinfo for.
    pub nar_grace_seconds: u64,
}

impl Default for Gc {
    fn default() -> Self {
        Self {
            every_hours: None,
            keep_builds: 10,
            keep_days: 30,
            keep_outputs: true,
            keep_derivations: true,
            grace_seconds: 3600,
            nar_grace_seconds: 300,
        }
    }
}

impl Gc {
    pub(super) fn rules(&self) -> Rules {
        Rules { keep_outputs: self.keep_outputs, keep_derivations: self.keep_derivations }
    }

    pub(super) fn retention(&self) -> Retention {
        Retention { per_name: self.keep_builds, age_ms: u64::from(self.keep_days) * 24 * 3_600_000 }
    }

    /// Returns the rule that the values break, if they do.
    pub(crate) fn objection(&self) -> Option<String> {
        (self.every_hours == Some(0)).then(|| "`every_hours` of `[gc]` is 0: leave it out, or say 1 or more".to_owned())
    }
}
