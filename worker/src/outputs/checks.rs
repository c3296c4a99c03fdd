//! What a recipe demands of its own outputs: `outputChecks` with structured attributes, `allowedReferences` and its like without.
//!
//! Pure: decides on facts about outputs and inputs, reads no files. Source: Nix's `derivation-check.cc`.

use std::collections::{BTreeMap, BTreeSet};

use kiln_nix::derivation::{AttributeError, Derivation};
use kiln_wire::{OutputName, PathInfo, StoreDir, StorePath};
use serde_json::Value;

/// An output that its own recipe refuses, or a demand that cannot be read. Always the recipe's fault.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// An attribute has the wrong kind.
    #[error(transparent)]
    Attribute(#[from] AttributeError),
    /// A demand of `outputChecks` has the wrong kind.
    #[error("read `outputChecks.{output}.{demand}`: want {want}")]
    Demand {
        /// Of which output.
        output: OutputName,
        /// Which demand.
        demand: &'static str,
        /// What it must be.
        want: &'static str,
    },
    /// A demand names something that is neither a store path nor an output.
    #[error("derivation contains an illegal reference specifier `{text}`")]
    Specifier {
        /// What it names.
        text: String,
    },
    /// The output refers to what it must not.
    #[error("output `{output}` is not allowed to refer to {}", list(.paths))]
    Reference {
        /// Which output.
        output: OutputName,
        /// What it refers to.
        paths: Vec<StorePath>,
    },
    /// The output is too large.
    #[error("output `{output}` is too large at {size_bytes} bytes; its recipe's limit is {limit_bytes} bytes")]
    TooLarge {
        /// Which output.
        output: OutputName,
        /// Its NAR's size.
        size_bytes: u64,
        /// The limit.
        limit_bytes: u64,
    },
    /// The output with all it needs is too large.
    #[error("closure of output `{output}` is too large at {size_bytes} bytes; its recipe's limit is {limit_bytes} bytes")]
    ClosureTooLarge {
        /// Of which output.
        output: OutputName,
        /// The NAR sizes of its closure.
        size_bytes: u64,
        /// The limit.
        limit_bytes: u64,
    },
}

/// The demands on one output.
#[derive(Debug, Default)]
struct Demands {
    /// Requisites may contain the output itself: so without structured attributes.
    self_allowed: bool,
    size_bytes_max: Option<u64>,
    closure_bytes_max: Option<u64>,
    allowed_references: Option<Vec<String>>,
    disallowed_references: Option<Vec<String>>,
    allowed_requisites: Option<Vec<String>>,
    disallowed_requisites: Option<Vec<String>>,
}

/// Checks every output against what the recipe demands of it. `inputs` is the closure of the inputs.
///
/// # Errors
/// [`CheckError`] names the output and the first demand that does not hold.
pub fn check(
    store_dir: &StoreDir,
    derivation: &Derivation,
    outputs: &BTreeMap<OutputName, PathInfo>,
    inputs: &[PathInfo],
) -> Result<(), CheckError> {
    let mut graph: Option<BTreeMap<&StorePath, &PathInfo>> = None;
    for (name, info) in outputs {
        let demands = demands(derivation, name)?;
        if demands.is_none() {
            continue;
        }
        let graph = graph.get_or_insert_with(|| inputs.iter().chain(outputs.values()).map(|info| (&info.path, info)).collect());
        demands.check(&Subject { store_dir, outputs, graph, name, info })?;
    }
    Ok(())
}

struct Subject<'a> {
    store_dir: &'a StoreDir,
    outputs: &'a BTreeMap<OutputName, PathInfo>,
    graph: &'a BTreeMap<&'a StorePath, &'a PathInfo>,
    name: &'a OutputName,
    info: &'a PathInfo,
}

impl Demands {
    fn is_none(&self) -> bool {
        let lists = [&self.allowed_references, &self.disallowed_references, &self.allowed_requisites, &self.disallowed_requisites];
        self.size_bytes_max.is_none() && self.closure_bytes_max.is_none() && lists.into_iter().all(Option::is_none)
    }

    fn check(&self, subject: &Subject<'_>) -> Result<(), CheckError> {
        let output = || subject.name.clone();
        let size_bytes = subject.info.nar_size_bytes;
        if let Some(limit_bytes) = self.size_bytes_max.filter(|max| size_bytes > *max) {
            return Err(CheckError::TooLarge { output: output(), size_bytes, limit_bytes });
        }
        if let Some(limit_bytes) = self.closure_bytes_max {
            let sizes = subject.closure().into_iter().filter_map(|path| subject.graph.get(path)).map(|info| info.nar_size_bytes);
            let size_bytes = sizes.fold(0u64, u64::saturating_add);
            if size_bytes > limit_bytes {
                return Err(CheckError::ClosureTooLarge { output: output(), size_bytes, limit_bytes });
            }
        }
        let direct: BTreeSet<&StorePath> = subject.info.references.iter().collect();
        let table = [(&self.allowed_references, true), (&self.disallowed_references, false)];
        for (list, allowed) in table {
            subject.references(&direct, list.as_deref(), allowed)?;
        }
        let table = [(&self.allowed_requisites, true), (&self.disallowed_requisites, false)];
        for (list, allowed) in table {
            let Some(list) = list else { continue };
            let mut closure = subject.closure();
            if self.self_allowed {
                closure.remove(&subject.info.path);
            }
            subject.references(&closure, Some(list), allowed)?;
        }
        Ok(())
    }
}

impl<'a> Subject<'a> {
    fn references(&self, used: &BTreeSet<&StorePath>, list: Option<&[String]>, allowed: bool) -> Result<(), CheckError> {
        let Some(list) = list else { return Ok(()) };
        let named: BTreeSet<StorePath> = list.iter().map(|text| self.specifier(text)).collect::<Result<_, _>>()?;
        let bad: Vec<_> = used.iter().filter(|path| named.contains(**path) != allowed).map(|path| (*path).clone()).collect();
        if bad.is_empty() {
            return Ok(());
        }
        Err(CheckError::Reference { output: self.name.clone(), paths: bad })
    }

    fn specifier(&self, text: &str) -> Result<StorePath, CheckError> {
        let output = OutputName::parse(text).ok().and_then(|name| self.outputs.get(&name)).map(|info| info.path.clone());
        output.or_else(|| self.store_dir.strip(text).ok()).ok_or_else(|| CheckError::Specifier { text: text.chars().take(200).collect() })
    }

    /// The output and everything it refers to, directly or not.
    fn closure(&self) -> BTreeSet<&'a StorePath> {
        let mut found = BTreeSet::from([&self.info.path]);
        let mut left = vec![self.info];
        while let Some(info) = left.pop() {
            for path in &info.references {
                if found.insert(path) {
                    left.extend(self.graph.get(path).copied());
                }
            }
        }
        found
    }
}

fn demands(derivation: &Derivation, output: &OutputName) -> Result<Demands, CheckError> {
    let attributes = derivation.attributes()?;
    if attributes.json().is_none() {
        return Ok(Demands {
            self_allowed: true,
            size_bytes_max: None,
            closure_bytes_max: None,
            allowed_references: attributes.texts("allowedReferences")?,
            disallowed_references: attributes.texts("disallowedReferences")?,
            allowed_requisites: attributes.texts("allowedRequisites")?,
            disallowed_requisites: attributes.texts("disallowedRequisites")?,
        });
    }
    let Some(checks) = attributes.output_checks().and_then(|checks| checks.get(output.as_str())) else { return Ok(Demands::default()) };
    Ok(Demands {
        self_allowed: false,
        size_bytes_max: number(checks, output, "maxSize")?,
        closure_bytes_max: number(checks, output, "maxClosureSize")?,
        allowed_references: texts(checks, output, "allowedReferences")?,
        disallowed_references: texts(checks, output, "disallowedReferences")?,
        allowed_requisites: texts(checks, output, "allowedRequisites")?,
        disallowed_requisites: texts(checks, output, "disallowedRequisites")?,
    })
}

fn number(checks: &Value, output: &OutputName, demand: &'static str) -> Result<Option<u64>, CheckError> {
    let wrong = || CheckError::Demand { output: output.clone(), demand, want: "a number of bytes" };
    checks.get(demand).map(|value| value.as_u64().ok_or_else(wrong)).transpose()
}

fn texts(checks: &Value, output: &OutputName, demand: &'static str) -> Result<Option<Vec<String>>, CheckError> {
    let wrong = || CheckError::Demand { output: output.clone(), demand, want: "a list of strings" };
    let text = |item: &Value| item.as_str().map(str::to_owned).ok_or_else(wrong);
    checks.get(demand).map(|value| value.as_array().ok_or_else(wrong)?.iter().map(text).collect()).transpose()
}

fn list(paths: &[StorePath]) -> String {
    let shown: Vec<_> = paths.iter().take(10).map(|path| format!("`{path}`")).collect();
    let more = paths.len().saturating_sub(shown.len());
    let rest = if more == 0 { String::new() } else { format!(" and {more} more") };
    format!("{}{rest}", shown.join(", "))
}

#[cfg(test)]
mod tests {
    use kiln_nix::derivation::Output;
    use kiln_wire::{Blake3Hash, Blob, Sha256Hash};

    use super::*;

    fn path(name: &str) -> StorePath {
        StorePath::parse(&format!("{}-{name}", "0".repeat(32))).expect("a store path")
    }

    /// Reads `out(10)→lib dev`: name, NAR size, references.
    fn info(text: &str) -> PathInfo {
        let (head, references) = text.split_once('→').unwrap_or((text, ""));
        let (name, size) = head.trim_end_matches(')').split_once('(').expect("name(size)");
        let blob = Blob { size_bytes: 0, blake3: Blake3Hash([0; 32]), sha256: Sha256Hash([0; 32]) };
        PathInfo {
            path: path(name),
            nar_hash: Sha256Hash([0; 32]),
            nar_size_bytes: size.parse().expect("a size"),
            references: references.split_whitespace().map(path).collect(),
            deriver: None,
            content_address: None,
            blob,
        }
    }

    fn derivation(env: &[(&str, &str)]) -> Derivation {
        let outputs = ["out", "dev"].map(|name| (OutputName::parse(name).expect("a name"), Output::InputAddressed(path(name))));
        Derivation {
            name: "x".into(),
            outputs: outputs.into(),
            inputs: BTreeMap::new(),
            sources: BTreeSet::new(),
            system: "x86_64-linux".into(),
            builder: "/bin/sh".into(),
            args: Vec::new(),
            env: env.iter().map(|(name, value)| ((*name).into(), value.as_bytes().to_vec())).collect(),
        }
    }

    /// Outputs `out` (refers to itself, `dev` and `lib`) and `dev` (to `lib`); inputs `lib` (to `libc`), `libc`, `gcc`.
    fn run(env: &[(&str, &str)]) -> String {
        let outputs = [("out", info("out(10)→out dev lib")), ("dev", info("dev(20)→lib"))];
        let outputs = outputs.map(|(name, info)| (OutputName::parse(name).expect("a name"), info)).into();
        let inputs = ["lib(100)→libc", "libc(1000)", "gcc(5000)"].map(info);
        match check(&StoreDir::default(), &derivation(env), &outputs, &inputs) {
            Ok(()) => "ok".into(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn demands_hold_or_name_what_breaks_them() {
        let store = |name: &str| format!("/nix/store/{}", path(name));
        let (lib, libc, gcc) = (store("lib"), store("libc"), store("gcc"));
        let json = |text: &str| text.replace("LIBC", &libc).replace("LIB", &lib).replace("GCC", &gcc);
        let table: Vec<(&str, String, &str)> = vec![
            ("name", "x".into(), "ok"),
            ("allowedReferences", format!("out dev {lib}"), "ok"),
            ("allowedReferences", format!("dev {lib}"), "output `out` is not allowed to refer to `00000000000000000000000000000000-out`"),
            ("allowedReferences", String::new(), "output `dev` is not allowed to refer to `00000000000000000000000000000000-lib`"),
            ("disallowedReferences", gcc.clone(), "ok"),
            ("disallowedReferences", libc.clone(), "ok"),
            ("disallowedRequisites", libc.clone(), "output `dev` is not allowed to refer to `00000000000000000000000000000000-libc`"),
            ("allowedRequisites", format!("dev {lib} {libc}"), "ok"),
            ("allowedRequisites", format!("dev {lib}"), "output `dev` is not allowed to refer to `00000000000000000000000000000000-libc`"),
            ("allowedReferences", "elsewhere".into(), "derivation contains an illegal reference specifier `elsewhere`"),
            ("__json", json(r#"{"allowedReferences": []}"#), "ok"),
            ("__json", json(r#"{"outputChecks": {"out": {"maxSize": 10}}}"#), "ok"),
            (
                "__json",
                json(r#"{"outputChecks": {"out": {"maxSize": 9}}}"#),
                "output `out` is too large at 10 bytes; its recipe's limit is 9 bytes",
            ),
            ("__json", json(r#"{"outputChecks": {"out": {"maxClosureSize": 1130}}}"#), "ok"),
            (
                "__json",
                json(r#"{"outputChecks": {"out": {"maxClosureSize": 1129}}}"#),
                "closure of output `out` is too large at 1130 bytes; its recipe's limit is 1129 bytes",
            ),
            (
                "__json",
                json(r#"{"outputChecks": {"out": {"allowedRequisites": ["dev", "LIB", "LIBC"]}}}"#),
                "output `out` is not allowed to refer to `00000000000000000000000000000000-out`",
            ),
            ("__json", json(r#"{"outputChecks": {"dev": {"disallowedReferences": ["out", "GCC"]}}}"#), "ok"),
            ("__json", json(r#"{"outputChecks": {"out": {"maxSize": "9"}}}"#), "read `outputChecks.out.maxSize`: want a number of bytes"),
            (
                "__json",
                json(r#"{"outputChecks": {"out": {"allowedReferences": [1]}}}"#),
                "read `outputChecks.out.allowedReferences`: want a list of strings",
            ),
        ];
        for (name, value, expect) in table {
            assert_eq!(run(&[(name, &value)]), expect, "{name} = {value}");
        }
    }
}
