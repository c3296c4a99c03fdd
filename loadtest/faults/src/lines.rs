//! What log lines of coordinators and workers say about attempts. Pure.
//!
//! The lines are JSON, as `kiln` writes them when its standard error is no terminal, at the level `debug` for `kiln_coordinator::raft::trace`
//! and `kiln_worker::shell`.

use serde_json::Value;

/// What one line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// A coordinator applied the entry that gave a lease.
    Leased(Entry),
    /// A coordinator applied the entry that committed a job's outputs.
    Committed(Entry),
    /// A worker took an attempt up, for the leader of this node number.
    Began(Attempt, u64),
    /// A worker was told to stop an attempt.
    Stopped(Attempt),
    /// An attempt ended on its worker: `built`, or the failure's class.
    Ended(Attempt, String),
    /// A worker was welcomed by a leader.
    Welcomed,
    /// Something at the level `ERROR`.
    Error(String),
}

/// An entry of the log about an attempt.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Its index.
    pub index: u64,
    /// Which attempt.
    pub attempt: Attempt,
}

/// An attempt.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attempt {
    /// Its number.
    pub attempt: u64,
    /// At which job.
    pub derivation: String,
}

/// Reads a line; nothing if it is about something else.
pub fn read(line: &str) -> Option<Fact> {
    let line: Value = serde_json::from_str(line).ok()?;
    let fields = line.get("fields")?;
    let message = fields.get("message")?.as_str()?;
    // What Raft's library calls an error is between coordinators, which say themselves what comes of it.
    let ours = line.get("target").and_then(Value::as_str).is_some_and(|target| target.starts_with("kiln"));
    if ours && line.get("level").and_then(Value::as_str) == Some("ERROR") {
        return Some(Fact::Error(fields.to_string()));
    }
    let attempt = || Some(Attempt { attempt: fields.get("attempt")?.as_u64()?, derivation: fields.get("job")?.as_str()?.to_owned() });
    let entry = || Some(Entry { index: fields.get("index")?.as_u64()?, attempt: attempt()? });
    Some(match (line.get("target")?.as_str()?, message) {
        ("kiln_coordinator::raft::trace", "leased") => Fact::Leased(entry()?),
        ("kiln_coordinator::raft::trace", "committed") => Fact::Committed(entry()?),
        ("kiln_worker::shell", "attempt begins") => Fact::Began(attempt()?, fields.get("leader")?.as_str()?.parse().ok()?),
        ("kiln_worker::shell", "attempt is stopped") => Fact::Stopped(attempt()?),
        ("kiln_worker::shell", "attempt ended") => Fact::Ended(attempt()?, fields.get("end")?.as_str()?.to_owned()),
        ("kiln_worker::worker", "welcomed") => Fact::Welcomed,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_the_program_writes_them() {
        let attempt = Attempt { attempt: 9, derivation: "a.drv".into() };
        let table = [
            (
                r#"{"timestamp":"t","level":"DEBUG","fields":{"message":"committed","index":12,"attempt":9,"job":"a.drv"},"target":"kiln_coordinator::raft::trace"}"#,
                Some(Fact::Committed(Entry { index: 12, attempt: attempt.clone() })),
            ),
            (
                r#"{"timestamp":"t","level":"DEBUG","fields":{"message":"leased","index":9,"attempt":9,"job":"a.drv","worker":"w1"},"target":"kiln_coordinator::raft::trace"}"#,
                Some(Fact::Leased(Entry { index: 9, attempt: attempt.clone() })),
            ),
            (
                r#"{"timestamp":"t","level":"DEBUG","fields":{"message":"attempt ended","attempt":9,"job":"a.drv","end":"built"},"target":"kiln_worker::shell"}"#,
                Some(Fact::Ended(attempt, "built".into())),
            ),
            (
                r#"{"timestamp":"t","level":"ERROR","fields":{"message":"it broke"},"target":"kiln_x"}"#,
                Some(Fact::Error(r#"{"message":"it broke"}"#.into())),
            ),
            (r#"{"timestamp":"t","level":"INFO","fields":{"message":"committed"},"target":"somebody::else"}"#, None),
            ("kiln 0.1.0", None),
        ];
        for (line, fact) in table {
            assert_eq!(read(line), fact, "{line}");
        }
    }
}
