//! Ids as types: two bare integers are never passed where their order could be confused.

use alloc::borrow::ToOwned;
use alloc::string::String;
use core::fmt;

use serde::{Deserialize, Serialize};

use crate::text::{Text, text_serde};

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number_id! {
    /// A position in the replicated log.
    LogIndex
}
number_id! {
    /// One try at a job: the log index of the `Assign` that made it, so it is never reused and only grows.
    AttemptId
}
number_id! {
    /// One request to have roots built: the log index of its `Submit`.
    BuildId
}
number_id! {
    /// One registration of a worker: the log index of its `Register`. A later registration fences the earlier one.
    Epoch
}
number_id! {
    /// A coordinator. Never reused, also not after its disk was wiped.
    NodeId
}
number_id! {
    /// A number that a client draws for one submission, so that sending it twice submits once.
    RequestId
}

/// Which leader sent a message. Ordered by term first: a worker refuses to go back below the highest it has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Leader {
    /// Raft's term.
    pub term: u64,
    /// The coordinator that led in that term.
    pub node: NodeId,
}

/// A worker's name, as its certificate states it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerId(Text);

/// The name of one output of a derivation (`out`, `dev`, …).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OutputName(Text);

/// Who asks for builds: the name in a client's certificate. Has a share of the farm.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantName(Text);

/// What a tenant's builds are for, as the tenant names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProjectName(Text);

/// A name that breaks the rule for its kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("read {kind} `{name}`: {rule}")]
pub struct IdError {
    /// What the name was meant to name.
    pub kind: &'static str,
    /// The refused name, cut at 80 characters.
    pub name: String,
    /// The rule it breaks.
    pub rule: &'static str,
}

macro_rules! name_id {
    ($name:ident, $kind:literal, $length_max:literal) => {
        impl $name {
            /// Reads a name.
            ///
            /// # Errors
            /// [`IdError`] if the name is empty, too long, or has a character outside `A-Z a-z 0-9 + - . _ ? =`.
            pub fn parse(name: &str) -> Result<Self, IdError> {
                check_name($kind, name, $length_max)?;
                Ok(Self(Text::from(name)))
            }

            /// Returns the name as text.
            pub fn as_str(&self) -> &str {
                self.0.as_str()
            }
        }

        text_serde!($name);

        impl TryFrom<String> for $name {
            type Error = IdError;

            fn try_from(name: String) -> Result<Self, IdError> {
                Self::parse(&name)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.as_str().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

name_id!(WorkerId, "worker name", 64);
name_id!(OutputName, "output name", 211);
name_id!(TenantName, "tenant name", 64);
name_id!(ProjectName, "project name", 64);

fn check_name(kind: &'static str, name: &str, length_max: usize) -> Result<(), IdError> {
    let rule = if name.is_empty() {
        "must not be empty"
    } else if name.len() > length_max {
        "is too long"
    } else if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-._?=".contains(&b)) {
        "may hold letters, digits and `+-._?=` only"
    } else if name.starts_with('.') {
        "must not start with a dot"
    } else {
        return Ok(());
    };
    Err(IdError { kind, name: name.chars().take(80).collect(), rule })
}
