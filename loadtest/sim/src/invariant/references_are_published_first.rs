//! 2: whoever reads a narinfo finds those of everything that the path refers to.

use super::{Invariant, Look};
use crate::fact::Fact;

pub(super) struct ReferencesArePublishedFirst;

impl Invariant for ReferencesArePublishedFirst {
    fn name(&self) -> &'static str {
        "what a published path refers to is published"
    }

    fn see(&mut self, fact: &Fact<'_>, look: &Look<'_>) -> Result<(), String> {
        let Fact::Published { outputs, .. } = fact else { return Ok(()) };
        for info in *outputs {
            if let Some(missing) = info.references.iter().find(|path| look.store.published(path).is_none()) {
                return Err(format!("`{}` is published before `{missing}`", info.path));
            }
        }
        Ok(())
    }
}
