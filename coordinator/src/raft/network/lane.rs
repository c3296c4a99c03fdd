//! A lane to one peer: a connection of its own that is kept, opened when needed, and given up when the peer does not answer on it.
//!
//! Lanes keep apart what must not wait for each other: appends, signs of life and votes, snapshots. A connection is opened on a task
//! of its own, because who asks for it may give up sooner than a far peer can answer.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use kiln_link::{Connection, LinkError, Receiver, Role, Sender};
use kiln_wire::NodeId;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::dial::{Dial, DialError};
use super::messages::{Call, Greeted, Greeting, Introduction};
use super::parts;
use crate::raft::member::{DirectoryId, Member};
use crate::raft::version::Versions;

/// Whom a lane leads to, and for whom.
#[derive(Clone, Debug)]
pub struct Route {
    /// Who dials.
    pub from: NodeId,
    /// The dialer's directory.
    pub directory: DirectoryId,
    /// Who is dialled.
    pub to: NodeId,
    /// What the group has on record of it.
    pub member: Member,
    /// Where it is, if somebody has said so since.
    pub moved: Moved,
    /// What the dialer speaks, and what its farm is at.
    pub versions: Versions,
    /// From the first packet to the answer.
    pub dial_max: Duration,
}

/// Where coordinators are that have moved. Raft goes on with the address that it began with, and cannot write down another before
/// it reaches the coordinator there.
#[derive(Clone, Debug, Default)]
pub struct Moved(Arc<Mutex<BTreeMap<NodeId, String>>>);

impl Moved {
    /// Notes where a coordinator is.
    pub fn note(&self, node: NodeId, link: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(node, link);
    }

    fn find(&self, node: NodeId) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&node).cloned()
    }
}

/// A lane to one peer.
pub struct Lane {
    route: Route,
    dial: Dial,
    state: Mutex<State>,
    /// Calls without an answer since the last one with.
    unanswered: AtomicU32,
}

#[derive(Default)]
struct State {
    live: Option<Connection>,
    opening: Option<Opening>,
}

/// A connection that is being opened, for all who wait for it.
type Opening = Shared<BoxFuture<'static, Result<Connection, Arc<LaneError>>>>;

/// A call that did not come about.
#[derive(Debug, thiserror::Error)]
pub enum LaneError {
    /// There is no connection.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The connection failed.
    #[error("talk to coordinator {to}")]
    Link {
        /// To whom.
        to: NodeId,
        /// How.
        #[source]
        source: LinkError,
    },
    /// The peer refuses us, or is not who the group has on record.
    #[error("coordinator {to} at `{link}` refuses: {why}")]
    Refused {
        /// Who.
        to: NodeId,
        /// Where.
        link: String,
        /// Its words.
        why: String,
    },
    /// The peer did not answer in time.
    #[error("coordinator {to} at `{link}` does not answer")]
    Silent {
        /// Who.
        to: NodeId,
        /// Where.
        link: String,
    },
}

impl Lane {
    /// Makes a lane. Nothing is dialled yet.
    pub fn new(dial: Dial, route: Route) -> Self {
        Self { route, dial, state: Mutex::default(), unanswered: AtomicU32::new(0) }
    }

    /// Returns the connection, opened if there is none. Cancel safe: an opening goes on for the next caller.
    pub async fn connection(&self) -> Result<Connection, Arc<LaneError>> {
        let opening = {
            let mut state = self.state();
            if let Some(live) = state.live.as_ref().filter(|live| live.close_reason().is_none()) {
                return Ok(live.clone());
            }
            match state.opening.as_ref().filter(|opening| opening.peek().is_none()) {
                Some(opening) => opening.clone(),
                None => {
                    let mut route = self.route.clone();
                    if let Some(link) = route.moved.find(route.to) {
                        route.member.link = link;
                    }
                    let opened = tokio::spawn(open(self.dial.clone(), route));
                    let opening = opened.map(|opened| match opened {
                        Ok(opened) => opened.map(|(connection, _)| connection).map_err(Arc::new),
                        Err(err) => std::panic::resume_unwind(err.into_panic()),
                    });
                    state.opening.insert(opening.boxed().shared()).clone()
                }
            }
        };
        let connection = opening.await?;
        self.state().live = Some(connection.clone());
        Ok(connection)
    }

    /// Asks something that one message answers, on a stream of its own. Dropped early, it counts as unanswered.
    pub async fn ask<A: DeserializeOwned>(&self, call: &Call) -> Result<A, Arc<LaneError>> {
        let known = self.state().live.clone();
        let answer = self.ask_once(call).await;
        // A peer that restarted lets go of the connection that was kept; what is asked may be asked twice.
        let was_stale = answer.is_err() && known.is_some_and(|known| known.close_reason().is_some());
        if was_stale { self.ask_once(call).await } else { answer }
    }

    async fn ask_once<A: DeserializeOwned>(&self, call: &Call) -> Result<A, Arc<LaneError>> {
        let watch = Watch { lane: self, answered: false };
        let (mut sender, mut receiver) = self.open_stream().await?;
        let answer: Result<Option<A>, LinkError> = async {
            sender.send(call).await?;
            receiver.recv().await
        }
        .await;
        let answer = answer.and_then(|answer| answer.ok_or(LinkError::Truncated)).map_err(|source| self.failed(source))?;
        watch.answered();
        Ok(answer)
    }

    /// Opens a stream. The first message on it must be a [`Call`].
    pub async fn open_stream(&self) -> Result<(Sender, Receiver), Arc<LaneError>> {
        let connection = self.connection().await?;
        connection.open().await.map_err(|source| self.failed(source))
    }

    /// Gives up the connection: the peer does not answer on it, and a new one may reach it sooner than this one recovers.
    pub fn give_up(&self) {
        if let Some(live) = self.state().live.take() {
            live.close("no answer in time");
        }
    }

    /// Notes what became of a call that was not [`Lane::ask`].
    pub fn watch(&self) -> Watch<'_> {
        Watch { lane: self, answered: false }
    }

    /// Returns the error for a peer that does not answer.
    pub fn silent(&self) -> Arc<LaneError> {
        Arc::new(LaneError::Silent { to: self.route.to, link: self.route.member.link.clone() })
    }

    /// Returns the error for a connection that failed.
    pub fn failed(&self, source: LinkError) -> Arc<LaneError> {
        Arc::new(LaneError::Link { to: self.route.to, source })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lane(to {})", self.route.to)
    }
}

/// A call under way. Dropped without an answer it counts against the connection: raft drops what takes too long.
pub struct Watch<'a> {
    lane: &'a Lane,
    answered: bool,
}

impl Watch<'_> {
    /// Notes the answer.
    pub fn answered(mut self) {
        self.answered = true;
        self.lane.unanswered.store(0, Ordering::Relaxed);
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if !self.answered && self.lane.unanswered.fetch_add(1, Ordering::Relaxed) + 1 >= UNANSWERED_MAX {
            self.lane.unanswered.store(0, Ordering::Relaxed);
            self.lane.give_up();
        }
    }
}

/// Dials a peer and greets it. Returns once it has said who it is and that calls may follow.
pub async fn open(dial: Dial, route: Route) -> Result<(Connection, Introduction), LaneError> {
    let (to, link) = (route.to, route.member.link.clone());
    let silent = LaneError::Silent { to, link };
    tokio::time::timeout(route.dial_max, greet(dial, route)).await.unwrap_or(Err(silent))
}

async fn greet(dial: Dial, route: Route) -> Result<(Connection, Introduction), LaneError> {
    let (to, link) = (route.to, route.member.link.clone());
    let refused = |why: String| LaneError::Refused { to, link: link.clone(), why };
    let failed = |source| LaneError::Link { to, source };
    let connection = dial.dial(&link).await?;
    match connection.peer().role {
        Role::Coordinator(node) if node == to => {}
        Role::Coordinator(_) | Role::Worker(_) | Role::Client(_) | Role::Admin(_) => {
            return Err(refused(format!("its certificate says that it is {}", connection.peer())));
        }
    }
    let want = Some(route.member.directory).filter(|directory| *directory != DirectoryId(0));
    let (own, directory) = (route.versions.own().clone(), route.directory);
    let greeting = Greeting { version: own.newest, from: route.from, directory, to, want, program: own };
    let (mut sender, mut receiver) = connection.open().await.map_err(failed)?;
    sender.send(&greeting).await.map_err(failed)?;
    match receiver.recv::<Greeted>().await.map_err(failed)?.ok_or(LinkError::Truncated).map_err(failed)? {
        Greeted::Welcome(introduction) => {
            let (program, farm) = (&introduction.program, route.versions.farm());
            route.versions.note(to, program.clone());
            match program.objection(farm).filter(|_| program.is_too_old_for(farm)) {
                Some(why) => Err(refused(why)),
                None => Ok((connection, introduction)),
            }
        }
        Greeted::Refused(why) => Err(refused(why)),
    }
}

/// Queues a call's first message and the message behind it, and sends both together.
pub async fn send_with<T: Serialize>(sender: &mut Sender, call: &Call, message: &T) -> Result<(), LinkError> {
    sender.feed(call)?;
    parts::feed(sender, message)?;
    sender.flush().await
}

/// Calls in a row without an answer after which a connection is given up: with signs of life every 50 ms, a fifth of a second.
const UNANSWERED_MAX: u32 = 4;
