//! Whose turn it is: who asks for a build, how urgent it is, and what share of the farm somebody has.

use core::fmt;

use serde::{Deserialize, Serialize};

use crate::{ProjectName, TenantName};

/// How urgent something is, in points from -100 to 100; 0 is what everything begins with. What is beyond is taken for the nearest end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "i8", into = "i8")]
pub struct Priority(i8);

impl Priority {
    /// What may wait for everything else.
    pub const MIN: Self = Self(-100);
    /// The most urgent.
    pub const MAX: Self = Self(100);
    /// What everything begins with.
    pub const NORMAL: Self = Self(0);

    /// Returns the points.
    pub fn points(self) -> i8 {
        self.0
    }

    /// Returns it raised by so many points, at most to [`Priority::MAX`].
    pub fn raised(self, points: u64) -> Self {
        let raised = i64::from(self.0).saturating_add(i64::try_from(points).unwrap_or(i64::MAX));
        Self(i8::try_from(raised.min(i64::from(Self::MAX.0))).unwrap_or(Self::MAX.0))
    }

    /// Returns whether it is what everything begins with.
    pub fn is_normal(&self) -> bool {
        self.0 == 0
    }
}

impl From<i8> for Priority {
    fn from(points: i8) -> Self {
        Self(points.clamp(Self::MIN.0, Self::MAX.0))
    }
}

impl From<Priority> for i8 {
    fn from(priority: Priority) -> i8 {
        priority.0
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Whose builds are counted together: those of a project of a tenant.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Account {
    /// Who asks: the name in the client's certificate.
    pub tenant: Option<TenantName>,
    /// For what, as the client says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<ProjectName>,
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.tenant.as_ref().map_or("-", TenantName::as_str))?;
        self.project.as_ref().map_or(Ok(()), |project| write!(f, "/{project}"))
    }
}

/// What a submission says of its turn.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Urgency {
    /// Which of its tenant's projects it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<ProjectName>,
    /// How urgent it is among the builds of its project.
    #[serde(default, skip_serializing_if = "Priority::is_normal")]
    pub priority: Priority,
    /// It goes ahead of everything that is not.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub security: bool,
}

impl Urgency {
    /// Returns whether it says nothing.
    pub fn is_plain(&self) -> bool {
        *self == Self::default()
    }
}

/// What has a share: a tenant, or a project of one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ShareKey {
    /// Whose.
    pub tenant: TenantName,
    /// Which of its projects; none for the tenant itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<ProjectName>,
}

impl ShareKey {
    /// Reads `TENANT` or `TENANT/PROJECT`.
    ///
    /// # Errors
    /// [`crate::IdError`] names the part that breaks the rule of its kind.
    pub fn parse(text: &str) -> Result<Self, crate::IdError> {
        let (tenant, project) = text.split_once('/').map_or((text, None), |(tenant, project)| (tenant, Some(project)));
        Ok(Self { tenant: TenantName::parse(tenant)?, project: project.map(ProjectName::parse).transpose()? })
    }
}

impl fmt::Display for ShareKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.tenant.fmt(f)?;
        self.project.as_ref().map_or(Ok(()), |project| write!(f, "/{project}"))
    }
}

/// What somebody is entitled to beside others of the same level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Its part beside the parts of others that have work, from 1 to [`Share::WEIGHT_MAX`].
    pub weight: u32,
    /// Ten points count as twice the weight.
    #[serde(default, skip_serializing_if = "Priority::is_normal")]
    pub priority: Priority,
    /// Its builds may be of the security class. Of a project: only if its tenant's may.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub may_use_security: bool,
}

impl Share {
    /// The largest weight: enough to give one tenant a thousandth.
    pub const WEIGHT_MAX: u32 = 1_000;

    /// Returns why it makes no sense, if it does not.
    pub fn objection(&self) -> Option<&'static str> {
        (!(1..=Self::WEIGHT_MAX).contains(&self.weight)).then_some("a weight is from 1 to 1000")
    }
}

impl Default for Share {
    fn default() -> Self {
        Self { weight: 1, priority: Priority::NORMAL, may_use_security: false }
    }
}

/// Somebody's share, and what is used of the farm by its builds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareView {
    /// The tenant; none for builds of a farm that did not ask for it yet.
    pub tenant: Option<TenantName>,
    /// The project; none for the tenant as a whole.
    pub project: Option<ProjectName>,
    /// What was set, or what everybody has.
    pub share: Share,
    /// Whether it was set.
    pub is_set: bool,
    /// What its live leases hold of the fleet, by whichever of cores, memory and slots they hold most, of a million.
    pub held_ppm: u64,
    /// What it held lately, in the mean, of a million; what is older counts less.
    pub lately_ppm: u64,
}

/// What an operator or a client does with a build or a job that waits or runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Steering {
    /// What is steered.
    pub subject: Subject,
    /// How.
    pub order: Order,
}

/// A build, or a job by its derivation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Subject {
    /// A build, and everything in it.
    Build(crate::BuildId),
    /// A job, in all builds that want it.
    Job(crate::DrvPath),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Build(build) => write!(f, "build {build}"),
            Self::Job(derivation) => write!(f, "`{derivation}`"),
        }
    }
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// It gets this priority.
    Bump(Priority),
    /// What failed of it waits again, as if it had never been tried.
    Restart,
    /// A job is not built: it fails as cancelled, and with it what needs it.
    Cancel,
}

/// Shares, as they are asked for or set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ShareRequest {
    /// Client: all that were set, and who has builds or had any lately.
    List,
    /// Admin: sets one, or with none takes it back.
    Set {
        /// Whose.
        key: ShareKey,
        /// What it is from here on.
        share: Option<Share>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn priorities_stay_within_their_ends() {
        for (points, expect) in [(-128, -100), (-100, -100), (0, 0), (100, 100), (127, 100)] {
            assert_eq!(Priority::from(points).points(), expect, "{points}");
        }
        for (from, by, expect) in [(-100, 0, -100), (-100, 50, -50), (-100, 199, 99), (0, u64::MAX, 100), (99, 1, 100), (100, 1, 100)] {
            assert_eq!(Priority::from(from).raised(by).points(), expect, "{from} by {by}");
        }
    }
}
