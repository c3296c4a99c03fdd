//! What clients see of the farm, and the commands they give that are answered at once.

use std::sync::Arc;

use kiln_core::{Answer, Command};
use kiln_link::Role;
use kiln_wire::client::{BuildView, FarmView, JobView, Refusal, WorkerView};
use kiln_wire::{BuildId, DrvPath, Evaluated, Explanation, Failing, ReceiverView, Subject};

use crate::archive;
use crate::driver::{Chain, propose};
use crate::parts::Parts;
use crate::{refuse, shares};

/// The farm at a glance.
pub(crate) fn farm(parts: &Parts, peer: &Role) -> FarmView {
    let (builds, counts) = parts.farm(|farm| {
        let views = farm.builds().filter_map(|build| farm.build_view(build));
        // What evaluators said is for who asks about one build.
        let brief = |view: BuildView| {
            let errors_more = view.evaluated.errors_count();
            BuildView { evaluated: Evaluated { errors_more, ..Evaluated::default() }, ..view }
        };
        (views.map(brief).collect(), farm.counts())
    });
    let workers_connected = u64::try_from(parts.sessions.connected().len()).unwrap_or(u64::MAX);
    FarmView {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        store_dir: parts.store_dir.clone(),
        public_key: parts.keys.trusted(),
        cache_url: parts.cache_url.clone(),
        leader: parts.consensus.leadership().borrow().leader,
        builds,
        counts,
        workers_connected,
        receivers: receivers(parts.hooks.standing(), peer),
        retention: Some(parts.garbage.retention()),
    }
}

/// Returns how receivers do, as far as it is the asker's business: where they are, and what they say, is for who administers the farm.
fn receivers(all: Vec<ReceiverView>, peer: &Role) -> Vec<ReceiverView> {
    let is_admin = matches!(peer, Role::Admin(_));
    let brief = |of: ReceiverView| ReceiverView {
        host: String::new(),
        failing: of.failing.map(|failing| Failing { error: "an administrator is told why".to_owned(), ..failing }),
        ..of
    };
    all.into_iter().map(|of| if is_admin { of } else { brief(of) }).collect()
}

/// The jobs of live builds.
pub(crate) fn jobs(parts: &Parts) -> Vec<JobView> {
    parts.farm(|farm| farm.jobs_while(&parts.sessions.away(farm.registrations().map(|(worker, _)| worker))).collect())
}

/// Why a job is where it is.
pub(crate) fn explain(parts: &Parts, derivation: &DrvPath) -> Result<Explanation, Refusal> {
    let now = parts.clock.now();
    let explanation = parts.farm(|farm| {
        let away = parts.sessions.away(farm.registrations().map(|(worker, _)| worker));
        farm.explanation(derivation, now, &away)
    });
    explanation.ok_or_else(|| {
        let message = format!("explain `{derivation}`: no live build has such a job; `kiln jobs` lists those that there are");
        refuse::not_found(message)
    })
}

/// The fleet, with who is connected right now.
pub(crate) fn workers(parts: &Parts) -> Vec<WorkerView> {
    let connected = parts.sessions.connected();
    let mut workers = parts.farm(|farm| farm.workers());
    for worker in &mut workers {
        worker.connected = connected.contains(&worker.worker);
        worker.strain = parts.sessions.strain(&worker.worker);
    }
    workers
}

/// A build as it stands, live or from the archive.
pub(crate) async fn build(parts: &Parts, build: BuildId) -> Result<BuildView, Refusal> {
    if let Some(view) = parts.farm(|farm| farm.build_view(build)) {
        return Ok(view);
    }
    match parts.archive.get(build).await {
        Ok(Some(record)) => Ok(archive::view(record)),
        Ok(None) => Err(refuse::not_found(format!("there is no build {build}; `kiln status` lists those that are live"))),
        Err(error) => Err(refuse::unavailable("read archived build", &error)),
    }
}

/// Stops wanting a build.
pub(crate) async fn cancel(parts: &Arc<Parts>, peer: &Role, build: BuildId) -> Result<(), Refusal> {
    shares::check_owner(parts, peer, &Subject::Build(build))?;
    let now = parts.clock.now();
    let applied = propose(parts.clone(), vec![Command::Cancel { build, now }]).await;
    let applied = applied.map_err(|error| refuse::unavailable("cancel", &error))?;
    let refused = applied.answers.into_iter().find_map(|answer| match answer {
        Answer::Refused(refused) => Some(refuse::not_found(format!("cancel: {}", Chain(&refused)))),
        Answer::Submitted { .. } => None,
    });
    refused.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use kiln_link::MemberName;
    use kiln_wire::Timestamp;

    use super::*;

    #[test]
    fn where_receivers_are_and_what_they_say_is_for_administrators() {
        let failing = Failing { since: Timestamp(1), tries: 2, error: "chat.example.org refuses".to_owned() };
        let view = ReceiverView {
            name: "chat".to_owned(),
            host: "chat.example.org".to_owned(),
            delivered: 3,
            given_up: 0,
            waiting: 1,
            failing: Some(failing),
        };
        let name: MemberName = "me".parse().expect("a name");
        assert_eq!(receivers(vec![view.clone()], &Role::Admin(name.clone())), std::slice::from_ref(&view));
        let told = receivers(vec![view], &Role::Client(name));
        assert!(!format!("{told:?}").contains("example.org"), "{told:?}");
        assert_eq!((told[0].delivered, told[0].failing.as_ref().map(|failing| failing.tries)), (3, Some(2)));
    }
}
