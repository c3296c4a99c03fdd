//! What was asked of the binary cache, counted by what it is and whether it was there.

use std::sync::atomic::{AtomicU64, Ordering};

use axum::http::StatusCode;

/// Counts answers. Shared by all requests.
#[derive(Debug, Default)]
pub struct Answers([[AtomicU64; RESULTS.len()]; KINDS.len()]);

/// What was counted: for each kind, each result.
pub type AnswersSeen = [[u64; RESULTS.len()]; KINDS.len()];

/// What can be asked for.
pub(super) const KINDS: [&str; 6] = ["narinfo", "nar", "listing", "realisation", "log", "debuginfo"];
/// What became of it.
pub(super) const RESULTS: [&str; 3] = ["hit", "miss", "error"];

impl Answers {
    /// Counts an answer to a request for `path`, if that is one of the cache.
    pub(in crate::http) fn count(&self, path: &str, status: StatusCode) {
        let Some(kind) = kind(path).and_then(|kind| KINDS.iter().position(|known| *known == kind)) else { return };
        let result = match status {
            StatusCode::NOT_FOUND => 1,
            status if status.is_client_error() || status.is_server_error() => 2,
            _ => 0,
        };
        self.0[kind][result].fetch_add(1, Ordering::Relaxed);
    }

    /// Returns what was counted.
    pub fn read(&self) -> AnswersSeen {
        std::array::from_fn(|kind| std::array::from_fn(|result| self.0[kind][result].load(Ordering::Relaxed)))
    }
}

fn kind(path: &str) -> Option<&'static str> {
    let path = path.strip_prefix("/xz").unwrap_or(path).strip_prefix('/')?;
    match path.split_once('/') {
        Some(("nar", _)) => Some("nar"),
        Some(("realisations" | "build-trace-v2", _)) => Some("realisation"),
        Some(("log", _)) => Some("log"),
        Some(("debuginfo", _)) => Some("debuginfo"),
        Some(_) => None,
        None if path.ends_with(".narinfo") => Some("narinfo"),
        None if path.ends_with(".ls") => Some("listing"),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted_by_what_was_asked_for_and_whether_it_was_there() {
        let table = [
            ("/x.narinfo", 200, Some(("narinfo", "hit"))),
            ("/xz/x.narinfo", 304, Some(("narinfo", "hit"))),
            ("/x.narinfo", 404, Some(("narinfo", "miss"))),
            ("/x.ls", 200, Some(("listing", "hit"))),
            ("/nar/x.nar.zst", 206, Some(("nar", "hit"))),
            ("/xz/nar/x.nar.xz", 503, Some(("nar", "error"))),
            ("/nar/x.nar.zst", 416, Some(("nar", "error"))),
            ("/realisations/x.doi", 404, Some(("realisation", "miss"))),
            ("/build-trace-v2/a/b", 200, Some(("realisation", "hit"))),
            ("/log/x.drv", 200, Some(("log", "hit"))),
            ("/debuginfo/00.debug", 404, Some(("debuginfo", "miss"))),
            ("/nix-cache-info", 200, None),
            ("/metrics", 200, None),
            ("/api/v1/builds", 404, None),
            ("/nothing", 404, None),
        ];
        for (path, status, expected) in table {
            let answers = Answers::default();
            answers.count(path, StatusCode::from_u16(status).expect("a status"));
            let seen = answers.read();
            let places = (0..KINDS.len()).flat_map(|kind| (0..RESULTS.len()).map(move |result| (kind, result)));
            let counted: Vec<_> =
                places.filter(|(kind, result)| seen[*kind][*result] > 0).map(|(kind, result)| (KINDS[kind], RESULTS[result])).collect();
            assert_eq!(counted, expected.into_iter().collect::<Vec<_>>(), "{path} {status}");
        }
    }
}
