//! Checks of the project's style that a machine can make. They run as tests: `cargo test -p kiln-tidy`.
//!
//! Does not judge what a reader must judge (names, comments, whether a file holds one idea); the lints of the workspace and
//! `rustfmt` do the rest.

use std::fs;
use std::path::{Path, PathBuf};

/// One text file of the tree.
#[derive(Debug)]
pub struct Source {
    /// Its path below the root, with `/` between folders.
    pub path: String,
    /// Its text.
    pub text: String,
}

impl Source {
    /// Returns whether the file is a test: in a `tests` or `benches` folder, or a module of tests.
    pub fn is_test(&self) -> bool {
        ["/tests/", "/benches/", "/examples/"].iter().any(|part| self.path.contains(part)) || self.path.ends_with("tests.rs")
    }

    /// Returns the lines before the file's own test module, numbered from 1.
    pub fn code_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(i, line)| (i + 1, line)).take_while(|(_, line)| !line.starts_with("#[cfg(test)]"))
    }
}

/// Returns the root of the workspace.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).map(Path::to_path_buf).unwrap_or_default()
}

/// Returns every text file below the root's source folders whose name ends in one of `endings`, sorted by path.
pub fn sources(endings: &[&str]) -> Vec<Source> {
    let root = root();
    let mut waiting: Vec<PathBuf> = ["coordinator", "worker", "shared", "ops", "loadtest"].iter().map(|dir| root.join(dir)).collect();
    let mut found = Vec::new();
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                waiting.push(path);
            } else if endings.iter().any(|ending| name.ends_with(ending))
                && let (Ok(text), Ok(below)) = (fs::read_to_string(&path), path.strip_prefix(&root))
            {
                found.push(Source { path: below.to_string_lossy().into_owned(), text });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}
