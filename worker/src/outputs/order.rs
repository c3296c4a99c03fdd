//! The order of an attempt's outputs: what is referred to comes before what refers to it. Pure.

use std::collections::{BTreeMap, BTreeSet};

use kiln_wire::{OutputName, PathInfo, StorePath};

/// Outputs that refer to each other in a circle.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cycle detected in the references of outputs {}", .0.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" → "))]
pub struct CycleError(pub Vec<OutputName>);

/// Returns the names of `outputs`, referred-to first; among equals by name. References of an output to itself do not count.
///
/// # Errors
/// [`CycleError`] names one circle, its first output again at the end.
pub fn order(outputs: &BTreeMap<OutputName, PathInfo>) -> Result<Vec<OutputName>, CycleError> {
    let by_path: BTreeMap<&StorePath, &OutputName> = outputs.iter().map(|(name, info)| (&info.path, name)).collect();
    let needs: BTreeMap<&OutputName, BTreeSet<&OutputName>> = outputs
        .iter()
        .map(|(name, info)| {
            let referred = info.references.iter().filter_map(|path| by_path.get(path).copied());
            (name, referred.filter(|other| *other != name).collect())
        })
        .collect();
    let mut done: Vec<&OutputName> = Vec::new();
    while done.len() < outputs.len() {
        let ready = needs.iter().find(|(name, needs)| !done.contains(name) && needs.iter().all(|need| done.contains(need)));
        match ready {
            Some((name, _)) => done.push(name),
            None => return Err(cycle(&needs, &done)),
        }
    }
    Ok(done.into_iter().cloned().collect())
}

/// Follows references among what is left until an output comes again.
fn cycle(needs: &BTreeMap<&OutputName, BTreeSet<&OutputName>>, done: &[&OutputName]) -> CycleError {
    let mut path: Vec<&OutputName> = Vec::new();
    let mut next = needs.keys().copied().find(|name| !done.contains(name));
    while let Some(name) = next {
        if let Some(start) = path.iter().position(|seen| *seen == name) {
            path.drain(..start);
            path.push(name);
            break;
        }
        path.push(name);
        next = needs.get(name).and_then(|needs| needs.iter().find(|need| !done.contains(need)).copied());
    }
    CycleError(path.into_iter().cloned().collect())
}

#[cfg(test)]
mod tests {
    use kiln_wire::{Blake3Hash, Blob, Sha256Hash};

    use super::*;

    /// Reads `out→dev out; dev`.
    fn run(graph: &str) -> String {
        let path = |name: &str| StorePath::parse(&format!("{}-{name}", "0".repeat(32))).expect("a store path");
        let blob = Blob { size_bytes: 0, blake3: Blake3Hash([0; 32]), sha256: Sha256Hash([0; 32]) };
        let outputs = graph.split("; ").map(|text| {
            let (name, references) = text.split_once('→').unwrap_or((text, ""));
            let references = references.split_whitespace().map(path).collect();
            let info = PathInfo {
                path: path(name),
                nar_hash: Sha256Hash([0; 32]),
                nar_size_bytes: 0,
                references,
                deriver: None,
                content_address: None,
                blob,
            };
            (OutputName::parse(name).expect("a name"), info)
        });
        match order(&outputs.collect()) {
            Ok(names) => names.iter().map(OutputName::as_str).collect::<Vec<_>>().join(" "),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn what_is_referred_to_comes_first_and_a_circle_is_named() {
        let table = [
            ("out", "out"),
            ("out→out lib", "out"),
            ("bin→lib; dev→lib bin; lib", "lib bin dev"),
            ("out→dev; dev→out", "cycle detected in the references of outputs `dev` → `out` → `dev`"),
            ("a→b; b→c; c→b; d", "cycle detected in the references of outputs `b` → `c` → `b`"),
        ];
        for (graph, expect) in table {
            assert_eq!(run(graph), expect, "{graph}");
        }
    }
}
