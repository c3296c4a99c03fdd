//! A client of the wire, on the client's host: asks each coordinator for itself, so that what a deposed leader answers is seen too.

use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use kiln_link::{Connection, Dialer, Identity};
use kiln_wire::client::{Refusal, Request, Response};
use kiln_wire::{ClusterRequest, ClusterView};
use tokio::runtime::Runtime;

use crate::hosts::{Host, LINK_PORT};
use crate::net;

/// Runs clients: threads on the client's host.
#[derive(Debug)]
pub struct Probe {
    runtime: Runtime,
    identity: Identity,
}

impl Probe {
    /// Starts the threads.
    ///
    /// # Errors
    /// If the certificate cannot be read or the host not be entered.
    pub fn new(identity: &Path) -> anyhow::Result<Self> {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let enter = || net::enter(Host::Client).expect("the client's host exists as long as the farm");
        let runtime = builder.worker_threads(2).on_thread_start(enter).enable_all().build().context("start a runtime for clients")?;
        Ok(Self { runtime, identity: Identity::load(identity).context("read the client's certificate")? })
    }

    /// Runs something on the client's host and waits for it.
    pub fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        let task = self.runtime.spawn(work);
        self.runtime.block_on(task).expect("a client's task does not panic")
    }

    /// Starts something on the client's host.
    pub fn spawn<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> tokio::task::JoinHandle<T> {
        self.runtime.spawn(work)
    }

    /// Returns a line to a coordinator. Nothing is sent yet.
    ///
    /// # Errors
    /// If the certificate cannot be used.
    pub fn line(&self, host: Host) -> anyhow::Result<Line> {
        let dialer = Dialer::new(&self.identity).context("use the client's certificate")?;
        Ok(Line { dialer, address: (host.address(), LINK_PORT).into(), connection: None })
    }

    /// Asks these coordinators how they see the group.
    ///
    /// # Errors
    /// If the certificate cannot be used.
    pub fn views(&self, coordinators: &[Host]) -> anyhow::Result<Vec<(Host, Option<ClusterView>)>> {
        let mut asked = Vec::new();
        for host in coordinators {
            let mut line = self.line(*host)?;
            asked.push((*host, self.spawn(async move { line.cluster().await })));
        }
        asked.into_iter().map(|(host, task)| Ok((host, self.runtime.block_on(task).context("ask a coordinator")?))).collect()
    }

    /// Returns who leads these coordinators: the one of the highest term that says so of itself.
    ///
    /// # Errors
    /// If the certificate cannot be used.
    pub fn leader(&self, coordinators: &[Host]) -> anyhow::Result<Option<Host>> {
        let views = self.views(coordinators)?;
        let leaders = views.into_iter().filter_map(|(host, view)| view.filter(|view| view.is_self).map(|view| (view.leader, host)));
        Ok(leaders.max().map(|(_, host)| host))
    }

    /// Whether exactly these coordinators are the group, all vote, nothing keeps one from taking part, and each has what the leader had a
    /// moment ago; and what they said, in words.
    ///
    /// # Errors
    /// If the certificate cannot be used.
    pub fn in_step(&self, coordinators: &[Host]) -> anyhow::Result<(bool, String)> {
        let before = self.views(coordinators)?;
        let leader = before.iter().filter_map(|(_, view)| view.as_ref()).filter(|view| view.is_self).max_by_key(|view| view.leader);
        let Some(leader) = leader else { return Ok((false, words(&before))) };
        let voters = leader.members.iter().filter(|member| member.votes).count();
        let whole = voters == coordinators.len() && leader.members.len() == voters;
        let after = self.views(coordinators)?;
        let in_step = |view: &ClusterView| view.applied >= leader.last && view.leader == leader.leader && view.trouble.is_none();
        let all = whole && after.iter().all(|(_, view)| view.as_ref().is_some_and(in_step));
        Ok((all, words(&after)))
    }
}

/// What coordinators said of themselves, for messages.
fn words(views: &[(Host, Option<ClusterView>)]) -> String {
    let word = |(host, view): &(Host, Option<ClusterView>)| match view {
        None => format!("{host} does not answer"),
        Some(view) => {
            let leader = view.leader.map_or("nobody".to_owned(), |leader| format!("c{} in term {}", leader.node, leader.term));
            let voters = view.members.iter().filter(|member| member.votes).count();
            let trouble = view.trouble.as_deref().map_or(String::new(), |trouble| format!(", {trouble}"));
            format!(
                "{host} sees {leader} lead, {voters} of {} vote, applied {} of {}{trouble}",
                view.members.len(),
                view.applied,
                view.last
            )
        }
    };
    views.iter().map(word).collect::<Vec<_>>().join("; ")
}

/// A connection to one coordinator, made again when it broke.
pub struct Line {
    dialer: Dialer,
    address: SocketAddr,
    connection: Option<Connection>,
}

/// What came of a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// Its answers.
    Answers(Vec<Response>),
    /// A refusal that says that nothing happened.
    Refused(Refusal),
    /// The coordinator does not lead.
    NotLeader,
    /// Nothing is known: it may have taken effect.
    Unknown(String),
}

impl Line {
    /// Asks, and reads answers until one is `last` or the stream ends; at most for [`PATIENCE`].
    pub async fn ask(&mut self, request: &Request, last: fn(&Response) -> bool) -> Reply {
        let reply = match tokio::time::timeout(PATIENCE, self.try_to_ask(request, last)).await {
            Ok(Ok(reply)) => reply,
            Ok(Err(error)) => Reply::Unknown(format!("{error:#}")),
            Err(_) => Reply::Unknown(format!("no answer for {PATIENCE:?}")),
        };
        if matches!(reply, Reply::Unknown(_)) {
            self.connection = None;
        }
        reply
    }

    async fn try_to_ask(&mut self, request: &Request, last: fn(&Response) -> bool) -> anyhow::Result<Reply> {
        let connection = match &self.connection {
            Some(connection) => connection,
            None => self.connection.insert(self.dialer.connect(self.address).await?),
        };
        let (mut sender, mut receiver) = connection.open().await?;
        sender.send(request).await?;
        let mut answers = Vec::new();
        while let Some(answer) = receiver.recv::<Response>().await? {
            match answer {
                Response::NotLeader(_) => return Ok(Reply::NotLeader),
                Response::Refused(refusal) => return Ok(Reply::Refused(refusal)),
                answer => {
                    let ends = last(&answer);
                    answers.push(answer);
                    if ends {
                        break;
                    }
                }
            }
        }
        Ok(Reply::Answers(answers))
    }

    /// Asks the coordinator how it sees the group; none if it does not answer.
    pub async fn cluster(&mut self) -> Option<ClusterView> {
        match self.ask(&Request::Cluster(ClusterRequest::Status), |_| true).await {
            Reply::Answers(answers) => answers.into_iter().find_map(|answer| match answer {
                Response::Cluster(view) => Some(view),
                _ => None,
            }),
            Reply::Refused(_) | Reply::NotLeader | Reply::Unknown(_) => None,
        }
    }
}

/// Longest time to wait for an answer. Shorter than most faults, so that clients meet what comes after.
pub const PATIENCE: Duration = Duration::from_millis(1500);
