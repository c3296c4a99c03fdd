//! The overview.

use axum::extract::State;
use axum::http::{HeaderMap, Uri};
use axum::response::Response;
use kiln_core::{BuildGlance, Sight};
use kiln_pages::cluster::SILENT_MS;
use kiln_pages::overview::{BuildLine, FailureLine, Overview, QueueLine, page};
use kiln_pages::verdict::{HOUR_MS, Signs};
use kiln_wire::client::BuildState;
use kiln_wire::{Account, BuildId, Timestamp};

use super::look::{Look, is_ill};
use super::{Asker, NoPage, Ui, failures};
use crate::http::api::Refused;
use crate::http::api::reads::BuildsWanted;

pub(super) async fn show(State(ui): State<Ui>, headers: HeaderMap, uri: Uri) -> Response {
    ui.answer(&headers, &uri, async |asker| Ok::<_, NoPage>(page(&model(&ui, asker).await))).await
}

async fn model(ui: &Ui, asker: &Asker) -> Overview {
    let (look, sight) = (ui.look().await, &asker.caller.sight);
    let plan = ui.0.api.plan(sight);
    let queue: Vec<QueueLine> = plan
        .waiting
        .into_iter()
        .map(|jobs| QueueLine { reason: jobs.reason, count: jobs.count, is_unplaceable: jobs.unplaceable })
        .chain((plan.delayed_count > 0).then(|| QueueLine {
            reason: "waits a while before it is tried again, after an infrastructure failure".to_owned(),
            count: plan.delayed_count,
            is_unplaceable: false,
        }))
        .collect();
    let mut failed = failures::since(ui, &look, sight, Timestamp(look.now.0.saturating_sub(HOUR_MS)));
    let live = live(ui, &look, sight);
    let unplaceable = queue.iter().filter(|line| line.is_unplaceable).map(|line| line.count).sum();
    let (signs, failures_more) = (signs(ui, &look, sight, &failed, &live, unplaceable), failed.len().saturating_sub(FAILURES_MAX));
    failed.truncate(FAILURES_MAX);
    failures::put_blast(ui, sight, &mut failed);
    let mut builds = live;
    let builds_more = builds.len().saturating_sub(BUILDS_MAX);
    builds.truncate(BUILDS_MAX);
    Overview {
        now: look.now,
        signs,
        builds,
        builds_more: count(builds_more),
        // Without its archive a farm builds on.
        ended: ended(ui, sight).await.map_err(|refused| refused.message),
        fleet: look.fleet(),
        queue,
        blocked: ui.parts().farm(kiln_core::Farm::counts).blocked,
        failures: failed,
        failures_more: count(failures_more),
    }
}

/// Returns the builds that go on, of the security class first, then the oldest.
fn live(ui: &Ui, look: &Look, sight: &Sight) -> Vec<BuildLine> {
    let glances: Vec<(BuildGlance, bool)> = ui.parts().farm(|farm| {
        let live = farm.builds_before(BuildId(u64::MAX), sight).filter(|glance| glance.state == BuildState::Active);
        live.map(|glance| (farm.is_security(glance.build), glance)).map(|(security, glance)| (glance, security)).collect()
    });
    let mut lines: Vec<BuildLine> = glances.into_iter().map(|(glance, security)| line(look, glance, security)).collect();
    lines.sort_by_key(|line| (!line.is_security, line.id));
    lines
}

/// Returns a build that the farm has as a line.
pub(super) fn line(look: &Look, glance: BuildGlance, is_security: bool) -> BuildLine {
    BuildLine {
        id: glance.build,
        name: glance.name,
        account: account(&glance.account),
        is_security,
        submitted_at: glance.submitted_at,
        ended_at: glance.ended_at,
        state: glance.state,
        counts: glance.counts,
        eta: look.eta(glance.build),
    }
}

/// Returns whose a build is, in words; nothing if nobody said.
pub(super) fn account(account: &Account) -> String {
    if account.tenant.is_none() && account.project.is_none() { String::new() } else { account.to_string() }
}

async fn ended(ui: &Ui, sight: &Sight) -> Result<Vec<BuildLine>, Refused> {
    let latest = ui.0.api.builds(&BuildsWanted::default(), sight, None, LOOKED_AT_MAX).await?;
    let mut ended: Vec<BuildLine> = latest.builds.into_iter().filter(|build| build.ended_at.is_some()).map(summary).collect();
    ended.sort_by_key(|line| std::cmp::Reverse(line.ended_at));
    ended.truncate(ENDED_MAX);
    Ok(ended)
}

/// Returns a build of a list as a line.
fn summary(build: kiln_api::BuildSummary) -> BuildLine {
    let whose = [build.tenant, build.project].into_iter().flatten().collect::<Vec<_>>().join("/");
    BuildLine {
        id: BuildId(build.build),
        name: build.name,
        account: whose,
        is_security: false,
        submitted_at: Timestamp(build.submitted_at),
        ended_at: build.ended_at.map(Timestamp),
        state: match build.state {
            kiln_api::BuildState::Active => BuildState::Active,
            kiln_api::BuildState::Built => BuildState::Built,
            kiln_api::BuildState::Failed => BuildState::Failed,
            kiln_api::BuildState::Cancelled => BuildState::Cancelled,
        },
        counts: kiln_wire::client::JobCounts {
            blocked: build.jobs.blocked,
            ready: build.jobs.ready,
            running: build.jobs.running,
            built: build.jobs.built,
            failed: build.jobs.failed,
        },
        eta: None,
    }
}

fn signs(ui: &Ui, look: &Look, sight: &Sight, failed: &[FailureLine], live: &[BuildLine], unplaceable: u64) -> Signs {
    let consensus = &ui.parts().consensus;
    // What failed and was started again since is broken no more, as far as anybody knows.
    let is_broken = |line: &&FailureLine| {
        !line.is_retried
            && !line.is_farms()
            && (look.failed(&line.derivation).is_some() || !ui.parts().farm(|farm| farm.has_job(&line.derivation)))
    };
    let mut packages: Vec<&FailureLine> = failed.iter().filter(is_broken).collect();
    let packages_since = packages.iter().filter_map(|line| line.at).min();
    let held = |line: &FailureLine| look.failed(&line.derivation).map(|job| job.holds_up);
    packages.sort_by(|a, b| held(b).cmp(&held(a)).then_with(|| a.derivation.cmp(&b.derivation)));
    packages.dedup_by(|a, b| a.derivation == b.derivation);
    let mut worst: Vec<FailureLine> = packages.first().map(|line| (*line).clone()).into_iter().collect();
    failures::put_blast(ui, sight, &mut worst);
    let farms: Vec<&FailureLine> = failed.iter().filter(|line| line.is_farms()).collect();
    let workers: std::collections::BTreeSet<_> = farms.iter().filter_map(|line| line.worker.as_ref()).collect();
    let security = live.iter().filter(|line| line.is_security).max_by_key(|line| (line.eta.map(|eta| eta.likely_ms), line.id));
    Signs {
        known_since: consensus.history().since(look.now).1,
        packages_failed: count(packages.len()),
        packages_since,
        worst: worst.first().map(|line| (name(line), line.blast)),
        farm_failures: count(farms.len()),
        farm_since: farms.iter().filter_map(|line| line.at).min(),
        farm_workers: count(workers.len()),
        workers_ill: count(look.workers.iter().filter(|of| of.ailing.as_ref().is_some_and(|ailing| is_ill(ailing.standing))).count()),
        workers_lost: count(look.workers.iter().filter(|worker| !look.is_connected(worker)).count()),
        unplaceable,
        has_leader: look.leads || consensus.leader().is_some(),
        coordinators_silent: count(consensus.members().iter().filter(|of| of.silent_ms.is_some_and(|ms| ms >= SILENT_MS)).count()),
        security: security.map(|line| (line.id, line.title(), line.eta)),
    }
}

fn name(line: &FailureLine) -> String {
    let name = line.derivation.as_path().name();
    name.strip_suffix(".drv").unwrap_or(name).to_owned()
}

fn count(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

/// Lines of each table.
const BUILDS_MAX: usize = 50;
const FAILURES_MAX: usize = 50;
const ENDED_MAX: usize = 10;
/// Builds that are looked at for those that ended lately.
const LOOKED_AT_MAX: usize = 60;
