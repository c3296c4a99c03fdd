//! Where a download goes: one file, or the tree of the NAR that it holds.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use kiln_nix::nar::{self, NarError};
use kiln_wire::FailureClass;
use reqwest::Url;

use super::super::xz;
use super::Request;
use crate::pipe::Reader;

/// A download that cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// The disk refuses.
    #[error("write the downloaded file")]
    Write(#[from] io::Error),
    /// The file holds no NAR.
    #[error("unpack the downloaded file as a NAR")]
    Unpack(#[source] NarError),
    /// The NAR is compressed in a way that this worker cannot read.
    #[error("unpack the downloaded file: `{suffix}` is not supported; offer the NAR uncompressed or as `.xz` or `.zst`")]
    Compression {
        /// How the address ends.
        suffix: String,
    },
    /// The writing thread died.
    #[error("write the downloaded file: the thread died")]
    Thread(#[source] tokio::task::JoinError),
}

impl SinkError {
    /// Returns who is at fault.
    pub fn class(&self) -> FailureClass {
        match self {
            Self::Write(_) | Self::Thread(_) => FailureClass::Infrastructure,
            Self::Unpack(_) | Self::Compression { .. } => FailureClass::BuildFailure,
        }
    }
}

/// Starts a thread that writes what it reads from the pipe to `destination`.
pub async fn start(request: &Request, url: &Url, reader: Reader, destination: PathBuf, bytes_max: u64) -> Result<(), SinkError> {
    let (unpack, executable) = (request.unpack, request.executable);
    let suffix = url.path().rsplit('.').next().unwrap_or_default().to_owned();
    let thread = tokio::task::spawn_blocking(move || {
        if unpack {
            restore(reader, &suffix, &destination, bytes_max)?;
        } else {
            write(reader, &destination)?;
        }
        if executable {
            std::fs::set_permissions(&destination, std::fs::Permissions::from_mode(0o755))?;
        }
        Ok(())
    });
    thread.await.map_err(SinkError::Thread)?
}

/// Removes what an earlier try left at `destination`.
pub fn clear(destination: &Path) -> Result<(), SinkError> {
    let gone = match std::fs::symlink_metadata(destination) {
        Ok(meta) if meta.is_dir() => std::fs::remove_dir_all(destination),
        Ok(_) => std::fs::remove_file(destination),
        Err(err) => Err(err),
    };
    match gone {
        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(err.into()),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Opens a local file for reading if any user of the machine could: a recipe must not read more than its author may.
pub fn open_public(path: &Path) -> Result<File, String> {
    let path = path.canonicalize().map_err(|err| err.to_string())?;
    for dir in path.ancestors().skip(1) {
        let meta = std::fs::symlink_metadata(dir).map_err(|err| err.to_string())?;
        if meta.mode() & 0o001 == 0 {
            return Err(format!("directory `{}` is not open to every user", dir.display()));
        }
    }
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOFOLLOW;
    let flags = i32::try_from(flags.bits()).expect("flags of open fit an int");
    let file = File::options().read(true).custom_flags(flags).open(&path).map_err(|err| err.to_string())?;
    let meta = file.metadata().map_err(|err| err.to_string())?;
    match (meta.is_file(), meta.mode() & 0o004 != 0) {
        (true, true) => Ok(file),
        (true, false) => Err("the file is not readable for every user".into()),
        (false, _) => Err("it is no regular file".into()),
    }
}

fn write(mut reader: Reader, destination: &Path) -> io::Result<()> {
    let mut file = File::options().write(true).create_new(true).mode(0o644).open(destination)?;
    let mut buffer = vec![0u8; 64 << 10];
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok(()),
            count => file.write_all(&buffer[..count])?,
        }
    }
}

fn restore(reader: Reader, suffix: &str, destination: &Path, bytes_max: u64) -> Result<(), SinkError> {
    match suffix {
        "xz" => restore_nar(xz::Decoder::new(reader), destination, bytes_max),
        "zst" => restore_nar(zstd::Decoder::new(reader)?, destination, bytes_max),
        "bz2" | "gz" | "br" | "lz4" | "lzip" => Err(SinkError::Compression { suffix: suffix.to_owned() }),
        _ => restore_nar(reader, destination, bytes_max),
    }
}

/// The NAR may be far larger than what was downloaded: it is cut at the limit, and a cut NAR is an error.
fn restore_nar(reader: impl Read, destination: &Path, bytes_max: u64) -> Result<(), SinkError> {
    let mut reader = io::BufReader::with_capacity(64 << 10, reader.take(bytes_max));
    nar::restore(&mut reader, destination).map_err(SinkError::Unpack)
}
