//! Targets: what a client wants to have, `PATH`, `PATH.drv!out,dev` or `PATH.drv!*`, and `PATH.drv!out!dev` of a derivation that a build makes.

use std::collections::BTreeSet;

use kiln_wire::limits::DYNAMIC_DEPTH_MAX;
use kiln_wire::{DrvPath, OutputName, StoreDir, StorePath};

use super::fields::{Fields, ProtocolError, value};

/// Something that a client wants to have. Nix calls it a derived path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// A path as it is.
    Path(StorePath),
    /// Outputs of a derivation.
    Outputs {
        /// The derivation.
        derivation: DrvPath,
        /// Which; all of them if none is named.
        outputs: BTreeSet<OutputName>,
    },
    /// Outputs of a derivation that a build makes.
    Made {
        /// The derivation that is there.
        derivation: DrvPath,
        /// Its output that is a derivation, the output of that which is one, and so on; at least one, at most `DYNAMIC_DEPTH_MAX`.
        through: Vec<OutputName>,
        /// Which outputs of the last; all of them if none is named.
        outputs: BTreeSet<OutputName>,
    },
}

impl Target {
    pub(super) fn read(fields: &mut Fields<'_>) -> Result<Self, ProtocolError> {
        const FIELD: &str = "target";
        let text = fields.text(FIELD)?;
        let Some((made, names)) = text.rsplit_once('!') else {
            return fields.parse_path(FIELD, text).map(Self::Path);
        };
        let (path, through) = made.split_once('!').map_or((made, None), |(path, through)| (path, Some(through)));
        let derivation = DrvPath::from_path(fields.parse_path(FIELD, path)?).map_err(|error| value(FIELD, text, error.rule))?;
        let outputs = match names {
            "*" => BTreeSet::new(),
            names => {
                let parsed = names.split(',').map(OutputName::parse).collect::<Result<_, _>>();
                parsed.map_err(|error| value(FIELD, text, error))?
            }
        };
        let Some(through) = through else { return Ok(Self::Outputs { derivation, outputs }) };
        if through.split('!').count() > DYNAMIC_DEPTH_MAX {
            return Err(value(FIELD, text, format!("more than {DYNAMIC_DEPTH_MAX} derivations, each made by the one before")));
        }
        let through = through.split('!').map(OutputName::parse).collect::<Result<_, _>>().map_err(|error| value(FIELD, text, error))?;
        Ok(Self::Made { derivation, through, outputs })
    }

    /// Returns the target as clients write it.
    pub fn to_text(&self, store_dir: &StoreDir) -> String {
        match self {
            Self::Path(path) => store_dir.join(path),
            Self::Outputs { derivation, outputs } => {
                format!("{}!{}", store_dir.join(derivation.as_path()), names_of(outputs))
            }
            Self::Made { derivation, through, outputs } => {
                let through: String = through.iter().map(|output| format!("{output}!")).collect();
                format!("{}!{through}{}", store_dir.join(derivation.as_path()), names_of(outputs))
            }
        }
    }
}

fn names_of(outputs: &BTreeSet<OutputName>) -> String {
    let names: Vec<&str> = outputs.iter().map(OutputName::as_str).collect();
    if names.is_empty() { "*".to_owned() } else { names.join(",") }
}
