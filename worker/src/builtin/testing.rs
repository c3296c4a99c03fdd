//! Small stores for tests: inputs written as text.
//!
//! An input is one letter and what it holds: `a: bin/tool=text lib/x→x.1 empty/`. In texts, `{a}` is its full path.

use std::path::Path;

use kiln_wire::{JobLimits, StoreDir, StorePath};

use super::{Bounds, Closure};
use crate::stop::Stop;

/// Inputs on disk, and the view of a job that has them.
pub struct Store {
    pub dir: tempfile::TempDir,
    pub closure: Closure,
}

impl Store {
    /// Writes inputs. They lie where a worker keeps them, not where their names say.
    pub fn new(inputs: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let mut places = Vec::new();
        for input in inputs {
            let (letter, entries) = input.split_once(':').expect("a letter and a colon");
            let path = path_of(letter);
            let place = dir.path().join("cache").join(path.as_str());
            std::fs::create_dir_all(place.parent().expect("has one")).expect("mkdir");
            for entry in entries.split_whitespace() {
                add(&place, entry);
            }
            places.push((path, place));
        }
        Self { closure: Closure::new(&StoreDir::default(), places), dir }
    }
}

fn add(place: &Path, entry: &str) {
    let entry = full(entry);
    let (name, content) = match (entry.split_once('→'), entry.split_once('=')) {
        (Some((name, target)), _) => (name, Err(target)),
        (None, Some((name, text))) => (name, Ok(text)),
        (None, None) => (entry.as_str(), Ok("")),
    };
    // `.` is the input itself.
    let at = if name == "." { place.to_owned() } else { place.join(name) };
    if name.ends_with('/') {
        return std::fs::create_dir_all(at).expect("mkdir");
    }
    std::fs::create_dir_all(at.parent().expect("has one")).expect("mkdir");
    match content {
        Ok(text) => std::fs::write(at, text.replace('+', "\n")).expect("write"),
        Err(target) => std::os::unix::fs::symlink(target, at).expect("symlink"),
    }
}

pub fn path_of(letter: &str) -> StorePath {
    StorePath::parse(&format!("{}-{letter}", letter.repeat(32))).expect("a store path")
}

const LETTERS: [&str; 4] = ["a", "b", "c", "d"];

/// Puts full paths in the place of `{a}`.
pub fn full(text: &str) -> String {
    LETTERS.iter().fold(text.to_owned(), |text, letter| text.replace(&format!("{{{letter}}}"), &StoreDir::default().join(&path_of(letter))))
}

/// The other way round.
pub fn short(text: &str) -> String {
    LETTERS.iter().fold(text.to_owned(), |text, letter| text.replace(&StoreDir::default().join(&path_of(letter)), &format!("{{{letter}}}")))
}

/// Lists a tree as `name→target`, `name=text`, `name*=text` (executable) and `name/` (empty), sorted.
pub fn listed(root: &Path) -> String {
    use std::os::unix::fs::PermissionsExt;
    let mut lines = Vec::new();
    let mut left = vec![root.to_owned()];
    while let Some(path) = left.pop() {
        let meta = std::fs::symlink_metadata(&path).expect("stat");
        let name = path.strip_prefix(root).expect("below").to_string_lossy().into_owned();
        if meta.is_symlink() {
            lines.push(format!("{name}→{}", std::fs::read_link(&path).expect("link").display()));
        } else if meta.is_file() {
            let star = if meta.permissions().mode() & 0o7777 == 0o755 { "*" } else { "" };
            lines.push(format!("{name}{star}={}", String::from_utf8_lossy(&std::fs::read(&path).expect("reads"))));
        } else {
            let inside: Vec<_> = std::fs::read_dir(&path).expect("lists").map(|entry| entry.expect("an entry").path()).collect();
            if inside.is_empty() && path != root {
                lines.push(format!("{name}/"));
            }
            left.extend(inside);
        }
    }
    lines.sort();
    short(&lines.join(" "))
}

/// Bounds that nothing here comes near, but for the size of the output and a log of a few lines.
pub fn bounds(output_bytes_max: u64) -> Bounds {
    Bounds::new(
        Stop::new().expect("a handle"),
        JobLimits { wall_ms_max: 600_000, log_bytes_max: 1000, output_bytes_max, ..JobLimits::default() },
    )
}
