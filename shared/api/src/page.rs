//! Lists, the long ones in pages. `next` is the cursor of the following page; none at the end.

use serde::Serialize;
use utoipa::ToSchema;

use crate::build::BuildSummary;
use crate::duration::Package;
use crate::job::Job;
use crate::share::Share;
use crate::worker::Worker;

/// A page of builds, newest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Builds {
    /// The builds.
    pub builds: Vec<BuildSummary>,
    /// The cursor of the next page. A page may be short, even empty, and have one.
    #[schema(required)]
    pub next: Option<String>,
}

/// A page of jobs, oldest submission first and inputs before what needs them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Jobs {
    /// The jobs.
    pub jobs: Vec<Job>,
    /// The cursor of the next page. A page may be short, even empty, and have one.
    #[schema(required)]
    pub next: Option<String>,
    /// All jobs of the list are there; if not, its build has ended and only those that failed were kept.
    pub complete: bool,
}

/// A page of workers, by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Workers {
    /// The workers.
    pub workers: Vec<Worker>,
    /// The cursor of the next page.
    #[schema(required)]
    pub next: Option<String>,
}

/// What the farm expects of a package, on each system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Packages {
    /// The package, by system.
    pub packages: Vec<Package>,
}

/// Shares: tenants, each followed by its projects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Shares {
    /// The shares.
    pub shares: Vec<Share>,
}
