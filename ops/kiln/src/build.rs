//! `kiln build`: from an expression, `.drv` files or derivations as JSON to output paths.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use kiln_nix::derivation::{ShownError, read_shown};
use kiln_wire::limits::DYNAMIC_DEPTH_MAX;
use kiln_wire::{DrvPath, OutputName, Root, StoreDir};

use crate::args::{DirArgs, FarmArgs, UrgencyArgs};
use crate::daemons::runtime;
use crate::evaluate::{Expression, evaluate};
use crate::import::Places;
use crate::order::{MadeRoot, Order, with_farm};
use crate::realise;
use crate::words::bad_input;

/// Arguments of `kiln build`.
#[derive(clap::Args)]
pub struct Args {
    /// Derivations to build, by file: all outputs of each, or those named as PATH.drv^out,dev; of the derivation that
    /// its output `out` is, as PATH.drv^out^dev. A file with another name holds
    /// derivations as `nix derivation show -r` prints them; those that no other one in it needs are built
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
    #[command(flatten)]
    urgency: UrgencyArgs,
    /// What people call the build
    #[arg(long)]
    name: Option<String>,
    /// After a failure, build everything that does not need what failed
    #[arg(short, long)]
    keep_going: bool,
    /// Build again what the farm has, and fail if it comes out differently; the farm keeps what it has
    #[arg(long)]
    check: bool,
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
    runtime()?.block_on(with_farm(&args.farm, &args.dir.dir(), async |client, embedded| {
        let store_dir = client.status().await?.store_dir;
        let Found { roots, made, places, attributes } = find(&args, &store_dir)?;
        let order = Order {
            roots,
            made,
            places,
            attributes,
            errors: Vec::new(),
            name: args.name.clone(),
            keep_going: args.keep_going,
            check: args.check,
            urgency: args.urgency.urgency()?,
            json: args.json,
            to: args.to.clone(),
            out_link: args.out_link.clone(),
            dir: args.dir.dir(),
        };
        order.carry_out(client, &store_dir, embedded).await
    }))
}

/// What is to be built, and where it lies.
struct Found {
    roots: Vec<Root>,
    made: Vec<MadeRoot>,
    places: Places,
    /// The attributes that roots are.
    attributes: Vec<(String, DrvPath)>,
}

fn find(args: &Args, store_dir: &StoreDir) -> anyhow::Result<Found> {
    let (mut places, mut attributes) = (Places::default(), Vec::new());
    let (mut roots, mut made) = (Vec::new(), Vec::new());
    for path in &args.paths {
        let (named, through) = split_through(path)?;
        let found = named_roots(&named, store_dir, &mut places)?;
        match through.is_empty() {
            true => roots.extend(found),
            false => made.extend(found.into_iter().map(|Root { derivation, outputs }| MadeRoot {
                derivation,
                through: through.clone(),
                outputs,
            })),
        }
    }
    if args.check && !made.is_empty() {
        return Err(bad_input("--check: a derivation that a build makes is checked by its own path: build it first, then name that"));
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
            for (name, root) in found {
                attributes.extend(name.map(|name| (name, root.derivation.clone())));
                roots.push(root);
            }
            places.dirs.push(realise::store_below(&root, store_dir));
        }
        None if roots.is_empty() && made.is_empty() => {
            return Err(bad_input("nothing to build: name a .drv file, or a Nix file with -f FILE [-A ATTR]"));
        }
        None if !args.attributes.is_empty() => return Err(bad_input("-A names an attribute of a Nix file: name the file with -f FILE")),
        None => {}
    }
    places.dirs.push(PathBuf::from(store_dir.as_str()));
    Ok(Found { roots, made, places, attributes })
}

/// Splits `PATH.drv^out^dev` into what `PATH.drv^dev` says and the outputs that lead there, which are derivations.
fn split_through(text: &str) -> anyhow::Result<(String, Vec<OutputName>)> {
    let mut parts: Vec<&str> = text.split(['^', '!']).collect();
    let last = if parts.len() > 2 { parts.pop() } else { None };
    let Some(last) = last else { return Ok((text.to_owned(), Vec::new())) };
    let through: Vec<OutputName> = parts.drain(1..).map(OutputName::parse).collect::<Result<_, _>>().map_err(bad_input)?;
    match through.len() <= DYNAMIC_DEPTH_MAX {
        true => Ok((format!("{}^{last}", parts[0]), through)),
        false => Err(bad_input(format!("build `{text}`: more than {DYNAMIC_DEPTH_MAX} derivations, each made by the one before"))),
    }
}

fn pairs(words: &[String]) -> Vec<(String, String)> {
    words.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect()
}

/// Reads `PATH.drv`, `PATH.drv^out,dev` or `PATH.drv!out,dev`, or in place of PATH.drv a file with derivations as JSON, which counts
/// for those that no other one in it needs. Tells `places` where inputs may be.
fn named_roots(text: &str, store_dir: &StoreDir, places: &mut Places) -> anyhow::Result<Vec<Root>> {
    let (path, outputs) = text.split_once(['^', '!']).unwrap_or((text, "*"));
    let file = Path::new(path);
    let named = if outputs == "*" { "" } else { outputs };
    let outputs: BTreeSet<_> =
        named.split(',').filter(|name| !name.is_empty()).map(OutputName::parse).collect::<Result<_, _>>().map_err(bad_input)?;
    if !file.exists() {
        return Err(bad_input(format!("build `{path}`: there is no such file")));
    }
    let derivations = match path.ends_with(".drv") {
        true => {
            let base_name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            vec![DrvPath::parse(base_name).map_err(|error| bad_input(format!("build `{path}`: {error}")))?]
        }
        false => shown_roots(file, store_dir, places)?,
    };
    if let Some(dir) = file.parent().filter(|dir| !places.dirs.iter().any(|known| known == dir)) {
        places.dirs.push(dir.to_path_buf());
    }
    Ok(derivations.into_iter().map(|derivation| Root { derivation, outputs: outputs.clone() }).collect())
}

fn shown_roots(file: &Path, store_dir: &StoreDir, places: &mut Places) -> anyhow::Result<Vec<DrvPath>> {
    let bytes = std::fs::read(file).map_err(|err| bad_input(format!("read `{}`: {err}", file.display())))?;
    let refuse = |err: ShownError| {
        let err = anyhow::Error::from(err);
        bad_input(format!("build `{}`: it is no .drv file, and not as `nix derivation show` prints them: {err:#}", file.display()))
    };
    let shown = read_shown(store_dir, &bytes).map_err(refuse)?;
    let needed: BTreeSet<&DrvPath> = shown.iter().flat_map(|one| one.derivation.inputs.keys()).collect();
    let roots = shown.iter().map(|one| &one.path).filter(|path| !needed.contains(path)).cloned().collect();
    places.derivations.extend(shown.into_iter().map(|one| (one.path, one.bytes)));
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::words;

    fn named(text: &str) -> anyhow::Result<(Vec<Root>, Places)> {
        let mut places = Places::default();
        Ok((named_roots(text, &StoreDir::default(), &mut places)?, places))
    }

    #[test]
    fn a_root_names_a_file_and_perhaps_outputs() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let file = dir.path().join("0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar.drv");
        std::fs::write(&file, "").expect("write");
        std::fs::write(dir.path().join("bar.drv"), "").expect("write");
        let path = file.to_str().expect("text");
        for (suffix, outputs) in [("", vec![]), ("^*", vec![]), ("^dev,out", vec!["dev", "out"]), ("!out", vec!["out"])] {
            let (roots, places) = named(&format!("{path}{suffix}")).expect("a root");
            let [root] = roots.as_slice() else { panic!("{roots:?}") };
            assert_eq!(root.outputs.iter().map(OutputName::as_str).collect::<Vec<_>>(), outputs, "{suffix}");
            assert_eq!(places.dirs, [dir.path()]);
        }
        assert!(named("/nix/store/bar.drv").is_err());
        assert!(named(dir.path().join("bar.drv").to_str().expect("text")).is_err());
    }

    #[test]
    fn a_root_may_lead_through_derivations_that_are_made() {
        for (text, named, through) in [
            ("a.drv", "a.drv", &[][..]),
            ("a.drv^out,dev", "a.drv^out,dev", &[]),
            ("a.drv^out^dev,lib", "a.drv^dev,lib", &["out"]),
            ("a.drv!out!lib!*", "a.drv^*", &["out", "lib"]),
        ] {
            let (got, outputs) = split_through(text).expect("names of outputs");
            assert_eq!((got.as_str(), outputs.iter().map(OutputName::as_str).collect::<Vec<_>>()), (named, through.to_vec()), "{text}");
        }
        assert!(split_through("a.drv^^out").is_err());
        assert!(split_through(&format!("a.drv{}", "^out".repeat(DYNAMIC_DEPTH_MAX + 2))).is_err());
    }

    #[test]
    fn what_nix_shows_counts_for_what_nothing_else_in_it_needs() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let file = dir.path().join("shown.json");
        std::fs::write(&file, crate::drv::tests::shown()).expect("write");
        let (roots, places) = named(&format!("{}^out", file.display())).expect("roots");
        assert_eq!(roots.iter().map(|root| root.derivation.as_str()).collect::<Vec<_>>(), [crate::drv::tests::TOP_NAME]);
        assert!(roots.iter().all(|root| root.outputs.iter().any(|output| output.as_str() == "out")));
        assert_eq!(places.derivations.len(), 3);
        for text in ["", "Derive([", "{\"a\": 1}"] {
            std::fs::write(&file, text).expect("write");
            let err = named(file.to_str().expect("text")).expect_err(text);
            assert_eq!(words::exit_code_of(&err), ExitCode::from(words::BAD_INPUT), "{err}");
            assert!(err.to_string().contains("shown.json"), "{err}");
        }
    }
}
