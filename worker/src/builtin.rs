//! Builders that the worker itself brings, as Nix does: `builtin:buildenv`, `builtin:fetchurl`, `builtin:unpack-channel`.
//!
//! [`Builtin::of`] is the one place that knows their names, [`Builtin::make`] the one that runs them. They run in the worker's
//! process with the worker's rights, and so follow no path that a recipe, an input or an archive chose: inputs are read through the
//! [`closure`], and what is written lies below the output. What they made is imported and checked as any output is.

mod bounds;
mod buildenv;
mod closure;
mod destinations;
mod fetchurl;
mod unpack_channel;
mod xz;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use kiln_nix::derivation::{AttributeError, Derivation};
use kiln_wire::{FailureClass, JobLimits};

pub use bounds::{Bounds, Ended};
pub use closure::Closure;
pub use destinations::Destinations;

use crate::attempt_log::AttemptLog;
use crate::stop::Stop;

/// One of the worker's own builders, with what its recipe asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Builtin {
    /// `builtin:buildenv`: a tree of links to packages.
    Buildenv(buildenv::Request),
    /// `builtin:fetchurl`: a download.
    Fetchurl(fetchurl::Request),
    /// `builtin:unpack-channel`: the directory that a tarball holds.
    UnpackChannel(unpack_channel::Request),
}

/// A recipe that asks for nothing that can be made. Always its own fault.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// No such builtin.
    #[error("there is no builder `{builder}`; this worker brings `builtin:buildenv`, `builtin:fetchurl` and `builtin:unpack-channel`")]
    Unknown {
        /// What was asked for, cut.
        builder: String,
    },
    /// It has no output `out`, the only one that a builtin makes.
    #[error("{builder}: the derivation has no output `out`")]
    NoOut {
        /// Which builder.
        builder: String,
    },
    /// A variable that the builder needs is not there.
    #[error("{builder}: attribute `{name}` missing")]
    Missing {
        /// Which builder.
        builder: &'static str,
        /// Which variable.
        name: &'static str,
    },
    /// A variable makes no sense.
    #[error("{builder}: read attribute `{name}`: {rule}")]
    Variable {
        /// Which builder.
        builder: &'static str,
        /// Which variable.
        name: &'static str,
        /// The rule it breaks.
        rule: String,
    },
    /// It is no download.
    #[error(transparent)]
    Fetchurl(#[from] fetchurl::RequestError),
    /// An attribute has the wrong kind.
    #[error(transparent)]
    Attribute(#[from] AttributeError),
}

/// A builtin that made nothing.
#[derive(Debug, thiserror::Error)]
pub enum BuiltinError {
    /// The download failed.
    #[error(transparent)]
    Fetchurl(#[from] fetchurl::FetchError),
    /// The packages do not fit together.
    #[error(transparent)]
    Buildenv(#[from] buildenv::BuildenvError),
    /// The tarball is not taken.
    #[error(transparent)]
    UnpackChannel(#[from] unpack_channel::UnpackError),
    /// It was stopped, or took too long.
    #[error(transparent)]
    Ended(#[from] Ended),
    /// The thread died.
    #[error("the thread died")]
    Thread(#[source] tokio::task::JoinError),
}

impl BuiltinError {
    /// Returns who is at fault.
    pub fn class(&self) -> FailureClass {
        match self {
            Self::Fetchurl(err) => err.class(),
            Self::Buildenv(err) => err.class(),
            Self::UnpackChannel(err) => err.class(),
            Self::Ended(err) => err.class(),
            Self::Thread(_) => FailureClass::Infrastructure,
        }
    }
}

/// Where and within which bounds a builtin works.
#[derive(Debug)]
pub struct Site {
    /// Where the output goes; nothing lies there.
    pub out: PathBuf,
    /// What it may read.
    pub closure: Closure,
    /// What it may connect to.
    pub destinations: Destinations,
    /// The job's limits.
    pub limits: JobLimits,
    /// Stops it.
    pub stop: Stop,
    /// Hears what it has to say.
    pub log: Arc<AttemptLog>,
}

impl Builtin {
    /// Reads what `derivation` asks for. `variables` is its environment with real paths in the place of placeholders.
    ///
    /// # Errors
    /// [`RecipeError`] if no builtin of the worker can make it.
    pub fn of(derivation: &Derivation, variables: &BTreeMap<String, Vec<u8>>) -> Result<Self, RecipeError> {
        let builder = || derivation.builder.chars().take(100).collect();
        let builtin = match derivation.builder.as_str() {
            buildenv::NAME => Self::Buildenv(buildenv::Request::of(variables)?),
            fetchurl::NAME => Self::Fetchurl(fetchurl::Request::of(derivation)?),
            unpack_channel::NAME => Self::UnpackChannel(unpack_channel::Request::of(variables)?),
            _ => return Err(RecipeError::Unknown { builder: builder() }),
        };
        match derivation.outputs.keys().any(|name| name.as_str() == "out") {
            true => Ok(builtin),
            false => Err(RecipeError::NoOut { builder: builder() }),
        }
    }

    /// Makes the output. Returns only when nothing works on it any more, also if it was stopped.
    ///
    /// # Errors
    /// [`BuiltinError`]. Something may then lie at the output's place.
    pub async fn make(self, site: Site) -> Result<(), BuiltinError> {
        let bounds = Bounds::new(site.stop.clone(), site.limits);
        match self {
            Self::Fetchurl(request) => {
                let fetched =
                    fetchurl::fetch(&request, &site.out, &site.limits, &site.destinations, |note| site.log.append(note.as_bytes()));
                Ok(site.stop.unless(fetched).await.map_err(|_| Ended::Stopped)??)
            }
            Self::Buildenv(request) => {
                on_a_thread(move || {
                    let mut note = |text: &str| site.log.append(text.as_bytes());
                    Ok(buildenv::make(&request, &site.closure, &bounds, &site.out, &mut note)?)
                })
                .await
            }
            Self::UnpackChannel(request) => {
                on_a_thread(move || Ok(unpack_channel::make(&request, &site.closure, &bounds, &site.out)?)).await
            }
        }
    }
}

async fn on_a_thread(work: impl FnOnce() -> Result<(), BuiltinError> + Send + 'static) -> Result<(), BuiltinError> {
    tokio::task::spawn_blocking(work).await.map_err(BuiltinError::Thread)?
}

/// Returns a variable that `builder` needs.
fn variable<'a>(variables: &'a BTreeMap<String, Vec<u8>>, builder: &'static str, name: &'static str) -> Result<&'a [u8], RecipeError> {
    variables.get(name).map(Vec::as_slice).ok_or(RecipeError::Missing { builder, name })
}

/// Returns bytes that others chose as text for people, cut.
fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().take(300).collect()
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
