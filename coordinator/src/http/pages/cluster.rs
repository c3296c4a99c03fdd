//! The coordinators.

use axum::extract::State;
use axum::http::{HeaderMap, Uri};
use axum::response::Response;
use kiln_core::Sight;
use kiln_pages::cluster::{Cluster, Disk, Member, Receiver, page};
use kiln_wire::{ReceiverView, RetentionView};

use super::{NoPage, Ui};
use crate::cluster;
use crate::raft::{BOUNDS_US, Latencies};

pub(super) async fn show(State(ui): State<Ui>, headers: HeaderMap, uri: Uri) -> Response {
    ui.answer(&headers, &uri, async |asker| Ok::<_, NoPage>(page(&model(&ui, &asker.caller.sight)))).await
}

fn model(ui: &Ui, sight: &Sight) -> Cluster {
    let parts = ui.parts();
    // Whom the farm tells is for who administers it.
    let receivers = if *sight == Sight::All { parts.hooks.standing() } else { Vec::new() };
    let (view, metrics) = (cluster::view(parts), parts.consensus.metrics());
    Cluster {
        now: parts.clock.now(),
        node: view.node.0,
        leader: view.leader.filter(|_| parts.consensus.is_led()).map(|leader| leader.node.0),
        term: metrics.term,
        last: view.last.0,
        applied: view.applied.0,
        snapshot: view.snapshot.0,
        log_bytes: metrics.log_bytes,
        disk: disk(&parts.dir),
        sync_ms: quantile(&metrics.sync, 50).zip(quantile(&metrics.sync, 99)),
        version: view.version.to_string(),
        trouble: view.trouble,
        retention: kept(&parts.garbage.retention()),
        receivers: receivers.into_iter().map(receiver).collect(),
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

fn receiver(of: ReceiverView) -> Receiver {
    let ReceiverView { name, host, delivered, given_up, waiting, failing } = of;
    Receiver { name, host, delivered, given_up, waiting, failing: failing.map(|failing| (failing.since, failing.error)) }
}

fn kept(of: &RetentionView) -> String {
    let most = of.keep_builds_max.map_or_else(String::new, |most| format!(", {most} of those at most"));
    let when = of.every_hours.map_or_else(|| "when it is asked for".to_owned(), |hours| format!("every {hours} h"));
    format!("the last {} builds of each name, others for {} days{most}; the rest is deleted {when}", of.keep_builds, of.keep_days)
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
