//! 25, 14: what is published is not asked to be built again.

use super::{Invariant, Look};
use crate::fact::Fact;

pub(super) struct WhatExistsIsNotBuilt;

impl Invariant for WhatExistsIsNotBuilt {
    fn name(&self) -> &'static str {
        "a submission asks for nothing that is published"
    }

    fn see(&mut self, fact: &Fact<'_>, look: &Look<'_>) -> Result<(), String> {
        let Fact::Selected { jobs } = fact else { return Ok(()) };
        for job in *jobs {
            if job.outputs.values().flatten().all(|path| look.store.published(path).is_some()) {
                return Err(format!("`{}` is asked for and published", job.derivation));
            }
        }
        Ok(())
    }
}
