//! `builtin:unpack-channel`: the one directory that a tarball holds, under the channel's name.
//!
//! Tarballs are hostile: [`members`] reads one without believing its numbers, [`tree`] writes below one directory and nowhere else.
//! Ownership, times and set-id bits of a tarball mean nothing in a store and are never applied; devices, fifos, absolute names, `..`
//! and whatever leads through a link are refused. Compression is told by the first bytes. Absences: bzip2, whose decoders have a
//! licence of their own; sparse files and other extensions that only some programs understand; formats other than tar.
//! Source: Nix's `builtins/unpack-channel.cc`; attack A34 of `worker/ATTACKS.md`.

mod decode;
mod members;
mod tree;

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::Path;

use kiln_wire::FailureClass;

use super::closure::{ClosureError, Kind};
use super::{Bounds, Closure, Ended, RecipeError, shown, variable};
use decode::{Metered, decoder, stopped_by};
use members::Members;
use tree::Tree;

/// How recipes call it.
pub const NAME: &str = "builtin:unpack-channel";

/// A tarball and what its directory shall be called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    src: Vec<u8>,
    channel_name: Vec<u8>,
}

/// A tarball that is not taken.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// There is no such file among the inputs.
    #[error("unpack `{src}`: it is no file of the job's inputs")]
    Absent {
        /// Which file.
        src: String,
    },
    /// It is compressed or packed in a way that the worker does not know.
    #[error("unpack `{src}`: {format} is not supported; offer a tar archive, uncompressed or compressed with gzip, xz or zstd")]
    Format {
        /// Which file.
        src: String,
        /// What it seems to be.
        format: &'static str,
    },
    /// It cannot be looked up.
    #[error(transparent)]
    Closure(#[from] ClosureError),
    /// It is damaged or no tarball.
    #[error("unpack `{src}`: read the archive")]
    Read {
        /// Which file.
        src: String,
        /// Why not.
        #[source]
        err: io::Error,
    },
    /// It holds something that is not taken.
    #[error("unpack: refuse `{member}`: {rule}")]
    Member {
        /// Its name in the archive, cut.
        member: String,
        /// The rule it breaks.
        rule: String,
    },
    /// It holds nothing, or several things, where a channel has one directory.
    #[error("channel tarball `{src}` contains {found}, not one directory")]
    Top {
        /// Which file.
        src: String,
        /// What was found.
        found: &'static str,
    },
    /// It holds more than the job may make.
    #[error("unpack `{src}`: it holds more than {limit} {unit}")]
    TooLarge {
        /// Which file.
        src: String,
        /// The limit.
        limit: u64,
        /// Of what.
        unit: &'static str,
    },
    /// It was stopped, or took too long.
    #[error(transparent)]
    Ended(#[from] Ended),
    /// The disk refuses.
    #[error("{operation} `{member}`")]
    Write {
        /// What was tried.
        operation: &'static str,
        /// Its name in the archive, cut.
        member: String,
        /// Why not.
        #[source]
        err: io::Error,
    },
}

impl UnpackError {
    /// Returns who is at fault.
    pub fn class(&self) -> FailureClass {
        match self {
            Self::Closure(err) if err.is_infrastructure() => FailureClass::Infrastructure,
            Self::Absent { .. } | Self::Format { .. } | Self::Closure(_) | Self::Read { .. } | Self::Member { .. } | Self::Top { .. } => {
                FailureClass::BuildFailure
            }
            Self::TooLarge { .. } => FailureClass::LimitExceeded,
            Self::Ended(err) => err.class(),
            Self::Write { .. } => FailureClass::Infrastructure,
        }
    }
}

impl Request {
    /// Reads a recipe's variables.
    ///
    /// # Errors
    /// [`RecipeError`] if one is missing or makes no sense.
    pub fn of(variables: &BTreeMap<String, Vec<u8>>) -> Result<Self, RecipeError> {
        let channel_name = variable(variables, NAME, "channelName")?;
        if matches!(channel_name, b"" | b"." | b"..")
            || channel_name.len() > 255
            || channel_name.iter().any(|byte| matches!(byte, 0 | b'/'))
        {
            let rule = format!("`{}` cannot be the name of a directory", shown(channel_name));
            return Err(RecipeError::Variable { builder: NAME, name: "channelName", rule });
        }
        let src = variable(variables, NAME, "src")?;
        Ok(Self { src: src.to_vec(), channel_name: channel_name.to_vec() })
    }
}

/// Unpacks the tarball into `out`, where nothing may lie.
///
/// # Errors
/// [`UnpackError`]. Something may then lie at `out`.
pub fn make(request: &Request, closure: &Closure, bounds: &Bounds, out: &Path) -> Result<(), UnpackError> {
    let src = || shown(&request.src);
    let place =
        closure.resolve(&request.src)?.filter(|place| place.kind == Kind::File).ok_or_else(|| UnpackError::Absent { src: src() })?;
    let read = |err| stopped_by(&src(), err);
    let archive = decoder(closure.open(place)?, &src())?;
    let tree = Tree::make(out)?;
    let mut archive = tar::Archive::new(Metered::new(archive, bounds));
    let mut content = Content { bounds, left_bytes: bounds.output_bytes_max(), buffer: vec![0; 64 << 10] };
    let mut members = Members::new(archive.entries().map_err(read)?);
    while let Some((member, mut bytes)) = members.next(&src())? {
        tree.put(&member, &mut |file| content.copy(&src(), &member, &mut bytes, file))?;
    }
    // What follows the archive's end mark is not used, but a compressed file is whole only if its own end is right.
    let rest = io::copy(&mut archive.into_inner(), &mut io::sink());
    rest.map_err(read)?;
    match tree.names(2)?.as_slice() {
        [top] => tree.rename(top, &request.channel_name),
        [] => Err(UnpackError::Top { src: src(), found: "nothing" }),
        _ => Err(UnpackError::Top { src: src(), found: "more than one file" }),
    }
}

/// Copies what members hold, as much as an output may.
struct Content<'a> {
    bounds: &'a Bounds,
    left_bytes: u64,
    buffer: Vec<u8>,
}

impl Content<'_> {
    fn copy(&mut self, src: &str, member: &members::Member, from: &mut dyn Read, to: &mut dyn io::Write) -> Result<(), UnpackError> {
        let too_large = || UnpackError::TooLarge { src: src.into(), limit: self.bounds.output_bytes_max(), unit: "bytes" };
        self.left_bytes = self.left_bytes.checked_sub(member.size_bytes).ok_or_else(too_large)?;
        let mut left = member.size_bytes;
        while left > 0 {
            let count = match from.read(&mut self.buffer) {
                Ok(0) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("`{}` is cut off", shown(&member.name)))),
                read => read,
            };
            let count = count.map_err(|err| stopped_by(src, err))?;
            let write = |err| UnpackError::Write { operation: "write", member: shown(&member.name), err };
            to.write_all(&self.buffer[..count]).map_err(write)?;
            left = left.saturating_sub(count as u64);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
