//! Targets: what a client wants to have, `PATH`, `PATH.drv!out,dev` or `PATH.drv!*`.

use std::collections::BTreeSet;

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
}

impl Target {
    pub(super) fn read(fields: &mut Fields<'_>) -> Result<Self, ProtocolError> {
        const FIELD: &str = "target";
        let text = fields.text(FIELD)?;
        let Some((path, names)) = text.split_once('!') else {
            return fields.parse_path(FIELD, text).map(Self::Path);
        };
        let derivation = DrvPath::from_path(fields.parse_path(FIELD, path)?).map_err(|error| value(FIELD, text, error.rule))?;
        let outputs = match names {
            "*" => BTreeSet::new(),
            names => {
                let parsed = names.split(',').map(OutputName::parse).collect::<Result<_, _>>();
                parsed.map_err(|error| value(FIELD, text, error))?
            }
        };
        Ok(Self::Outputs { derivation, outputs })
    }

    /// Returns the target as clients write it.
    pub fn to_text(&self, store_dir: &StoreDir) -> String {
        match self {
            Self::Path(path) => store_dir.join(path),
            Self::Outputs { derivation, outputs } => {
                let names: Vec<&str> = outputs.iter().map(OutputName::as_str).collect();
                let names = if names.is_empty() { "*".to_owned() } else { names.join(",") };
                format!("{}!{names}", store_dir.join(derivation.as_path()))
            }
        }
    }
}
