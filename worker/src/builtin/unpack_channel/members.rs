//! What a tarball holds, member by member: real names from ustar, GNU and pax headers, everything else refused by name.
//!
//! Names are split and checked here, so that what comes out has no `..`, no empty part and no slash at the start. Headers that
//! describe the next member are read up to a limit. Does not write.

use std::io::Read;

use tar::{Entries, Entry, EntryType, PaxExtensions};

use super::super::shown;
use super::{UnpackError, stopped_by};

/// Members of one tarball; nixpkgs has some hundred thousand.
pub const MEMBERS_MAX: u64 = 1 << 20;
/// Directories above a member, as deep as a NAR may be.
const DEPTH_MAX: usize = 64;
/// Longest name of a file and text of a link.
const NAME_BYTES_MAX: usize = 255;
const LINK_BYTES_MAX: usize = 4095;
/// Longest header that describes the next member.
const DESCRIPTION_BYTES_MAX: u64 = 1 << 20;

/// One file, directory or link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// As the archive says it, for people.
    pub name: Vec<u8>,
    /// Where it goes, from the archive's top. Empty for the top itself.
    pub path: Vec<Vec<u8>>,
    /// What it is.
    pub kind: Kind,
    /// Bytes that follow in the archive, as it claims.
    pub size_bytes: u64,
}

/// What a member is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A file.
    File {
        /// Whether its owner may run it. Other bits are not kept.
        executable: bool,
    },
    /// A symbolic link, to anywhere: it is never followed here.
    Symlink(Vec<u8>),
    /// Another name of an earlier member.
    HardLink(Vec<Vec<u8>>),
}

/// The members of an archive in its order.
pub struct Members<'a, R: Read> {
    entries: Entries<'a, R>,
    count: u64,
}

/// What headers say about the next member.
#[derive(Default)]
struct Description {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size_bytes: Option<u64>,
}

impl<'a, R: Read> Members<'a, R> {
    /// Starts at the first.
    pub fn new(entries: Entries<'a, R>) -> Self {
        // Otherwise the crate reads descriptions of any length into memory by itself.
        Self { entries: entries.raw(true), count: 0 }
    }

    /// Returns the next member and its content.
    ///
    /// # Errors
    /// [`UnpackError`] if there is one that is not taken, or the archive is damaged.
    pub fn next(&mut self, src: &str) -> Result<Option<(Member, Entry<'a, R>)>, UnpackError> {
        let mut description = Description::default();
        for entry in self.entries.by_ref() {
            let mut entry = entry.map_err(|err| stopped_by(src, err))?;
            self.count += 1;
            if self.count > MEMBERS_MAX {
                return Err(UnpackError::TooLarge { src: src.into(), limit: MEMBERS_MAX, unit: "files" });
            }
            let kind = entry.header().entry_type();
            match kind {
                EntryType::GNULongName => description.path = Some(text(&describing(&mut entry, src)?)),
                EntryType::GNULongLink => description.link = Some(text(&describing(&mut entry, src)?)),
                EntryType::XHeader => {
                    let bytes = describing(&mut entry, src)?;
                    description.pax(&entry.path_bytes(), &bytes)?;
                }
                EntryType::XGlobalHeader => {
                    let bytes = describing(&mut entry, src)?;
                    let mut global = Description::default();
                    global.pax(&entry.path_bytes(), &bytes)?;
                    if global.path.is_some() || global.link.is_some() || global.size_bytes.is_some() {
                        return Err(refuse(&entry.path_bytes(), "a global header gives every file the same name or size"));
                    }
                }
                _ => return Ok(Some((description.member(&entry)?, entry))),
            }
        }
        Ok(None)
    }
}

impl Description {
    /// Reads the records of a pax header.
    fn pax(&mut self, name: &[u8], bytes: &[u8]) -> Result<(), UnpackError> {
        for record in PaxExtensions::new(bytes) {
            let record = record.map_err(|err| refuse(name, format!("its extended header is damaged: {err}")))?;
            let value = record.value_bytes();
            match record.key_bytes() {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => {
                    let size = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                    self.size_bytes = Some(size.ok_or_else(|| refuse(name, "its extended header gives no number as the size"))?);
                }
                key if key.starts_with(b"GNU.sparse.") => return Err(refuse(name, "sparse files are not supported")),
                _ => {}
            }
        }
        Ok(())
    }

    /// Puts the header of a member and what was said about it before together.
    fn member<R: Read>(self, entry: &Entry<'_, R>) -> Result<Member, UnpackError> {
        let header = entry.header();
        let name = self.path.unwrap_or_else(|| header.path_bytes().into_owned());
        let link = || self.link.clone().or_else(|| header.link_name_bytes().map(|link| link.into_owned())).unwrap_or_default();
        let size_bytes = entry.size();
        // Whoever believes one of the two finds other members than whoever believes the other.
        if self.size_bytes.is_some_and(|size| size != size_bytes) {
            return Err(refuse(&name, "its two headers give different sizes"));
        }
        let path = split(&name, &name)?;
        let kind = match header.entry_type() {
            // Before ustar, a directory was a file whose name ends so.
            EntryType::Regular if name.ends_with(b"/") => Kind::Directory,
            EntryType::Regular | EntryType::Continuous => {
                let mode = header.mode().map_err(|err| refuse(&name, err.to_string()))?;
                Kind::File { executable: mode & 0o100 != 0 }
            }
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink => Kind::Symlink(target(&name, link())?),
            EntryType::Link => match split(&name, &link())? {
                to if to.is_empty() => return Err(refuse(&name, "it is a hard link to nothing")),
                to => Kind::HardLink(to),
            },
            EntryType::Char => return Err(refuse(&name, "it is a character device")),
            EntryType::Block => return Err(refuse(&name, "it is a block device")),
            EntryType::Fifo => return Err(refuse(&name, "it is a fifo")),
            EntryType::GNUSparse => return Err(refuse(&name, "sparse files are not supported")),
            other => {
                return Err(refuse(&name, format!("type `{}` is not supported", char::from(other.as_byte()).escape_default())));
            }
        };
        match (&kind, path.is_empty()) {
            (Kind::Directory, _) | (_, false) => Ok(Member { name, path, kind, size_bytes }),
            (Kind::File { .. } | Kind::Symlink(_) | Kind::HardLink(_), true) => Err(refuse(&name, "it has no name")),
        }
    }
}

/// Reads a header that describes the next member.
fn describing<R: Read>(entry: &mut Entry<'_, R>, src: &str) -> Result<Vec<u8>, UnpackError> {
    let size_bytes = entry.size();
    if size_bytes > DESCRIPTION_BYTES_MAX {
        return Err(refuse(&entry.path_bytes(), format!("its name or extended header has more than {DESCRIPTION_BYTES_MAX} bytes")));
    }
    let mut bytes = Vec::new();
    entry.read_to_end(&mut bytes).map_err(|err| stopped_by(src, err))?;
    match bytes.len() as u64 == size_bytes {
        true => Ok(bytes),
        false => Err(refuse(&entry.path_bytes(), "the archive is cut off in it")),
    }
}

/// A GNU name ends with a NUL byte.
fn text(bytes: &[u8]) -> Vec<u8> {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default().to_vec()
}

/// Splits a name, which must stay below the archive's top.
fn split(member: &[u8], name: &[u8]) -> Result<Vec<Vec<u8>>, UnpackError> {
    let told = if member == name { String::new() } else { format!("it is a hard link to `{}`: ", shown(name)) };
    let refuse = |rule: &str| refuse(member, format!("{told}{rule}"));
    if name.starts_with(b"/") {
        return Err(refuse("the name is absolute"));
    }
    let parts: Vec<_> = name.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b".")).collect();
    for part in &parts {
        match *part {
            b".." => return Err(refuse("the name has `..` in it")),
            part if part.contains(&0) => return Err(refuse("the name holds a NUL byte")),
            part if part.len() > NAME_BYTES_MAX => return Err(refuse("a part of the name is too long")),
            _ => {}
        }
    }
    if parts.len() > DEPTH_MAX {
        return Err(refuse(&format!("it lies more than {DEPTH_MAX} directories deep")));
    }
    Ok(parts.into_iter().map(<[u8]>::to_vec).collect())
}

fn target(member: &[u8], link: Vec<u8>) -> Result<Vec<u8>, UnpackError> {
    match link.is_empty() || link.len() > LINK_BYTES_MAX || link.contains(&0) {
        true => Err(refuse(member, "its target cannot be the text of a symbolic link")),
        false => Ok(link),
    }
}

/// Refuses a member by its name.
pub fn refuse(member: &[u8], rule: impl Into<String>) -> UnpackError {
    UnpackError::Member { member: shown(member), rule: rule.into() }
}
