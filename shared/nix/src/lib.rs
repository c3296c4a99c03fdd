//! The formats of Nix: derivations, closures, archives, reference scans, narinfo, signatures, realisations.
//!
//! A thin house around the crates `nix-derivation`, `nix-archive` and `nix-narinfo`, so that they can be replaced: nothing outside
//! names them. Knows what daemons say, does not talk to any, and keeps no store; what it does with files is what packing and unpacking archives needs.

pub mod closure;
pub mod content;
pub mod daemon;
pub mod derivation;
pub mod eval_jobs;
pub mod external;
pub mod graph_file;
pub mod hash;
pub mod hook;
pub mod job;
pub mod keyring;
pub mod modulo;
pub mod nar;
pub mod narinfo;
pub mod outline;
mod path;
pub mod phase;
pub mod realisation;
pub mod resolve;
pub mod rewrite;
pub mod scan;
pub mod self_hash;
pub mod sign;

pub use closure::{Closure, ClosureError};
pub use content::ContentAddress;
pub use derivation::{Derivation, DerivationError, Output, drv_path_of};
pub use keyring::Keyring;
pub use modulo::{Modulo, ModuloHash};
pub use narinfo::NarInfo;
pub use outline::Outline;
pub use sign::{PublicKey, SecretKey, Signature};
