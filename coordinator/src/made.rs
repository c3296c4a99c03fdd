//! Whether a path is an output of a derivation: a worker's word alone makes none.

use std::collections::BTreeSet;

use kiln_nix::content::{self, ContentAddress, ContentError, Method};
use kiln_nix::derivation::{Derivation, Output, output_path_name};
use kiln_nix::hash::Algorithm;
use kiln_wire::{BuiltOutput, DrvPath, PathInfo, StoreDir, StorePath};

/// A path that is no output of the derivation.
#[derive(Debug, thiserror::Error)]
#[error("`{}` is not output `{}` of `{derivation}`: {rule}", .output.info.path, .output.name)]
pub(crate) struct NotMade {
    derivation: DrvPath,
    output: Box<BuiltOutput>,
    rule: String,
    #[source]
    err: Option<Box<ContentError>>,
}

/// Checks that an output has the path that the derivation gives it, or the one that follows from the content address that it is stated with,
/// where that is what the derivation wants. Says nothing of the content: whoever receives it holds it against the address.
pub(crate) fn check(store_dir: &StoreDir, path: &DrvPath, derivation: &Derivation, output: &BuiltOutput) -> Result<(), NotMade> {
    let refuse = |rule: &str, err: Option<ContentError>| NotMade {
        derivation: path.clone(),
        output: Box::new(output.clone()),
        rule: rule.to_owned(),
        err: err.map(Box::new),
    };
    match derivation.outputs.get(&output.name) {
        None => Err(refuse("it has no such output", None)),
        Some(Output::InputAddressed(known)) if *known == output.info.path => Ok(()),
        Some(Output::Fixed { path: known, address }) if *known == output.info.path => {
            // Without its address nobody would look at the content.
            match content::check_path(store_dir, &output.info) {
                Ok(stated) if stated == *address => Ok(()),
                Ok(_) => Err(refuse("it is stated with another content address", None)),
                Err(err) => Err(refuse("it is not stated with its content address", Some(err))),
            }
        }
        Some(Output::InputAddressed(_) | Output::Fixed { .. }) => Err(refuse("that has another path", None)),
        Some(Output::Deferred) => Err(refuse("the derivation is not resolved", None)),
        Some(Output::Floating { method, algorithm } | Output::Impure { method, algorithm }) => {
            let address = content::check_path(store_dir, &output.info);
            let address = address.map_err(|err| refuse("its path does not follow from its content", Some(err)))?;
            if !is_as_wanted(&address, *method, *algorithm) {
                return Err(refuse("its content is to be addressed in another way", None));
            }
            match output.info.path.name() == output_path_name(&derivation.name, &output.name) {
                true => Ok(()),
                false => Err(refuse("it has another name", None)),
            }
        }
    }
}

/// Returns itself and those of its references that may be other outputs of the derivation, by their names, where nobody could know the paths
/// of these before.
pub(crate) fn stated(derivation: &Derivation, info: &PathInfo) -> BTreeSet<StorePath> {
    let unknown = derivation.outputs.iter().filter(|(_, output)| output.path().is_none());
    let names: BTreeSet<String> = unknown.map(|(name, _)| output_path_name(&derivation.name, name)).collect();
    info.references.iter().chain([&info.path]).filter(|path| names.contains(path.name())).cloned().collect()
}

/// Returns the paths of the derivation's other outputs that an output does not say to refer to, where nobody could know these paths when it came:
/// nobody has searched it for them.
pub(crate) fn unstated(derivation: &Derivation, outputs: &[BuiltOutput], of: &BuiltOutput) -> BTreeSet<StorePath> {
    let was_unknown = |output: &&BuiltOutput| derivation.outputs.get(&output.name).is_some_and(|known| known.path().is_none());
    let paths = outputs.iter().filter(was_unknown).map(|output| &output.info.path);
    paths.filter(|path| **path != of.info.path && !of.info.references.contains(*path)).cloned().collect()
}

fn is_as_wanted(address: &ContentAddress, method: Method, algorithm: Algorithm) -> bool {
    address.method == method && address.hash.algorithm() == algorithm
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use kiln_nix::hash::Hasher;
    use kiln_wire::{Blake3Hash, Blob, OutputName, Sha256Hash};

    use super::*;

    fn name(text: &str) -> OutputName {
        OutputName::parse(text).expect("a name")
    }

    fn path(letter: &str) -> StorePath {
        StorePath::parse(&format!("{}-x", letter.repeat(32))).expect("a path")
    }

    fn stated(output: &str, path: StorePath, content_address: Option<String>) -> BuiltOutput {
        let blob = Blob { size_bytes: 1, blake3: Blake3Hash([0; 32]), sha256: Sha256Hash([0; 32]) };
        let info = PathInfo {
            path,
            nar_hash: Sha256Hash([1; 32]),
            nar_size_bytes: 1,
            references: BTreeSet::new(),
            deriver: None,
            content_address,
            blob,
        };
        BuiltOutput { name: name(output), info }
    }

    #[test]
    fn an_output_is_searched_for_all_others_whose_paths_nobody_knew() {
        let derivation = |kind: Output| Derivation {
            name: "x".into(),
            outputs: ["out", "dev", "doc"].map(|output| (name(output), kind.clone())).into(),
            inputs: BTreeMap::new(),
            sources: BTreeSet::new(),
            system: String::new(),
            builder: String::new(),
            args: Vec::new(),
            env: BTreeMap::new(),
        };
        let mut out = stated("out", path("a"), None);
        out.info.references = BTreeSet::from([path("b")]);
        let outputs = [out.clone(), stated("dev", path("b"), None), stated("doc", path("c"), None)];
        let floating = derivation(Output::Floating { method: Method::Nar, algorithm: Algorithm::Sha256 });
        assert_eq!(unstated(&floating, &outputs, &out), [path("c")].into());
        assert_eq!(unstated(&floating, &outputs, &outputs[2]), [path("a"), path("b")].into());
        let known = derivation(Output::InputAddressed(path("a")));
        assert_eq!(unstated(&known, &outputs, &out), BTreeSet::new(), "it was searched for them when it came");
    }

    #[test]
    fn only_what_the_derivation_gives_a_path_is_its_output() {
        let drv = DrvPath::parse(&format!("{}-x.drv", "d".repeat(32))).expect("a path");
        let derivation = |kind: Output| Derivation {
            name: "x".into(),
            outputs: BTreeMap::from([(name("out"), kind)]),
            inputs: BTreeMap::new(),
            sources: BTreeSet::new(),
            system: String::new(),
            builder: String::new(),
            args: Vec::new(),
            env: BTreeMap::new(),
        };
        let hash = Hasher::new(Algorithm::Sha256).finish();
        let address = |method| ContentAddress { method, hash: hash.clone() };
        let addressed = |method, called: &str| {
            let address = address(method);
            let path = address.path(&StoreDir::default(), called, &BTreeSet::new(), false).expect("a path");
            stated("out", path, Some(address.to_string()))
        };
        let fixed = |method| {
            let address = address(method);
            let path = address.path(&StoreDir::default(), "x", &BTreeSet::new(), false).expect("a path");
            Output::Fixed { address, path }
        };
        let bare = |output: BuiltOutput| BuiltOutput { info: PathInfo { content_address: None, ..output.info }, ..output };
        let floating = || Output::Floating { method: Method::Nar, algorithm: Algorithm::Sha256 };
        let table = [
            (Output::InputAddressed(path("a")), stated("out", path("a"), None), None),
            (Output::InputAddressed(path("a")), stated("out", path("b"), None), Some("another path")),
            (Output::InputAddressed(path("a")), stated("dev", path("a"), None), Some("no such output")),
            (fixed(Method::Nar), addressed(Method::Nar, "x"), None),
            (fixed(Method::Flat), addressed(Method::Flat, "x"), None),
            (fixed(Method::Nar), addressed(Method::Flat, "x"), Some("another path")),
            // Its path is right, and nothing says that its content is.
            (fixed(Method::Nar), bare(addressed(Method::Nar, "x")), Some("not stated with its content address")),
            (
                fixed(Method::Nar),
                BuiltOutput {
                    info: PathInfo { content_address: Some(address(Method::Flat).to_string()), ..addressed(Method::Nar, "x").info },
                    name: name("out"),
                },
                Some("not stated with its content address"),
            ),
            (Output::Deferred, stated("out", path("a"), None), Some("not resolved")),
            (floating(), addressed(Method::Nar, "x"), None),
            (Output::Impure { method: Method::Nar, algorithm: Algorithm::Sha256 }, addressed(Method::Nar, "x"), None),
            // What anybody could have put into the store.
            (floating(), stated("out", path("a"), None), Some("does not follow")),
            (floating(), stated("out", path("a"), Some(address(Method::Nar).to_string())), Some("does not follow")),
            (floating(), addressed(Method::Flat, "x"), Some("in another way")),
            (floating(), addressed(Method::Nar, "y"), Some("another name")),
        ];
        for (kind, output, refused) in table {
            let checked = check(&StoreDir::default(), &drv, &derivation(kind), &output).map_err(|err| err.to_string());
            match refused {
                None => assert_eq!(checked, Ok(())),
                Some(rule) => assert!(checked.as_ref().is_err_and(|text| text.contains(rule)), "{rule}: {checked:?}"),
            }
        }
    }
}
