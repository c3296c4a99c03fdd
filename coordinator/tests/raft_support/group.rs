//! Several coordinators of one group in this process, over real QUIC, whose connections a test can cut.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kiln_coordinator::raft::{ClusterError, Common, Consensus, ConsensusConfig, ConsensusError, EffectReceiver};
use kiln_core::Farm;
use kiln_link::{Authority, Connection, Identity, LinkError, Listener, Role};
use kiln_wire::NodeId;
use tempfile::TempDir;

use super::chain;

/// What the coordinators of a test share.
pub struct Group {
    authority: Authority,
    dir: TempDir,
    wires: Arc<Wires>,
}

/// A running coordinator's consensus.
pub struct Node {
    pub number: NodeId,
    pub consensus: Consensus,
    pub effects: EffectReceiver,
    pub addr: SocketAddr,
    listener: Arc<Listener>,
}

/// Every accepted connection, and between whom none may be.
#[derive(Default)]
struct Wires {
    cut: Mutex<BTreeSet<NodeId>>,
    live: Mutex<Vec<(NodeId, NodeId, Connection)>>,
}

impl Group {
    pub fn new() -> Self {
        let authority = Authority::ephemeral(&"demo".parse().expect("a name")).expect("an authority");
        Self { authority, dir: TempDir::new().expect("a directory"), wires: Arc::default() }
    }

    pub fn dir(&self, number: u64) -> PathBuf {
        self.dir.path().join(number.to_string())
    }

    pub fn identity(&self, number: u64) -> Identity {
        let day = Duration::from_secs(86_400);
        let credentials = self.authority.issue(&Role::Coordinator(NodeId(number)), day).expect("issues");
        Identity::from_credentials(&credentials).expect("an identity")
    }

    /// Returns the configuration of a coordinator: the first begins the group, others join it.
    pub fn config(&self, number: u64) -> ConsensusConfig {
        ConsensusConfig {
            identity: Some(self.identity(number)),
            join: number != 1,
            http: format!("127.0.0.1:{}", 8000 + number),
            common: Common::from([("signing key".into(), "demo:1".into())]),
            // A machine that is busy with other tests must not elect for want of a processor.
            heartbeat_ms: 100,
            election_ms: [700, 1400],
            ..ConsensusConfig::new(self.dir(number), NodeId(number))
        }
    }

    pub async fn start(&self, number: u64) -> Node {
        self.start_as(self.config(number), "127.0.0.1:0".parse().expect("an address")).await
    }

    pub async fn start_as(&self, config: ConsensusConfig, addr: SocketAddr) -> Node {
        let number = config.node;
        let listener = Arc::new(self.bind(addr, number).await);
        let addr = listener.local_addr();
        let link = if config.link.is_empty() { addr.to_string() } else { config.link.clone() };
        let config = ConsensusConfig { link, ..config };
        let (consensus, effects) = Consensus::start(config).await.unwrap_or_else(|err| panic!("start {number}: {}", chain(&err)));
        tokio::spawn(accept(Arc::clone(&listener), consensus.clone(), number, Arc::clone(&self.wires)));
        Node { number, consensus, effects, addr, listener }
    }

    /// The socket of a stopped coordinator is free once the last of its connections is forgotten.
    async fn bind(&self, addr: SocketAddr, number: NodeId) -> Listener {
        self.wires.live.lock().expect("not poisoned").retain(|(_, to, connection)| *to != number && connection.close_reason().is_none());
        let identity = self.identity(number.0);
        for _ in 0..1000 {
            match Listener::bind(addr, &identity, None) {
                Ok(listener) => return listener,
                Err(LinkError::Bind { err, .. }) if err.kind() == std::io::ErrorKind::AddrInUse => {}
                Err(err) => panic!("bind: {}", chain(&err)),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{addr} does not become free");
    }

    /// Starts coordinators 1 to `count` as one group of voters.
    pub async fn form(&self, count: u64) -> Vec<Node> {
        let mut nodes = vec![self.start(1).await];
        for number in 2..=count {
            let node = self.start(number).await;
            add(&nodes, &node).await;
            nodes.push(node);
        }
        nodes
    }

    /// Lets nothing pass between this coordinator and the others.
    pub fn cut(&self, number: NodeId) {
        self.wires.cut.lock().expect("not poisoned").insert(number);
        self.wires.live.lock().expect("not poisoned").retain(|(from, to, connection)| {
            let cut = *from == number || *to == number;
            if cut {
                connection.close("cut");
            }
            !cut
        });
    }

    pub fn mend(&self, number: NodeId) {
        self.wires.cut.lock().expect("not poisoned").remove(&number);
    }
}

async fn accept(listener: Arc<Listener>, consensus: Consensus, number: NodeId, wires: Arc<Wires>) {
    while let Some(connection) = listener.accept().await {
        let Role::Coordinator(from) = connection.peer().role else { continue };
        let cut = wires.cut.lock().expect("not poisoned");
        if cut.contains(&from) || cut.contains(&number) {
            connection.close("cut");
            continue;
        }
        wires.live.lock().expect("not poisoned").push((from, number, connection.clone()));
        drop(cut);
        consensus.serve(connection);
    }
}

impl Node {
    pub async fn stop(self) -> SocketAddr {
        self.consensus.shutdown().await;
        self.listener.close("stopped").await;
        self.addr
    }

    pub fn leads(&self) -> bool {
        self.consensus.leadership().borrow().is_self
    }

    pub fn farm(&self) -> Vec<u8> {
        self.consensus.read(Farm::to_snapshot)
    }

    pub fn votes(&self, number: NodeId) -> bool {
        self.consensus.members().iter().any(|standing| standing.node == number && standing.votes)
    }
}

/// Adds a coordinator, whoever leads, and waits until it votes.
pub async fn add<'a>(nodes: impl IntoIterator<Item = &'a Node> + Clone, node: &Node) {
    for _ in 0..100 {
        match leader(nodes.clone()).await.consensus.add(node.number, node.addr.to_string()).await {
            Ok(()) => {
                let votes = || nodes.clone().into_iter().any(|other| other.leads() && other.votes(node.number));
                return until("the new coordinator votes", votes).await;
            }
            Err(ClusterError::NotLeader | ClusterError::Unknown { .. }) => {}
            Err(err) => panic!("add {}: {}", node.number, chain(&err)),
        }
    }
    panic!("coordinator {} was not added in 100 tries", node.number);
}

/// Waits until one of the nodes leads and returns it.
pub async fn leader<'a>(nodes: impl IntoIterator<Item = &'a Node> + Clone) -> &'a Node {
    let find = || nodes.clone().into_iter().find(|node| node.leads());
    until("somebody leads", || find().is_some()).await;
    find().expect("it led just before")
}

/// Waits until every node has applied the same.
pub async fn agree<'a>(nodes: impl IntoIterator<Item = &'a Node> + Clone) {
    let same = || {
        let mut farms = nodes.clone().into_iter().map(Node::farm);
        let first = farms.next();
        farms.all(|farm| Some(farm) == first)
    };
    until("all have applied the same", same).await;
}

/// Waits for something that must come.
pub async fn until(what: &str, holds: impl Fn() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), wait).await.unwrap_or_else(|_| panic!("in a minute it did not come true that {what}"));
}

/// Proposes at whoever leads until it is committed: what an election throws away is proposed again.
pub async fn commit<'a>(nodes: impl IntoIterator<Item = &'a Node> + Clone, command: kiln_core::Command) {
    for _ in 0..100 {
        let node = leader(nodes.clone()).await;
        match node.consensus.propose(vec![command.clone()]).await {
            Ok(_) => return,
            Err(ConsensusError::NotLeader { .. } | ConsensusError::Unknown) => {}
            Err(err) => panic!("propose: {}", chain(&err)),
        }
    }
    panic!("no proposal was committed in 100 tries");
}
