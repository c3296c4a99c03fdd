//! Text that many hold: a clone of a path or a name is the same text once more, not a copy of it.
//!
//! A farm of a hundred thousand jobs names each derivation some ten times. Does not know what a text means; who holds one has checked it.

use alloc::sync::Arc;
use core::cmp::Ordering;
use core::fmt;
use core::hash::{Hash, Hasher};

/// A short text of which a few common ones take no memory at all. Equal texts are equal however they are held.
#[derive(Clone)]
pub(crate) enum Text {
    /// One of [`COMMON`], by its place there: a text takes two words either way.
    Common(u8),
    /// Any other.
    Shared(Arc<str>),
}

/// What outputs are called in nearly every derivation.
const COMMON: [&str; 10] = ["out", "dev", "lib", "bin", "man", "doc", "info", "debug", "static", "dist"];

impl Text {
    pub(crate) fn as_str(&self) -> &str {
        match self {
            Self::Common(place) => COMMON[usize::from(*place)],
            Self::Shared(text) => text,
        }
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        let place = (0..).zip(COMMON).find(|(_, common)| *common == text);
        place.map_or_else(|| Self::Shared(text.into()), |(place, _)| Self::Common(place))
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl PartialEq for Text {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Text {}

impl PartialOrd for Text {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Text {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_str().cmp(other.as_str())
    }
}

impl Hash for Text {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

/// Writes a checked text as a string, and reads it by its own `parse`, without a copy on the way.
macro_rules! text_serde {
    ($name:ident) => {
        impl ::serde::Serialize for $name {
            fn serialize<S: ::serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> ::serde::Deserialize<'de> for $name {
            fn deserialize<D: ::serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Visitor;

                impl ::serde::de::Visitor<'_> for Visitor {
                    type Value = $name;

                    fn expecting(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {
                        f.write_str("a string")
                    }

                    fn visit_str<E: ::serde::de::Error>(self, text: &str) -> Result<$name, E> {
                        $name::parse(text).map_err(E::custom)
                    }
                }

                deserializer.deserialize_str(Visitor)
            }
        }
    };
}

pub(crate) use text_serde;

#[cfg(test)]
mod tests {
    use alloc::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_common_text_is_any_text_in_its_place() {
        let texts: BTreeSet<Text> = ["out", "outer", "ou", "dev"].into_iter().map(Text::from).collect();
        assert_eq!(texts.iter().map(Text::as_str).collect::<alloc::vec::Vec<_>>(), ["dev", "ou", "out", "outer"]);
        assert_eq!(Text::from("out"), Text::Shared("out".into()));
        assert!(matches!(Text::from("out"), Text::Common(0)));
        assert_eq!(size_of::<Text>(), size_of::<Arc<str>>());
    }
}
