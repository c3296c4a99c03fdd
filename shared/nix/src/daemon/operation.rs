//! Operations: what can be asked of a daemon, by number, with how long its arguments are.

use std::fmt;

use super::assembler::Item;

use Item::{Number, Records, Text};

macro_rules! operations {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $items:expr;)*) => {
        /// What can be asked of a daemon. The names are Nix's.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Operation {
            $($(#[$doc])* $name = $number,)*
        }

        impl Operation {
            /// Every operation.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// Returns the operation of this number; none if clients of the versions that we speak have none.
            pub fn from_number(number: u64) -> Option<Self> {
                Self::ALL.iter().copied().find(|operation| *operation as u64 == number)
            }

            /// Returns what its arguments are, in their order.
            pub fn items(self) -> &'static [Item] {
                match self {
                    $(Self::$name => const { &$items },)*
                }
            }
        }
    };
}

operations! {
    /// Whether a path is valid.
    IsValidPath = 1, [Text];
    /// What refers to a path.
    QueryReferrers = 6, [Text];
    /// Make a path of content that follows.
    AddToStore = 7, [Text, Text, Records(1), Number];
    /// Make targets valid.
    BuildPaths = 9, [Records(1), Number];
    /// Make a path valid.
    EnsurePath = 10, [Text];
    /// Keep a path while the connection lasts.
    AddTempRoot = 11, [Text];
    /// Keep what a link leads to.
    AddIndirectRoot = 12, [Text];
    /// What is kept, and why.
    FindRoots = 14, [];
    /// How to build.
    SetOptions = 19, [
        Number, Number, Number, Number, Number, Number, Number, Number, Number, Number, Number, Number, Records(2)
    ];
    /// Delete what nobody keeps.
    CollectGarbage = 20, [Number, Records(1), Number, Number, Number, Number, Number];
    /// Every valid path.
    QueryAllValidPaths = 23, [];
    /// Facts about a path.
    QueryPathInfo = 26, [Text];
    /// The path with a hash part.
    QueryPathFromHashPart = 29, [Text];
    /// Which of some paths are valid.
    QueryValidPaths = 31, [Records(1), Number];
    /// Which of some paths could be substituted.
    QuerySubstitutablePaths = 32, [Records(1)];
    /// Which derivations made a path.
    QueryValidDerivers = 33, [Text];
    /// Store equal files once.
    OptimiseStore = 34, [];
    /// Check the whole store.
    VerifyStore = 35, [Number, Number];
    /// Build a derivation that comes with the request.
    BuildDerivation = 36, [Text, Records(4), Records(1), Text, Text, Records(1), Records(2), Number];
    /// Add signatures to a path.
    AddSignatures = 37, [Text, Records(1)];
    /// The archive of a path.
    NarFromPath = 38, [Text];
    /// Make a path of an archive that follows.
    AddToStoreNar = 39, [Text, Text, Text, Records(1), Number, Number, Number, Records(1), Text, Number, Number];
    /// What building targets would do.
    QueryMissing = 40, [Records(1)];
    /// The outputs of a derivation.
    QueryDerivationOutputMap = 41, [Text];
    /// What a derivation with a content-addressed output made.
    RegisterDrvOutput = 42, [Text];
    /// What is known of such an output.
    QueryRealisation = 43, [Text];
    /// Make paths of archives that follow.
    AddMultipleToStore = 44, [Number, Number];
    /// Keep a log that follows.
    AddBuildLog = 45, [Text];
    /// Make targets valid, and tell of each what became of it.
    BuildPathsWithResults = 46, [Records(1), Number];
    /// Keep a path, and make a link to it.
    AddPermRoot = 47, [Text, Text];
}

impl Operation {
    /// Returns whether [`super::Frames`] follow its arguments.
    pub fn is_followed_by_frames(self) -> bool {
        matches!(self, Self::AddToStore | Self::AddToStoreNar | Self::AddMultipleToStore | Self::AddBuildLog)
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
