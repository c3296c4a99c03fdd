//! Versions of the protocol, and the numbers that a connection starts with.

use std::fmt;

/// What a client says first.
pub const CLIENT_MAGIC: u64 = 0x6e69_7863;
/// What a daemon answers, before its version.
pub const SERVER_MAGIC: u64 = 0x6478_696f;
/// The feature strings that we offer from [`Version::FEATURES_SINCE`] on: none.
pub const FEATURES: [&str; 0] = [];

/// A version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Versions of different major numbers do not understand each other.
    pub major: u8,
    /// Counts what was added.
    pub minor: u8,
}

impl Version {
    /// The newest that we speak: that of Nix 2.24 to 2.34.
    pub const NEWEST: Self = Self { major: 1, minor: 38 };
    /// The oldest that we speak: that of Nix 2.8, the oldest client that this daemon is tested with.
    pub const OLDEST: Self = Self { major: 1, minor: 34 };
    /// Errors have a level and traces since.
    pub const TRACES_SINCE: Self = Self { major: 1, minor: 26 };
    /// A daemon says what program it is since.
    pub const NAME_SINCE: Self = Self { major: 1, minor: 33 };
    /// A daemon says whether it trusts its client since.
    pub const TRUST_SINCE: Self = Self { major: 1, minor: 35 };
    /// Results of builds say how much processor time they took since.
    pub const PROCESSOR_TIME_SINCE: Self = Self { major: 1, minor: 37 };
    /// Both sides list feature strings since.
    pub const FEATURES_SINCE: Self = Self { major: 1, minor: 38 };

    /// Reads a version as it is sent. What is above 16 bits is ignored, as Nix does.
    pub fn from_number(number: u64) -> Self {
        let [minor, major, ..] = number.to_le_bytes();
        Self { major, minor }
    }

    /// Returns the version as it is sent.
    pub fn number(self) -> u64 {
        u64::from(self.major) << 8 | u64::from(self.minor)
    }

    /// Returns the version to speak with a client that says it speaks `client`; none if there is none.
    pub fn agreed(client: Self) -> Option<Self> {
        let agreed = client.min(Self::NEWEST);
        (client.major == Self::NEWEST.major && agreed >= Self::OLDEST).then_some(agreed)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}
