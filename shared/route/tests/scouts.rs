//! Scouts against coordinators on loopback that say what the test tells them.

use std::sync::Arc;
use std::time::Duration;

use kiln_link::{Authority, Connection, Dialer, Identity, Listener, Role};
use kiln_route::Scouts;
use kiln_wire::client::{Request, Response};
use kiln_wire::{Leader, NodeId, WhoLeads};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Long enough for every step on a busy machine; nothing waits for all of it.
const PATIENCE: Duration = Duration::from_secs(60);

/// A coordinator that only says who leads.
struct Coordinator {
    node: u64,
    listener: Arc<Listener>,
    says: watch::Sender<WhoLeads>,
    task: JoinHandle<()>,
}

impl Coordinator {
    fn start(authority: &Authority, node: u64) -> Self {
        let listener =
            Listener::bind("127.0.0.1:0".parse().expect("an address"), &identity(authority, &format!("coordinator/{node}")), None);
        let listener = Arc::new(listener.expect("bind"));
        let (says, _) = watch::channel(WhoLeads::default());
        let task = tokio::spawn(accept(listener.clone(), says.clone()));
        Self { node, listener, says, task }
    }

    fn address(&self) -> String {
        self.listener.local_addr().to_string()
    }

    fn leads(&self, term: u64, coordinators: &[&Self]) {
        let leader = Some(Leader { term, node: NodeId(self.node) });
        self.says.send_replace(WhoLeads {
            is_self: true,
            leader,
            coordinators: coordinators.iter().map(|other| other.address()).collect(),
        });
    }

    fn follows(&self, term: u64, other: &Self) {
        let leader = Some(Leader { term, node: NodeId(other.node) });
        self.says.send_replace(WhoLeads { is_self: false, leader, coordinators: Vec::new() });
    }

    async fn stop(self) {
        self.task.abort();
        self.listener.close("stops").await;
    }
}

async fn accept(listener: Arc<Listener>, says: watch::Sender<WhoLeads>) {
    while let Some(connection) = listener.accept().await {
        tokio::spawn(answer(connection, says.subscribe()));
    }
}

async fn answer(connection: Connection, mut says: watch::Receiver<WhoLeads>) {
    let Ok(Some((mut sender, mut receiver))) = connection.accept().await else { return };
    assert_eq!(receiver.recv::<Request>().await.expect("a request"), Some(Request::Leader));
    loop {
        let who = says.borrow_and_update().clone();
        if sender.send(&Response::Leader(who)).await.is_err() || says.changed().await.is_err() {
            return;
        }
    }
}

fn identity(authority: &Authority, role: &str) -> Identity {
    let role: Role = role.parse().expect("role");
    Identity::from_credentials(&authority.issue(&role, Duration::from_secs(3600)).expect("issue")).expect("identity")
}

fn authority() -> Authority {
    Authority::ephemeral(&"demo".parse().expect("farm name")).expect("authority")
}

fn scouts(authority: &Authority, coordinators: &[&Coordinator]) -> Scouts {
    let dialer = Dialer::new(&identity(authority, "worker/w1")).expect("dialer");
    Scouts::start(dialer, coordinators.iter().map(|coordinator| coordinator.address()))
}

fn role(connection: &Connection) -> String {
    connection.peer().role.to_string()
}

#[tokio::test]
async fn the_next_leader_is_heard_of_while_the_old_one_is_silent() {
    let authority = authority();
    let (a, b) = (Coordinator::start(&authority, 1), Coordinator::start(&authority, 2));
    a.leads(1, &[&a, &b]);
    b.follows(1, &a);
    let mut scouts = scouts(&authority, &[&a, &b]);
    let found = scouts.leader().await;
    assert_eq!(role(&found.connection), "coordinator/1");
    // The old leader still says that it leads, as one that was cut off would.
    b.leads(2, &[&a, &b]);
    scouts.superseded(found.leader).await;
    let next = scouts.leader().await;
    assert_eq!((role(&next.connection).as_str(), next.leader), ("coordinator/2", Leader { term: 2, node: NodeId(2) }));
}

#[tokio::test]
async fn a_coordinator_that_only_the_leader_names_is_found() {
    let authority = authority();
    let (a, b) = (Coordinator::start(&authority, 1), Coordinator::start(&authority, 2));
    a.leads(1, &[&a, &b]);
    b.leads(2, &[&a, &b]);
    let mut scouts = scouts(&authority, &[&a]);
    scouts.superseded(Leader { term: 1, node: NodeId(1) }).await;
    assert_eq!(role(&scouts.leader().await.connection), "coordinator/2");
}

#[tokio::test]
async fn a_leader_that_comes_back_is_found_again() {
    let authority = authority();
    let a = Coordinator::start(&authority, 1);
    a.leads(1, &[]);
    let mut scouts = scouts(&authority, &[&a]);
    let found = scouts.leader().await;
    found.connection.close("the test ends this connection");
    let again = scouts.leader().await;
    assert!(again.connection.close_reason().is_none());
    assert_eq!(again.leader, found.leader);
}

#[tokio::test]
async fn a_search_ends_with_the_troubles_of_each_when_none_can_be_asked() {
    let authority = authority();
    let a = Coordinator::start(&authority, 1);
    let stranger = Dialer::new(&identity(&self::authority(), "client/eve")).expect("dialer");
    let mut scouts = Scouts::start(stranger, [a.address(), "nowhere.invalid:1".to_owned()]);
    let lost = scouts.leader_if_any(PATIENCE).await.expect_err("nobody answers a stranger");
    assert!(lost.troubles.contains(&a.address()) && lost.troubles.contains("nowhere.invalid:1"), "{}", lost.troubles);
    a.stop().await;
}

#[tokio::test]
async fn a_farm_without_a_leader_is_waited_for() {
    let authority = authority();
    let a = Coordinator::start(&authority, 1);
    let mut scouts = scouts(&authority, &[&a]);
    let told = async {
        // Only once the scout has the first answer, which names nobody.
        while a.says.receiver_count() == 0 {
            tokio::task::yield_now().await;
        }
        a.leads(1, &[]);
    };
    let (found, ()) = tokio::join!(scouts.leader_if_any(PATIENCE), told);
    assert_eq!(found.expect("it leads").leader.term, 1);
}
