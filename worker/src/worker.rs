//! A whole worker: opens its directories, finds the leading coordinator, serves session after session until it is told to stop.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kiln_agent::{Admission, StaleLeader};
use kiln_link::{Connection, Dialer, Identity, LinkError, Role};
use kiln_route::{Found, Pause, Scouts};
use kiln_wire::WorkerId;
use kiln_wire::worker::{FromWorker, ToWorker};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use crate::admission::{Gauges, LOOK_EVERY};
use crate::config::{Config, ConfigError};
use crate::failure::chain;
use crate::journal::{Journal, JournalError};
use crate::launcher::Launcher;
use crate::session::{Happening, Session, SessionEnd};
use crate::shell::{AttemptEvent, Shell};
use crate::uplink::Uplink;
use crate::workshop::{Workshop, WorkshopError};

/// Longest time that a worker which stops waits for the acknowledgement of its last results. They stay in the journal.
const FAREWELL: Duration = Duration::from_secs(10);
/// The first pause before a leader is greeted again after a session with it failed.
const PAUSE_MIN: Duration = Duration::from_millis(20);
/// The longest such pause.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// A worker that cannot start.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The configuration is no good.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The certificate is of another role or name.
    #[error("start worker `{name}`: its certificate is that of {found}")]
    OtherName {
        /// The name in the configuration.
        name: WorkerId,
        /// Who the certificate says it is.
        found: String,
    },
    /// No links can be made.
    #[error("prepare links")]
    Link(#[from] LinkError),
    /// The directories cannot be used.
    #[error(transparent)]
    Workshop(#[from] WorkshopError),
    /// The journal cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The logs cannot be listed.
    #[error("open the logs of attempts in `{path}`")]
    Logs {
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        err: std::io::Error,
    },
    /// No signal handlers can be set.
    #[error("listen for signals")]
    Signals(#[source] std::io::Error),
    /// The launcher cannot be watched.
    #[error("watch the worker's launcher")]
    Watch(#[source] std::io::Error),
    /// The launcher ended, and a worker without privileges cannot start another.
    #[error("the worker's launcher ended, and with it every build; what was being built is built again. Start the worker again")]
    LauncherGone,
}

/// A running worker.
#[derive(Debug)]
pub struct Worker {
    orders: watch::Sender<Order>,
    task: JoinHandle<Result<(), WorkerError>>,
}

/// What a worker was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Order {
    Work,
    /// Take nothing new; end when what runs has ended and is acknowledged.
    Finish,
    /// Kill what runs and end.
    Stop,
}

impl Worker {
    /// Starts a worker in this process, whose builders `launcher` runs. Needs a multi-threaded runtime, and a file system of its own
    /// choosing below `config.dir`. Returns once its directories are open; it finds the farm by itself.
    ///
    /// # Errors
    /// [`WorkerError`] says what is wrong with the configuration, the identity or the machine.
    pub fn start(config: &Config, identity: &Identity, launcher: Launcher) -> Result<Self, WorkerError> {
        config.check()?;
        check_name(config, identity)?;
        let dialer = Dialer::new(identity)?;
        let (connection, uplink) = Uplink::new();
        let launcher_end = launcher.end().map_err(WorkerError::Watch)?;
        let workshop = Arc::new(Workshop::open(config, uplink, launcher)?);
        let offer = workshop.offer(config);
        let logs_dir = config.dir.join("logs");
        let logs = |err| WorkerError::Logs { path: logs_dir.clone(), err };
        crate::trash::private_dir(&logs_dir).map_err(logs)?;
        let journal = Journal::open(&config.dir.join("state/journal"))?;
        let (events_sender, events) = mpsc::unbounded_channel();
        let shell = Shell::new(config.name.clone(), offer, journal, logs_dir.clone(), workshop.clone(), events_sender).map_err(logs)?;
        let (orders, told) = watch::channel(Order::Work);
        let scouts = Scouts::start(dialer.clone(), config.coordinators.iter().cloned());
        let pause = Pause::new(PAUSE_MIN, PAUSE_MAX);
        let health = Health::new(config);
        let (launcher_gone, farewell) = (false, None);
        let task = Life { shell, workshop, launcher_end, events, dialer, scouts, pause, connection, told, health, launcher_gone, farewell };
        Ok(Self { orders, task: tokio::spawn(task.run()) })
    }

    /// Kills what runs and ends. Unacknowledged results are sent again when a worker is started on the same directory.
    pub async fn stop(self) {
        self.order(Order::Stop).await;
    }

    /// Takes nothing new and ends when what runs has ended, and its results are acknowledged.
    pub async fn finish(self) {
        self.order(Order::Finish).await;
    }

    async fn order(self, order: Order) {
        self.orders.send_if_modified(|told| std::mem::replace(told, order.max(*told)) != order);
        match self.task.await {
            Ok(Ok(())) => {}
            Ok(Err(err)) => tracing::error!(err = %chain(&err), "the worker ended"),
            Err(err) => tracing::error!(%err, "the worker died"),
        }
    }
}

/// Runs a worker until SIGTERM (what runs is finished first; a second one kills it) or SIGINT (it is killed).
///
/// # Errors
/// As [`Worker::start`]; [`WorkerError::LauncherGone`].
pub async fn run(config: Config, identity: Identity, launcher: Launcher) -> Result<(), WorkerError> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).map_err(WorkerError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(WorkerError::Signals)?;
    let Worker { orders, mut task } = Worker::start(&config, &identity, launcher)?;
    loop {
        let order = tokio::select! {
            ended = &mut task => return ended.unwrap_or(Ok(())),
            _ = terminate.recv() => if *orders.borrow() == Order::Work { Order::Finish } else { Order::Stop },
            _ = interrupt.recv() => Order::Stop,
        };
        tracing::info!(?order, "told to stop");
        orders.send_replace(order);
    }
}

fn check_name(config: &Config, identity: &Identity) -> Result<(), WorkerError> {
    match &identity.peer().role {
        Role::Worker(name) if name.as_str() == config.name.as_str() => Ok(()),
        Role::Worker(_) | Role::Coordinator(_) | Role::Client(_) | Role::Admin(_) => {
            Err(WorkerError::OtherName { name: config.name.clone(), found: identity.peer().to_string() })
        }
    }
}

async fn until(time: Option<Instant>) {
    if let Some(time) = time {
        tokio::time::sleep_until(time).await;
    }
}

/// What the machine is short of, look after look.
struct Health {
    gauges: Gauges,
    admission: Admission,
    look: Interval,
}

impl Health {
    fn new(config: &Config) -> Self {
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { gauges: Gauges::new(&config.dir), admission: Admission::new(config.bounds()), look }
    }
}

/// The one task that owns a worker.
struct Life {
    shell: Shell,
    workshop: Arc<Workshop>,
    /// Ends when the launcher does.
    launcher_end: watch::Receiver<()>,
    events: mpsc::UnboundedReceiver<AttemptEvent>,
    dialer: Dialer,
    scouts: Scouts,
    /// Before the next session, if the last one failed before its welcome.
    pause: Pause,
    connection: watch::Sender<Option<Connection>>,
    told: watch::Receiver<Order>,
    health: Health,
    launcher_gone: bool,
    /// Until when a worker that was told to finish waits for acknowledgements; set once nothing runs.
    farewell: Option<Instant>,
}

impl Life {
    async fn run(mut self) -> Result<(), WorkerError> {
        let mut pausing = false;
        while let Some(found) = self.find(pausing).await {
            let address = found.connection.remote_addr();
            let end = self.serve(&found).await;
            self.connection.send_replace(None);
            pausing = !self.shell.is_connected();
            self.shell.disconnected();
            found.connection.close("the session has ended");
            match end {
                Some(end) => tracing::info!(coordinator = %address, reason = %chain(&end), "session ended"),
                None => break,
            }
        }
        let launcher_gone = self.launcher_gone;
        self.shell.kill_all();
        while self.shell.is_busy() {
            let Some(event) = self.events.recv().await else { break };
            // There is no session: whatever is to be said waits in the journal.
            let _ = self.shell.take(event);
        }
        let launcher = self.workshop.launcher.clone();
        if let Err(err) = tokio::task::spawn_blocking(move || launcher.close()).await {
            tracing::warn!(%err, "wait for the launcher");
        }
        self.dialer.close("the worker stops").await;
        if launcher_gone { Err(WorkerError::LauncherGone) } else { Ok(()) }
    }

    /// Waits for a leader, after a pause if so wanted; attempts go on meanwhile. Nothing if the worker is to end.
    async fn find(&mut self, pausing: bool) -> Option<Found> {
        let mut paused = !pausing;
        loop {
            if self.is_over() {
                return None;
            }
            tokio::select! {
                () = self.pause.wait(), if !paused => paused = true,
                found = self.scouts.leader(), if paused => return Some(found),
                Some(event) = self.events.recv() => {
                    // Without a session nothing is sent; the agent says everything again after the next welcome.
                    let _ = self.shell.take(event);
                }
                _ = self.health.look.tick() => {
                    let _ = self.look();
                }
                changed = self.told.changed() => if changed.is_err() { return None },
                _ = self.launcher_end.changed(), if !self.launcher_gone => self.launcher_gone = true,
                () = until(self.farewell), if self.farewell.is_some() => {}
            }
        }
    }

    /// Whether there is nothing left to do for a worker that was told to end.
    fn is_over(&mut self) -> bool {
        // An owner that is gone can tell nothing more: builds must not outlive it.
        let order = if self.launcher_gone || self.told.has_changed().is_err() { Order::Stop } else { *self.told.borrow_and_update() };
        match order {
            Order::Work => false,
            Order::Finish => {
                self.shell.stop_accepting();
                if self.shell.is_busy() {
                    return false;
                }
                let farewell = *self.farewell.get_or_insert_with(|| Instant::now() + FAREWELL);
                !self.shell.owes_results() || Instant::now() >= farewell
            }
            Order::Stop => true,
        }
    }

    /// Serves one session; returns why it ended, or nothing if the worker is to end.
    async fn serve(&mut self, found: &Found) -> Option<SessionEnd> {
        let mut session = match Session::open(&found.connection).await {
            Ok(session) => session,
            Err(err) => return Some(err.into()),
        };
        session.send(FromWorker::Hello(self.shell.hello()));
        loop {
            if self.is_over() {
                return None;
            }
            let happening = tokio::select! {
                _ = self.health.look.tick() => match self.look() {
                    Ok(messages) => {
                        messages.into_iter().for_each(|message| session.send(message));
                        continue;
                    }
                    Err(stale) => return Some(stale.into()),
                },
                happening = session.next(&mut self.shell, &mut self.events) => happening,
                () = self.scouts.superseded(found.leader) => return Some(SessionEnd::Superseded),
                changed = self.told.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return None,
                },
                () = until(self.farewell), if self.farewell.is_some() => continue,
                _ = self.launcher_end.changed(), if !self.launcher_gone => {
                    self.launcher_gone = true;
                    continue;
                }
            };
            if let Err(end) = happening.and_then(|happening| self.happened(happening, &found.connection, &mut session)) {
                return Some(end);
            }
        }
    }

    /// Looks at the machine; returns what the leader is to be told.
    fn look(&mut self) -> Result<Vec<FromWorker>, StaleLeader> {
        let vitals = self.health.gauges.read();
        let strain = self.health.admission.look(&vitals, self.shell.is_busy());
        let wanted = self.health.admission.room_wanted(&vitals);
        if wanted > 0 {
            let workshop = self.workshop.clone();
            // Nobody waits for it: the next look sees what became of it.
            drop(tokio::task::spawn_blocking(move || workshop.cache.make_room(wanted)));
        }
        let messages = self.shell.strained(strain)?;
        for message in &messages {
            match message {
                FromWorker::Admission(Some(strain)) => tracing::warn!(why = strain.message, "the worker takes nothing new"),
                FromWorker::Admission(None) => tracing::info!("the worker takes jobs again"),
                FromWorker::Hello(_)
                | FromWorker::Heartbeat
                | FromWorker::Winding(_)
                | FromWorker::Started(_)
                | FromWorker::Log { .. }
                | FromWorker::Finished { .. } => {}
            }
        }
        Ok(messages)
    }

    fn happened(&mut self, happening: Happening, connection: &Connection, session: &mut Session) -> Result<(), SessionEnd> {
        let messages = match happening {
            Happening::Message(ToWorker::NotLeader(answer)) => return Err(SessionEnd::NotLeader(answer)),
            Happening::Message(message) => {
                let welcome = matches!(message, ToWorker::Welcome { .. });
                let messages = self.shell.receive(message)?;
                if welcome && self.shell.is_connected() {
                    tracing::info!(coordinator = %connection.remote_addr(), "welcomed");
                    session.welcomed();
                    self.pause.reset();
                    self.connection.send_replace(Some(connection.clone()));
                }
                messages
            }
            Happening::Event(event) => {
                let mut messages = self.shell.take(event)?;
                // What an end gives back is seen at once.
                messages.extend(self.look()?);
                messages
            }
        };
        messages.into_iter().for_each(|message| session.send(message));
        Ok(())
    }
}
