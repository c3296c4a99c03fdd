//! An operator of the simulation: adds and removes coordinators and moves the lead, through the requests of `kiln cluster`, while the farm
//! builds and whatever happens. Asks until it is done, and switches machines on and off as the runbook says.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use kiln_link::{Connection, Dialer, Identity, LinkError};
use kiln_route::{Pause, Scouts};
use kiln_wire::client::{Request, Response};
use kiln_wire::{ClusterRequest, ClusterView, NodeId};

use crate::bug::Bug;
use crate::entropy::draw;

/// Coordinators as the operator knows them.
#[derive(Clone, Debug, Default)]
pub struct Machines(Rc<RefCell<Known>>);

#[derive(Debug, Default)]
struct Known {
    members: BTreeSet<NodeId>,
    on: BTreeSet<NodeId>,
    done: BTreeMap<&'static str, usize>,
}

impl Machines {
    /// A farm of these.
    pub fn new(members: impl IntoIterator<Item = NodeId>) -> Self {
        let members: BTreeSet<NodeId> = members.into_iter().collect();
        Self(Rc::new(RefCell::new(Known { on: members.clone(), members, ..Known::default() })))
    }

    /// Who belongs to the farm as far as the operator has brought it.
    pub fn members(&self) -> BTreeSet<NodeId> {
        self.0.borrow().members.clone()
    }

    /// Whose machines are to run.
    pub fn on(&self) -> BTreeSet<NodeId> {
        self.0.borrow().on.clone()
    }

    /// What the operator has brought about, and how often.
    pub fn done(&self) -> BTreeMap<&'static str, usize> {
        self.0.borrow().done.clone()
    }

    fn change<T>(&self, change: impl FnOnce(&mut Known) -> T) -> T {
        change(&mut self.0.borrow_mut())
    }
}

/// Something that the operator wants.
#[derive(Clone, Copy, Debug)]
pub enum Change {
    /// Another coordinator, with this number.
    Add(NodeId),
    /// One coordinator less: of the members, the one at this place.
    Remove(usize),
    /// Another leader.
    Transfer,
}

/// Draws what an operator wants in a run; of four, one wants nothing. A farm keeps three coordinators.
pub fn plan(first_new: u64) -> Vec<Change> {
    let mut plan = Vec::new();
    let (mut new, mut more) = (first_new, 0);
    for _ in 0..draw(4) {
        match draw(5) {
            0 => plan.push(Change::Transfer),
            1..=2 if more > 0 => {
                plan.push(Change::Remove(draw(8) as usize));
                more -= 1;
            }
            _ if new < first_new + SPARE => {
                plan.push(Change::Add(NodeId(new)));
                (new, more) = (new + 1, more + 1);
            }
            _ => {}
        }
    }
    plan
}

/// Machines that are not in the farm when it begins.
pub const SPARE: u64 = 2;

/// Everything an operator needs.
pub struct Operator {
    pub identity: Identity,
    /// Where coordinators listen, those to come among them; the first has number 1.
    pub coordinators: Vec<String>,
    pub machines: Machines,
    pub plan: Vec<Change>,
    /// Longest time between two changes.
    pub within: Duration,
}

impl Operator {
    /// Carries out the plan.
    pub async fn run(self) -> turmoil::Result {
        let mut scouts = Scouts::start(Dialer::new(&self.identity)?, self.coordinators.clone());
        for change in self.plan.clone() {
            tokio::time::sleep(Duration::from_millis(draw(self.within.as_millis() as u64))).await;
            let done = match change {
                Change::Add(node) => self.add(&mut scouts, node).await,
                Change::Remove(at) => self.remove(&mut scouts, at).await,
                Change::Transfer => transfer(&mut scouts).await,
            };
            self.machines.change(|known| *known.done.entry(done).or_default() += 1);
            tracing::info!(?change, "the operator is done");
        }
        Ok(())
    }

    async fn add(&self, scouts: &mut Scouts, node: NodeId) -> &'static str {
        self.machines.change(|known| known.on.insert(node));
        let link = self.coordinators[node.0 as usize - 1].clone();
        until_done(scouts, ClusterRequest::Add { node, link }).await;
        self.machines.change(|known| known.members.insert(node));
        let mut pause = Pause::new(Duration::from_millis(100), Duration::from_secs(1));
        while !self.votes(scouts, node).await {
            pause.wait().await;
        }
        "coordinators added"
    }

    async fn votes(&self, scouts: &mut Scouts, node: NodeId) -> bool {
        let found = scouts.leader().await;
        match ask(&found.connection, ClusterRequest::Status).await {
            Ok(Response::Cluster(ClusterView { members, .. })) => members.iter().any(|member| member.node == node && member.votes),
            Ok(_) | Err(_) => false,
        }
    }

    async fn remove(&self, scouts: &mut Scouts, at: usize) -> &'static str {
        let members: Vec<NodeId> = self.machines.members().into_iter().collect();
        let node = members[at % members.len()];
        if !Bug::GoesUnasked.is_planted() {
            until_done(scouts, ClusterRequest::Remove { node }).await;
        }
        self.machines.change(|known| known.members.remove(&node));
        tokio::time::sleep(Duration::from_millis(draw(3000))).await;
        self.machines.change(|known| known.on.remove(&node));
        "coordinators removed"
    }
}

/// Asks once: to ask again might move it twice.
async fn transfer(scouts: &mut Scouts) -> &'static str {
    match ask(&scouts.leader().await.connection, ClusterRequest::Transfer { to: None }).await {
        Ok(Response::Done) => "leads handed over",
        Ok(_) | Err(_) => "leads not handed over",
    }
}

/// Asks whoever leads until it is done: what is refused may be granted once somebody is back.
async fn until_done(scouts: &mut Scouts, request: ClusterRequest) {
    let mut pause = Pause::new(Duration::from_millis(100), Duration::from_secs(1));
    loop {
        let found = scouts.leader().await;
        let answer = tokio::select! {
            answer = ask(&found.connection, request.clone()) => answer,
            () = scouts.superseded(found.leader) => continue,
        };
        match answer {
            Ok(Response::Done) => return,
            other => tracing::info!(?request, ?other, "the operator asks again"),
        }
        pause.wait().await;
    }
}

async fn ask(connection: &Connection, request: ClusterRequest) -> Result<Response, LinkError> {
    let (mut sender, mut receiver) = connection.open().await?;
    sender.send(&Request::Cluster(request)).await?;
    receiver.recv::<Response>().await?.ok_or(LinkError::Truncated)
}
