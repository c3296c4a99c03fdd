//! `kiln cluster`: the coordinators themselves. Looking asks every coordinator and needs no leader; changing is the leader's to do.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use kiln_link::{Dialer, Identity};
use kiln_wire::client::{Request, Response};
use kiln_wire::{ClusterRequest, ClusterView, MemberView, NodeId};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::args::{DirArgs, FarmArgs};
use crate::backup;
use crate::beacon::Beacon;
use crate::client::{Client, parse_hosts};
use crate::daemons::runtime;
use crate::tables;
use crate::words::{self, bad_input, unreachable_farm};

/// What is done with the coordinators.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Show the coordinators: who leads, who votes, who answers, who lags
    Status(StatusArgs),
    /// Take a coordinator in: it gets the farm's state, and votes once it is in step; or note that a member listens elsewhere
    ///
    /// It must run already, with an empty `dir` and `join` in its configuration.
    Add(AddArgs),
    /// Let a coordinator go for good; its number is never used again
    Remove(RemoveArgs),
    /// Have another coordinator lead, before this one is stopped or upgraded
    Transfer(TransferArgs),
    /// Write the farm's state to a file: all but outputs, logs and records of ended builds, which are in the store
    Backup(backup::BackupArgs),
    /// Make a coordinator's directory from a backup, after every coordinator of the farm was lost
    Restore(backup::RestoreArgs),
}

/// Arguments of `kiln cluster status`.
#[derive(clap::Args)]
pub struct StatusArgs {
    #[command(flatten)]
    farm: FarmArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `kiln cluster add`.
#[derive(clap::Args)]
pub struct AddArgs {
    #[command(flatten)]
    farm: FarmArgs,
    /// The coordinator's number, as in its certificate
    node: u64,
    /// Where the other coordinators reach it, HOST:PORT
    address: String,
}

/// Arguments of `kiln cluster remove`.
#[derive(clap::Args)]
pub struct RemoveArgs {
    #[command(flatten)]
    farm: FarmArgs,
    /// The coordinator's number
    node: u64,
}

/// Arguments of `kiln cluster transfer`.
#[derive(clap::Args)]
pub struct TransferArgs {
    #[command(flatten)]
    farm: FarmArgs,
    /// The number of the coordinator that is to lead [default: whoever is most in step]
    node: Option<u64>,
}

/// Does what is asked of the coordinators.
pub fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Status(args) => return status(&args),
        Command::Backup(args) => return backup::backup(&args),
        Command::Restore(args) => return backup::restore(&args),
        Command::Add(AddArgs { farm, node, address }) => {
            let link = parse_hosts(&address).ok().filter(|hosts| hosts.len() == 1);
            let link = link.and_then(|mut hosts| hosts.pop()).ok_or_else(|| bad_input(format!("`{address}`: want HOST:PORT")))?;
            change(&farm, ClusterRequest::Add { node: NodeId(node), link })?;
            println!("coordinator {node} is a member; it votes once it is in step");
        }
        Command::Remove(RemoveArgs { farm, node }) => {
            change(&farm, ClusterRequest::Remove { node: NodeId(node) })?;
            println!("coordinator {node} is no member any more; stop it, and never use its number again");
        }
        Command::Transfer(TransferArgs { farm, node }) => {
            change(&farm, ClusterRequest::Transfer { to: node.map(NodeId) })?;
            println!("{}", node.map_or_else(|| "another coordinator leads".to_owned(), |node| format!("coordinator {node} leads")));
        }
    }
    Ok(ExitCode::from(words::SUCCESS))
}

fn change(farm: &FarmArgs, request: ClusterRequest) -> anyhow::Result<()> {
    runtime()?.block_on(async { Client::open(farm).await?.one(&Request::Cluster(request)).await })?;
    Ok(())
}

fn status(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let survey = runtime()?.block_on(async {
        let (hosts, identity) = farm(&args.farm)?;
        Survey::make(hosts, Dialer::new(&identity)?).await
    })?;
    if args.json {
        println!("{}", survey.json());
    } else {
        survey.print();
    }
    Ok(ExitCode::from(words::SUCCESS))
}

/// Returns the addresses that the arguments name, and who asks.
fn farm(args: &FarmArgs) -> anyhow::Result<(Vec<String>, Identity)> {
    let local = |dir: &Path| {
        let beacon = Beacon::read(dir).ok_or_else(|| unreachable_farm(format!("no farm runs in `{}`", dir.display())))?;
        let identity = Identity::load(&beacon.identity).context("read the local farm's client certificate")?;
        Ok((vec![beacon.link.to_string()], identity))
    };
    let Some(url) = args.farm.as_deref() else { return local(&DirArgs { dir: std::env::var_os("KILN_DIR").map(Into::into) }.dir()) };
    let Some(hosts) = url.strip_prefix("kiln://") else { return local(Path::new(url)) };
    let dir = args.identity.as_ref().ok_or_else(|| bad_input("name the directory of your certificate with --identity"))?;
    let identity = Identity::load(dir).map_err(|error| bad_input(format!("{:#}", anyhow::Error::from(error))))?;
    Ok((parse_hosts(hosts)?, identity))
}

/// What every coordinator that answers says of itself and of the others.
#[derive(Default)]
struct Survey {
    views: BTreeMap<NodeId, ClusterView>,
    /// Those that do not answer: address and why.
    silent: BTreeMap<String, String>,
}

impl Survey {
    /// Asks the coordinators at these addresses, then those that they know of.
    async fn make(hosts: Vec<String>, dialer: Dialer) -> anyhow::Result<Self> {
        let mut survey = Self::default();
        let mut asked = BTreeSet::new();
        let mut asking: BTreeSet<String> = hosts.into_iter().collect();
        while !asking.is_empty() {
            let mut answers = JoinSet::new();
            for host in asking.iter().cloned() {
                let dialer = dialer.clone();
                answers.spawn(async move {
                    let answer = ask(&dialer, &host).await;
                    (host, answer)
                });
            }
            for (host, answer) in answers.join_all().await {
                match answer {
                    Ok(view) => drop(survey.views.insert(view.node, view)),
                    Err(error) => drop(survey.silent.insert(host, format!("{error:#}"))),
                }
            }
            asked.append(&mut asking);
            let known = survey.views.values().flat_map(|view| &view.members).filter(|member| !survey.views.contains_key(&member.node));
            asking = known.map(|member| member.link.clone()).filter(|link| !asked.contains(link)).collect();
        }
        if survey.views.is_empty() {
            let why: Vec<String> = survey.silent.iter().map(|(host, why)| format!("{host}: {why}")).collect();
            return Err(unreachable_farm(format!("no coordinator answers: {}", why.join("; "))));
        }
        Ok(survey)
    }

    /// The view that counts: the leader's, else that of whoever has applied most.
    fn best(&self) -> &ClusterView {
        let best = self.views.values().max_by_key(|view| (view.is_self, view.applied));
        best.expect("a survey without an answer is an error")
    }

    fn rows(&self) -> Vec<Row<'_>> {
        let best = self.best();
        let members = best.members.iter().map(|member| Row::of(member, self.views.get(&member.node), best));
        members.collect()
    }

    fn print(&self) {
        let best = self.best();
        match best.leader {
            Some(leader) => println!("coordinator {} leads in term {}; the farm is at version {}", leader.node, leader.term, best.version),
            None => println!("nobody leads; the farm is at version {}", best.version),
        }
        let cells = |row: &Row<'_>| {
            let number = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
            vec![
                row.member.node.to_string(),
                row.state.to_owned(),
                if row.view.is_some() { "yes" } else { "no" }.to_owned(),
                row.member.link.clone(),
                row.member.http.clone(),
                number(row.view.map(|view| view.applied.0)),
                number(row.lag),
                row.view.map_or_else(|| "-".to_owned(), release),
                row.view.map_or_else(|| "-".to_owned(), speaks),
            ]
        };
        tables::print(
            &["NODE", "STATE", "ANSWERS", "ADDRESS", "CACHE", "APPLIED", "LAG", "RELEASE", "SPEAKS"],
            &self.rows().iter().map(cells).collect::<Vec<_>>(),
        );
        for (node, view) in &self.views {
            if let Some(trouble) = &view.trouble {
                println!("coordinator {node}: {trouble}");
            }
            if view.members.is_empty() {
                println!("coordinator {node} waits to be taken in: kiln cluster add {node} HOST:PORT");
            }
        }
        for (host, why) in &self.silent {
            println!("{host}: {why}");
        }
    }

    fn json(&self) -> Value {
        let best = self.best();
        let coordinators: Vec<Value> = self.rows().iter().map(Row::json).collect();
        let waiting: Vec<NodeId> = self.views.values().filter(|view| view.members.is_empty()).map(|view| view.node).collect();
        json!({
            "leader": best.leader.map(|leader| leader.node),
            "term": best.leader.map(|leader| leader.term),
            "version": best.version,
            "coordinators": coordinators,
            "waiting": waiting,
        })
    }
}

/// One coordinator, as the leader sees it and as it sees itself.
struct Row<'a> {
    member: &'a MemberView,
    view: Option<&'a ClusterView>,
    state: &'static str,
    lag: Option<u64>,
}

impl<'a> Row<'a> {
    fn of(member: &'a MemberView, view: Option<&'a ClusterView>, best: &ClusterView) -> Self {
        let leads = best.leader.is_some_and(|leader| leader.node == member.node);
        let state = match (leads, member.votes) {
            (true, _) => "leader",
            (false, true) => "voter",
            (false, false) => "learner",
        };
        let lag = member.matched.map(|matched| best.last.0.saturating_sub(matched.0));
        Self { member, view, state, lag }
    }

    fn json(&self) -> Value {
        json!({
            "node": self.member.node,
            "state": self.state,
            "answers": self.view.is_some(),
            "address": self.member.link,
            "cache": self.member.http,
            "lastIndex": self.view.map(|view| view.last),
            "appliedIndex": self.view.map(|view| view.applied),
            "snapshotIndex": self.view.map(|view| view.snapshot),
            "lagEntries": self.lag,
            "silentMs": self.member.silent_ms,
            "release": self.view.map(|view| &view.program.release).filter(|release| !release.is_empty()),
            "versionOldest": self.view.map(|view| view.program.oldest),
            "versionNewest": self.view.map(|view| view.program.newest),
            "trouble": self.view.and_then(|view| view.trouble.clone()),
        })
    }
}

/// A program's release, in words: one that does not say is from before it could.
fn release(view: &ClusterView) -> String {
    if view.program.release.is_empty() { "older".to_owned() } else { view.program.release.clone() }
}

fn speaks(view: &ClusterView) -> String {
    format!("{} to {}", view.program.oldest, view.program.newest)
}

async fn ask(dialer: &Dialer, host: &str) -> anyhow::Result<ClusterView> {
    let asking = async {
        let mut last = None;
        for addr in tokio::net::lookup_host(host).await.with_context(|| format!("look up `{host}`"))? {
            match dialer.connect(addr).await {
                Ok(connection) => {
                    let (mut sender, mut receiver) = connection.open().await?;
                    sender.send(&Request::Cluster(ClusterRequest::Status)).await?;
                    return match receiver.recv::<Response>().await? {
                        Some(Response::Cluster(view)) => Ok(view),
                        Some(Response::Refused(refusal)) => Err(anyhow::Error::msg(refusal.message)),
                        _ => Err(anyhow::Error::msg("it answers something else: it is of another version")),
                    };
                }
                Err(error) => last = Some(error),
            }
        }
        Err(last.map_or_else(|| anyhow::anyhow!("`{host}` has no address"), anyhow::Error::from))
    };
    tokio::time::timeout(ANSWER_MAX, asking).await.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer within {ANSWER_MAX:?}")))
}

/// How long a coordinator may take to say how it is.
const ANSWER_MAX: Duration = Duration::from_secs(3);
