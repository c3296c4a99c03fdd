//! Paths that the store lacks: those that nobody has, and those that builds of this farm made and that are being published.

use std::collections::BTreeSet;

use kiln_wire::StorePath;
use kiln_wire::client::Refusal;

use crate::refuse;

/// What of some paths is not there.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Absent {
    /// Committed and not yet published: there in a moment.
    pub(crate) coming: BTreeSet<StorePath>,
    /// Nobody has them.
    pub(crate) missing: BTreeSet<StorePath>,
}

/// A path that a build of this farm made is not readable yet.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` was built and is being published")]
struct Coming(StorePath);

impl Absent {
    /// Returns whether everything is there.
    pub(crate) fn is_empty(&self) -> bool {
        self.coming.is_empty() && self.missing.is_empty()
    }

    /// Returns what is absent of either.
    pub(crate) fn and(mut self, other: Self) -> Self {
        self.coming.extend(other.coming);
        self.missing.extend(other.missing);
        self
    }

    /// Refuses what needs them.
    ///
    /// # Errors
    /// A [`Refusal`] that names what is missing; if all that is absent is on its way, one that says to try again.
    pub(crate) fn refuse(self, operation: &str, what: &str) -> Result<(), Refusal> {
        let Self { mut coming, missing } = self;
        if !missing.is_empty() {
            return Err(refuse::missing(operation, what, missing.into_iter().collect()));
        }
        match coming.pop_first() {
            Some(first) => Err(refuse::unavailable(operation, &Coming(first))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use kiln_wire::client::RefusalKind;

    use super::*;

    #[test]
    fn what_is_on_its_way_is_no_reason_to_give_up() {
        let paths = |letters: &str| {
            letters.chars().map(|letter| StorePath::parse(&format!("{}-x", letter.to_string().repeat(32))).expect("a path")).collect()
        };
        for (coming, missing, kind) in [
            ("", "", None),
            ("a", "", Some(RefusalKind::Unavailable)),
            ("", "b", Some(RefusalKind::Missing)),
            // It never comes, whatever else does.
            ("a", "b", Some(RefusalKind::Missing)),
        ] {
            let absent =
                Absent { coming: paths(coming), missing: BTreeSet::new() }.and(Absent { coming: BTreeSet::new(), missing: paths(missing) });
            assert_eq!(absent.is_empty(), kind.is_none());
            let refused = absent.refuse("submit", "input sources");
            assert_eq!(refused.as_ref().err().map(|refusal| refusal.kind), kind, "{coming}, {missing}");
            assert_eq!(
                refused.err().map(|refusal| refusal.paths).unwrap_or_default(),
                paths(missing).into_iter().collect::<Vec<StorePath>>()
            );
        }
    }
}
