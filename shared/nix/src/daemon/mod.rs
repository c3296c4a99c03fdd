//! The worker protocol of Nix: what `nix` says to a daemon over a socket or a pipe (`unix://`, `ssh-ng://`), and what it wants to hear.
//!
//! Goals: every byte of the daemon's side, from protocol 1.34 (Nix 2.8) to 1.38 (Nix 2.34); bytes are taken as they come, in any
//! pieces; hostile ones give an error, and memory grows with what has arrived, never with what is claimed. Of the client's side, what a
//! build hook says to the Nix of its machine ([`caller`]). Non-goals: older protocols, feature strings (none is offered), what an operation means. Does no I/O.
//!
//! A connection starts with numbers ([`CLIENT_MAGIC`], [`SERVER_MAGIC`], versions, see [`Version`]). Each request is then the number of an
//! [`Operation`] and its arguments, which an [`Assembler`] gathers and [`Request::decode`] reads; after some come [`Frames`]. Each answer
//! is any number of notes ([`Note`]), the last of them [`Note::Last`] or [`Note::Error`], and after `Last` the result.
//! Source: `NIX-INTEROP.md`, sections 1 and 2.

mod assembler;
mod build_result;
pub mod caller;
mod encoder;
mod fields;
mod frames;
mod note;
mod operation;
mod request;
mod target;
mod valid_path;
mod version;

pub use assembler::{Assembler, Item};
pub use build_result::{BuildResult, Status};
pub use encoder::Encoder;
pub use fields::ProtocolError;
pub(crate) use fields::{Fields, value};
pub use frames::{Frames, Step};
pub use note::{ActivityKind, Field, Level, Note, ResultKind};
pub use operation::Operation;
pub use request::{Collection, CollectionAction, Mode, Options, Request};
pub use target::Target;
pub use valid_path::{Facts, ValidPath};
pub use version::{CLIENT_MAGIC, FEATURES, SERVER_MAGIC, Version};
