//! `[gc]` of the configuration: how long things are kept, and when garbage is collected.

use kiln_core::garbage::{Retention, Rules};
use kiln_wire::RetentionView;
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
    /// Of the ended builds that `keep_days` alone keeps, keep so many at most, the newest. Default: all of them.
    pub keep_builds_max: Option<u32>,
    /// Delete logs of attempts that ended more than so many days ago, from 1 on, though what they are of is kept. Default: logs are kept as
    /// long as the derivation that they are of.
    pub keep_log_days: Option<u32>,
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
            keep_builds_max: None,
            keep_log_days: None,
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
        Retention { per_name: self.keep_builds, age_ms: u64::from(self.keep_days) * DAY_MS, others_max: self.keep_builds_max }
    }

    /// Returns how long a log is kept that belongs to what is kept; none: as long as that.
    pub(super) fn log_age_ms(&self) -> Option<u64> {
        self.keep_log_days.map(|days| u64::from(days) * DAY_MS)
    }

    /// Returns how long things are kept, for people.
    pub(super) fn shown(&self) -> RetentionView {
        let Self { every_hours, keep_builds, keep_days, keep_builds_max, keep_log_days, .. } = *self;
        RetentionView { keep_builds, keep_days, keep_builds_max, keep_log_days, every_hours }
    }

    /// Returns the rule that the values break, if they do.
    pub(crate) fn objection(&self) -> Option<String> {
        let zero = |name: &str| Some(format!("`{name}` of `[gc]` is 0: leave it out, or say 1 or more"));
        match (self.every_hours, self.keep_log_days) {
            (Some(0), _) => zero("every_hours"),
            (_, Some(0)) => zero("keep_log_days"),
            _ => None,
        }
    }
}

const DAY_MS: u64 = 24 * 3_600_000;
