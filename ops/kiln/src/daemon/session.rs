//! One connection: the handshake, then one request after the other.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use kiln_nix::Output;
use kiln_nix::daemon::{CLIENT_MAGIC, Encoder, FEATURES, Item, Mode, Note, Operation, Options, Request, SERVER_MAGIC, Target, Version};
use kiln_store::NarReader;
use kiln_wire::{DrvPath, GarbageRequest, StorePath};
use tokio::sync::mpsc;

use super::add::Wanted;
use super::content::PIECES_AHEAD;
use super::outlook::outlook;
use super::repair;
use super::roots::{self, Held};
use super::store::Store;
use super::stream::{Broken, Failure, Stream};
use super::{Daemon, add, builds};

/// Serves a client until it leaves.
pub(super) async fn serve(daemon: Arc<Daemon>, mut stream: Stream, trusted: bool) -> Result<(), Broken> {
    let greeted = tokio::time::timeout(GREETING_MAX, greet(&daemon, &mut stream, trusted)).await;
    let Some(store) = greeted.map_err(|_| Broken::Gone)?? else { return Ok(()) };
    let held = Held::new(store.client());
    let mut session = Session { store, stream, options: Options::default(), trusted, held };
    let served = session.serve().await;
    session.held.release().await;
    served
}

/// Agrees on a version with the client, and connects to the farm. None: the client has been told why not.
async fn greet(daemon: &Daemon, stream: &mut Stream, trusted: bool) -> Result<Option<Store>, Broken> {
    match stream.number().await? {
        None => return Ok(None),
        Some(CLIENT_MAGIC) => {}
        Some(_) => return Err(Broken::Alien),
    }
    // Before the client's version: old clients wait for ours.
    let mut ours = Encoder::default();
    ours.number(SERVER_MAGIC).number(Version::NEWEST.number());
    stream.send(ours).await?;
    let theirs = Version::from_number(stream.number().await?.ok_or(Broken::Gone)?);
    if theirs.major != Version::NEWEST.major {
        return Ok(None);
    }
    stream.speak(theirs.min(Version::NEWEST));
    if stream.version() >= Version::FEATURES_SINCE {
        stream.gather(&[Item::Records(1)]).await?.ok_or(Broken::Gone)?;
        let mut features = Encoder::default();
        features.list(FEATURES, |to, feature| to.text(feature));
        stream.send(features).await?;
    }
    // A processor to run on, if the client names one, and whether to reserve space: both mean nothing any more.
    if stream.number().await?.ok_or(Broken::Gone)? != 0 {
        stream.number().await?;
    }
    stream.number().await?.ok_or(Broken::Gone)?;
    let mut answer = Encoder::default();
    if stream.version() >= Version::NAME_SINCE {
        answer.text(concat!("kiln ", env!("CARGO_PKG_VERSION")));
    }
    if stream.version() >= Version::TRUST_SINCE {
        answer.number(if trusted { 1 } else { 2 });
    }
    let opened = match Version::agreed(theirs) {
        Some(_) => Store::open(daemon).await,
        None => Err(anyhow!(
            "this daemon speaks protocol {} to {}, and this Nix {theirs}: use Nix 2.8 or newer",
            Version::OLDEST,
            Version::NEWEST
        )),
    };
    let refused = opened.as_ref().err().map(|error| format!("{error:#}"));
    refused.as_deref().map_or(Note::Last, Note::Error).encode(stream.version(), &mut answer);
    stream.send(answer).await?;
    Ok(opened.ok())
}

struct Session {
    store: Store,
    stream: Stream,
    /// How its client wants to have things built.
    options: Options,
    /// Whether the client may delete.
    trusted: bool,
    /// What the client relies on.
    held: Held,
}

impl Session {
    /// Answers one request after the other.
    async fn serve(&mut self) -> Result<(), Broken> {
        while let Some(number) = self.stream.number().await? {
            let Some(operation) = Operation::from_number(number) else {
                // Nobody knows where its arguments end.
                let message = format!("operation {number} of the worker protocol is not known to this daemon");
                return self.stream.note(Note::Error(&message)).await;
            };
            match self.answer(operation).await {
                Ok(()) => {}
                Err(Failure::Broken(Broken::Protocol(error))) => return self.stream.note(Note::Error(&error.to_string())).await,
                Err(Failure::Broken(error)) => return Err(error),
                Err(Failure::Told(error)) => {
                    tracing::debug!(%operation, error = %format_args!("{error:#}"), "refused");
                    self.stream.note(Note::Error(&format!("{error:#}"))).await?;
                    // A client that hears of the error stops, and marks the end.
                    self.stream.skip_frames().await?;
                }
            }
        }
        Ok(())
    }

    async fn answer(&mut self, operation: Operation) -> Result<(), Failure> {
        let arguments = self.stream.gather(operation.items()).await?.ok_or(Broken::Gone)?;
        if operation.is_followed_by_frames() {
            self.stream.expect_frames();
        }
        let request = Request::decode(operation, self.store.store_dir(), &arguments).map_err(anyhow::Error::from)?;
        let mut answer = Encoder::default();
        Note::Last.encode(self.stream.version(), &mut answer);
        match request {
            Request::NarFromPath(path) => return self.send_archive(&path, answer).await,
            Request::BuildPaths(..) | Request::BuildPathsWithResults(..) | Request::BuildDerivation { .. } => {
                self.build(request, &mut answer).await?;
            }
            Request::AddToStore { .. } | Request::AddToStoreNar(_) | Request::AddMultipleToStore => self.add(request, &mut answer).await?,
            Request::SetOptions(options) => self.options = options,
            Request::VerifyStore { contents, repair } => {
                if repair {
                    repair::allow(self.trusted)?;
                }
                answer.truth(repair::whole_store(&self.store, &mut self.stream, contents, repair).await?);
            }
            Request::AddTempRoot(_)
            | Request::AddIndirectRoot(_)
            | Request::AddPermRoot(..)
            | Request::FindRoots
            | Request::QueryReferrers(_)
            | Request::QueryAllValidPaths
            | Request::CollectGarbage(_) => self.keep(request, &mut answer).await?,
            request => self.look(request, &mut answer).await?,
        }
        Ok(self.stream.send(answer).await?)
    }

    /// Answers what changes nothing.
    async fn look(&mut self, request: Request, answer: &mut Encoder) -> anyhow::Result<()> {
        let store = &self.store;
        let store_dir = store.store_dir();
        match request {
            Request::IsValidPath(path) => answer.truth(store.facts(&path).await?.is_some()),
            Request::QueryValidPaths(paths) => answer.paths(store_dir, &store.valid(paths).await?),
            Request::QueryPathInfo(path) => {
                let facts = store.facts(&path).await?;
                answer.truth(facts.is_some());
                facts.iter().for_each(|facts| facts.encode(store_dir, answer));
                answer
            }
            Request::QueryPathFromHashPart(hash_part) => {
                let info = store.narinfo(&hash_part).await?;
                answer.path_if_any(store_dir, info.as_ref().map(|info| &info.path))
            }
            // What the farm could take from elsewhere, it would take by itself when it needs it.
            Request::QuerySubstitutablePaths(_) => answer.paths(store_dir, &BTreeSet::new()),
            Request::QueryValidDerivers(path) => {
                let deriver = store.published(&path).await?.and_then(|info| info.deriver).map(|deriver| deriver.as_path().clone());
                answer.paths(store_dir, &store.valid(deriver.into_iter().collect()).await?)
            }
            Request::QueryDerivationOutputMap(path) => {
                let derivation = store.derivation(&path).await?;
                let derivation = derivation.with_context(|| format!("path `{}` is not valid", store_dir.join(path.as_path())))?;
                let realised =
                    store.outputs(&BTreeMap::from([(path.clone(), derivation.clone())])).await?.remove(&path).unwrap_or_default();
                let outputs = derivation.outputs.iter();
                let at = |name, output: &Output| output.path().cloned().or_else(|| realised.get(name).cloned());
                answer.list(outputs, |to, (name, output)| to.text(name.as_str()).path_if_any(store_dir, at(name, output).as_ref()))
            }
            Request::QueryMissing(targets) => {
                let outlook = outlook(store, &targets).await?;
                answer.paths(store_dir, &outlook.will_build).paths(store_dir, &outlook.will_substitute).paths(store_dir, &outlook.unknown);
                // What would be downloaded, and how large that is unpacked.
                answer.number(outlook.download_bytes).number(outlook.nar_bytes)
            }
            Request::QueryRealisation(id) => answer.list(store.realisation(&id).await?, |to, realisation| to.text(realisation)),
            Request::RegisterDrvOutput(realisation) => {
                store.register(realisation, self.trusted).await?;
                answer
            }
            Request::EnsurePath(path) => match store.facts(&path).await? {
                Some(_) => answer.number(DONE),
                None => bail!("path `{}` is not valid, and nothing was named that makes it", store_dir.join(&path)),
            },
            Request::Other(operation) => bail!("{operation}: {}", why_not(operation)),
            Request::AddToStore { .. }
            | Request::AddToStoreNar(_)
            | Request::AddMultipleToStore
            | Request::BuildPaths(..)
            | Request::BuildPathsWithResults(..)
            | Request::BuildDerivation { .. }
            | Request::NarFromPath(_)
            | Request::AddTempRoot(_)
            | Request::AddIndirectRoot(_)
            | Request::AddPermRoot(..)
            | Request::FindRoots
            | Request::QueryReferrers(_)
            | Request::QueryAllValidPaths
            | Request::CollectGarbage(_)
            | Request::VerifyStore { .. }
            | Request::SetOptions(_) => answer,
        };
        Ok(())
    }

    /// Answers what is about the store as a whole: what is kept, by whom, and what goes.
    async fn keep(&mut self, request: Request, answer: &mut Encoder) -> anyhow::Result<()> {
        let store = &self.store;
        let store_dir = store.store_dir();
        match request {
            Request::AddTempRoot(path) => self.held.hold(path).await.map(|()| answer.number(DONE))?,
            Request::AddIndirectRoot(link) => roots::add_link(store, &link).await.map(|()| answer.number(DONE))?,
            Request::AddPermRoot(path, name) => {
                ensure!(self.trusted, "keep a path for good: only a trusted client may ask for that");
                roots::add_permanent(store, path, &name).await?;
                answer.text(&name)
            }
            Request::FindRoots => {
                let found = roots::find(store).await?;
                answer.list(found.iter(), |to, (name, path)| to.text(name).path(store_dir, path))
            }
            Request::QueryReferrers(path) => answer.paths(store_dir, &roots::list(store, GarbageRequest::Referrers(path)).await?),
            Request::QueryAllValidPaths => answer.paths(store_dir, &roots::list(store, GarbageRequest::Paths).await?),
            Request::CollectGarbage(wanted) => {
                let (paths, free_bytes) = roots::collect(store, wanted, self.trusted).await?;
                // The last is what nobody counts any more.
                answer.paths(store_dir, &paths).number(free_bytes).number(0)
            }
            _ => answer,
        };
        Ok(())
    }

    async fn add(&mut self, request: Request, answer: &mut Encoder) -> Result<(), Failure> {
        match request {
            Request::AddToStore { name, method, algorithm, references } => {
                let wanted = Wanted { name, method, algorithm, references };
                let added = add::content(&self.store, &mut self.stream, wanted).await?;
                added.encode(self.store.store_dir(), answer);
            }
            Request::AddToStoreNar(stated) => add::archive(&self.store, &mut self.stream, stated).await?,
            _ => add::archives(&self.store, &mut self.stream).await?,
        }
        // What follows the last archive belongs to no path.
        Ok(self.stream.skip_frames().await?)
    }

    async fn build(&mut self, request: Request, answer: &mut Encoder) -> Result<(), Failure> {
        let version = self.stream.version();
        match request {
            Request::BuildPaths(targets, mode) => {
                let results = self.build_targets(&targets, mode).await?;
                let mut failures = results.iter().filter(|result| !result.message.is_empty()).map(|result| result.message.as_str());
                if let Some(first) = failures.next() {
                    let mut texts = BTreeSet::from([first]);
                    let further = failures.filter(|text| texts.insert(*text)).take(FAILURES_TOLD_MAX).collect::<Vec<_>>();
                    return Err(Failure::Told(anyhow!([&[first][..], &further].concat().join("\n"))));
                }
                answer.number(DONE);
            }
            Request::BuildDerivation { derivation, outputs, mode } => {
                let known = self
                    .store
                    .derivation(&derivation)
                    .await?
                    .with_context(|| cannot_check(&self.store.store_dir().join(derivation.as_path())))?;
                let path_of = |name| {
                    known.outputs.get(name).map(|output| output.path().map_or_else(String::new, |path| self.store.store_dir().join(path)))
                };
                if outputs.iter().any(|(name, path)| path_of(name).as_ref() != Some(path)) {
                    return Err(Failure::Told(anyhow!("derivation `{derivation}` has other outputs than the request says")));
                }
                let target = Target::Outputs { derivation, outputs: outputs.into_keys().collect() };
                self.build_targets(&[target], mode).await?.iter().for_each(|result| result.encode(version, answer));
            }
            Request::BuildPathsWithResults(targets, mode) => {
                let results = self.build_targets(&targets, mode).await?;
                answer.list(targets.iter().zip(&results), |to, (target, result)| {
                    result.encode(version, to.text(target.to_text(self.store.store_dir())));
                    to
                });
            }
            _ => {}
        }
        Ok(())
    }

    async fn build_targets(&mut self, targets: &[Target], mode: Mode) -> Result<Vec<kiln_nix::daemon::BuildResult>, Failure> {
        match mode {
            Mode::Normal => builds::build(&self.store, &mut self.stream, targets, self.options).await,
            Mode::Check => builds::check(&self.store, &mut self.stream, targets, self.options.keep_going).await,
            Mode::Repair => {
                repair::allow(self.trusted)?;
                repair::targets(&self.store, &mut self.stream, targets, self.options).await
            }
        }
    }

    /// Sends a path's archive, as it is, after `answer`. Once that has begun, an error can only end the connection.
    async fn send_archive(&mut self, path: &StorePath, answer: Encoder) -> Result<(), Failure> {
        if let Ok(path) = DrvPath::from_path(path.clone()) {
            let derivation = self.store.derivation(&path).await?;
            let derivation = derivation.with_context(|| format!("path `{}` is not valid", self.store.store_dir().join(path.as_path())))?;
            let bytes = derivation.print(self.store.store_dir());
            let mut archive = Vec::new();
            let read = kiln_nix::nar::of_file(&bytes[..], bytes.len() as u64).read_to_end(&mut archive);
            read.map_err(anyhow::Error::from)?;
            self.stream.send(answer).await?;
            return Ok(self.stream.send_bytes(&archive).await?);
        }
        let published = self.store.published(path).await?;
        let published = published.with_context(|| format!("path `{}` is not valid", self.store.store_dir().join(path)))?;
        let info = published.path_info().map_err(anyhow::Error::from)?;
        let blob = self.store.blob(&info).await?.into_bytes();
        self.stream.send(answer).await?;
        let (pieces, mut arriving) = mpsc::channel(PIECES_AHEAD);
        let size_bytes = info.nar_size_bytes;
        let unpacking = tokio::task::spawn_blocking(move || {
            let mut nar = NarReader::new(blob.reader(), size_bytes).map_err(std::io::Error::other)?;
            loop {
                let mut piece = vec![0; PIECE_BYTES];
                let count = nar.read(&mut piece)?;
                piece.truncate(count);
                // Ends early where nobody takes it.
                if count == 0 || pieces.blocking_send(piece).is_err() {
                    return std::io::Result::Ok(());
                }
            }
        });
        while let Some(piece) = arriving.recv().await {
            self.stream.send_bytes(&piece).await?;
        }
        let unpacked = unpacking.await.map_err(std::io::Error::other).flatten();
        Ok(unpacked.map_err(Broken::Io)?)
    }
}

/// Why an operation is not answered, and what to do.
fn why_not(operation: Operation) -> &'static str {
    match operation {
        Operation::OptimiseStore => "the farm keeps its store itself",
        Operation::AddSignatures => "the farm signs what it publishes, and keeps no other signatures",
        Operation::AddBuildLog => "the farm keeps the logs of its own builds only",
        _ => "the farm does not do that",
    }
}

fn cannot_check(derivation: &str) -> String {
    format!(
        "the farm does not have derivation `{derivation}`, and a recipe alone cannot be held against its output paths: \
         copy it with its closure first (`nix copy --derivation`), or build it with `--store`"
    )
}

/// What answers a request that has no other result.
const DONE: u64 = 1;
/// Failures that one error tells after the first.
const FAILURES_TOLD_MAX: usize = 9;
/// Bytes of an archive that are sent at a time.
const PIECE_BYTES: usize = 64 << 10;
/// Longest time for a greeting: more than it takes to find out that a farm has no leader. Who says nothing takes no place for ever.
const GREETING_MAX: Duration = Duration::from_secs(90);
