//! Durations and sizes of builds that were measured elsewhere, or long ago.

use alloc::string::String;

use serde::{Deserialize, Serialize};

use crate::DrvPath;
use crate::limits::PACKAGE_NAME_BYTES_MAX;

/// What builds of one package took, on a machine of standard speed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measured {
    /// The package's name, without its version.
    pub pname: String,
    /// Its version; none if what was measured stands for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The system that it was built on.
    pub system: String,
    /// Milliseconds from the start of its builder to its end.
    pub wall_ms: u64,
    /// Milliseconds of processor time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_ms: Option<u64>,
    /// Highest memory use in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_memory_mib: Option<u64>,
    /// Bytes of all outputs, as NARs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_bytes: Option<u64>,
    /// It was fetched, not built.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub fetch: bool,
    /// How many builds it stands for; none is taken for 16. A farm counts no more than 32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
    /// Which derivation it was, if it is known for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub derivation: Option<DrvPath>,
}

impl Measured {
    /// Returns what is wrong with it, in words; none if a farm takes it.
    pub fn objection(&self) -> Option<&'static str> {
        let texts = [Some(&self.pname), self.version.as_ref(), Some(&self.system)];
        if texts.into_iter().flatten().any(|text| text.len() > PACKAGE_NAME_BYTES_MAX) {
            Some("a name, a version and a system have 211 bytes at most")
        } else if self.pname.is_empty() || self.system.is_empty() {
            Some("a package has a name and a system")
        } else if self.wall_ms == 0 {
            Some("a build takes a millisecond at least")
        } else {
            None
        }
    }
}

/// What a farm expects of a package.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackageView {
    /// What was measured, as [`Measured`] says it: means of factors, and of how many builds.
    pub measured: Measured,
    /// Milliseconds that are expected of its next build on a machine of standard speed.
    pub expected_ms: u64,
    /// Memory that is asked for, in MiB; 0 if none was measured.
    pub memory_mib: u64,
}
