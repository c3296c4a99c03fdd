//! Requests: operations with their arguments.

use std::collections::{BTreeMap, BTreeSet};

use kiln_wire::{DrvPath, OutputName, StoreDir, StorePath};

use super::fields::{Fields, ProtocolError, value};
use super::operation::Operation;
use super::target::Target;
use super::valid_path::ValidPath;
use crate::content::Method;
use crate::hash::Algorithm;

/// One request. Arguments that mean nothing to a farm are read and left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Whether a path is valid.
    IsValidPath(StorePath),
    /// Make a path of content that follows: a file's bytes, or with [`Method::Nar`] an archive.
    AddToStore {
        /// Its name.
        name: String,
        /// How the content is hashed.
        method: Method,
        /// With what.
        algorithm: Algorithm,
        /// What it refers to.
        references: BTreeSet<StorePath>,
    },
    /// Make targets valid.
    BuildPaths(Vec<Target>, Mode),
    /// Make targets valid, and tell of each what became of it.
    BuildPathsWithResults(Vec<Target>, Mode),
    /// Build a derivation.
    BuildDerivation {
        /// Its path.
        derivation: DrvPath,
        /// Its outputs, each with its path; empty for one that is not known before.
        outputs: BTreeMap<OutputName, String>,
        /// How.
        mode: Mode,
    },
    /// Make a path valid.
    EnsurePath(StorePath),
    /// Keep a path while the connection lasts.
    AddTempRoot(StorePath),
    /// Keep what the link of this name leads to.
    AddIndirectRoot(String),
    /// Keep a path, under the name of a link to it.
    AddPermRoot(StorePath, String),
    /// What refers to a path.
    QueryReferrers(StorePath),
    /// Every valid path.
    QueryAllValidPaths,
    /// List or delete garbage.
    CollectGarbage(Collection),
    /// What is kept, and why.
    FindRoots,
    /// How to build.
    SetOptions(Options),
    /// Facts about a path.
    QueryPathInfo(StorePath),
    /// The path with a hash part.
    QueryPathFromHashPart(String),
    /// Which of these paths are valid.
    QueryValidPaths(BTreeSet<StorePath>),
    /// Which of these paths could be substituted.
    QuerySubstitutablePaths(BTreeSet<StorePath>),
    /// Which derivations made a path.
    QueryValidDerivers(StorePath),
    /// The archive of a path.
    NarFromPath(StorePath),
    /// Make a path of an archive that follows.
    AddToStoreNar(ValidPath),
    /// What building targets would do.
    QueryMissing(Vec<Target>),
    /// The outputs of a derivation.
    QueryDerivationOutputMap(DrvPath),
    /// What a derived output became, in JSON.
    RegisterDrvOutput(String),
    /// What is known of an output whose path follows from its content.
    QueryRealisation(String),
    /// Make paths of archives that follow: a count, then of each a [`ValidPath`] and its archive.
    AddMultipleToStore,
    /// Check the whole store.
    VerifyStore {
        /// Also what is in files.
        contents: bool,
        /// Mend what is damaged.
        repair: bool,
    },
    /// An operation whose arguments nobody here reads.
    Other(Operation),
}

/// What is to be collected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collection {
    /// What is to be done.
    pub action: CollectionAction,
    /// With which paths, where some are named.
    pub paths: BTreeSet<StorePath>,
    /// Whether also what is kept goes.
    pub ignores_liveness: bool,
    /// Stop when so many bytes are free.
    pub bytes_max: u64,
}

/// What is to be done with garbage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CollectionAction {
    /// List what is kept.
    ReturnLive,
    /// List what nobody keeps.
    ReturnDead,
    /// Delete what nobody keeps.
    DeleteDead,
    /// Delete the named paths, unless somebody keeps them.
    DeleteSpecific,
}

/// How to build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// What is not there.
    Normal,
    /// What is damaged.
    Repair,
    /// What is there too, and compare.
    Check,
}

impl Request {
    /// Reads what an [`super::Assembler`] of the operation's items has gathered.
    ///
    /// # Errors
    /// [`ProtocolError`] names the argument and its rule. The connection can go on after it.
    pub fn decode(operation: Operation, store_dir: &StoreDir, bytes: &[u8]) -> Result<Self, ProtocolError> {
        let mut fields = Fields::new(bytes, store_dir);
        let request = read(operation, &mut fields)?;
        if !matches!(request, Self::Other(_)) {
            fields.finish()?;
        }
        Ok(request)
    }
}

fn read(operation: Operation, fields: &mut Fields<'_>) -> Result<Request, ProtocolError> {
    Ok(match operation {
        Operation::IsValidPath => Request::IsValidPath(fields.path("path")?),
        Operation::AddToStore => add_to_store(fields)?,
        Operation::BuildPaths => Request::BuildPaths(targets(fields)?, mode(fields)?),
        Operation::BuildPathsWithResults => Request::BuildPathsWithResults(targets(fields)?, mode(fields)?),
        Operation::BuildDerivation => build_derivation(fields)?,
        Operation::EnsurePath => Request::EnsurePath(fields.path("path")?),
        Operation::AddTempRoot => Request::AddTempRoot(fields.path("path")?),
        Operation::AddIndirectRoot => Request::AddIndirectRoot(fields.text("path")?.to_owned()),
        Operation::AddPermRoot => Request::AddPermRoot(fields.path("storePath")?, fields.text("gcRoot")?.to_owned()),
        Operation::QueryReferrers => Request::QueryReferrers(fields.path("path")?),
        Operation::QueryAllValidPaths => Request::QueryAllValidPaths,
        Operation::CollectGarbage => Request::CollectGarbage(collection(fields)?),
        Operation::FindRoots => Request::FindRoots,
        Operation::SetOptions => set_options(fields)?,
        Operation::QueryPathInfo => Request::QueryPathInfo(fields.path("path")?),
        Operation::QueryPathFromHashPart => Request::QueryPathFromHashPart(fields.text("hashPart")?.to_owned()),
        Operation::QueryValidPaths => {
            let paths = paths(fields)?;
            fields.truth("substitute")?;
            Request::QueryValidPaths(paths)
        }
        Operation::QuerySubstitutablePaths => Request::QuerySubstitutablePaths(paths(fields)?),
        Operation::QueryValidDerivers => Request::QueryValidDerivers(fields.path("path")?),
        Operation::NarFromPath => Request::NarFromPath(fields.path("path")?),
        Operation::AddToStoreNar => {
            let stated = ValidPath::read(fields)?;
            // Whether to repair, and whether signatures may be lacking: what is added is checked by its content.
            fields.truth("repair")?;
            fields.truth("dontCheckSigs")?;
            Request::AddToStoreNar(stated)
        }
        Operation::QueryMissing => Request::QueryMissing(targets(fields)?),
        Operation::QueryDerivationOutputMap => Request::QueryDerivationOutputMap(derivation(fields)?),
        Operation::RegisterDrvOutput => Request::RegisterDrvOutput(fields.text("realisation")?.to_owned()),
        Operation::QueryRealisation => Request::QueryRealisation(fields.text("outputId")?.to_owned()),
        Operation::AddMultipleToStore => {
            fields.truth("repair")?;
            fields.truth("dontCheckSigs")?;
            Request::AddMultipleToStore
        }
        Operation::VerifyStore => {
            let (contents, repair) = (fields.truth("checkContents")?, fields.truth("repair")?);
            Request::VerifyStore { contents, repair }
        }
        Operation::OptimiseStore | Operation::AddSignatures | Operation::AddBuildLog => Request::Other(operation),
    })
}

fn paths(fields: &mut Fields<'_>) -> Result<BTreeSet<StorePath>, ProtocolError> {
    fields.list("paths", |fields| fields.path("paths"))
}

fn targets(fields: &mut Fields<'_>) -> Result<Vec<Target>, ProtocolError> {
    fields.list("targets", Target::read)
}

fn derivation(fields: &mut Fields<'_>) -> Result<DrvPath, ProtocolError> {
    let path = fields.path("derivation")?;
    DrvPath::from_path(path).map_err(|error| value("derivation", &error.text, error.rule))
}

fn mode(fields: &mut Fields<'_>) -> Result<Mode, ProtocolError> {
    match fields.number("mode")? {
        0 => Ok(Mode::Normal),
        1 => Ok(Mode::Repair),
        2 => Ok(Mode::Check),
        other => Err(value("mode", &other.to_string(), "want 0, 1 or 2")),
    }
}

fn collection(fields: &mut Fields<'_>) -> Result<Collection, ProtocolError> {
    let action = match fields.number("action")? {
        0 => CollectionAction::ReturnLive,
        1 => CollectionAction::ReturnDead,
        2 => CollectionAction::DeleteDead,
        3 => CollectionAction::DeleteSpecific,
        other => return Err(value("action", &other.to_string(), "want 0 to 3")),
    };
    let (paths, ignores_liveness, bytes_max) = (paths(fields)?, fields.truth("ignoreLiveness")?, fields.number("maxFreed")?);
    // What old clients said here means nothing any more.
    for field in ["removed", "removed", "removed"] {
        fields.number(field)?;
    }
    Ok(Collection { action, paths, ignores_liveness, bytes_max })
}

/// Nix writes `text:sha256`, `fixed:sha256`, `fixed:r:sha256`, `fixed:git:sha1`.
fn add_to_store(fields: &mut Fields<'_>) -> Result<Request, ProtocolError> {
    const FIELD: &str = "method";
    let name = fields.text("name")?.to_owned();
    let text = fields.text(FIELD)?;
    let known = [("text:", Method::Text), ("fixed:r:", Method::Nar), ("fixed:git:", Method::Git), ("fixed:", Method::Flat)];
    let found = known.into_iter().find_map(|(prefix, method)| Some((method, text.strip_prefix(prefix)?)));
    let (method, algorithm) = found.ok_or_else(|| value(FIELD, text, "want `text:`, `fixed:`, `fixed:r:` or `fixed:git:`"))?;
    let algorithm = Algorithm::parse(algorithm).map_err(|error| value(FIELD, text, error))?;
    let references = fields.list("references", |fields| fields.path("references"))?;
    fields.truth("repair")?;
    Ok(Request::AddToStore { name, method, algorithm, references })
}

/// How a client wants to have things built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// After a failure, build everything that does not need what failed.
    pub keep_going: bool,
    /// Longest time without output of a build, in seconds; 0 is no limit.
    pub silent_seconds_max: u64,
    /// Longest time of a build, in seconds; 0 is no limit.
    pub seconds_max: u64,
}

/// Of the recipe only the outputs are read: it says nothing of how the inputs are made, so it cannot be checked against its path.
fn build_derivation(fields: &mut Fields<'_>) -> Result<Request, ProtocolError> {
    let derivation = derivation(fields)?;
    let outputs = fields.list("outputs", |fields| {
        let name = fields.text("output")?;
        let name = OutputName::parse(name).map_err(|error| value("output", name, error))?;
        let path = fields.text("output path")?.to_owned();
        fields.text("hash algorithm")?;
        fields.text("hash")?;
        Ok((name, path))
    })?;
    fields.list::<_, Vec<()>>("inputs", |fields| fields.bytes("inputs").map(drop))?;
    for field in ["platform", "builder"] {
        fields.bytes(field)?;
    }
    fields.list::<_, Vec<()>>("args", |fields| fields.bytes("args").map(drop))?;
    fields.list::<_, Vec<()>>("env", |fields| fields.bytes("env").and_then(|_| fields.bytes("env")).map(drop))?;
    Ok(Request::BuildDerivation { derivation, outputs, mode: mode(fields)? })
}

fn set_options(fields: &mut Fields<'_>) -> Result<Request, ProtocolError> {
    fields.truth("keepFailed")?;
    let keep_going = fields.truth("keepGoing")?;
    for field in ["tryFallback", "verbosity", "maxBuildJobs"] {
        fields.number(field)?;
    }
    let mut options = Options { keep_going, silent_seconds_max: fields.number("maxSilentTime")?, seconds_max: 0 };
    for field in ["useBuildHook", "buildVerbosity", "logType", "printBuildTrace", "buildCores", "useSubstitutes"] {
        fields.number(field)?;
    }
    let settings: Vec<_> = fields.list("settings", |fields| Ok((fields.bytes("settings")?, fields.bytes("settings")?)))?;
    for (_, value) in settings.iter().filter(|(name, _)| TIMEOUT_SETTINGS.contains(name)) {
        // What is no number was refused by the client's own reading.
        options.seconds_max = std::str::from_utf8(value).ok().and_then(|value| value.parse().ok()).unwrap_or_default();
    }
    Ok(Request::SetOptions(options))
}

/// What the setting for the longest time of a build has been called.
const TIMEOUT_SETTINGS: [&[u8]; 2] = [b"timeout", b"build-timeout"];
