//! Archives as other stores compress them, read within bounds of memory whatever they claim to need; and made for clients that read no
//! other.

use std::io::{self, Read, Write};

use kiln_wire::limits::ZSTD_WINDOW_LOG_MAX;
use lzma_rust2::{XzOptions, XzReader, XzWriter};

/// Memory that an xz decoder may use, in KiB: 128 MiB. The strongest preset (`xz -9`) asks for a dictionary of 64 MiB.
const XZ_MEMORY_KIB_MAX: u32 = 128 << 10;

/// How the file of an archive is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Compression {
    /// Not at all.
    None,
    /// zstd.
    Zstd,
    /// xz.
    Xz,
    /// bzip2, which a narinfo means that names none.
    Bzip2,
}

/// Every compression that is read.
const ALL: [Compression; 4] = [Compression::None, Compression::Zstd, Compression::Xz, Compression::Bzip2];

impl Compression {
    /// Returns the compression that a narinfo names so. `None`: it is not read here.
    pub fn named(name: &str) -> Option<Self> {
        ALL.into_iter().find(|compression| compression.name() == name)
    }

    /// Returns the compression of an archive with this file name (`….nar`, `….nar.xz`), and the name before the ending.
    pub fn of_file(name: &str) -> Option<(&str, Self)> {
        ALL.into_iter().find_map(|compression| Some((name.strip_suffix(compression.suffix())?, compression)))
    }

    /// Returns its name in a narinfo.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Zstd => "zstd",
            Self::Xz => "xz",
            Self::Bzip2 => "bzip2",
        }
    }

    /// Returns how names of archives end that are compressed so.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::None => ".nar",
            Self::Zstd => ".nar.zst",
            Self::Xz => ".nar.xz",
            Self::Bzip2 => ".nar.bz2",
        }
    }

    /// Decompresses `file` to its end: several streams one after another are one, as the tools have it.
    ///
    /// # Errors
    /// What preparing the decoder gives.
    pub fn reader<'a>(self, file: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
        Ok(match self {
            Self::None => Box::new(file),
            Self::Zstd => {
                let mut decoder = zstd::Decoder::new(file)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
                Box::new(decoder)
            }
            Self::Xz => Box::new(XzReader::new_mem_limit(io::BufReader::with_capacity(BUFFER_BYTES, file), true, XZ_MEMORY_KIB_MAX)),
            Self::Bzip2 => Box::new(bzip2::read::MultiBzDecoder::new(io::BufReader::with_capacity(BUFFER_BYTES, file))),
        })
    }
}

/// Compresses the archive of a blob anew, to `out`. Blocks.
///
/// # Errors
/// What reading the blob or writing to `out` gives.
pub fn recompress(blob: impl Read, compression: Compression, mut out: impl Write) -> io::Result<()> {
    let mut nar = Compression::Zstd.reader(blob)?;
    match compression {
        Compression::None => io::copy(&mut nar, &mut out).map(drop)?,
        Compression::Zstd => {
            let mut encoder = zstd::Encoder::new(&mut out, 1)?;
            io::copy(&mut nar, &mut encoder)?;
            encoder.finish().map(drop)?;
        }
        Compression::Xz => {
            let mut encoder = XzWriter::new(&mut out, XzOptions::with_preset(XZ_PRESET))?;
            io::copy(&mut nar, &mut encoder)?;
            encoder.finish().map(drop)?;
        }
        Compression::Bzip2 => {
            let mut encoder = bzip2::write::BzEncoder::new(&mut out, bzip2::Compression::fast());
            io::copy(&mut nar, &mut encoder)?;
            encoder.finish().map(drop)?;
        }
    }
    out.flush()
}

/// The fastest: whoever reads no zstd waits for it.
const XZ_PRESET: u32 = 0;
/// Compressed bytes that are read at a time.
const BUFFER_BYTES: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_endings_are_those_of_nix() {
        for (file, expected) in [
            ("abc.nar", Some(("abc", Compression::None))),
            ("abc.nar.zst", Some(("abc", Compression::Zstd))),
            ("abc.nar.xz", Some(("abc", Compression::Xz))),
            ("abc.nar.bz2", Some(("abc", Compression::Bzip2))),
            ("abc.nar.br", None),
            ("abc", None),
        ] {
            assert_eq!(Compression::of_file(file), expected, "{file}");
        }
        assert!(ALL.into_iter().all(|compression| Compression::named(compression.name()) == Some(compression)));
        assert_eq!(Compression::named("br"), None);
    }
}
