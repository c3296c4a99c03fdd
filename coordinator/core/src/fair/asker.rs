//! Who asks for a build.

use kiln_wire::{Account, Priority, Traceparent};
use serde::{Deserialize, Serialize};

/// Who asks for a build, and how urgent it is to them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asker {
    /// Whose builds it is counted among.
    pub account: Account,
    /// Its place among the builds of its account.
    #[serde(default, skip_serializing_if = "Priority::is_normal")]
    pub priority: Priority,
    /// It goes ahead of everything that is not. Whether its tenant may ask for that, the shell has looked.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub security: bool,
    /// What its client does with it, if that is traced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<Traceparent>,
}
