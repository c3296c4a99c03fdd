//! Evaluates Nix expressions by running `nix-instantiate`, into a store of our own, so that neither root nor a daemon of Nix is needed.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context;
use kiln_wire::{DrvPath, OutputName, Root, StoreDir};

use crate::realise::store_below;
use crate::words::bad_input;

/// What to evaluate.
#[derive(Debug)]
pub struct Expression {
    /// The file, or a directory with a `default.nix`.
    pub file: PathBuf,
    /// Attributes of it; all if empty.
    pub attributes: Vec<String>,
    /// `--arg NAME EXPRESSION` pairs.
    pub args: Vec<(String, String)>,
    /// `--argstr NAME STRING` pairs.
    pub strings: Vec<(String, String)>,
}

/// Evaluates and returns the derivations, which lie below `root` afterwards, each with the attribute that it is where that is known: Nix prints
/// derivations in the order of the attributes, and says of one that holds several, or none, no more than these.
///
/// # Errors
/// Bad input if `nix-instantiate` is not installed or refuses the expression; its own words are on standard error by then.
pub fn evaluate(expression: &Expression, root: &Path, store_dir: &StoreDir) -> anyhow::Result<Vec<(Option<String>, Root)>> {
    std::fs::create_dir_all(root).with_context(|| format!("create evaluation store `{}`", root.display()))?;
    let mut command = Command::new("nix-instantiate");
    // Unless told, Nix keeps every store of its own below `root/nix/store`, whatever its paths are called.
    let real = store_below(root, store_dir);
    command.arg("--store").arg(format!("local?root={}&real={}", root.display(), real.display()));
    command.arg(&expression.file);
    for attribute in &expression.attributes {
        command.args(["-A", attribute]);
    }
    for (name, value) in &expression.args {
        command.args(["--arg", name, value]);
    }
    for (name, value) in &expression.strings {
        command.args(["--argstr", name, value]);
    }
    command.env("NIX_STORE_DIR", store_dir.as_str()).stdin(Stdio::null()).stderr(Stdio::piped());
    tracing::debug!(?command, "evaluate");
    let output = command.output().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => bad_input(format!(
            "evaluate `{}`: there is no `nix-instantiate` here; install Nix (Debian: apt-get install nix-bin), or name .drv files",
            expression.file.display()
        )),
        _ => bad_input(format!("run nix-instantiate: {error}")),
    })?;
    let words = String::from_utf8_lossy(&output.stderr);
    let words: Vec<&str> = words.lines().filter(|line| !line.contains("--add-root")).collect();
    if !output.status.success() {
        return Err(bad_input(format!("evaluate `{}`:\n{}", expression.file.display(), words.join("\n"))));
    }
    for line in words {
        eprintln!("{line}");
    }
    let roots = String::from_utf8_lossy(&output.stdout).lines().map(|line| root_of(line, store_dir)).collect::<anyhow::Result<Vec<_>>>()?;
    Ok(named(&expression.attributes, roots))
}

fn named(attributes: &[String], roots: Vec<Root>) -> Vec<(Option<String>, Root)> {
    let is_one_each = attributes.len() == roots.len();
    let name = |place: usize| attributes.get(place).filter(|_| is_one_each).cloned();
    roots.into_iter().enumerate().map(|(place, root)| (name(place), root)).collect()
}

/// Reads one line of `nix-instantiate`: a derivation, with `!OUTPUT` behind it unless the default output is meant.
fn root_of(line: &str, store_dir: &StoreDir) -> anyhow::Result<Root> {
    let (path, output) = line.split_once('!').map_or((line, None), |(path, output)| (path, Some(output)));
    let path = store_dir.strip(path).and_then(DrvPath::from_path).map_err(bad_input)?;
    let outputs = output.map(OutputName::parse).transpose().map_err(bad_input)?;
    Ok(Root { derivation: path, outputs: outputs.into_iter().collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_a_derivation_and_perhaps_an_output() {
        let store_dir = StoreDir::default();
        let root = root_of("/nix/store/0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar.drv!dev", &store_dir).expect("a root");
        assert_eq!(root.outputs.iter().map(OutputName::as_str).collect::<Vec<_>>(), ["dev"]);
        assert!(root_of("/nix/store/0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar.drv", &store_dir).expect("a root").outputs.is_empty());
        assert!(root_of("/tmp/bar.drv", &store_dir).is_err());
    }

    #[test]
    fn a_derivation_is_called_by_its_attribute_if_each_attribute_is_one() {
        let root = |letter: &str| root_of(&format!("/nix/store/{}-x.drv", letter.repeat(32)), &StoreDir::default()).expect("a root");
        let attributes = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let names = |asked: &[&str], roots| named(&attributes(asked), roots).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(names(&["x", "y"], vec![root("a"), root("b")]), [Some("x".to_owned()), Some("y".to_owned())]);
        assert_eq!(names(&["set"], vec![root("a"), root("b")]), [None, None]);
        assert_eq!(names(&[], vec![root("a")]), [None]);
    }
}
