//! The coordinators.

use axum::extract::State;
use axum::http::{HeaderMap, Uri};
use axum::response::Response;
use kiln_pages::cluster::{Cluster, Disk, Member, page};

use super::{NoPage, Ui};
use crate::cluster;
use crate::raft::{BOUNDS_US, Latencies};

pub(super) async fn show(State(ui): State<Ui>, headers: HeaderMap, uri: Uri) -> Response {
    ui.answer(&headers, &uri, async |_| Ok::<_, NoPage>(page(&model(&ui)))).await
}

fn model(ui: &Ui) -> Cluster {
    let parts = ui.parts();
    let (view, metrics) = (cluster::view(parts), parts.consensus.metrics());
    Cluster {
        now: parts.clock.now(),
        node: view.node.0,
        leader: view.leader.map(|leader| leader.node.0),
        term: metrics.term,
        last: view.last.0,
        applied: view.applied.0,
        snapshot: view.snapshot.0,
        log_bytes: metrics.log_bytes,
        disk: disk(&parts.dir),
        sync_ms: quantile(&metrics.sync, 50).zip(quantile(&metrics.sync, 99)),
        version: view.version.to_string(),
        trouble: view.trouble,
        members: view
            .members
            .into_iter()
            .map(|member| Member {
                node: member.node.0,
                link: member.link,
                http: member.http,
                votes: member.votes,
                matched: member.matched.map(|index| index.0),
                silent_ms: member.silent_ms,
            })
            .collect(),
    }
}

/// Returns what the disk of a directory has; none if the system does not tell.
fn disk(dir: &std::path::Path) -> Option<Disk> {
    let stat = nix::sys::statvfs::statvfs(dir).ok()?;
    let unit = stat.fragment_size();
    Some(Disk { whole_bytes: stat.blocks().saturating_mul(unit), free_bytes: stat.blocks_available().saturating_mul(unit) })
}

/// Returns the milliseconds below which so many of 100 stayed, rounded up to a bound of what is measured; none if nothing was.
fn quantile(of: &Latencies, percent: u64) -> Option<u64> {
    let wanted = (of.count * percent).div_ceil(100);
    let mut below = 0;
    let at = of.buckets.iter().position(|count| {
        below += count;
        below >= wanted && of.count > 0
    })?;
    Some(BOUNDS_US.get(at).copied().unwrap_or(BOUNDS_US[BOUNDS_US.len() - 1]).div_ceil(1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_the_bound_below_which_so_many_stayed() {
        let mut some = Latencies { count: 100, sum_us: 0, buckets: [0; BOUNDS_US.len() + 1] };
        (some.buckets[1], some.buckets[3]) = (60, 40);
        assert_eq!(quantile(&some, 50), Some(BOUNDS_US[1].div_ceil(1000)));
        assert_eq!(quantile(&some, 99), Some(BOUNDS_US[3].div_ceil(1000)));
        let none = Latencies { count: 0, sum_us: 0, buckets: [0; BOUNDS_US.len() + 1] };
        assert_eq!(quantile(&none, 50), None);
    }
}
