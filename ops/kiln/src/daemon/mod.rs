//! `kiln daemon`: an unmodified Nix client builds on the farm, and has the farm's store for its own.
//!
//! A thin shell: what clients say is read and written by [`kiln_nix::daemon`]; what comes of it is asked of the farm, as `kiln build`
//! does. Keeps nothing but what `--to` brings.

mod add;
mod builds;
mod content;
mod local;
pub(crate) mod log_lines;
mod outcome;
mod outlook;
mod repair;
mod roots;
mod session;
mod stdio;
mod store;
mod stream;

use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use self::local::Local;
use self::store::Known;
use self::stream::Stream;
use crate::args::FarmArgs;
use crate::daemons::{runtime, told_to_stop};
use crate::words;

/// Arguments of `kiln daemon`.
#[derive(clap::Args)]
pub struct Args {
    /// Listen on this Unix socket, for `nix --store unix://P` and NIX_REMOTE; every user who can reach it may build. Not needed where
    /// systemd passes a socket
    #[arg(long, value_name = "P", conflicts_with = "stdio")]
    socket: Option<PathBuf>,
    /// Serve one client on standard input and output, for `nix --store 'ssh-ng://HOST?remote-program=…'`
    #[arg(long)]
    pub stdio: bool,
    /// Bring what clients build or ask about to this machine, below DIR as below `/`: clients of a socket read files there, with
    /// `--store 'unix://P?root=DIR'`
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
    #[command(flatten)]
    farm: FarmArgs,
}

/// What all connections share.
struct Daemon {
    farm: FarmArgs,
    known: Arc<Known>,
    local: Option<Arc<Local>>,
}

/// Serves clients until it is told to stop, or on standard input until the client is done.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let daemon = Arc::new(Daemon { farm: args.farm, known: Arc::default(), local: args.to.map(|to| Arc::new(Local::new(to))) });
    runtime()?.block_on(async {
        let (stop, stopped) = watch::channel(false);
        let mut told = Box::pin(told_to_stop());
        let mut sessions = JoinSet::new();
        match args.stdio {
            false => {
                // A socket that was passed is its maker's, who goes on listening when this ends.
                let (listener, own) = match passed()? {
                    Some(listener) => (listener, None),
                    None => {
                        let path = args.socket.ok_or_else(|| words::bad_input(NO_SOCKET))?;
                        (listen(&path)?, Some(path))
                    }
                };
                let socket = listener.local_addr().ok().and_then(|address| address.as_pathname().map(Path::to_path_buf));
                tracing::info!(socket = %socket.unwrap_or_default().display(), "serving Nix clients");
                tokio::select! {
                    told = &mut told => told?,
                    () = accept(&daemon, &listener, &stopped, &mut sessions) => {}
                }
                if let Some(path) = own {
                    std::fs::remove_file(&path).with_context(|| format!("remove `{}`", path.display()))?;
                }
            }
            true => {
                let (reader, writer) = stdio::halves()?;
                let stream = Stream::new(reader, writer, stopped);
                // A client that hears that it is trusted sends a recipe by itself to be built, and a farm builds from its own; one that is
                // not sends derivations. Nothing here is refused to it for that.
                let mut session = Box::pin(session::serve(daemon, stream, false));
                tokio::select! {
                    served = &mut session => return served.map(|()| ExitCode::from(words::SUCCESS)).map_err(anyhow::Error::from),
                    told = &mut told => told?,
                }
                stop.send_replace(true);
                session.await?;
            }
        }
        // What a client has running is cancelled, as if the client were gone.
        stop.send_replace(true);
        while sessions.join_next().await.is_some() {}
        Ok(ExitCode::from(words::SUCCESS))
    })
}

/// Takes the socket that systemd passes, if it does (`LISTEN_FDS`, `LISTEN_PID`): it has listened since before this process was there.
fn passed() -> anyhow::Result<Option<UnixListener>> {
    let refuse =
        |error: std::io::Error| words::bad_input(format!("take the socket that was passed: {error}; it must be a Unix stream socket"));
    let mut passed = listenfd::ListenFd::from_env();
    if passed.len() > 1 {
        return Err(words::bad_input(format!("{} sockets were passed, and this daemon serves one: give each a unit", passed.len())));
    }
    let Some(listener) = passed.take_unix_listener(0).map_err(refuse)? else { return Ok(None) };
    listener.set_nonblocking(true).map_err(refuse)?;
    UnixListener::from_std(listener).map(Some).map_err(refuse)
}

/// Makes the socket; one that a daemon left behind is replaced.
fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    let failed = || format!("listen on `{}`", path.display());
    match path.symlink_metadata() {
        Ok(meta) if meta.file_type().is_socket() => {
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                return Err(words::bad_input(format!("listen on `{}`: another daemon listens there", path.display())));
            }
            std::fs::remove_file(path).with_context(failed)?;
        }
        Ok(_) => return Err(words::bad_input(format!("listen on `{}`: it exists and is no socket", path.display()))),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(failed),
    }
    let listener = UnixListener::bind(path).with_context(failed)?;
    // As Nix's own: the rights of the directory say who may reach it.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666)).with_context(failed)?;
    Ok(listener)
}

/// Takes connections, for ever.
async fn accept(daemon: &Arc<Daemon>, listener: &UnixListener, stopped: &watch::Receiver<bool>, sessions: &mut JoinSet<()>) {
    loop {
        while sessions.try_join_next().is_some() {}
        if sessions.len() >= CONNECTIONS_MAX {
            sessions.join_next().await;
        }
        let connection = match listener.accept().await {
            Ok((connection, _)) => connection,
            Err(error) => {
                tracing::warn!(%error, "accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (daemon, stopped) = (daemon.clone(), stopped.clone());
        sessions.spawn(async move {
            let trusted = is_trusted(&connection);
            let (reader, writer) = connection.into_split();
            if let Err(error) = session::serve(daemon, Stream::new(reader, writer, stopped), trusted).await {
                tracing::debug!(error = %error, "connection ended early");
            }
        });
    }
}

/// As Nix trusts root: root, and whom this daemon runs as.
fn is_trusted(connection: &UnixStream) -> bool {
    let own = std::fs::metadata("/proc/self").map(|meta| meta.uid()).ok();
    connection.peer_cred().is_ok_and(|peer| peer.uid() == 0 || Some(peer.uid()) == own)
}

/// What somebody hears who started this by hand.
const NO_SOCKET: &str = "serve Nix clients: name a socket with --socket P, or use --stdio; systemd passes a socket by a unit of its own";
/// Connections at a time; a further one waits. Each holds a few descriptors, and a process has 1,024 of them where nobody raised that.
const CONNECTIONS_MAX: usize = 256;
/// Between tries to accept while the process has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
