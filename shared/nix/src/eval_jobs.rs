//! What `nix-eval-jobs` prints: a line of JSON for each attribute, with its derivation or with why it does not evaluate.
//!
//! Reads what a submission needs, `attr`, `drvPath` and `error`, and passes over the rest (`outputs`, `meta`, `cacheStatus`, …): the
//! derivations themselves say it with authority. Does not run the program and reads no derivation.
//! Source: the README of nix-eval-jobs, and `src/drv.cc` there.

use std::io::{BufRead, Read};

use kiln_wire::limits::{EVALUATED_LINE_BYTES_MAX, JOBS_PER_SUBMISSION_MAX};
use kiln_wire::{DrvPath, StoreDir};
use serde::Deserialize;

/// An evaluated set, in the order of its lines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EvalJobs {
    /// Attributes with their derivations; several may have the same.
    pub jobs: Vec<(String, DrvPath)>,
    /// Attributes that do not evaluate, each with what Nix said.
    pub errors: Vec<(String, String)>,
}

/// Why lines are not taken.
#[derive(Debug, thiserror::Error)]
pub enum EvalJobsError {
    /// The reader failed.
    #[error("read evaluated jobs, line {line}")]
    Read {
        /// Counted from 1.
        line: usize,
        /// Why.
        #[source]
        err: std::io::Error,
    },
    /// A line is not what nix-eval-jobs prints.
    #[error("read evaluated jobs, line {line}: {rule}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        rule: String,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    attr: String,
    drv_path: Option<String>,
    error: Option<String>,
}

/// Reads all lines. Empty ones are passed over. An aggregate with an `error` beside its derivation lacks some of its parts, so it
/// counts as one that does not evaluate.
///
/// # Errors
/// [`EvalJobsError`] names the line.
pub fn read(store_dir: &StoreDir, mut lines: impl BufRead) -> Result<EvalJobs, EvalJobsError> {
    let mut found = EvalJobs::default();
    let mut text = Vec::new();
    for number in 1.. {
        text.clear();
        let taken = (&mut lines).take(EVALUATED_LINE_BYTES_MAX as u64 + 1).read_until(b'\n', &mut text);
        let refuse = |rule: String| EvalJobsError::Line { line: number, rule };
        match taken.map_err(|err| EvalJobsError::Read { line: number, err })? {
            0 => break,
            count if count > EVALUATED_LINE_BYTES_MAX => {
                return Err(refuse(format!("it has more than {EVALUATED_LINE_BYTES_MAX} bytes")));
            }
            _ if text.trim_ascii().is_empty() => continue,
            _ if found.jobs.len() + found.errors.len() == JOBS_PER_SUBMISSION_MAX => {
                return Err(refuse(format!("more than {JOBS_PER_SUBMISSION_MAX} attributes")));
            }
            _ => {}
        }
        let line: Line = serde_json::from_slice(&text).map_err(|err| refuse(err.to_string()))?;
        match (line.error, line.drv_path) {
            (Some(error), _) => found.errors.push((line.attr, error)),
            (None, Some(path)) => {
                let path = store_dir.strip(&path).and_then(DrvPath::from_path).map_err(|err| refuse(format!("`drvPath`: {err}")))?;
                found.jobs.push((line.attr, path));
            }
            (None, None) => return Err(refuse(format!("attribute `{}` has neither `drvPath` nor `error`", line.attr))),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRV: &str = "/nix/store/0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar.drv";

    fn read_text(text: &str) -> Result<EvalJobs, EvalJobsError> {
        read(&StoreDir::default(), text.as_bytes())
    }

    #[test]
    fn a_line_has_a_derivation_or_an_error() {
        let text = format!(
            "{{\"attr\":\"a.b\",\"attrPath\":[\"a\",\"b\"],\"drvPath\":\"{DRV}\",\"name\":\"bar\",\"outputs\":{{\"out\":null}},\"system\":\"x86_64-linux\",\"meta\":{{\"x\":[1]}}}}\n\
             \n{{\"attr\":\"c\",\"attrPath\":[\"c\"],\"error\":\"error: no\\n at x\"}}\n\
             {{\"attr\":\"all\",\"drvPath\":\"{DRV}\",\"constituents\":[],\"error\":\"lacks c\"}}\n\
             {{\"attr\":\"d\",\"drvPath\":\"{DRV}\",\"error\":null}}"
        );
        let found = read_text(&text).expect("as nix-eval-jobs prints it");
        assert_eq!(found.jobs.iter().map(|(attribute, _)| attribute.as_str()).collect::<Vec<_>>(), ["a.b", "d"]);
        assert!(found.jobs.iter().all(|(_, path)| path.name() == "bar"));
        let errors = [("c", "error: no\n at x"), ("all", "lacks c")].map(|(attribute, error)| (attribute.to_owned(), error.to_owned()));
        assert_eq!(found.errors, errors);
    }

    #[test]
    fn what_is_no_such_line_is_named_by_its_number() {
        let good = format!("{{\"attr\":\"a\",\"drvPath\":\"{DRV}\"}}\n");
        let table = [
            ("{\"attr\":\"b\"}", "attribute `b` has neither"),
            ("{\"drvPath\":\"x\"}", "missing field `attr`"),
            ("{\"attr\":\"b\",\"drvPath\":\"/etc/passwd\"}", "`drvPath`"),
            ("{\"attr\":\"b\",\"drvPath\":\"/nix/store/0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar\"}", "`drvPath`"),
            ("{\"attr\":\"b\",", "EOF"),
            ("/nix/store/x.drv", "expected value"),
        ];
        for (line, rule) in table {
            let err = read_text(&format!("{good}{line}")).expect_err(line).to_string();
            assert!(err.contains("line 2") && err.contains(rule), "{line}: {err}");
        }
        let long = read_text(&"x".repeat(EVALUATED_LINE_BYTES_MAX + 1)).expect_err("too long").to_string();
        assert!(long.contains("line 1") && long.len() < 200, "{long}");
    }
}
