//! Who a peer is: farm, role and name, and their one spelling as a URI.
//!
//! The rules are SPIFFE's, made stricter: no encoded or wild characters, no query, no empty part, one spelling for each name.
//! Source: the SPIFFE-ID and X.509-SVID specifications.

use std::fmt;
use std::str::FromStr;

use kiln_wire::{NodeId, WorkerId};

/// Longest farm name: one DNS label.
const FARM_BYTES_MAX: usize = 63;
/// Longest member name, as for [`WorkerId`].
const MEMBER_BYTES_MAX: usize = 64;

/// A farm's name: 1 to 63 of `a-z 0-9 . - _`, starting with a letter or digit. It is the trust domain of the farm's certificates.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FarmName(String);

/// The name of a client or an admin: 1 to 64 of `A-Z a-z 0-9 . - _`, not starting with a dot.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberName(String);

/// What a certificate lets its holder be. Its text is `worker/<name>`, `coordinator/<n>`, `client/<name>` or `admin/<name>`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// A coordinator, by its Raft node id.
    Coordinator(NodeId),
    /// A worker, by its name.
    Worker(WorkerId),
    /// Somebody who submits builds and reads what they made.
    Client(MemberName),
    /// Somebody who operates the farm.
    Admin(MemberName),
}

/// Who is at the other end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Peer {
    /// Its farm.
    pub farm: FarmName,
    /// Its role there, with its name.
    pub role: Role,
}

/// A farm name, role or URI that breaks the rules.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("read {kind} `{text}`: {rule}")]
pub struct NameError {
    /// What was read.
    pub kind: &'static str,
    /// The refused text, cut at 120 characters, control characters escaped.
    pub text: String,
    /// The rule it breaks.
    pub rule: &'static str,
}

impl Peer {
    /// Returns the URI that stands in the certificate: `spiffe://<farm>/<role>/<name>`.
    pub fn uri(&self) -> String {
        format!("spiffe://{}/{}", self.farm, self.role)
    }

    /// Reads such a URI.
    ///
    /// # Errors
    /// [`NameError`] for every other spelling, also for those that URI libraries would treat as equal.
    pub fn parse_uri(uri: &str) -> Result<Self, NameError> {
        let refuse = |rule| NameError::new("identity URI", uri, rule);
        let rest = uri.strip_prefix("spiffe://").ok_or_else(|| refuse("must start with `spiffe://`"))?;
        let (farm, role) = rest.split_once('/').ok_or_else(|| refuse("must be `spiffe://<farm>/<role>/<name>`"))?;
        Ok(Self { farm: farm.parse()?, role: role.parse()? })
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of farm {}", self.role, self.farm)
    }
}

impl FarmName {
    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl MemberName {
    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for FarmName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let rule = if text.is_empty() {
            "must not be empty"
        } else if text.len() > FARM_BYTES_MAX {
            "is longer than 63 characters"
        } else if !text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-_".contains(&b)) {
            "may hold `a-z 0-9 . - _` only"
        } else if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            "must start with a letter or digit"
        } else {
            return Ok(Self(text.to_owned()));
        };
        Err(NameError::new("farm name", text, rule))
    }
}

impl FromStr for MemberName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        segment(text).map(|()| Self(text.to_owned())).map_err(|rule| NameError::new("member name", text, rule))
    }
}

impl FromStr for Role {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let refuse = |rule| NameError::new("role", text, rule);
        let (kind, name) =
            text.split_once('/').ok_or_else(|| refuse("must be `worker/NAME`, `coordinator/N`, `client/NAME` or `admin/NAME`"))?;
        segment(name).map_err(refuse)?;
        match kind {
            "coordinator" => {
                let node: u64 = name.parse().map_err(|_| refuse("a coordinator's name is its number"))?;
                if node.to_string() != name {
                    return Err(refuse("a coordinator's number has no leading zeros or sign"));
                }
                Ok(Self::Coordinator(NodeId(node)))
            }
            "worker" => WorkerId::parse(name).map(Self::Worker).map_err(|err| refuse(err.rule)),
            "client" => Ok(Self::Client(MemberName(name.to_owned()))),
            "admin" => Ok(Self::Admin(MemberName(name.to_owned()))),
            _ => Err(refuse("the role is not one of `worker`, `coordinator`, `client`, `admin`")),
        }
    }
}

impl fmt::Display for FarmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for MemberName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Coordinator(node) => write!(f, "coordinator/{node}"),
            Self::Worker(worker) => write!(f, "worker/{worker}"),
            Self::Client(name) => write!(f, "client/{name}"),
            Self::Admin(name) => write!(f, "admin/{name}"),
        }
    }
}

impl NameError {
    fn new(kind: &'static str, text: &str, rule: &'static str) -> Self {
        Self { kind, text: text.chars().take(120).flat_map(char::escape_debug).collect(), rule }
    }
}

/// Checks one part of a path; names that a URI would have to encode are refused, so that each has one spelling.
fn segment(text: &str) -> Result<(), &'static str> {
    if text.is_empty() {
        Err("the name must not be empty")
    } else if text.len() > MEMBER_BYTES_MAX {
        Err("the name is longer than 64 characters")
    } else if !text.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b)) {
        Err("the name may hold `A-Z a-z 0-9 . - _` only")
    } else if text.starts_with('.') {
        Err("the name must not start with a dot")
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_survives_its_uri() {
        for role in ["worker/w-1.rack_2", "coordinator/1", "coordinator/18446744073709551615", "client/Ann", "admin/ops"] {
            let peer = Peer { farm: "demo.example".parse().expect("farm"), role: role.parse().expect(role) };
            assert_eq!(Peer::parse_uri(&peer.uri()), Ok(peer.clone()));
            assert_eq!(peer.role.to_string(), role);
        }
    }

    #[test]
    fn any_other_spelling_of_an_identity_is_refused() {
        let long = format!("spiffe://demo/worker/{}", "a".repeat(65));
        for uri in [
            "",
            "spiffe://",
            "spiffe://demo",
            "spiffe://demo/",
            "spiffe://demo/worker",
            "spiffe://demo/worker/",
            "spiffe://demo/worker/a/b",
            "spiffe://demo//worker/a",
            "spiffe:///worker/a",
            "SPIFFE://demo/worker/a",
            "https://demo/worker/a",
            "spiffe://Demo/worker/a",
            "spiffe://demo:443/worker/a",
            "spiffe://u@demo/worker/a",
            "spiffe://-demo/worker/a",
            "spiffe://demo/Worker/a",
            "spiffe://demo/builder/a",
            "spiffe://demo/worker/*",
            "spiffe://demo/worker/%61",
            "spiffe://demo/worker/a?x=1",
            "spiffe://demo/worker/a#b",
            "spiffe://demo/worker/a b",
            "spiffe://demo/worker/..",
            "spiffe://demo/worker/.a",
            "spiffe://demo/worker/ä",
            "spiffe://demo/worker/a\n",
            "spiffe://demo/coordinator/01",
            "spiffe://demo/coordinator/+1",
            "spiffe://demo/coordinator/a",
            "spiffe://demo/coordinator/18446744073709551616",
            &long,
        ] {
            assert!(Peer::parse_uri(uri).is_err(), "{uri}");
        }
    }
}
