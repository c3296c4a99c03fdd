//! Runs the transcripts in `tests/plan`. `UPDATE_GOLDEN=1` writes what the farm says today; the difference is reviewed like code.
//!
//! A transcript is a sequence of steps: lines that start with `> ` are input, all others up to the next step are the expected result
//! of the step; `#` starts a comment.

use std::fs;
use std::path::{Path, PathBuf};

use crate::script::Script;

#[test]
fn transcripts_are_what_the_farm_says() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/plan");
    let entries = fs::read_dir(&dir).expect("tests/plan lies beside this test");
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("the directory can be read").path()).collect();
    files.sort();
    assert!(!files.is_empty(), "no transcripts in {}", dir.display());
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    for file in files {
        let expected = fs::read_to_string(&file).expect("a transcript is text");
        let actual = replay(&expected);
        if update {
            fs::write(&file, actual).expect("the transcript can be written");
        } else {
            assert_eq!(actual, expected, "{} differs; UPDATE_GOLDEN=1 rewrites it", file.display());
        }
    }
}

/// Returns the transcript with the results of its steps as they are.
fn replay(transcript: &str) -> String {
    let mut script = Script::new();
    let mut replayed = String::new();
    for line in transcript.lines() {
        let step = line.strip_prefix("> ");
        if step.is_none() && !line.is_empty() && !line.starts_with('#') {
            continue;
        }
        replayed += line;
        replayed.push('\n');
        for result in step.into_iter().flat_map(|step| script.run(step)) {
            replayed += &format!("  {result}\n");
        }
    }
    replayed
}
