//! Who has which share of the farm.

use kiln_wire::ShareView;
use serde::Serialize;
use utoipa::ToSchema;

/// Somebody's share, and what their builds use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Share {
    /// The tenant; none for builds of which nobody said whose they are.
    #[schema(required)]
    pub tenant: Option<String>,
    /// The project; none for the tenant as a whole.
    #[schema(required)]
    pub project: Option<String>,
    /// Its part beside the parts of others that have work.
    pub weight: u32,
    /// Ten points count as twice the weight.
    pub priority: i8,
    /// Its builds may be of the security class.
    pub may_use_security: bool,
    /// Whether it was set.
    pub is_set: bool,
    /// What its live leases hold of the fleet, of a million.
    pub held_ppm: u64,
    /// What it held lately, in the mean, of a million.
    pub lately_ppm: u64,
}

impl Share {
    /// Returns a share as `--json` prints it.
    pub fn of(view: &ShareView) -> Self {
        Self {
            tenant: view.tenant.as_ref().map(ToString::to_string),
            project: view.project.as_ref().map(ToString::to_string),
            weight: view.share.weight,
            priority: view.share.priority.points(),
            may_use_security: view.share.may_use_security,
            is_set: view.is_set,
            held_ppm: view.held_ppm,
            lately_ppm: view.lately_ppm,
        }
    }
}
