//! A whole farm inside this process: one coordinator and its workers, with a certificate authority that lives as long as they do.

use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use kiln_coordinator::{Config, Coordinator, Gc, Scope, Substituter, Token, TokenHash};
use kiln_link::{Authority, FarmName, Identity, Role};
use kiln_wire::{NodeId, StoreDir, WorkerId};
use kiln_worker::Worker;
use kiln_worker::launcher::{Launcher, Owner, Policy};

use crate::beacon::{Beacon, Lit};
use crate::client::{Client, Patience};
use crate::token;

/// What the farm should be like.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Where it keeps its state.
    pub dir: PathBuf,
    /// How many workers share the machine, at least 1.
    pub workers: u32,
    /// UDP address for clients; port 0 for any.
    pub link: SocketAddr,
    /// TCP address of the cache; port 0 for any.
    pub http: SocketAddr,
    /// The store directory of its paths.
    pub store_dir: StoreDir,
    /// Caches to take from what need not be built.
    pub substituters: Vec<Substituter>,
    /// Who may use the HTTP API.
    pub access: Access,
}

/// Who may use the HTTP API of a farm of one's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nobody: the farm lasts as long as one command.
    Nobody,
    /// Whoever reaches it may look; the holder of the token in its directory may do everything.
    Open,
    /// The holder of the token in its directory, who may do everything.
    Token,
}

/// A running farm.
pub struct Farm {
    /// Its coordinator.
    pub coordinator: Coordinator,
    workers: Vec<Worker>,
    client: Identity,
    beacon: Lit,
}

impl Farm {
    /// Starts a farm from what its directory holds; an empty or absent directory becomes a new farm.
    ///
    /// # Errors
    /// What the failing part says.
    pub async fn start(shape: Shape) -> anyhow::Result<Self> {
        let farm: FarmName = "kiln".parse()?;
        let authority = Authority::ephemeral(&farm)?;
        let tokens = match shape.access {
            Access::Nobody => Vec::new(),
            Access::Open | Access::Token => vec![admin_token(&shape.dir)?],
        };
        let identity = |role: Role| anyhow::Ok(Identity::from_credentials(&authority.issue(&role, CERTIFICATE_TTL)?)?);
        let config = Config {
            dir: shape.dir.clone(),
            farm: farm.to_string(),
            node: NodeId(1),
            listen: shape.link,
            http: shape.http,
            store_dir: shape.store_dir.clone(),
            identity: PathBuf::new(),
            store: None,
            signing_key: None,
            signing_keys: Vec::new(),
            retired_keys: Vec::new(),
            revoked_keys: Vec::new(),
            substituters: shape.substituters.clone(),
            tokens,
            anonymous_readers: shape.access == Access::Open,
            trusted_upload_keys: Vec::new(),
            join: Vec::new(),
            advertise: None,
            advertise_http: None,
            election_ms: [250, 400],
            gc: Gc::default(),
            traces: kiln_trace::Config::default(),
            webhooks: Vec::new(),
        };
        let coordinator = Coordinator::start(config, &identity(Role::Coordinator(NodeId(1)))?).await;
        let coordinator = coordinator.with_context(|| format!("start a coordinator in `{}`", shape.dir.display()))?;
        let mut workers = Vec::new();
        for number in 1..=shape.workers {
            let name = WorkerId::parse(&format!("local-{number}"))?;
            let config = worker_config(&shape, name.clone(), number, coordinator.link_addr());
            let program = std::env::current_exe().context("find this program, which also launches builds")?;
            let launcher = Launcher::in_process(&Policy::new(&config, Owner::own()), &program);
            let launcher = launcher.with_context(|| format!("start worker `{name}`"))?;
            let worker = Worker::start(&config, &identity(Role::Worker(name.clone()))?, launcher);
            workers.push(worker.with_context(|| format!("start worker `{name}`"))?);
        }
        // Whoever runs a farm of their own may do with it as they like.
        let role = Role::Admin("local".parse()?);
        let credentials = authority.issue(&role, CERTIFICATE_TTL)?;
        let client = Identity::from_credentials(&credentials)?;
        credentials.write(&shape.dir.join("client"))?;
        let beacon = light_beacon(&shape.dir, &coordinator)?;
        Ok(Self { coordinator, workers, client, beacon })
    }

    /// Connects to the farm as a client.
    pub async fn client(&self) -> anyhow::Result<Client> {
        Client::find(vec![self.coordinator.link_addr().to_string()], &self.client, Patience::WhileAnyAnswers).await
    }

    /// Stops everything. What runs is stopped too, and tried again at the next start.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.beacon.put_out()?;
        for worker in self.workers {
            worker.stop().await;
        }
        self.coordinator.stop().await;
        Ok(())
    }
}

/// Returns the token of the farm's administrator, which lies in its directory for whoever may read it there.
fn admin_token(dir: &Path) -> anyhow::Result<Token> {
    let path = dir.join(ADMIN_TOKEN);
    let token = match std::fs::read_to_string(&path) {
        Ok(text) if is_token(text.trim()) => text.trim().to_owned(),
        Ok(_) => {
            tracing::warn!("`{}` has no token in it, as after a crash while it was written: another one is made", path.display());
            new_token(dir, &path)?
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => new_token(dir, &path)?,
        Err(error) => return Err(error).with_context(|| format!("read `{}`", path.display())),
    };
    Ok(Token { name: "local".to_owned(), hash: TokenHash::of(&token), scope: Scope::Admin, tenant: None })
}

/// Returns whether a text is as tokens are drawn: what is shorter could be guessed.
fn is_token(text: &str) -> bool {
    text.len() == token::TOKEN_BYTES && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

fn new_token(dir: &Path, path: &Path) -> anyhow::Result<String> {
    let token = token::draw()?;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.and_then(|()| write_private(dir, path, &format!("{token}\n"))).with_context(|| format!("write `{}`", path.display()))?;
    Ok(token)
}

/// Writes a file whole or not at all, which nobody else may read, and which a crash does not take back.
fn write_private(dir: &Path, path: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write;
    let staged = path.with_extension("new");
    // One that a crash left, or that somebody put there: it may be open to others.
    match std::fs::remove_file(&staged) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&staged)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(staged, path)?;
    std::fs::File::open(dir)?.sync_all()
}

/// Divides the machine among the workers.
fn worker_config(shape: &Shape, name: WorkerId, number: u32, coordinator: SocketAddr) -> kiln_worker::Config {
    let dir = shape.dir.join("workers").join(name.as_str());
    let mut config = kiln_worker::Config::new(name, dir, vec![coordinator.to_string()]);
    if shape.workers > 1 {
        let cores = (processors() / shape.workers).max(1);
        config.cores = Some(cores);
        config.slots = Some(cores);
        config.slot_first = (number - 1) * config.users();
        config.memory_mib = memory_mib().map(|mib| (mib * 7 / 8 / u64::from(shape.workers)).max(64));
    }
    config
}

fn processors() -> u32 {
    std::thread::available_parallelism().ok().and_then(|count| u32::try_from(count.get()).ok()).unwrap_or(1)
}

fn memory_mib() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?.trim().strip_suffix("kB")?.trim();
    kib.parse::<u64>().ok().map(|kib| kib / 1024)
}

fn light_beacon(dir: &Path, coordinator: &Coordinator) -> anyhow::Result<Lit> {
    let dir = dir.canonicalize().with_context(|| format!("find `{}`", dir.display()))?;
    let beacon = Beacon {
        pid: std::process::id(),
        link: coordinator.link_addr(),
        cache: format!("http://{}", coordinator.http_addr()),
        public_key: coordinator.public_key(),
        identity: dir.join("client"),
    };
    beacon.light(&dir)
}

/// The authority dies with the process; a farm that runs longer than this is restarted for other reasons before.
const CERTIFICATE_TTL: Duration = Duration::from_secs(365 * 24 * 3600);

/// Where the administrator's token lies.
pub const ADMIN_TOKEN: &str = "admin-token";

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_token_that_is_there_stays_and_what_is_none_is_replaced() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join(ADMIN_TOKEN);
        let kept = "0123456789abcdfghijklmnpqrsvwxyz0123456789abcdfghijk";
        for (text, stays) in [
            (None, false),
            (Some(String::new()), false),
            (Some("\n".to_owned()), false),
            (Some("secret\n".to_owned()), false),
            (Some(kept.replace('0', " ")), false),
            (Some(format!("{kept}\n")), true),
        ] {
            std::fs::write(path.with_extension("new"), "left").expect("writes");
            match &text {
                Some(text) => std::fs::write(&path, text).expect("writes"),
                None => assert!(!path.exists()),
            }
            let token = admin_token(dir.path()).expect("a token");
            let written = std::fs::read_to_string(&path).expect("is there");
            assert!(token.hash == TokenHash::of(written.trim()) && is_token(written.trim()), "{text:?}");
            assert_eq!(written.trim() == kept, stays, "{text:?}");
            let mode = std::fs::metadata(&path).expect("is there").permissions().mode();
            assert!(stays || mode & 0o077 == 0, "{text:?}: {mode:o}");
            assert_eq!(admin_token(dir.path()).expect("a token"), token, "the next start knows it");
        }
    }
}
