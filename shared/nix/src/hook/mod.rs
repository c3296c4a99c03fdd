//! The build hook of Nix: what a Nix that keeps its own store asks a program that may build for it (`build-hook`), and what it wants to
//! hear.
//!
//! Goals: every byte of the hook's side, for Nix 2.8 and later; hostile bytes give an error, and memory grows with what has arrived.
//! Non-goals: the text variant of `guix offload`; what a question means. Does no I/O.
//!
//! Nix first tells its settings ([`MORE`], then a [`SETTING`], until there is no more), then asks ([`VERB`], [`Ask`]) until a [`Reply`]
//! takes the build; then come the [`Inputs`], and the end. Replies and [`line`]s go to standard error, the builder's log to a descriptor of
//! its own. An [`Assembler`](crate::daemon::Assembler) gathers what comes. Source: `NIX-INTEROP.md`, section 3.

pub mod line;
mod settings;

use std::collections::BTreeSet;

use kiln_wire::{DrvPath, OutputName, StoreDir, StorePath};

use crate::daemon::{Fields, Item, ProtocolError, value};

pub use settings::Settings;

/// Whether another setting follows: a number.
pub const MORE: &[Item] = &[Item::Number];
/// A setting: its name and its value.
pub const SETTING: &[Item] = &[Item::Text, Item::Text];
/// What Nix wants: [`TRY`], or it has no further question.
pub const VERB: &[Item] = &[Item::Text];
/// The only thing that Nix wants.
pub const TRY: &str = "try";

/// A question: would this be built elsewhere?
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Whether Nix could begin a build of its own at this moment.
    pub could_begin: bool,
    /// The platform of the derivation.
    pub system: String,
    /// What is to be built.
    pub derivation: DrvPath,
    /// What its machine must have.
    pub features: BTreeSet<String>,
}

/// What follows once the build is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inputs {
    /// What the build may see, all that it refers to included.
    pub paths: BTreeSet<StorePath>,
    /// The outputs that are to become valid.
    pub outputs: BTreeSet<OutputName>,
}

/// The answer to a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply<'a> {
    /// The build is taken; the text names who builds.
    Accept(&'a str),
    /// Nix has to build it itself.
    Decline,
    /// Nix has to build everything itself, and asks no further.
    DeclineForGood,
    /// Not at this moment: Nix asks again when one of its builds ends, or after a few seconds.
    Postpone,
}

impl Ask {
    /// What a question is made of, after its verb.
    pub const ITEMS: &'static [Item] = &[Item::Number, Item::Text, Item::Text, Item::Records(1)];

    /// Reads what an assembler of [`Self::ITEMS`] has gathered.
    ///
    /// # Errors
    /// [`ProtocolError`] names the field and its rule.
    pub fn decode(store_dir: &StoreDir, bytes: &[u8]) -> Result<Self, ProtocolError> {
        let mut fields = Fields::new(bytes, store_dir);
        let could_begin = fields.truth("amWilling")?;
        let system = fields.text("system")?.to_owned();
        let path = fields.path("drvPath")?;
        let derivation = DrvPath::from_path(path).map_err(|error| value("drvPath", &error.text, error.rule))?;
        let features = fields.list("requiredFeatures", |fields| fields.text("requiredFeatures").map(str::to_owned))?;
        fields.finish()?;
        Ok(Self { could_begin, system, derivation, features })
    }
}

impl Inputs {
    /// What the inputs are made of.
    pub const ITEMS: &'static [Item] = &[Item::Records(1), Item::Records(1)];

    /// Reads what an assembler of [`Self::ITEMS`] has gathered.
    ///
    /// # Errors
    /// [`ProtocolError`] names the field and its rule.
    pub fn decode(store_dir: &StoreDir, bytes: &[u8]) -> Result<Self, ProtocolError> {
        let mut fields = Fields::new(bytes, store_dir);
        let paths = fields.list("inputPaths", |fields| fields.path("inputPaths"))?;
        let outputs = fields.list("wantedOutputs", |fields| {
            let name = fields.text("wantedOutputs")?;
            OutputName::parse(name).map_err(|error| value("wantedOutputs", name, error))
        })?;
        fields.finish()?;
        Ok(Self { paths, outputs })
    }
}

/// Reads a setting that an assembler of [`SETTING`] has gathered, as its name and its value. A value that is no text is one that no hook
/// knows what to do with, and comes with marks in place of what is wrong.
///
/// # Errors
/// [`ProtocolError`] names the field and its rule.
pub fn setting(bytes: &[u8]) -> Result<(String, String), ProtocolError> {
    let store_dir = StoreDir::default();
    let mut fields = Fields::new(bytes, &store_dir);
    let name = fields.text("setting")?.to_owned();
    let value = String::from_utf8_lossy(fields.bytes("value")?).into_owned();
    fields.finish()?;
    Ok((name, value))
}

/// Reads a verb that an assembler of [`VERB`] has gathered.
///
/// # Errors
/// [`ProtocolError`] if it is no text.
pub fn verb(bytes: &[u8]) -> Result<String, ProtocolError> {
    let store_dir = StoreDir::default();
    let mut fields = Fields::new(bytes, &store_dir);
    let verb = fields.text("verb")?.to_owned();
    fields.finish()?;
    Ok(verb)
}

impl Reply<'_> {
    /// Returns the lines that say it.
    pub fn to_text(self) -> String {
        match self {
            // Nix reads the name to the end of its line.
            Self::Accept(name) => format!("# accept\n{}\n", name.replace(char::is_control, " ")),
            Self::Decline => "# decline\n".to_owned(),
            Self::DeclineForGood => "# decline-permanently\n".to_owned(),
            Self::Postpone => "# postpone\n".to_owned(),
        }
    }
}
