//! The ledger: which store paths lie whole in the cache, one line each, appended after the path is in place.
//!
//! Not synced: the cache is a cache. A process that dies leaves the kernel's view behind, which is whole; a machine that dies may
//! not, so that entries written before the machine's last start are marked unproven and hashed once before they are used.
//! Does not know about pins or budgets.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use kiln_wire::{Sha256Hash, StorePath};

/// What the ledger says of one path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// SHA-256 of its NAR.
    pub nar_hash: Sha256Hash,
    /// Size of its NAR.
    pub nar_size_bytes: u64,
    /// How much of it lies in shared files, which are counted once for all paths.
    pub shared_bytes: u64,
    /// Whether it was written since the machine started, or hashed since.
    pub proven: bool,
}

/// An open ledger.
#[derive(Debug)]
pub struct Ledger {
    file: File,
}

/// A ledger that cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{operation} the store cache's ledger `{path}`")]
pub struct LedgerError {
    operation: &'static str,
    path: PathBuf,
    #[source]
    err: std::io::Error,
}

/// First word of the first line; another one means another format, and the cache starts empty.
const MAGIC: &str = "kiln-cache-1";

impl Ledger {
    /// Reads the ledger and rewrites it without the paths that `keep` refuses. `boot` names the machine's present run. Lines are
    /// returned oldest first. A line that was cut by a crash is left out.
    ///
    /// # Errors
    /// [`LedgerError`] if the file exists and cannot be read, or cannot be written.
    pub fn open(path: &Path, boot: &str, keep: impl Fn(&StorePath) -> bool) -> Result<(Self, Vec<(StorePath, Line)>), LedgerError> {
        let error = |operation, err| LedgerError { operation, path: path.into(), err };
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(err) if err.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(err) => return Err(error("read", err)),
        };
        let mut lines = parse(&String::from_utf8_lossy(&bytes), boot);
        lines.retain(|(path, _)| keep(path));
        let mut text = format!("{MAGIC} {boot}\n");
        lines.iter().for_each(|(path, line)| text.push_str(&line_text(path, line)));
        let temp = path.with_extension("new");
        std::fs::write(&temp, text).and_then(|()| std::fs::rename(&temp, path)).map_err(|err| error("rewrite", err))?;
        let file = File::options().append(true).open(path).map_err(|err| error("open", err))?;
        Ok((Self { file }, lines))
    }

    /// Adds or replaces a path's line.
    ///
    /// # Errors
    /// The kernel's.
    pub fn append(&mut self, path: &StorePath, line: &Line) -> std::io::Result<()> {
        self.file.write_all(line_text(path, line).as_bytes())
    }
}

/// Returns the name of the machine's present run, which every start changes; empty where the kernel has none.
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|text| text.trim().to_owned()).unwrap_or_default()
}

fn line_text(path: &StorePath, line: &Line) -> String {
    let proven = if line.proven { '+' } else { '?' };
    format!("{path} {} {} {proven} {}\n", line.nar_hash, line.nar_size_bytes, line.shared_bytes)
}

/// A path's last line counts, and its place in the order.
fn parse(text: &str, boot: &str) -> Vec<(StorePath, Line)> {
    let Some((head, body)) = text.split_once('\n') else { return Vec::new() };
    let Some(written_in) = head.strip_prefix(MAGIC).map(str::trim) else { return Vec::new() };
    let same_run = !boot.is_empty() && written_in == boot;
    let mut found: BTreeMap<StorePath, (usize, Line)> = BTreeMap::new();
    for (order, text) in body.split_inclusive('\n').enumerate() {
        if let Some((path, line)) = text.strip_suffix('\n').and_then(parse_line) {
            found.insert(path, (order, Line { proven: line.proven && same_run, ..line }));
        }
    }
    let mut lines: Vec<_> = found.into_iter().map(|(path, (order, line))| (order, path, line)).collect();
    lines.sort_by_key(|(order, ..)| *order);
    lines.into_iter().map(|(_, path, line)| (path, line)).collect()
}

fn parse_line(text: &str) -> Option<(StorePath, Line)> {
    let mut words = text.split(' ');
    let path = StorePath::parse(words.next()?).ok()?;
    let nar_hash = words.next()?.parse().ok()?;
    let nar_size_bytes = words.next()?.parse().ok()?;
    let proven = match words.next()? {
        "+" => true,
        "?" => false,
        _ => return None,
    };
    // Lines of versions that shared nothing end here.
    let shared_bytes = words.next().map_or(Ok(0), str::parse).ok()?;
    words.next().is_none().then_some((path, Line { nar_hash, nar_size_bytes, shared_bytes, proven }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "0hm2f1psjpcwg8fijsmr4wwxrx59s092-a";
    const B: &str = "0hm2f1psjpcwg8fijsmr4wwxrx59s093-b";

    #[test]
    fn a_ledger_survives_a_cut_line_a_repeat_and_a_restart_of_the_machine() {
        let h = "0".repeat(64);
        let i = "1".repeat(64);
        let table = [
            ("", "run", ""),
            ("other-format run\n", "run", ""),
            (&format!("kiln-cache-1 run\n{A} {h} 7 +\n{B} {h} 8 +\n"), "run", "a7+ b8+"),
            (&format!("kiln-cache-1 run\n{A} {h} 7 +\n{B} {h} 8 +\n{A} {i} 9 +\n"), "run", "b8+ a9+"),
            (&format!("kiln-cache-1 run\n{A} {h} 7 +\n{B} {h} 8"), "run", "a7+"),
            (&format!("kiln-cache-1 run\n{A} {h} 7 + 5\n{B} {h} 8 + 5 5\n"), "run", "a7+5"),
            (&format!("kiln-cache-1 run\n{A} {h} 7 +\nrubbish\n{B} {h} 8 ?\n"), "run", "a7+ b8?"),
            (&format!("kiln-cache-1 run\n{A} {h} 7 +\n"), "later", "a7?"),
            (&format!("kiln-cache-1 \n{A} {h} 7 +\n"), "", "a7?"),
        ];
        for (text, boot, expect) in table {
            let found = parse(text, boot).into_iter().map(|(path, line)| {
                let shared = if line.shared_bytes == 0 { String::new() } else { line.shared_bytes.to_string() };
                format!("{}{}{}{shared}", path.name(), line.nar_size_bytes, if line.proven { '+' } else { '?' })
            });
            assert_eq!(found.collect::<Vec<_>>().join(" "), expect, "{text}");
        }
    }
}
