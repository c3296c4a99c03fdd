//! Notes: what a daemon tells while an operation goes on, and that it has ended.

use super::encoder::Encoder;
use super::version::Version;

/// One note.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note<'a> {
    /// The operation went well; its result follows.
    Last,
    /// The operation failed; no result follows.
    Error(&'a str),
    /// Something for people, a line or more.
    Text(&'a str),
    /// Something goes on.
    Start {
        /// A number that no other activity of the client has.
        id: u64,
        /// Whom it concerns.
        level: Level,
        /// What kind of thing it is.
        kind: ActivityKind,
        /// In words.
        text: &'a str,
        /// In particular, as the kind wants it.
        fields: &'a [Field<'a>],
        /// The activity that it is a part of; 0 for none.
        parent: u64,
    },
    /// It does not go on.
    Stop {
        /// The activity.
        id: u64,
    },
    /// Something came of it.
    Result {
        /// The activity.
        id: u64,
        /// What kind of thing.
        kind: ResultKind,
        /// In particular, as the kind wants it.
        fields: &'a [Field<'a>],
    },
}

/// A particular of an activity or result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field<'a> {
    /// A number.
    Number(u64),
    /// A string; a builder's bytes need not be UTF-8.
    Text(&'a [u8]),
}

/// Whom a note concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Everybody, in any case.
    Error = 0,
    /// Everybody who did not ask for silence.
    Info = 3,
}

/// What goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActivityKind {
    /// Many builds. A [`ResultKind::Progress`] counts them.
    Builds = 104,
    /// One build. Fields: derivation, machine, round, rounds (each 1).
    Build = 105,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResultKind {
    /// A line of a build's log. Field: the line.
    BuildLogLine = 101,
    /// A build has come to another phase. Field: its name.
    SetPhase = 104,
    /// Fields: how many are done, expected, running, failed.
    Progress = 105,
}

const NEXT: u64 = 0x6f6c_6d67;
const LAST: u64 = 0x616c_7473;
const ERROR: u64 = 0x6378_7470;
const START: u64 = 0x5354_5254;
const STOP: u64 = 0x5354_4f50;
const RESULT: u64 = 0x5253_4c54;

impl Note<'_> {
    /// Adds the note to what is sent to a client that speaks `version`.
    pub fn encode(&self, version: Version, to: &mut Encoder) {
        match *self {
            Self::Last => to.number(LAST),
            Self::Error(message) if version < Version::TRACES_SINCE => to.number(ERROR).text(message).number(EXIT_CODE),
            // Kind, level, a name that nobody reads, the message; no position, no traces.
            Self::Error(message) => {
                to.number(ERROR).text("Error").number(Level::Error as u64).text("Error").text(message).number(0).number(0)
            }
            Self::Text(text) => to.number(NEXT).text(text),
            Self::Start { id, level, kind, text, fields, parent } => {
                to.number(START).number(id).number(level as u64).number(kind as u64).text(text);
                encode_fields(fields, to).number(parent)
            }
            Self::Stop { id } => to.number(STOP).number(id),
            Self::Result { id, kind, fields } => {
                to.number(RESULT).number(id).number(kind as u64);
                encode_fields(fields, to)
            }
        };
    }
}

fn encode_fields<'a>(fields: &[Field<'_>], to: &'a mut Encoder) -> &'a mut Encoder {
    to.list(fields, |to, field| match field {
        Field::Number(number) => to.number(0).number(*number),
        Field::Text(text) => to.number(1).text(text),
    })
}

/// With what an old client ends after an error.
const EXIT_CODE: u64 = 1;
