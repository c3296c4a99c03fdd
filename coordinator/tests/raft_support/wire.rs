//! What a coordinator of the first version says, byte by byte, to one of this program.

use kiln_link::{Connection, Dialer, Protocol, Receiver, Sender};
use kiln_wire::{Leader, NodeId};
use serde::{Deserialize, Serialize};

use super::group::{Group, Node};

/// A connection to a coordinator.
pub struct Wire {
    connection: Connection,
    /// The version that the other end says it speaks.
    pub version: u16,
}

/// A call that is under way.
pub struct Call {
    _sender: Sender,
    pub receiver: Receiver,
}

impl Wire {
    /// Greets a coordinator as the one of that number.
    pub async fn open(group: &Group, from: u64, to: &Node) -> Self {
        let dialer = Dialer::speaking(&group.identity(from), Protocol::Raft).expect("a dialer");
        let connection = dialer.connect(to.addr).await.expect("connects");
        let (mut sender, mut receiver): (Sender, Receiver) = connection.open().await.expect("opens");
        sender.send(&Greeting { version: 1, from: NodeId(from), directory: 7, to: to.number, want: None }).await.expect("sends");
        let Greeted::Welcome(Introduction { version }) = receiver.recv().await.expect("receives").expect("an answer");
        Self { connection, version }
    }

    /// Sends entries, or a sign of life.
    pub async fn append(&self, append: &Append) -> Call {
        let (mut sender, receiver) = self.connection.open().await.expect("opens");
        sender.send(&Calls::Append).await.expect("sends");
        let bytes = kiln_wire::frame::to_bytes(append).expect("encodes");
        sender.send(&Chunk { more: false, bytes }).await.expect("sends");
        Call { _sender: sender, receiver }
    }
}

/// What a coordinator of the first version sends when it dials.
#[derive(Serialize)]
struct Greeting {
    version: u16,
    from: NodeId,
    directory: u64,
    to: NodeId,
    want: Option<u64>,
}

#[derive(Serialize)]
enum Calls {
    Append,
}

/// Entries for a follower.
#[derive(Debug, Serialize)]
pub struct Append {
    pub vote: Vote,
    pub prev: Option<Position>,
    pub committed: Option<Position>,
    pub entries: Vec<Entry>,
}

/// For whom the sender votes.
#[derive(Debug, Serialize)]
pub struct Vote {
    pub leader: Leader,
    pub committed: bool,
}

/// One entry.
#[derive(Debug, Serialize)]
pub struct Entry {
    pub position: Position,
    pub content: Unknown,
}

/// Where an entry lies.
#[derive(Debug, Serialize)]
pub struct Position {
    pub leader: Leader,
    pub index: u64,
}

/// What an entry may hold in some later version.
#[derive(Debug, Serialize)]
pub enum Unknown {
    FromLater(u64),
}

#[derive(Serialize)]
struct Chunk {
    more: bool,
    #[serde(with = "serde_bytes")]
    bytes: Vec<u8>,
}

#[derive(Debug, Deserialize)]
enum Greeted {
    Welcome(Introduction),
}

#[derive(Debug, Deserialize)]
struct Introduction {
    version: u16,
}

/// The answer to [`Append`].
#[derive(Debug, Deserialize)]
pub enum Heard {
    /// The entry before the first one sent is not there, or is another.
    Conflict(serde::de::IgnoredAny),
}
