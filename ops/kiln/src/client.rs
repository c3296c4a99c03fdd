//! A client's way to a farm: finds the leading coordinator, asks it, goes on with the next one when it is gone, and turns refusals
//! into errors with the right exit code.

mod tries;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use kiln_link::{Dialer, Identity};
use kiln_route::Scouts;
use kiln_wire::client::{FarmView, Request, Response};

pub use self::tries::{Answers, AskError, Leading, Tries, lost, unexpected};
use crate::args::{DirArgs, FarmArgs};
use crate::beacon::Beacon;
use crate::words::{bad_input, unreachable_farm};

/// A farm, as a client reaches it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    scouts: Scouts,
    patience: Patience,
}

/// How long a client waits for a farm that it was connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// Not once every coordinator is gone: the farm is one process of this machine, and whoever stopped it knows.
    WhileAnyAnswers,
    /// [`LEADERLESS_MAX`], whoever answers: coordinators are elected and restarted.
    Long,
    /// Long enough for an election: somebody waits who can do without the farm.
    Short,
}

impl Patience {
    /// Returns the longest time without a leader, or without an answer that can be used.
    fn leaderless_max(self) -> Duration {
        match self {
            Self::WhileAnyAnswers | Self::Long => LEADERLESS_MAX,
            Self::Short => Duration::from_secs(10),
        }
    }
}

/// Longest time without a leader, or without an answer that can be used, after which a client gives up. Elections take less than a second,
/// restarts a few.
pub const LEADERLESS_MAX: Duration = Duration::from_secs(60);

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
                Some(hosts) => Self::open_remote(hosts, args).await.map(Some),
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

    async fn open_remote(hosts: &str, args: &FarmArgs) -> anyhow::Result<Self> {
        let coordinators = parse_hosts(hosts)?;
        let dir = args.identity.as_ref().ok_or_else(|| {
            bad_input("name the directory of your certificate with --identity; `kiln ca issue --role client/NAME` makes one")
        })?;
        let identity = Identity::load(dir).map_err(|error| bad_input(format!("{:#}", anyhow::Error::from(error))))?;
        Self::find(coordinators, &identity, Patience::Long).await
    }

    async fn open_local(beacon: &Beacon) -> anyhow::Result<Self> {
        let identity = Identity::load(&beacon.identity).context("read the local farm's client certificate")?;
        Self::find(vec![beacon.link.to_string()], &identity, Patience::WhileAnyAnswers).await
    }

    /// Finds the leader among coordinators, `host:port` each.
    pub async fn find(coordinators: Vec<String>, identity: &Identity, patience: Patience) -> anyhow::Result<Self> {
        let mut scouts = Scouts::start(Dialer::new(identity)?, coordinators);
        match scouts.leader_if_any(LEADERLESS_MAX).await {
            Ok(_) => Ok(Self { scouts, patience }),
            Err(lost) => Err(unreachable_farm(format!("connect to the farm: {}", lost.troubles))),
        }
    }

    /// Returns the same client, with another patience.
    pub fn with_patience(self, patience: Patience) -> Self {
        Self { patience, ..self }
    }

    /// Starts the tries of something that may be asked more than once.
    pub fn tries(&self) -> Tries {
        Tries::new(self.scouts.clone(), self.patience)
    }

    /// Asks what has one answer, of one leader after the other until one answers.
    pub async fn one(&self, request: &Request) -> anyhow::Result<Response> {
        let mut tries = self.tries();
        loop {
            match tries.leader().await?.one(request).await {
                Ok(answer) => return Ok(answer),
                Err(error) => tries.failed(error).await?,
            }
        }
    }

    /// Asks what has any number of answers, and collects what `take` finds in them.
    pub async fn all<T>(&self, request: &Request, take: impl Fn(Response) -> Option<Vec<T>>) -> anyhow::Result<Vec<T>> {
        let mut tries = self.tries();
        loop {
            match tries.leader().await?.all(request, &take).await {
                Ok(found) => return Ok(found),
                Err(error) => tries.failed(error).await?,
            }
        }
    }

    /// Asks for the farm at a glance.
    pub async fn status(&self) -> anyhow::Result<FarmView> {
        match self.one(&Request::Status).await? {
            Response::Status(view) => Ok(view),
            _ => Err(unexpected("another kind").into_error()),
        }
    }
}

/// Reads `HOST:PORT` or several with commas between them. Names are looked up with each try: they may lead elsewhere by then.
pub fn parse_hosts(hosts: &str) -> anyhow::Result<Vec<String>> {
    let is_address = |host: &str| host.rsplit_once(':').is_some_and(|(name, port)| !name.is_empty() && port.parse::<u16>().is_ok());
    match hosts.split(',').find(|host| !is_address(host)) {
        Some(_) => Err(bad_input(format!("`kiln://{hosts}`: want kiln://HOST:PORT, or several as kiln://HOST:PORT,HOST:PORT"))),
        None => Ok(hosts.split(',').map(str::to_owned).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_farm_is_named_by_one_coordinator_or_several() {
        for (hosts, count) in [("a:1", 1), ("a:1,b:2,[::1]:3", 3)] {
            assert_eq!(parse_hosts(hosts).expect(hosts).len(), count);
        }
        for hosts in ["", "a", "a:1,", "a:b", ":1", "a:1,b"] {
            assert!(parse_hosts(hosts).is_err(), "{hosts}");
        }
    }
}
