//! Sets of output names that many hold: one list in one piece. A tree takes some 200 bytes for a single name, a package set has a million
//! such sets, and each is on its way through a submission several times.

use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use serde::{Deserialize, Deserializer, Serialize};

use crate::OutputName;

/// Names of outputs of one derivation: sorted, each once. Written as the list that a `BTreeSet` is.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct OutputNames(Box<[OutputName]>);

impl OutputNames {
    /// Returns the names, sorted.
    pub fn iter(&self) -> core::slice::Iter<'_, OutputName> {
        self.0.iter()
    }

    /// Returns how many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns whether this name is among them.
    pub fn contains(&self, name: &OutputName) -> bool {
        self.0.binary_search(name).is_ok()
    }
}

impl FromIterator<OutputName> for OutputNames {
    fn from_iter<I: IntoIterator<Item = OutputName>>(names: I) -> Self {
        let mut names: Vec<OutputName> = names.into_iter().collect();
        names.sort();
        names.dedup();
        Self(names.into())
    }
}

impl<const COUNT: usize> From<[OutputName; COUNT]> for OutputNames {
    fn from(names: [OutputName; COUNT]) -> Self {
        names.into_iter().collect()
    }
}

impl From<OutputNames> for BTreeSet<OutputName> {
    fn from(names: OutputNames) -> Self {
        names.0.into_iter().collect()
    }
}

impl<'a> IntoIterator for &'a OutputNames {
    type Item = &'a OutputName;
    type IntoIter = core::slice::Iter<'a, OutputName>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<'de> Deserialize<'de> for OutputNames {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Read as a list, which serde never makes room for by the length that it claims.
        Ok(Vec::<OutputName>::deserialize(deserializer)?.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_sorted_each_once_and_written_as_a_tree_of_them() {
        let name = |text: &str| OutputName::parse(text).expect("a name");
        for texts in [&[][..], &["out"], &["out", "dev", "out"], &["b", "a", "dev", "a"]] {
            let names: OutputNames = texts.iter().map(|text| name(text)).collect();
            let tree: BTreeSet<OutputName> = texts.iter().map(|text| name(text)).collect();
            assert_eq!(names.iter().collect::<Vec<_>>(), tree.iter().collect::<Vec<_>>());
            let (written, expected) = (rmp_serde::to_vec(&names).expect("written"), rmp_serde::to_vec(&tree).expect("written"));
            assert_eq!(written, expected);
            assert_eq!(rmp_serde::from_slice::<OutputNames>(&expected).expect("read"), names);
            assert!(tree.iter().all(|name| names.contains(name)) && !names.contains(&name("z")));
            assert_eq!((names.len(), names.is_empty()), (tree.len(), tree.is_empty()));
        }
        let unsorted = rmp_serde::to_vec(&["out", "dev", "out"]).expect("written");
        assert_eq!(rmp_serde::from_slice::<OutputNames>(&unsorted).expect("read"), OutputNames::from([name("dev"), name("out")]));
    }
}
