//! How those do who are told what happens in a farm, and how long a farm keeps what was built: for people.

use alloc::string::String;

use serde::{Deserialize, Serialize};

use crate::Timestamp;

/// One receiver of webhooks, as the leader sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiverView {
    /// What the configuration calls it.
    pub name: String,
    /// The host that it is at. The whole URL may hold a secret.
    pub host: String,
    /// Messages that it took, since this leader took over.
    pub delivered: u64,
    /// Messages that it will never get: it refused them for too long, or too many waited. Since this leader took over.
    pub given_up: u64,
    /// Messages that wait for it.
    pub waiting: u64,
    /// Since when it fails to take the first of them, how often it has, and how; none if it does not fail.
    pub failing: Option<Failing>,
}

/// A receiver that does not take what it is sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failing {
    /// Since when.
    pub since: Timestamp,
    /// How many tries of this message failed.
    pub tries: u32,
    /// What became of the last one, in words.
    pub error: String,
}

/// How long ended builds are kept, and with them their logs and what they made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetentionView {
    /// Of each name so many, the newest, however old.
    pub keep_builds: u32,
    /// Others as long as they are not older than so many days.
    pub keep_days: u32,
    /// Of those others so many at most, if there is a bound.
    pub keep_builds_max: Option<u32>,
    /// Logs of attempts for so many days, if that is less than what they belong to is kept.
    pub keep_log_days: Option<u32>,
    /// The rest is deleted every so many hours; none: when `kiln gc` is asked to.
    pub every_hours: Option<u32>,
}
