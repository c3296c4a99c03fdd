//! What a client orders: derivations that are submitted as one build, followed to its end, and whose outputs are brought if wanted.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use kiln_nix::Derivation;
use kiln_wire::client::{BuildState, BuildView, Request, Response};
use kiln_wire::{BuildId, DrvPath, Evaluation, OutputName, Root, StoreDir, StorePath, Urgency};
use tokio::signal::unix::{SignalKind, signal};

use crate::args::FarmArgs;
use crate::client::{Client, unexpected};
use crate::embedded::{Access, Farm, Shape};
use crate::import::{self, Places};
use crate::progress::Progress;
use crate::submission::{Wanted, Watching, check, default_name, submit};
use crate::words::{self, bad_input};
use crate::{failures, json, realise};

/// Outputs of a derivation that a build makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MadeRoot {
    /// The derivation that is there.
    pub derivation: DrvPath,
    /// Its output that is a derivation, the output of that which is one, and so on; at least one.
    pub through: Vec<OutputName>,
    /// Which outputs of the last; all of them if none is named.
    pub outputs: BTreeSet<OutputName>,
}

/// Derivations to build as one build.
#[derive(Debug)]
pub struct Order {
    /// What is wanted.
    pub roots: Vec<Root>,
    /// What is wanted of derivations that are to be built themselves, each by a build before.
    pub made: Vec<MadeRoot>,
    /// Where its derivations and sources lie.
    pub places: Places,
    /// What people call the build; none: after its roots.
    pub name: Option<String>,
    /// Whether to build what does not need what failed.
    pub keep_going: bool,
    /// Build again what the farm has, and hold it against that.
    pub check: bool,
    /// What is said of the build's turn.
    pub urgency: Urgency,
    /// Whether to print JSON.
    pub json: bool,
    /// The attributes that roots are; several may be one root.
    pub attributes: Vec<(String, DrvPath)>,
    /// Attributes that do not evaluate, with what the evaluator said.
    pub errors: Vec<(String, String)>,
    /// Where to bring outputs and all they refer to; this stands for `/`.
    pub to: Option<PathBuf>,
    /// A link to make to the first output.
    pub out_link: Option<PathBuf>,
    /// Where a farm of this machine keeps its state.
    pub dir: PathBuf,
}

/// Works with the farm that the arguments name or that runs in `dir`, else with one that is started there and stopped afterwards; the
/// second argument of `work` says which.
pub async fn with_farm<R>(farm: &FarmArgs, dir: &Path, work: impl AsyncFnOnce(&Client, bool) -> anyhow::Result<R>) -> anyhow::Result<R> {
    match Client::open_if_any(farm, dir).await? {
        Some(client) => work(&client, false).await,
        None => {
            let farm = embed(dir).await?;
            let client = farm.client().await?;
            let worked = work(&client, true).await;
            farm.stop().await?;
            worked
        }
    }
}

async fn embed(dir: &Path) -> anyhow::Result<Farm> {
    let any_port = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    let shape = Shape {
        dir: dir.to_path_buf(),
        workers: 1,
        link: any_port,
        http: any_port,
        store_dir: store_dir_of_environment()?,
        substituters: Vec::new(),
        access: Access::Nobody,
    };
    Farm::start(shape).await
}

/// An embedded farm serves the store directory that this user's Nix has.
fn store_dir_of_environment() -> anyhow::Result<StoreDir> {
    std::env::var("NIX_STORE_DIR").map_or_else(|_| Ok(StoreDir::default()), |dir| StoreDir::parse(&dir).map_err(bad_input))
}

impl Order {
    /// Uploads what the farm lacks, submits, shows how it goes, and prints the output paths, or why there are none.
    pub async fn carry_out(&self, client: &Client, store_dir: &StoreDir, embedded: bool) -> anyhow::Result<ExitCode> {
        let mut progress = Progress::new(self.json, store_dir.clone());
        let first: Vec<Root> = self.roots.iter().cloned().chain(self.made.iter().map(MadeRoot::maker)).collect();
        import::upload(client, store_dir, &self.places, &first, &progress).await?;
        let (mut roots, mut places) = (self.roots.clone(), self.places.clone());
        let mut made = self.made.clone();
        // What makes them was uploaded with all that it needs, so that what is made needs nothing of this machine.
        while !made.is_empty() {
            let makers: Vec<Root> = made.iter().map(MadeRoot::maker).collect();
            let view = self.built(client, &makers, false, &mut progress).await?;
            if view.state != BuildState::Built {
                return self.explain(client, store_dir, &view, embedded).await;
            }
            let mut next = Vec::new();
            for (one, maker) in made.into_iter().zip(makers) {
                let paths = output_paths(client, &[maker], &places, store_dir, &view).await?;
                let (derivation, bytes) = made_derivation(client, paths).await?;
                places.derivations.insert(derivation.clone(), bytes);
                match one.through.get(1..).unwrap_or_default() {
                    [] => roots.push(Root { derivation, outputs: one.outputs }),
                    through => next.push(MadeRoot { derivation, through: through.to_vec(), outputs: one.outputs }),
                }
            }
            made = next;
        }
        let view = self.built(client, &roots, self.check, &mut progress).await?;
        if view.state != BuildState::Built {
            return self.explain(client, store_dir, &view, embedded).await;
        }
        let paths = output_paths(client, &roots, &places, store_dir, &view).await?;
        self.finish(client, store_dir, &view, &paths, &progress).await
    }

    /// Has roots built, and follows that to its end.
    async fn built(&self, client: &Client, roots: &[Root], is_check: bool, progress: &mut Progress) -> anyhow::Result<BuildView> {
        let name = self.name.clone().unwrap_or_else(|| default_name(roots));
        let (roots, evaluation) = self.evaluation(roots);
        let wanted = Wanted { name, roots, keep_going: self.keep_going, urgency: self.urgency.clone(), evaluation };
        let build = match is_check {
            false => submit(client, wanted).await?,
            true => check(client, wanted).await?,
        };
        let view = watch(client, build, progress).await?;
        progress.finish(&view);
        Ok(view)
    }

    /// Returns roots as they are submitted, with what is known of their evaluation.
    fn evaluation(&self, roots: &[Root]) -> (Vec<Root>, Option<Box<Evaluation>>) {
        let mut sorted = roots.to_vec();
        let named = self.attributes.iter().map(|(attribute, derivation)| (attribute.as_str(), derivation));
        let errors = self.errors.iter().map(|(attribute, message)| (attribute.as_str(), message.as_str()));
        let evaluation = Evaluation::gather(&mut sorted, named, errors);
        match evaluation.is_empty() {
            true => (roots.to_vec(), None),
            false => (sorted, Some(Box::new(evaluation))),
        }
    }

    async fn explain(&self, client: &Client, store_dir: &StoreDir, view: &BuildView, embedded: bool) -> anyhow::Result<ExitCode> {
        if !self.json {
            failures::explain(client, view, embedded.then_some(self.dir.as_path())).await?;
        } else {
            println!("{}", json::build(view, store_dir));
        }
        Ok(ExitCode::from(words::FAILED))
    }

    async fn finish(
        &self,
        client: &Client,
        store_dir: &StoreDir,
        view: &BuildView,
        paths: &[StorePath],
        progress: &Progress,
    ) -> anyhow::Result<ExitCode> {
        let to = self.to.clone().or_else(|| self.out_link.as_ref().map(|_| self.dir.join("outputs")));
        if let Some(root) = &to {
            realise::realise(client, paths.to_vec(), root, store_dir, progress).await?;
            if let (Some(link), Some(first)) = (&self.out_link, paths.first()) {
                make_link(link, &realise::store_below(root, store_dir).join(first.as_str()))?;
            }
        }
        if self.json {
            let mut shown = json::build(view, store_dir);
            if let Some(shown) = shown.as_object_mut() {
                shown.insert("paths".to_owned(), paths.iter().map(|path| store_dir.join(path)).collect());
            }
            println!("{shown}");
        } else {
            paths.iter().for_each(|path| println!("{}", store_dir.join(path)));
        }
        Ok(ExitCode::from(words::SUCCESS))
    }
}

impl MadeRoot {
    /// Returns what makes the first of the derivations.
    fn maker(&self) -> Root {
        Root { derivation: self.derivation.clone(), outputs: self.through.first().cloned().into_iter().collect() }
    }
}

/// Returns the one derivation that was made, and its file.
async fn made_derivation(client: &Client, paths: Vec<StorePath>) -> anyhow::Result<(DrvPath, Vec<u8>)> {
    let path = paths.into_iter().next().context("a derivation was built, and the farm does not say where")?;
    let derivation = DrvPath::from_path(path).map_err(|error| bad_input(format!("what was built is no derivation: {error}")))?;
    let files = client
        .all(
            &Request::Derivations(vec![derivation.clone()]),
            |answer| if let Response::Derivations(files) = answer { Some(files) } else { None },
        )
        .await?;
    let file = files.into_iter().next().with_context(|| format!("`{derivation}` was built, and the farm does not have it"))?;
    Ok((derivation, file.bytes))
}

/// Follows a build to its end. An interrupt cancels it, so that nothing goes on that nobody waits for; another leaves at once.
async fn watch(client: &Client, build: BuildId, progress: &mut Progress) -> anyhow::Result<BuildView> {
    // One listener for the whole time: an interrupt between two looks must not be lost.
    let mut interrupts = signal(SignalKind::interrupt()).context("listen for interrupts")?;
    let mut watching = Watching::new(client, build);
    let mut last = None;
    let mut cancelled = false;
    loop {
        let next = tokio::select! {
            next = watching.next(|event| progress.event(&event)) => next?,
            Some(()) = interrupts.recv() => {
                if cancelled {
                    return Err(left(build));
                }
                cancelled = true;
                progress.say("interrupted: the build is being cancelled; interrupt again to leave at once");
                let cancel = Request::Cancel(build);
                tokio::select! {
                    answer = client.one(&cancel) => drop(answer?),
                    Some(()) = interrupts.recv() => return Err(left(build)),
                }
                continue;
            }
        };
        match next {
            Some(view) => {
                progress.view(&view);
                last = Some(view);
            }
            None => return last.ok_or_else(|| unexpected("nothing").into_error()),
        }
    }
}

fn left(build: BuildId) -> anyhow::Error {
    anyhow::anyhow!("interrupted again: build {build} may not be cancelled yet; look with `kiln status`")
}

/// Replaces a link of ours, never something else.
fn make_link(link: &Path, target: &Path) -> anyhow::Result<()> {
    let target = target.canonicalize().with_context(|| format!("find `{}`", target.display()))?;
    match link.symlink_metadata() {
        Ok(meta) if !meta.is_symlink() => {
            return Err(bad_input(format!("`{}` exists and is no link: choose another --out-link", link.display())));
        }
        Ok(_) => std::fs::remove_file(link).with_context(|| format!("replace `{}`", link.display()))?,
        Err(_) => {}
    }
    std::os::unix::fs::symlink(&target, link).with_context(|| format!("make link `{}`", link.display()))
}

/// The wanted outputs, read from the derivations: a root that the farm had already is no part of the build's record. Paths that only builds tell
/// come from the record, or from the farm.
async fn output_paths(
    client: &Client,
    roots: &[Root],
    places: &Places,
    store_dir: &StoreDir,
    view: &BuildView,
) -> anyhow::Result<Vec<StorePath>> {
    let mut paths = Vec::new();
    for root in roots {
        let path = &root.derivation;
        let read = places.derivation(path).with_context(|| format!("read derivation `{path}`"))?;
        let bytes = read.ok_or_else(|| bad_input(format!("derivation `{path}` disappeared")))?;
        let derivation = Derivation::parse(store_dir, path.name(), &bytes)?;
        let mut made = view.outputs.get(path).cloned().unwrap_or_default();
        if made.is_empty() && derivation.outputs.values().any(|output| output.path().is_none()) {
            made = realised(client, path).await?;
        }
        for (name, output) in derivation.outputs.iter().filter(|(name, _)| root.outputs.is_empty() || root.outputs.contains(*name)) {
            let path = output.path().or_else(|| made.get(name));
            paths.push(
                path.with_context(|| format!("output `{name}` of `{}` is built, and the farm does not say where", root.derivation))?
                    .clone(),
            );
        }
    }
    Ok(paths)
}

/// Where the outputs of a derivation are that was built before.
async fn realised(client: &Client, derivation: &DrvPath) -> anyhow::Result<BTreeMap<OutputName, StorePath>> {
    match client.one(&Request::Outputs(vec![derivation.clone()])).await? {
        Response::Outputs(mut outputs) => Ok(outputs.remove(derivation).unwrap_or_default()),
        _ => Err(unexpected("another kind").into_error()),
    }
}
