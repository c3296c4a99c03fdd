//! What the farm expects of packages.

use kiln_wire::PackageView;
use serde::Serialize;
use utoipa::ToSchema;

/// What the farm expects of a package.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Package {
    /// The package's name, without its version.
    pub pname: String,
    /// Its version; none if what was measured stands for all.
    #[schema(required)]
    pub version: Option<String>,
    /// The system that it was built on.
    pub system: String,
    /// Milliseconds that were measured.
    pub wall_ms: u64,
    /// Milliseconds of processor time.
    #[schema(required)]
    pub cpu_ms: Option<u64>,
    /// Highest memory use.
    #[schema(required)]
    #[serde(rename = "memoryPeakMiB")]
    pub memory_peak_mib: Option<u64>,
    /// Bytes of all outputs, as archives (NARs).
    #[schema(required)]
    pub output_bytes: Option<u64>,
    /// It was fetched, not built.
    pub fetch: bool,
    /// How many builds this stands for.
    #[schema(required)]
    pub count: Option<u32>,
    /// Milliseconds that are expected of its next build.
    pub expected_ms: u64,
    /// Memory that is asked for; 0 if none was measured.
    #[serde(rename = "memoryMiB")]
    pub memory_mib: u64,
}

impl Package {
    /// Returns what the farm expects of a package.
    pub fn of(view: &PackageView) -> Self {
        let measured = &view.measured;
        Self {
            pname: measured.pname.clone(),
            version: measured.version.clone(),
            system: measured.system.clone(),
            wall_ms: measured.wall_ms,
            cpu_ms: measured.cpu_ms,
            memory_peak_mib: measured.peak_memory_mib,
            output_bytes: measured.output_bytes,
            fetch: measured.fetch,
            count: measured.count,
            expected_ms: view.expected_ms,
            memory_mib: view.memory_mib,
        }
    }
}
