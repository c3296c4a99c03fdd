//! Versions of what coordinators say to each other and keep: one number for messages, log entries and snapshots together.

use alloc::string::String;
use core::fmt;

use serde::{Deserialize, Serialize};

/// A version of what coordinators say and keep. A farm is at one version: what all its coordinators can read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Version(pub u16);

impl Version {
    /// Where every farm begins.
    pub const FIRST: Self = Self(1);

    /// Returns whether it is the one where every farm begins.
    pub fn is_first(&self) -> bool {
        *self == Self::FIRST
    }

    /// Returns the one after it.
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl Default for Version {
    fn default() -> Self {
        Self::FIRST
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A coordinator's program and what it speaks. The default is what one was that says nothing of itself: it spoke the first version.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// Its release, for people; empty if it does not say.
    pub release: String,
    /// The oldest version that it can read and write.
    pub oldest: Version,
    /// The newest version that it can read and write.
    pub newest: Version,
}

impl Program {
    /// Returns whether it cannot read what a farm at that version writes.
    pub fn is_too_old_for(&self, farm: Version) -> bool {
        self.newest < farm
    }

    /// Returns whether it cannot write what a farm at that version reads.
    pub fn is_too_new_for(&self, farm: Version) -> bool {
        self.oldest > farm
    }

    /// Returns why it takes no part in a farm at that version, and what to do; none if it can.
    pub fn objection(&self, farm: Version) -> Option<String> {
        if self.is_too_old_for(farm) {
            return Some(alloc::format!(
                "{self} is too old for the farm, which is at version {farm}: install a program that speaks {farm}"
            ));
        }
        self.is_too_new_for(farm).then(|| {
            alloc::format!(
                "{self} is too new for the farm, which is at version {farm}: upgrade all coordinators to a program that speaks {farm} and {} first",
                farm.next()
            )
        })
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { release, oldest, newest } = self;
        f.write_str("the program ")?;
        if !release.is_empty() {
            write!(f, "kiln {release} ")?;
        }
        if oldest == newest { write!(f, "(speaks {newest})") } else { write!(f, "(speaks {oldest} to {newest})") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame;

    #[test]
    fn a_program_takes_part_where_it_can_read_and_write() {
        let program = |oldest, newest| Program { release: "0.4.0".into(), oldest: Version(oldest), newest: Version(newest) };
        assert_eq!(program(2, 3).objection(Version(2)), None);
        assert_eq!(program(2, 3).objection(Version(3)), None);
        let old = program(2, 3).objection(Version(4)).expect("too old");
        assert!(old.contains("kiln 0.4.0 (speaks 2 to 3) is too old") && old.contains("install a program that speaks 4"), "{old}");
        let new = program(2, 3).objection(Version(1)).expect("too new");
        assert!(new.contains("speaks 1 and 2 first"), "{new}");
    }

    #[test]
    fn who_says_nothing_speaks_the_first_version() {
        #[derive(Deserialize)]
        struct Said {
            #[serde(default)]
            program: Program,
        }
        let said: Said = frame::from_bytes(&[0x80]).expect("an empty map");
        assert_eq!(said.program, Program { release: String::new(), oldest: Version(1), newest: Version(1) });
    }
}
