//! `kiln build`: from an expression or `.drv` files to output paths.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use kiln_link::Sender;
use kiln_wire::client::{BuildState, BuildView, Event, Request, Response, Submission};
use kiln_wire::{BuildId, DrvPath, OutputName, RequestId, Root, StoreDir, StorePath};
use tokio::signal::unix::{SignalKind, signal};

use crate::args::{DirArgs, FarmArgs};
use crate::client::{Answers, Client, Tries, unexpected};
use crate::daemons::runtime;
use crate::embedded::{Farm, Shape};
use crate::evaluate::{Expression, evaluate};
use crate::import::{self, Places};
use crate::progress::Progress;
use crate::words::{self, bad_input};
use crate::{failures, json, realise};

/// Arguments of `kiln build`.
#[derive(clap::Args)]
pub struct Args {
    /// Derivations to build, by file: all outputs of each, or those named as PATH.drv^out,dev
    #[arg(value_name = "PATH.drv")]
    paths: Vec<String>,
    /// Evaluate this Nix file, or the default.nix of this directory
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    file: Option<PathBuf>,
    /// Build this attribute of it
    #[arg(short = 'A', long = "attr", value_name = "ATTR")]
    attributes: Vec<String>,
    /// Pass an argument to the expression, as a Nix expression
    #[arg(long = "arg", num_args = 2, value_names = ["NAME", "EXPRESSION"])]
    args: Vec<String>,
    /// Pass an argument to the expression, as a string
    #[arg(long = "argstr", num_args = 2, value_names = ["NAME", "STRING"])]
    strings: Vec<String>,
    #[command(flatten)]
    farm: FarmArgs,
    #[command(flatten)]
    dir: DirArgs,
    /// What people call the build
    #[arg(long)]
    name: Option<String>,
    /// After a failure, build everything that does not need what failed
    #[arg(short, long)]
    keep_going: bool,
    /// Print JSON: an object per event, and the build last
    #[arg(long)]
    json: bool,
    /// Bring the outputs and all they refer to to this machine, below DIR as below `/`
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
    /// Make a link to the first output; implies --to with a directory of the farm's state
    #[arg(short = 'o', long, value_name = "LINK")]
    out_link: Option<PathBuf>,
}

/// Builds, shows how it goes, and prints the output paths.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    runtime()?.block_on(async {
        let (client, farm) = match Client::open_if_any(&args.farm, &args.dir.dir()).await? {
            Some(client) => (client, None),
            None => {
                let farm = embed(&args).await?;
                (farm.client().await?, Some(farm))
            }
        };
        let built = build(&args, &client, farm.is_some()).await;
        if let Some(farm) = farm {
            farm.stop().await?;
        }
        built
    })
}

async fn embed(args: &Args) -> anyhow::Result<Farm> {
    let any_port = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    let shape = Shape { dir: args.dir.dir(), workers: 1, link: any_port, http: any_port, store_dir: store_dir_of_environment()? };
    Farm::start(shape).await
}

/// An embedded farm serves the store directory that this user's Nix has.
fn store_dir_of_environment() -> anyhow::Result<StoreDir> {
    std::env::var("NIX_STORE_DIR").map_or_else(|_| Ok(StoreDir::default()), |dir| StoreDir::parse(&dir).map_err(bad_input))
}

async fn build(args: &Args, client: &Client, embedded: bool) -> anyhow::Result<ExitCode> {
    let farm = client.status().await?;
    let mut progress = Progress::new(args.json, farm.store_dir.clone());
    let (roots, places) = roots(args, &farm.store_dir)?;
    import::upload(client, &farm.store_dir, &places, &roots, &progress).await?;
    let name = args.name.clone().unwrap_or_else(|| default_name(&roots));
    let submission = Submission { request: draw_request(), name, roots: roots.clone(), keep_going: args.keep_going };
    let build = match client.one(&Request::Submit(submission)).await? {
        Response::Submitted(build) => build,
        _ => return Err(unexpected("another kind").into_error()),
    };
    let view = watch(client, build, &mut progress).await?;
    progress.finish(&view);
    if view.state == BuildState::Built {
        return finish(args, client, &farm.store_dir, &roots, &places, &view, &progress).await;
    }
    if !args.json {
        failures::explain(client, &view, embedded.then(|| args.dir.dir()).as_deref()).await?;
    } else {
        println!("{}", json::build(&view, &farm.store_dir));
    }
    Ok(ExitCode::from(words::FAILED))
}

/// Follows a build to its end. An interrupt cancels it, so that nothing goes on that nobody waits for; another leaves at once.
async fn watch(client: &Client, build: BuildId, progress: &mut Progress) -> anyhow::Result<BuildView> {
    // One listener for the whole time: an interrupt between two looks must not be lost.
    let mut interrupts = signal(SignalKind::interrupt()).context("listen for interrupts")?;
    let mut watching = Watching { build, tries: client.tries(), answers: None, told: HashSet::new() };
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

/// A build that is followed from one leader to the next. Each tells its events from the first that it knows of; none is passed on twice.
struct Watching {
    build: BuildId,
    tries: Tries,
    answers: Option<(Sender, Answers)>,
    /// Of each event that was passed on, a hash.
    told: HashSet<u64>,
}

impl Watching {
    /// Returns the next view; none after the last. Cancel safe.
    async fn next(&mut self, mut event: impl FnMut(Event)) -> anyhow::Result<Option<BuildView>> {
        loop {
            let told = &mut self.told;
            let next = match &mut self.answers {
                Some((_, answers)) => {
                    answers
                        .next_view(|fresh| {
                            if told.insert(hash(&fresh)) {
                                event(fresh)
                            }
                        })
                        .await
                }
                None => match self.tries.leader().await?.ask(&Request::Watch(self.build)).await {
                    Ok(stream) => {
                        self.answers = Some(stream);
                        continue;
                    }
                    Err(error) => Err(error),
                },
            };
            match next {
                Ok(view) => {
                    self.tries.progress();
                    return Ok(view);
                }
                Err(error) => {
                    self.answers = None;
                    self.tries.failed(error).await?;
                }
            }
        }
    }
}

fn hash(event: &Event) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    event.hash(&mut hasher);
    hasher.finish()
}

fn left(build: BuildId) -> anyhow::Error {
    anyhow::anyhow!("interrupted again: build {build} may not be cancelled yet; look with `kiln status`")
}

async fn finish(
    args: &Args,
    client: &Client,
    store_dir: &StoreDir,
    roots: &[Root],
    places: &Places,
    view: &BuildView,
    progress: &Progress,
) -> anyhow::Result<ExitCode> {
    let paths = output_paths(roots, places, store_dir)?;
    let to = args.to.clone().or_else(|| args.out_link.as_ref().map(|_| args.dir.dir().join("outputs")));
    if let Some(root) = &to {
        realise::realise(client, paths.clone(), root, store_dir, progress).await?;
        if let (Some(link), Some(first)) = (&args.out_link, paths.first()) {
            make_link(link, &realise::store_below(root, store_dir).join(first.as_str()))?;
        }
    }
    if args.json {
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

/// The wanted outputs, read from the derivations: a root that the farm had already is no part of the build's record.
fn output_paths(roots: &[Root], places: &Places, store_dir: &StoreDir) -> anyhow::Result<Vec<StorePath>> {
    let mut paths = Vec::new();
    for root in roots {
        let file =
            places.find(root.derivation.as_str()).ok_or_else(|| bad_input(format!("derivation `{}` disappeared", root.derivation)))?;
        let bytes = std::fs::read(&file).with_context(|| format!("read `{}`", file.display()))?;
        let derivation = kiln_nix::derivation::Derivation::parse(store_dir, root.derivation.name(), &bytes)?;
        let wanted = derivation.outputs.iter().filter(|(name, _)| root.outputs.is_empty() || root.outputs.contains(*name));
        paths.extend(wanted.filter_map(|(_, output)| output.path().cloned()));
    }
    Ok(paths)
}

fn roots(args: &Args, store_dir: &StoreDir) -> anyhow::Result<(Vec<Root>, Places)> {
    let mut places = Vec::new();
    let mut roots = Vec::new();
    for path in &args.paths {
        let (root, dir) = parse_root(path)?;
        roots.push(root);
        places.extend(dir.filter(|dir| !places.contains(dir)));
    }
    let here = Path::new("default.nix").exists().then(|| PathBuf::from("."));
    let file = args.file.clone().or_else(|| here.filter(|_| args.paths.is_empty()));
    match file {
        Some(file) => {
            let root = args.dir.dir().join("evaluation");
            let expression =
                Expression { file, attributes: args.attributes.clone(), args: pairs(&args.args), strings: pairs(&args.strings) };
            let found = evaluate(&expression, &root, store_dir)?;
            if found.is_empty() {
                let file = expression.file.display();
                return Err(bad_input(format!("`{file}` evaluates to no derivation; name an attribute that holds some with -A ATTR")));
            }
            roots.extend(found);
            places.push(realise::store_below(&root, store_dir));
        }
        None if roots.is_empty() => return Err(bad_input("nothing to build: name a .drv file, or a Nix file with -f FILE [-A ATTR]")),
        None if !args.attributes.is_empty() => return Err(bad_input("-A names an attribute of a Nix file: name the file with -f FILE")),
        None => {}
    }
    places.push(PathBuf::from(store_dir.as_str()));
    Ok((roots, Places(places)))
}

fn pairs(words: &[String]) -> Vec<(String, String)> {
    words.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect()
}

/// Reads `PATH.drv`, `PATH.drv^out,dev` or `PATH.drv!out,dev`, and returns where its inputs may lie too.
fn parse_root(text: &str) -> anyhow::Result<(Root, Option<PathBuf>)> {
    let (path, outputs) = text.split_once(['^', '!']).unwrap_or((text, "*"));
    let file = Path::new(path);
    let base_name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let derivation = DrvPath::parse(base_name).map_err(|error| bad_input(format!("build `{path}`: {error}")))?;
    if !file.exists() {
        return Err(bad_input(format!("build `{path}`: there is no such file")));
    }
    let named = if outputs == "*" { "" } else { outputs };
    let outputs = named.split(',').filter(|name| !name.is_empty()).map(OutputName::parse).collect::<Result<_, _>>().map_err(bad_input)?;
    Ok((Root { derivation, outputs }, file.parent().map(Path::to_path_buf)))
}

fn default_name(roots: &[Root]) -> String {
    match roots {
        [root] => root.derivation.name().to_owned(),
        [first, ..] => format!("{} and {} more", first.derivation.name(), roots.len() - 1),
        [] => "nothing".to_owned(),
    }
}

/// Draws a number that no other submission has: time and process are enough to tell clients of one farm apart.
fn draw_request() -> RequestId {
    use std::hash::{BuildHasher, Hasher};
    // The standard library's hasher is seeded from the system's randomness.
    let mut hasher = std::hash::RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    RequestId(hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_names_a_file_and_perhaps_outputs() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let file = dir.path().join("0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar.drv");
        std::fs::write(&file, "").expect("write");
        let path = file.to_str().expect("text");
        for (suffix, outputs) in [("", vec![]), ("^*", vec![]), ("^dev,out", vec!["dev", "out"]), ("!out", vec!["out"])] {
            let (root, _) = parse_root(&format!("{path}{suffix}")).expect("a root");
            assert_eq!(root.outputs.iter().map(OutputName::as_str).collect::<Vec<_>>(), outputs, "{suffix}");
        }
        assert!(parse_root("/nix/store/bar.drv").is_err());
    }
}
