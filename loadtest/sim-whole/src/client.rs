//! A client of the simulation: hands over its graph, submits it, follows it to its end, and goes on with whoever leads.

use std::time::Duration;

use kiln_link::{Connection, Dialer, Identity, LinkError};
use kiln_route::{Pause, Scouts};
use kiln_wire::client::{BuildState, RefusalKind, Request, Response, Submission};
use kiln_wire::{BuildId, RequestId};

use crate::bug::Bug;
use crate::entropy::draw;
use crate::mishaps::Mishaps;
use crate::work::Graph;

/// Everything a client needs.
#[derive(Clone)]
pub struct Client {
    pub identity: Identity,
    pub coordinators: Vec<String>,
    pub graph: Graph,
    pub request: RequestId,
    /// How long it waits before it comes.
    pub after: Duration,
    /// What was done to workers.
    pub mishaps: Mishaps,
}

/// What may be asked again, what is to be submitted anew, and what is the farm's fault.
#[derive(Debug)]
enum Failed {
    Passing(String),
    SetAside,
    Fault(String),
}

impl From<LinkError> for Failed {
    fn from(error: LinkError) -> Self {
        Self::Passing(error.to_string())
    }
}

/// Between the numbers of a client's requests: more than there are clients.
const ANEW: u64 = 100;

impl Client {
    /// Has the graph built; returns only when it is, or says what the farm did wrong.
    pub async fn run(mut self) -> turmoil::Result {
        tokio::time::sleep(self.after).await;
        let mut scouts = Scouts::start(Dialer::new(&self.identity)?, self.coordinators.clone());
        let mut pause = Pause::new(Duration::from_millis(50), Duration::from_secs(2));
        let mut build = None;
        loop {
            let found = scouts.leader().await;
            let step = async {
                // An answer that did not arrive leaves open what became of the request: it is asked again under its number.
                if build.is_none() || draw(4) == 0 {
                    let again = self.submit(&found.connection).await?;
                    if build.is_some_and(|before| before != again) {
                        return Err(Failed::Fault(format!("one request is one build: {} is {build:?} and then {again}", self.request)));
                    }
                    build = Some(again);
                }
                self.watch(&found.connection, build.expect("submitted")).await
            };
            let failed = tokio::select! {
                done = step => match done {
                    Ok(()) => return Ok(()),
                    Err(failed) => failed,
                },
                () = scouts.superseded(found.leader) => Failed::Passing("another leads".into()),
            };
            match failed {
                Failed::Passing(why) => tracing::info!(why, "asked again"),
                Failed::SetAside => {
                    tracing::info!(?build, "submitted anew: a job of it was set aside");
                    (build, self.request.0) = (None, self.request.0 + ANEW);
                }
                Failed::Fault(fault) => return Err(fault.into()),
            }
            pause.wait().await;
        }
    }

    async fn submit(&self, connection: &Connection) -> Result<BuildId, Failed> {
        let files = self.graph.order.iter().map(|path| self.graph.jobs[path].file.clone()).collect();
        ask(connection, Request::AddDerivations(files)).await?;
        let roots = self.graph.roots.clone();
        let request = match Bug::RetryIsAnother.is_planted() {
            true => RequestId(self.request.0 + 1000 * (1 + draw(1000))),
            false => self.request,
        };
        let submission = Submission {
            request,
            name: format!("build-{}", self.request),
            roots,
            keep_going: true,
            urgency: Default::default(),
            trace: None,
            evaluation: None,
        };
        match ask(connection, Request::Submit(submission)).await? {
            Response::Submitted(build) => Ok(build),
            other => Err(Failed::Fault(format!("requests are answered in kind: a submission by {other:?}"))),
        }
    }

    async fn watch(&self, connection: &Connection, build: BuildId) -> Result<(), Failed> {
        let (mut sender, mut receiver) = connection.open().await?;
        sender.send(&Request::Watch(build)).await?;
        loop {
            match receiver.recv::<Response>().await? {
                Some(Response::Build(view)) => match view.state {
                    BuildState::Active if Bug::EndsEarly.is_planted() => return Ok(()),
                    BuildState::Active => {}
                    BuildState::Built => return Ok(()),
                    BuildState::Failed => match self.mishaps.objection(&view.failures) {
                        None => return Err(Failed::SetAside),
                        Some(why) => return Err(Failed::Fault(format!("a build ends built: {build} failed: {why}"))),
                    },
                    state @ BuildState::Cancelled => {
                        return Err(Failed::Fault(format!("a build ends built: {build} ended as {state:?}: {:?}", view.failures)));
                    }
                },
                Some(Response::Event(_)) => {}
                Some(Response::NotLeader(_)) | None => return Err(Failed::Passing("the watch ended".into())),
                Some(Response::Refused(refusal)) if refusal.kind == RefusalKind::Unavailable => {
                    return Err(Failed::Passing(refusal.message));
                }
                Some(other) => {
                    return Err(Failed::Fault(format!("an acknowledged build is known: a watch of it is answered by {other:?}")));
                }
            }
        }
    }
}

async fn ask(connection: &Connection, request: Request) -> Result<Response, Failed> {
    let (mut sender, mut receiver) = connection.open().await?;
    sender.send(&request).await?;
    match receiver.recv::<Response>().await? {
        None => Err(Failed::Passing("no answer".into())),
        Some(Response::NotLeader(_)) => Err(Failed::Passing("it does not lead".into())),
        Some(Response::Refused(refusal)) if refusal.kind == RefusalKind::Unavailable => Err(Failed::Passing(refusal.message)),
        Some(Response::Refused(refusal)) => Err(Failed::Fault(format!("requests are not refused: {}", refusal.message))),
        Some(response) => Ok(response),
    }
}
