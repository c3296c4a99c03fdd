//! `kiln build`: from an expression or `.drv` files to output paths.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use kiln_wire::{DrvPath, OutputName, Root, StoreDir};

use crate::args::{DirArgs, FarmArgs};
use crate::daemons::runtime;
use crate::evaluate::{Expression, evaluate};
use crate::import::Places;
use crate::order::{Order, with_farm};
use crate::realise;
use crate::words::bad_input;

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
    runtime()?.block_on(with_farm(&args.farm, &args.dir.dir(), async |client, embedded| {
        let store_dir = client.status().await?.store_dir;
        let (roots, places) = roots(&args, &store_dir)?;
        let order = Order {
            roots,
            places,
            name: args.name.clone(),
            keep_going: args.keep_going,
            json: args.json,
            to: args.to.clone(),
            out_link: args.out_link.clone(),
            dir: args.dir.dir(),
        };
        order.carry_out(client, &store_dir, embedded).await
    }))
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
