//! A scripted coordinator on the loopback: real links, real blobs, no decisions but the test's.

#![allow(dead_code, reason = "each test program uses a part of it")]

mod leaders;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kiln_link::{Authority, BlobSource, Connection, Identity, Listener, Receiver, Role, Sender};
use kiln_nix::derivation::{Derivation, Output, path_of_parsed};
use kiln_nix::scan::Candidates;
use kiln_store::{Begun, Location, Packer, Provenance, Store, StoreConfig, Uploads};
use kiln_wire::client::{Refusal, RefusalKind, Request, Response};
use kiln_wire::worker::{Assignment, FromWorker, Hello, ToWorker};
use kiln_wire::{
    AttemptId, BuiltOutput, DrvPath, Epoch, JobLimits, Leader, Lease, NodeId, Outcome, OutputName, PathInfo, Resources, StoreDir,
    StorePath, WorkerId,
};
use kiln_worker::launcher::{Launcher, Owner, Policy};
use kiln_worker::{Config, Worker};
use tokio::sync::{Mutex as AsyncMutex, mpsc, watch};

/// Longest wait for anything: machines that run tests are loaded.
const PATIENCE: Duration = Duration::from_secs(60);

/// The coordinator that a farm starts with.
const FIRST: NodeId = NodeId(1);

/// A farm of one scripted coordinator or several, and the directories of its worker.
pub struct Farm {
    pub dir: tempfile::TempDir,
    authority: Authority,
    state: Arc<State>,
    addr: SocketAddr,
    heard: AsyncMutex<mpsc::UnboundedReceiver<FromWorker>>,
    logs: Mutex<BTreeMap<AttemptId, Vec<u8>>>,
}

/// One try of an upload, as the farm saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadTry {
    pub path: StorePath,
    pub offset_bytes: u64,
    pub came_bytes: u64,
}

/// Done while no connection stands.
type Between = Box<dyn FnOnce() + Send>;

struct State {
    blobs: Mutex<BTreeMap<StorePath, (PathInfo, Vec<u8>)>>,
    /// What may be uploaded: candidates of each attempt.
    candidates: Mutex<BTreeSet<StorePath>>,
    uploads: Mutex<BTreeMap<StorePath, PathInfo>>,
    fetches: Mutex<Vec<(StorePath, u64)>>,
    /// Cuts the connection once the worker has a piece of this path in the directory.
    cut: Mutex<Option<(StorePath, PathBuf)>>,
    /// Fetches wait for each other here.
    together: Mutex<Option<Arc<tokio::sync::Barrier>>>,
    /// Fetches under way, and the most there were at a time.
    fetching: Mutex<(usize, usize)>,
    /// Keeps uploads that were cut, as a coordinator does.
    parked: Uploads,
    store: Store,
    /// Where each upload began, and what came of it.
    upload_tries: Mutex<Vec<UploadTry>>,
    /// Cuts the connection once so many bytes of an upload have come, after doing this.
    cut_upload: Mutex<Option<(u64, Between)>>,
    /// Uploads wait here.
    gate: Arc<tokio::sync::Mutex<()>>,
    /// What every upload is answered, unread.
    answers: Mutex<Vec<Response>>,
    connections: Mutex<Vec<Connection>>,
    outbox: Mutex<Option<mpsc::UnboundedSender<ToWorker>>>,
    sender: mpsc::UnboundedSender<FromWorker>,
    epoch: Mutex<u64>,
    /// Bytes of log that came, by attempt.
    log_bytes: Mutex<BTreeMap<AttemptId, u64>>,
    leader: watch::Sender<Leader>,
    spool: tempfile::TempDir,
}

impl Farm {
    pub async fn start() -> Arc<Self> {
        assert!(rustix::process::geteuid().is_root(), "a worker needs root: run these tests as root");
        let authority = Authority::ephemeral(&"test".parse().expect("a name")).expect("authority");
        let identity = identity(&authority, "coordinator/1");
        let listener = Listener::bind("127.0.0.1:0".parse().expect("address"), &identity, None).expect("bind");
        let (sender, heard) = mpsc::unbounded_channel();
        let spool = tempfile::tempdir().expect("temporary directory");
        let store = StoreConfig {
            location: Location::Memory,
            store_dir: StoreDir::default(),
            spool_dir: spool.path().into(),
            cached_paths_max: 100,
        };
        let state = Arc::new(State {
            blobs: Mutex::default(),
            candidates: Mutex::default(),
            uploads: Mutex::default(),
            fetches: Mutex::default(),
            cut: Mutex::default(),
            together: Mutex::default(),
            fetching: Mutex::default(),
            parked: Uploads::default(),
            store: Store::open(store).await.expect("a store"),
            gate: Arc::default(),
            upload_tries: Mutex::default(),
            cut_upload: Mutex::default(),
            answers: Mutex::default(),
            connections: Mutex::default(),
            outbox: Mutex::default(),
            sender,
            epoch: Mutex::new(10),
            log_bytes: Mutex::default(),
            leader: watch::Sender::new(Leader { term: 1, node: FIRST }),
            spool,
        });
        let addr = listener.local_addr();
        tokio::spawn(accept(listener, FIRST, state.clone()));
        let dir = tempfile::tempdir().expect("temporary directory");
        Arc::new(Self { dir, authority, state, addr, heard: AsyncMutex::new(heard), logs: Mutex::default() })
    }

    /// Starts a worker of this farm on its one directory.
    pub fn worker(&self) -> Worker {
        self.worker_with(|_| ())
    }

    pub fn worker_with(&self, change: impl FnOnce(&mut Config)) -> Worker {
        let mut config = Config::new(worker_id(), self.dir.path().join("worker"), vec![self.addr.to_string()]);
        config.slots = Some(2);
        config.cores = Some(2);
        config.memory_mib = Some(1024);
        change(&mut config);
        let launcher = Launcher::in_thread(&Policy::new(&config, Owner::own())).expect("the launcher starts");
        Worker::start(&config, &identity(&self.authority, "worker/w1"), launcher).expect("the worker starts")
    }

    /// Packs a tree and offers it as an input.
    pub fn add(&self, path: &StorePath, tree: &Path) -> PathInfo {
        let packer = Packer { level: 1, spool_dir: self.state.spool.path().into() };
        let packed = packer.pack(tree, &Candidates::new([])).expect("packs");
        let info = packed.path_info(path.clone(), None, None);
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut packed.spool.into_bytes().reader(), &mut bytes).expect("reads");
        lock(&self.state.blobs).insert(path.clone(), (info.clone(), bytes));
        info
    }

    /// Flips one byte of a blob on the farm's side.
    pub fn corrupt(&self, path: &StorePath, at: usize) {
        lock(&self.state.blobs).get_mut(path).expect("offered").1[at] ^= 1;
    }

    /// Cuts the connection in the middle of a path, once.
    pub fn cut_in(&self, path: &StorePath) {
        *lock(&self.state.cut) = Some((path.clone(), self.dir.path().join("worker/incoming")));
    }

    /// From now on answers fetches only once so many of them wait.
    pub fn answer_fetches_together(&self, count: usize) {
        *lock(&self.state.together) = Some(Arc::new(tokio::sync::Barrier::new(count)));
    }

    /// The most fetches that were under way at a time.
    pub fn fetches_at_a_time(&self) -> usize {
        lock(&self.state.fetching).1
    }

    /// Cuts the connection once so many bytes of an upload have come, once, and does something before the worker can come back.
    pub fn cut_upload_at(&self, bytes: u64, between: impl FnOnce() + Send + 'static) {
        *lock(&self.state.cut_upload) = Some((bytes, Box::new(between)));
    }

    /// From now on takes no upload until this is dropped.
    pub async fn hold_uploads(&self) -> tokio::sync::OwnedMutexGuard<()> {
        self.state.gate.clone().lock_owned().await
    }

    /// Every try of an upload.
    pub fn upload_tries(&self) -> Vec<UploadTry> {
        lock(&self.state.upload_tries).clone()
    }

    /// From now on answers each upload so and does not read it.
    pub fn answer_uploads(&self, answers: &[Response]) {
        *lock(&self.state.answers) = answers.to_vec();
    }

    pub fn fetches(&self) -> Vec<(StorePath, u64)> {
        lock(&self.state.fetches).clone()
    }

    /// What was uploaded and verified.
    pub fn uploaded(&self, path: &StorePath) -> Option<PathInfo> {
        lock(&self.state.uploads).get(path).cloned()
    }

    pub fn lease(&self, derivation: &DrvPath, attempt: u64) -> Lease {
        Lease { derivation: derivation.clone(), attempt: AttemptId(attempt), worker: worker_id(), epoch: Epoch(*lock(&self.state.epoch)) }
    }

    pub fn assignment(&self, job: &Job, attempt: u64, inputs: Vec<PathInfo>) -> Assignment {
        let mut candidates = lock(&self.state.candidates);
        candidates.extend(inputs.iter().map(|info| info.path.clone()));
        candidates.extend(job.derivation.outputs.values().filter_map(Output::path).cloned());
        Assignment {
            leader: self.state.leader(),
            lease: self.lease(&job.path, attempt),
            store_dir: StoreDir::default(),
            derivation: job.bytes.clone(),
            inputs,
            input_outputs: BTreeMap::new(),
            resources: Resources { cores: 1, memory_mib: 256 },
            limits: JobLimits { wall_ms_max: 60_000, ..JobLimits::default() },
            resolved: None,
            trace: None,
        }
    }

    pub fn send(&self, message: ToWorker) {
        lock(&self.state.outbox).as_ref().expect("a session").send(message).expect("a live session");
    }

    pub fn dispatch(&self, assignment: &Assignment) {
        self.send(ToWorker::Dispatch(assignment.clone()));
    }

    pub fn revoke(&self, lease: &Lease) {
        self.send(ToWorker::Revoke { leader: self.state.leader(), lease: lease.clone() });
    }

    pub fn acknowledge(&self, lease: &Lease) {
        self.send(ToWorker::Acknowledge { derivation: lease.derivation.clone(), attempt: lease.attempt });
    }

    /// Breaks every connection.
    pub fn disconnect(&self) {
        lock(&self.state.connections).drain(..).for_each(|connection| connection.close("the test cuts"));
    }

    /// Waits for the next thing a worker says, heartbeats, logs and what only uploads aside; logs are kept.
    pub async fn hear(&self) -> FromWorker {
        let mut heard = self.heard.lock().await;
        loop {
            let message = tokio::time::timeout(PATIENCE, heard.recv()).await.expect("the worker says something in time");
            match message.expect("the farm lives") {
                FromWorker::Heartbeat | FromWorker::Winding(_) => {}
                FromWorker::Log { lease, offset_bytes, bytes } => self.keep_log(&lease, offset_bytes, &bytes),
                message => return message,
            }
        }
    }

    pub async fn hello(&self) -> Hello {
        match self.hear().await {
            FromWorker::Hello(hello) => hello,
            other => panic!("want a hello, got {other:?}"),
        }
    }

    /// Returns what was logged of an attempt so far.
    pub fn log(&self, lease: &Lease) -> String {
        let logs = lock(&self.logs);
        logs.get(&lease.attempt).map(|log| String::from_utf8_lossy(log).into_owned()).unwrap_or_default()
    }

    fn keep_log(&self, lease: &Lease, offset_bytes: u64, bytes: &[u8]) {
        let mut logs = lock(&self.logs);
        let log = logs.entry(lease.attempt).or_default();
        assert!(offset_bytes <= log.len() as u64, "a gap in the log");
        log.truncate(usize::try_from(offset_bytes).expect("small"));
        log.extend_from_slice(bytes);
    }

    /// Waits until the builder of an attempt runs.
    pub async fn started(&self, lease: &Lease) {
        let heard = self.hear().await;
        assert!(matches!(&heard, FromWorker::Started(of) if of == lease), "want a start, got {heard:?}");
    }

    /// Waits for the end of an attempt; returns its log and outcome.
    pub async fn finished(&self, lease: &Lease) -> (String, Outcome) {
        loop {
            match self.hear().await {
                FromWorker::Finished { lease: of, outcome } if of == *lease => return (self.log(lease), outcome),
                FromWorker::Started(_) | FromWorker::Hello(_) => {}
                other => panic!("unexpected: {other:?}"),
            }
        }
    }

    /// Dispatches and waits for success.
    pub async fn build(&self, job: &Job, attempt: u64, inputs: Vec<PathInfo>) -> Vec<BuiltOutput> {
        let assignment = self.assignment(job, attempt, inputs);
        self.dispatch(&assignment);
        let (log, outcome) = self.finished(&assignment.lease).await;
        self.acknowledge(&assignment.lease);
        match outcome {
            Outcome::Built { outputs, .. } => outputs,
            Outcome::Failed { failure, .. } => panic!("{failure:?}\n{log}"),
        }
    }
}

/// A derivation with its bytes and path.
pub struct Job {
    pub derivation: Derivation,
    pub bytes: Vec<u8>,
    pub path: DrvPath,
}

impl Job {
    pub fn new(derivation: Derivation) -> Self {
        let store_dir = StoreDir::default();
        let bytes = derivation.print(&store_dir);
        let path = path_of_parsed(&store_dir, &derivation, &bytes).expect("a path");
        Self { derivation, bytes, path }
    }

    /// A shell script, run by the busybox at `busybox` (`$b` in the script), with outputs that are named after it.
    pub fn script(name: &str, busybox: &StorePath, outputs: &[&str], script: &str) -> Self {
        let store_dir = StoreDir::default();
        let paths = outputs.iter().map(|output| (OutputName::parse(output).expect("a name"), store_path(&format!("{name}-{output}"))));
        let paths: BTreeMap<_, _> = paths.collect();
        let mut env: BTreeMap<String, Vec<u8>> =
            paths.iter().map(|(output, path)| (output.to_string(), store_dir.join(path).into_bytes())).collect();
        env.insert("busybox".into(), store_dir.join(busybox).into_bytes());
        Self::new(Derivation {
            name: name.into(),
            outputs: paths.into_iter().map(|(output, path)| (output, Output::InputAddressed(path))).collect(),
            inputs: BTreeMap::new(),
            sources: [busybox.clone()].into(),
            system: "x86_64-linux".into(),
            builder: format!("{}/bin/busybox", store_dir.join(busybox)),
            args: ["sh", "-c", &format!("b=$busybox/bin/busybox; {script}")].map(String::from).into(),
            env,
        })
    }
}

/// A store path whose hash part is made of its name.
pub fn store_path(name: &str) -> StorePath {
    let mut hash = kiln_nix::hash::Hasher::new(kiln_nix::hash::Algorithm::Sha256);
    hash.update(name.as_bytes());
    let hash = kiln_nix::hash::nix32(hash.finish().digest());
    StorePath::parse(&format!("{}-{name}", &hash[..32])).expect("a store path")
}

pub fn worker_id() -> WorkerId {
    WorkerId::parse("w1").expect("a name")
}

fn identity(authority: &Authority, role: &str) -> Identity {
    let role: Role = role.parse().expect("a role");
    let credentials = authority.issue(&role, Duration::from_secs(3600)).expect("issued");
    Identity::from_credentials(&credentials).expect("an identity")
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().expect("no test panicked with it")
}

async fn accept(listener: Listener, node: NodeId, state: Arc<State>) {
    while let Some(connection) = listener.accept().await {
        lock(&state.connections).push(connection.clone());
        let state = state.clone();
        tokio::spawn(async move {
            while let Ok(Some((sender, receiver))) = connection.accept().await {
                tokio::spawn(serve(state.clone(), node, connection.clone(), sender, receiver));
            }
        });
    }
}

/// Whatever ends a stream early is what the test did to it.
async fn serve(state: Arc<State>, node: NodeId, connection: Connection, mut sender: Sender, mut receiver: Receiver) -> Option<()> {
    match receiver.recv::<Request>().await.ok()?? {
        Request::Leader => leaders::tell(&state, node, &mut sender).await,
        Request::Session if state.leader().node != node => leaders::refuse(&mut sender).await,
        Request::Session => session(state, sender, receiver).await,
        Request::FetchBlob { path, offset_bytes } => fetch(state, connection, path, offset_bytes, &mut sender).await,
        Request::Upload { .. } if !lock(&state.answers).is_empty() => {
            drop(receiver);
            let answers = lock(&state.answers).clone();
            for answer in answers {
                sender.send(&answer).await.ok()?;
            }
            sender.finish().await.ok()
        }
        Request::Upload { output, .. } => {
            let response = upload(&state, &connection, output, &mut sender, &mut receiver).await?;
            sender.send(&response).await.ok()?;
            sender.finish().await.ok()
        }
        other => panic!("a worker asks for {other:?}"),
    }
}

async fn session(state: Arc<State>, mut sender: Sender, mut receiver: Receiver) -> Option<()> {
    let Some(FromWorker::Hello(hello)) = receiver.recv().await.ok()? else { panic!("a session starts with a hello") };
    let epoch = {
        let mut epoch = lock(&state.epoch);
        *epoch += 1;
        Epoch(*epoch)
    };
    let (outbox, mut inbox) = mpsc::unbounded_channel();
    let mut log_bytes = lock(&state.log_bytes).clone();
    log_bytes.retain(|attempt, _| hello.attempts.iter().any(|lease| lease.attempt == *attempt));
    let welcome = ToWorker::Welcome {
        leader: state.leader(),
        epoch,
        keep: hello.attempts.clone(),
        log_bytes,
        hears_strain: true,
        hears_winding: true,
    };
    sender.send(&welcome).await.ok()?;
    *lock(&state.outbox) = Some(outbox);
    state.sender.send(FromWorker::Hello(hello)).ok()?;
    loop {
        tokio::select! {
            message = receiver.recv::<FromWorker>() => {
                let message = message.ok()??;
                if let FromWorker::Log { lease, offset_bytes, bytes } = &message {
                    let mut known = lock(&state.log_bytes);
                    let known = known.entry(lease.attempt).or_default();
                    assert_eq!(offset_bytes, known, "the log goes on where the welcome said, or where it was");
                    *known += bytes.len() as u64;
                }
                state.sender.send(message).ok()?
            }
            message = inbox.recv() => sender.send(&message?).await.ok()?,
        }
    }
}

async fn fetch(state: Arc<State>, connection: Connection, path: StorePath, offset: u64, sender: &mut Sender) -> Option<()> {
    lock(&state.fetches).push((path.clone(), offset));
    {
        let mut fetching = lock(&state.fetching);
        fetching.0 += 1;
        fetching.1 = fetching.1.max(fetching.0);
    }
    let together = lock(&state.together).clone();
    if let Some(together) = together {
        together.wait().await;
    }
    let sent = send_input(&state, connection, path, offset, sender).await;
    lock(&state.fetching).0 -= 1;
    sent
}

async fn send_input(state: &State, connection: Connection, path: StorePath, offset: u64, sender: &mut Sender) -> Option<()> {
    let Some((info, bytes)) = lock(&state.blobs).get(&path).cloned() else {
        let refusal = Refusal { kind: RefusalKind::NotFound, message: format!("fetch `{path}`: the farm does not have it"), paths: vec![] };
        return sender.send(&Response::Refused(refusal)).await.ok();
    };
    sender.send(&Response::Blob(info.clone())).await.ok()?;
    let cut = lock(&state.cut).take_if(|(of, _)| *of == path);
    if let Some((_, incoming)) = cut {
        let sending = sender.send_blob(BlobSource::from(bytes), info.blob.size_bytes, offset);
        tokio::select! {
            _ = sending => panic!("the whole blob was sent before the worker had a piece of it"),
            () = first_piece(&incoming) => connection.close("the test cuts a blob"),
        }
        return None;
    }
    sender.send_blob(BlobSource::from(bytes), info.blob.size_bytes, offset).await.ok()?;
    sender.finish().await.ok()
}

/// Waits until something of what is fetched lies in the worker's directory.
async fn first_piece(incoming: &Path) {
    let has_piece = || {
        let mut entries = std::fs::read_dir(incoming).into_iter().flatten().flatten();
        entries.any(|entry| entry.metadata().is_ok_and(|meta| meta.is_file() && meta.len() > 0))
    };
    while !has_piece() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Takes an upload as a coordinator does: one whose connection breaks is parked, and goes on where it was.
async fn upload(
    state: &State,
    connection: &Connection,
    output: BuiltOutput,
    sender: &mut Sender,
    receiver: &mut Receiver,
) -> Option<Response> {
    drop(state.gate.lock().await);
    let candidates = lock(&state.candidates).clone();
    let info = output.info;
    let refused = |message: String| Response::Refused(Refusal { kind: RefusalKind::Invalid, message, paths: vec![] });
    let begun = state.parked.begin(&state.store, &info, Provenance::Built { candidates }, Instant::now());
    let (mut receiving, offset_bytes) = match begun {
        Ok(Begun::Receive(receiving, offset_bytes)) => (*receiving, offset_bytes),
        Ok(Begun::Complete(received)) => return Some(refused(format!("{:?} was parked", received.info()))),
        Err(err) => return Some(refused(format!("{err:?}"))),
    };
    sender.send(&Response::UploadAt(Some(offset_bytes))).await.ok()?;
    let mut came_bytes = 0;
    let took = receiver.recv_blob(info.blob.blake3, info.blob.size_bytes, offset_bytes, |bytes| {
        came_bytes += bytes.len() as u64;
        if let Some((_, between)) = lock(&state.cut_upload).take_if(|(at, _)| came_bytes >= *at) {
            between();
            connection.close("the test cuts an upload");
        }
        receiving.write(bytes)
    });
    let took = took.await;
    lock(&state.upload_tries).push(UploadTry { path: info.path.clone(), offset_bytes, came_bytes });
    if took.is_err() {
        state.parked.park(receiving, Instant::now());
        return None;
    }
    match receiving.finish() {
        Ok(received) => {
            lock(&state.uploads).insert(info.path.clone(), received.info().clone());
            Some(Response::Stored)
        }
        Err(err) => Some(refused(format!("{err:?}"))),
    }
}
