//! Scouts: a task for each coordinator that keeps a connection to it and hears who leads.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use kiln_link::{Connection, Dialer, LinkError};
use kiln_wire::Leader;
use kiln_wire::client::{Request, Response};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;

use crate::Pause;
use crate::board::Board;

/// The first pause after a coordinator could not be asked: one that restarts is back in less than a few of them.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// The longest pause: a coordinator that can be reached again is found this late at most, and one dial.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Longest time for one dial. A handshake takes milliseconds; what a partition swallowed must not hold up the next try.
const DIAL_MAX: Duration = Duration::from_secs(2);

/// Keeps a connection to each coordinator, and knows who leads. Cheap to clone; the tasks end when the last clone is dropped, connections
/// that were found stay open while somebody has them.
#[derive(Clone, Debug)]
pub struct Scouts {
    board: watch::Receiver<Board<Connection>>,
    _chief: Arc<ChiefGuard>,
}

/// The leader, and the way to it.
#[derive(Clone, Debug)]
pub struct Found {
    /// Which leader it says it is.
    pub leader: Leader,
    /// A connection to it.
    pub connection: Connection,
}

/// No leader can be found.
#[derive(Clone, Debug)]
pub struct Lost {
    /// For each coordinator, why not.
    pub troubles: String,
}

#[derive(Debug)]
struct ChiefGuard(AbortHandle);

impl Scouts {
    /// Sends scouts to `coordinators` (`host:port` each) and to all that these name. Must be called inside a runtime.
    pub fn start(dialer: Dialer, coordinators: impl IntoIterator<Item = String>) -> Self {
        let (sender, board) = watch::channel(Board::new(coordinators));
        let chief = tokio::spawn(lead(dialer, Arc::new(sender))).abort_handle();
        Self { board, _chief: Arc::new(ChiefGuard(chief)) }
    }

    /// Waits for a coordinator that says it leads, over a connection that stands. Cancel safe.
    pub async fn leader(&mut self) -> Found {
        loop {
            if let Some(found) = self.known() {
                return found;
            }
            self.changed().await;
        }
    }

    /// Waits for a leader while there is hope: gives up once every coordinator was tried and none can be asked, and after `patience` in
    /// any case. Cancel safe.
    ///
    /// # Errors
    /// [`Lost`] says for each coordinator what is wrong.
    pub async fn leader_if_any(&mut self, patience: Duration) -> Result<Found, Lost> {
        let hope = async {
            loop {
                if let Some(found) = self.known() {
                    return Some(found);
                }
                if self.board.borrow().is_hopeless() {
                    return None;
                }
                self.changed().await;
            }
        };
        let found = timeout(patience, hope).await.unwrap_or(None);
        found.ok_or_else(|| Lost { troubles: self.troubles() })
    }

    /// Tells for each coordinator what it said last, or why it cannot be asked.
    pub fn troubles(&self) -> String {
        self.board.borrow().troubles()
    }

    /// Waits until a later leader than `leader` is known. Cancel safe.
    pub async fn superseded(&mut self, leader: Leader) {
        while self.known().is_none_or(|found| found.leader <= leader) {
            self.changed().await;
        }
    }

    fn known(&mut self) -> Option<Found> {
        let board = self.board.borrow_and_update();
        let (leader, connection) = board.leader()?;
        // A scout notes the end of its connection in a moment.
        connection.close_reason().is_none().then(|| Found { leader, connection: connection.clone() })
    }

    async fn changed(&mut self) {
        if self.board.changed().await.is_err() {
            // The chief ends with the runtime only.
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for ChiefGuard {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Keeps one scout at each address of the board.
async fn lead(dialer: Dialer, board: Arc<watch::Sender<Board<Connection>>>) {
    let mut changes = board.subscribe();
    let mut team = JoinSet::new();
    let mut posts: BTreeMap<String, AbortHandle> = BTreeMap::new();
    loop {
        let wanted = changes.borrow_and_update().addresses();
        posts.retain(|address, scout| {
            let stays = wanted.contains(address);
            if !stays {
                scout.abort();
            }
            stays
        });
        for address in wanted {
            if !posts.contains_key(&address) {
                posts.insert(address.clone(), team.spawn(scout(dialer.clone(), address, board.clone())));
            }
        }
        while team.try_join_next().is_some() {}
        if changes.changed().await.is_err() {
            return;
        }
    }
}

async fn scout(dialer: Dialer, address: String, board: Arc<watch::Sender<Board<Connection>>>) {
    let mut pause = Pause::new(PAUSE_MIN, PAUSE_MAX);
    loop {
        let why = match timeout(DIAL_MAX, dial(&dialer, &address)).await {
            Ok(Ok(connection)) => {
                listen(&connection, &address, &board, &mut pause).await.map_or_else(|error| chain(&error), |()| ENDED.to_owned())
            }
            Ok(Err(why)) => why,
            Err(_) => format!("no answer within {} s", DIAL_MAX.as_secs()),
        };
        tracing::debug!(coordinator = %address, %why, "a coordinator cannot be asked who leads");
        board.send_modify(|board| board.away(&address, why));
        pause.wait().await;
    }
}

/// Notes what a coordinator says until it says no more.
async fn listen(
    connection: &Connection,
    address: &str,
    board: &watch::Sender<Board<Connection>>,
    pause: &mut Pause,
) -> Result<(), LinkError> {
    let (mut sender, mut receiver) = connection.open().await?;
    sender.send(&Request::Leader).await?;
    while let Some(response) = receiver.recv::<Response>().await? {
        let Response::Leader(who) = response else { return Ok(()) };
        pause.reset();
        board.send_modify(|board| board.said(address, who, connection.clone()));
    }
    Ok(())
}

async fn dial(dialer: &Dialer, address: &str) -> Result<Connection, String> {
    let mut last = "the name has no address".to_owned();
    for addr in tokio::net::lookup_host(address).await.map_err(|error| error.to_string())? {
        match dialer.connect(addr).await {
            Ok(connection) => return Ok(connection),
            Err(error) => last = chain(&error),
        }
    }
    Err(last)
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        // Writing to a string does not fail.
        let _ = write!(text, ": {cause}");
        source = cause.source();
    }
    text
}

const ENDED: &str = "it ended the conversation";
