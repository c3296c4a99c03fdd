//! What an evaluation says of a build: which attributes its roots are, and which attributes do not evaluate.
//!
//! Texts of a client that every coordinator keeps, so all of it is bounded: whoever gathers them leaves out what is beyond a bound and counts
//! it, and whoever takes them in refuses what is beyond one.

use alloc::borrow::ToOwned;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::limits::{
    ATTRIBUTE_BYTES_MAX, ATTRIBUTES_BYTES_MAX, ATTRIBUTES_PER_ROOT_MAX, EVALUATION_ERROR_BYTES_MAX, EVALUATION_ERRORS_MAX,
};
use crate::{DrvPath, Root};

/// What an evaluation says of roots that are in the order of their derivations.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evaluation {
    /// The attributes that a root is, by its place among the roots.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<u32, Vec<String>>,
    /// Attributes that do not evaluate, with what the evaluator said.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub errors: BTreeMap<String, String>,
    /// How many do not evaluate beside those.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub errors_more: u64,
    /// Places of the named roots without which the build ended. The farm alone says that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unbuilt: Vec<u32>,
    /// Those of them that did not fail, nor needed what failed: the build ended before. The farm alone says that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreached: Vec<u32>,
}

/// The same, for people: by derivation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evaluated {
    /// The attributes that each root is.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<DrvPath, Vec<String>>,
    /// Attributes that do not evaluate, with what the evaluator said.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub errors: BTreeMap<String, String>,
    /// How many do not evaluate beside those.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub errors_more: u64,
    /// The named roots without which the build ended.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub unbuilt: BTreeSet<DrvPath>,
    /// Those of them that did not fail, nor needed what failed.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub unreached: BTreeSet<DrvPath>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl Evaluation {
    /// Gathers what was evaluated, and brings the roots into their order. Names that are too long, or too many, are left out; of messages the
    /// end stays, where Nix says what is wrong.
    pub fn gather<'a>(
        roots: &mut [Root],
        named: impl IntoIterator<Item = (&'a str, &'a DrvPath)>,
        errors: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Self {
        roots.sort_by(|one, other| one.derivation.cmp(&other.derivation));
        let (mut gathered, mut bytes, mut known) = (Self::default(), 0_usize, BTreeSet::new());
        for (attribute, derivation) in named {
            let Some(place) = place_of(roots, derivation) else { continue };
            let names = gathered.attributes.entry(place).or_default();
            let fits =
                (1..=ATTRIBUTE_BYTES_MAX).contains(&attribute.len()) && bytes.saturating_add(attribute.len()) <= ATTRIBUTES_BYTES_MAX;
            if fits && names.len() < ATTRIBUTES_PER_ROOT_MAX && known.insert(attribute) {
                names.push(attribute.to_owned());
                bytes += attribute.len();
            }
        }
        gathered.attributes.retain(|_, names| !names.is_empty());
        for (attribute, message) in errors {
            match (1..=ATTRIBUTE_BYTES_MAX).contains(&attribute.len()) && gathered.errors.len() < EVALUATION_ERRORS_MAX {
                true => drop(gathered.errors.insert(attribute.to_owned(), end_of(message, EVALUATION_ERROR_BYTES_MAX))),
                false => gathered.errors_more += 1,
            }
        }
        gathered
    }

    /// Returns whether it says nothing.
    pub fn is_empty(&self) -> bool {
        let Self { attributes, errors, errors_more, unbuilt, unreached } = self;
        attributes.is_empty() && errors.is_empty() && *errors_more == 0 && unbuilt.is_empty() && unreached.is_empty()
    }

    /// Returns how many attributes do not evaluate.
    pub fn errors_count(&self) -> u64 {
        u64::try_from(self.errors.len()).unwrap_or(u64::MAX).saturating_add(self.errors_more)
    }

    /// Returns the rule that it breaks as something said of `roots`, if it breaks one.
    pub fn objection(&self, roots: &[Root]) -> Option<String> {
        if !roots.is_sorted_by(|one, other| one.derivation <= other.derivation) {
            return Some("roots whose attributes are named must be in the order of their derivations".to_owned());
        }
        if self.attributes.keys().any(|place| usize::try_from(*place).map_or(true, |place| place >= roots.len())) {
            return Some("an attribute is named of a root that is not there".to_owned());
        }
        if self.attributes.values().any(|names| names.len() > ATTRIBUTES_PER_ROOT_MAX) {
            return Some(format!("a root has more than {ATTRIBUTES_PER_ROOT_MAX} attributes"));
        }
        let (mut names, mut known) = (self.attributes.values().flatten().chain(self.errors.keys()), BTreeSet::new());
        if names.clone().any(String::is_empty) {
            return Some("an attribute has no name".to_owned());
        }
        if let Some(name) = self.attributes.values().flatten().find(|name| !known.insert(*name)) {
            return Some(format!("attribute `{}` is named twice", name.chars().take(NAME_CHARS_SAID).collect::<String>()));
        }
        if let Some(name) = names.find(|name| name.len() > ATTRIBUTE_BYTES_MAX) {
            return Some(format!("an attribute's name has {} bytes, over the limit of {ATTRIBUTE_BYTES_MAX}", name.len()));
        }
        let bytes = self.attributes.values().flatten().map(String::len).fold(0_usize, usize::saturating_add);
        if bytes > ATTRIBUTES_BYTES_MAX {
            return Some(format!("the names of attributes have {bytes} bytes, over the limit of {ATTRIBUTES_BYTES_MAX}"));
        }
        let is_long = |message: &String| message.len() > EVALUATION_ERROR_BYTES_MAX;
        if self.errors.len() > EVALUATION_ERRORS_MAX || self.errors.values().any(is_long) {
            return Some(format!(
                "more than {EVALUATION_ERRORS_MAX} errors of an evaluation, or one of more than {EVALUATION_ERROR_BYTES_MAX} bytes"
            ));
        }
        None
    }

    /// Returns the attributes that a derivation is as one of `roots`.
    pub fn names<'a>(&'a self, roots: &[Root], derivation: &DrvPath) -> &'a [String] {
        if self.attributes.is_empty() {
            return &[];
        }
        let names = place_of(roots, derivation).and_then(|place| self.attributes.get(&place));
        names.map(Vec::as_slice).unwrap_or_default()
    }

    /// Returns the same by derivation, with or without the names.
    pub fn shown(&self, roots: &[Root], with_names: bool) -> Evaluated {
        let named = |(place, names): (&u32, &Vec<String>)| {
            let root = roots.get(usize::try_from(*place).ok()?)?;
            Some((root.derivation.clone(), names.clone()))
        };
        let attributes = if with_names { self.attributes.iter().filter_map(named).collect() } else { BTreeMap::new() };
        let root = |place: &u32| Some(roots.get(usize::try_from(*place).ok()?)?.derivation.clone());
        let (unbuilt, unreached) = (self.unbuilt.iter().filter_map(root).collect(), self.unreached.iter().filter_map(root).collect());
        Evaluated { attributes, errors: self.errors.clone(), errors_more: self.errors_more, unbuilt, unreached }
    }
}

impl Evaluated {
    /// Returns whether it says nothing.
    pub fn is_empty(&self) -> bool {
        let Self { attributes, errors, errors_more, unbuilt, unreached } = self;
        attributes.is_empty() && errors.is_empty() && *errors_more == 0 && unbuilt.is_empty() && unreached.is_empty()
    }

    /// Returns how many attributes do not evaluate.
    pub fn errors_count(&self) -> u64 {
        u64::try_from(self.errors.len()).unwrap_or(u64::MAX).saturating_add(self.errors_more)
    }
}

/// Characters of a name in what is said of it.
const NAME_CHARS_SAID: usize = 80;

/// Returns the first place of a derivation among roots that are in order.
fn place_of(roots: &[Root], derivation: &DrvPath) -> Option<u32> {
    let place = roots.partition_point(|root| root.derivation < *derivation);
    let is_it = roots.get(place).is_some_and(|root| root.derivation == *derivation);
    u32::try_from(place).ok().filter(|_| is_it)
}

/// Returns the end of a text, in whole characters.
fn end_of(text: &str, bytes_max: usize) -> String {
    let mut start = text.len().saturating_sub(bytes_max);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    text[start..].to_owned()
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;
    use alloc::vec;

    use super::*;

    fn drv(letter: &str) -> DrvPath {
        DrvPath::parse(&format!("{}-x.drv", letter.repeat(32))).expect("a path")
    }

    fn roots(letters: &str) -> Vec<Root> {
        letters.chars().map(|letter| Root { derivation: drv(&letter.to_string()), outputs: BTreeSet::new() }).collect()
    }

    #[test]
    fn roots_are_brought_into_order_and_each_keeps_its_names() {
        let mut roots = roots("cab");
        let (a, c, z) = (drv("a"), drv("c"), drv("z"));
        let named = [("x.a", &a), ("x.c", &c), ("alias", &a), ("x.a", &a), ("x.a", &c), ("", &c), ("gone", &z)];
        let gathered = Evaluation::gather(&mut roots, named, [("bad", "no")]);
        assert_eq!(gathered.attributes, BTreeMap::from([(0, vec!["x.a".to_owned(), "alias".to_owned()]), (2, vec!["x.c".to_owned()])]));
        assert_eq!(gathered.names(&roots, &a), ["x.a", "alias"]);
        assert!(gathered.names(&roots, &drv("b")).is_empty() && gathered.names(&roots, &z).is_empty());
        assert_eq!((gathered.objection(&roots), gathered.errors_count()), (None, 1));
        assert_eq!(gathered.shown(&roots, true).attributes.get(&c), Some(&vec!["x.c".to_owned()]));
        assert!(gathered.shown(&roots, false).attributes.is_empty());
    }

    #[test]
    fn what_is_beyond_a_bound_is_left_out_and_counted() {
        let (mut roots, a) = (roots("a"), drv("a"));
        let names: Vec<String> = (0..=ATTRIBUTES_PER_ROOT_MAX).map(|number| format!("n{number}")).collect();
        let long = "x".repeat(ATTRIBUTE_BYTES_MAX + 1);
        let errors: Vec<String> = (0..EVALUATION_ERRORS_MAX + 2).map(|number| format!("e{number:04}")).collect();
        let message = format!("{}é the end", "y".repeat(EVALUATION_ERROR_BYTES_MAX));
        let gathered = Evaluation::gather(
            &mut roots,
            core::iter::once((long.as_str(), &a)).chain(names.iter().map(|name| (name.as_str(), &a))),
            errors.iter().map(|name| (name.as_str(), message.as_str())).chain([(long.as_str(), "no")]),
        );
        assert_eq!(gathered.attributes[&0].len(), ATTRIBUTES_PER_ROOT_MAX);
        assert_eq!((gathered.errors.len(), gathered.errors_more), (EVALUATION_ERRORS_MAX, 3));
        assert!(gathered.errors.values().all(|text| text.len() <= EVALUATION_ERROR_BYTES_MAX && text.ends_with("é the end")));
        assert_eq!(gathered.objection(&roots), None);
    }

    #[test]
    fn what_breaks_a_bound_is_refused() {
        let good = Evaluation { attributes: BTreeMap::from([(0, vec!["a".to_owned()])]), ..Evaluation::default() };
        let with = |place: u32, names: Vec<String>| Evaluation { attributes: BTreeMap::from([(place, names)]), ..Evaluation::default() };
        let error = |name: &str, text: String| Evaluation { errors: BTreeMap::from([(name.to_owned(), text)]), ..Evaluation::default() };
        for (roots, said, rule) in [
            (roots("ab"), &good, None),
            (roots("ba"), &good, Some("order")),
            (roots("a"), &with(1, vec!["a".to_owned()]), Some("not there")),
            (roots("a"), &with(0, vec!["a".to_owned(); ATTRIBUTES_PER_ROOT_MAX + 1]), Some("more than")),
            (roots("a"), &with(0, vec!["a".repeat(ATTRIBUTE_BYTES_MAX + 1)]), Some("over the limit")),
            (roots("a"), &with(0, vec![String::new()]), Some("no name")),
            (roots("a"), &error("", String::new()), Some("no name")),
            (roots("a"), &with(0, vec!["a".to_owned(), "a".to_owned()]), Some("twice")),
            (roots("a"), &error("e", "y".repeat(EVALUATION_ERROR_BYTES_MAX + 1)), Some("errors")),
            (roots("a"), &error(&"e".repeat(ATTRIBUTE_BYTES_MAX + 1), String::new()), Some("over the limit")),
        ] {
            let objection = said.objection(&roots);
            assert_eq!(objection.is_some(), rule.is_some(), "{said:?}: {objection:?}");
            assert!(objection.unwrap_or_default().contains(rule.unwrap_or_default()), "{said:?}");
        }
    }
}
