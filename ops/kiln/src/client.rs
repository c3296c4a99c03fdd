//! A client's connection to a farm: finds it, asks it, and turns its refusals into errors with the right exit code.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};

use anyhow::Context;
use kiln_link::{Connection, Dialer, Identity, Receiver, Sender};
use kiln_wire::client::{BuildView, FarmView, Refusal, RefusalKind, Request, Response};

use crate::args::{DirArgs, FarmArgs};
use crate::beacon::Beacon;
use crate::words::{bad_input, unreachable_farm};

/// A connection to a farm.
pub struct Client {
    // Owns the socket of the connection.
    _dialer: Dialer,
    connection: Connection,
}

impl Client {
    /// Connects to the farm that the arguments name.
    ///
    /// # Errors
    /// Exit code 2 if the arguments do not say enough, 3 if the farm does not answer.
    pub async fn open(args: &FarmArgs) -> anyhow::Result<Self> {
        let dir = DirArgs { dir: std::env::var_os("KILN_DIR").map(PathBuf::from) }.dir();
        match Self::open_if_any(args, &dir).await? {
            Some(client) => Ok(client),
            None => {
                Err(unreachable_farm(format!("no farm runs in `{}`; start one with `kiln up`, or name one with --farm", dir.display())))
            }
        }
    }

    /// Connects to the farm that the arguments name, or to the one that runs in `dir`, if one does.
    pub async fn open_if_any(args: &FarmArgs, dir: &Path) -> anyhow::Result<Option<Self>> {
        match args.farm.as_deref() {
            Some(url) => match url.strip_prefix("kiln://") {
                Some(host) => Self::open_remote(host, args).await.map(Some),
                None => match Beacon::read(Path::new(url)) {
                    Some(beacon) => Self::open_local(&beacon).await.map(Some),
                    None => Err(unreachable_farm(format!("no farm runs in `{url}`; start one with `kiln up --dir {url}`"))),
                },
            },
            None => match Beacon::read(dir) {
                Some(beacon) => Self::open_local(&beacon).await.map(Some),
                None => Ok(None),
            },
        }
    }

    async fn open_remote(host: &str, args: &FarmArgs) -> anyhow::Result<Self> {
        let addr = host.to_socket_addrs().ok().and_then(|mut found| found.next());
        let addr = addr.ok_or_else(|| bad_input(format!("`kiln://{host}`: want kiln://HOST:PORT with a host that resolves")))?;
        let dir = args.identity.as_ref().ok_or_else(|| {
            bad_input("name the directory of your certificate with --identity; `kiln ca issue --role client/NAME` makes one")
        })?;
        Self::dial(addr, &Identity::load(dir).map_err(|error| bad_input(format!("{:#}", anyhow::Error::from(error))))?).await
    }

    async fn open_local(beacon: &Beacon) -> anyhow::Result<Self> {
        let identity = Identity::load(&beacon.identity).context("read the local farm's client certificate")?;
        Self::dial(beacon.link, &identity).await
    }

    /// Connects to a coordinator.
    pub async fn dial(addr: SocketAddr, identity: &Identity) -> anyhow::Result<Self> {
        let dialer = Dialer::new(identity)?;
        let connected = dialer.connect(addr).await.map_err(anyhow::Error::from);
        let connection = connected.map_err(|error| unreachable_farm(format!("connect to the farm at {addr}: {error:#}")))?;
        Ok(Self { _dialer: dialer, connection })
    }

    /// Asks, and returns the stream of the answer.
    pub async fn ask(&self, request: &Request) -> anyhow::Result<(Sender, Answers)> {
        let lost = |error| unreachable_farm(format!("ask the farm: {:#}", anyhow::Error::from(error)));
        let (mut sender, receiver) = self.connection.open().await.map_err(lost)?;
        sender.send(request).await.map_err(lost)?;
        Ok((sender, Answers(receiver)))
    }

    /// Asks what has one answer.
    pub async fn one(&self, request: &Request) -> anyhow::Result<Response> {
        let (_sender, mut answers) = self.ask(request).await?;
        answers.next().await?.ok_or_else(|| unexpected("nothing"))
    }

    /// Asks what has any number of answers, and collects what `take` finds in them.
    pub async fn all<T>(&self, request: &Request, take: impl Fn(Response) -> Option<Vec<T>>) -> anyhow::Result<Vec<T>> {
        let (_sender, mut answers) = self.ask(request).await?;
        let mut found = Vec::new();
        while let Some(answer) = answers.next().await? {
            found.extend(take(answer).ok_or_else(|| unexpected("another kind"))?);
        }
        Ok(found)
    }

    /// Asks for the farm at a glance.
    pub async fn status(&self) -> anyhow::Result<FarmView> {
        match self.one(&Request::Status).await? {
            Response::Status(view) => Ok(view),
            _ => Err(unexpected("another kind")),
        }
    }
}

/// The answers to one request.
pub struct Answers(pub Receiver);

impl Answers {
    /// Returns the next answer; none after the last. A refusal is an error.
    pub async fn next(&mut self) -> anyhow::Result<Option<Response>> {
        let answer = self.0.recv::<Response>().await;
        match answer.map_err(|error| unreachable_farm(format!("the farm's answer broke off: {:#}", anyhow::Error::from(error))))? {
            Some(Response::Refused(refusal)) => Err(error_of(refusal)),
            answer => Ok(answer),
        }
    }

    /// Returns the next view of a build, passing events to `event`.
    pub async fn next_view(&mut self, mut event: impl FnMut(kiln_wire::client::Event)) -> anyhow::Result<Option<BuildView>> {
        loop {
            match self.next().await? {
                Some(Response::Build(view)) => return Ok(Some(view)),
                Some(Response::Event(told)) => event(told),
                Some(_) => return Err(unexpected("another kind")),
                None => return Ok(None),
            }
        }
    }
}

fn error_of(refusal: Refusal) -> anyhow::Error {
    match refusal.kind {
        RefusalKind::Invalid | RefusalKind::Missing | RefusalKind::NotFound => bad_input(refusal.message),
        RefusalKind::Forbidden | RefusalKind::StaleLease => anyhow::anyhow!(refusal.message),
        RefusalKind::Unavailable => unreachable_farm(refusal.message),
    }
}

/// An answer that this version does not understand.
pub fn unexpected(what: &str) -> anyhow::Error {
    anyhow::anyhow!("the farm answered {what} where this version of kiln expects something else; use the farm's version")
}
