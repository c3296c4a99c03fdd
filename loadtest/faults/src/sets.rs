//! What is built: derivations that Nix has evaluated already, by their files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use kiln_nix::closure::Closure;
use kiln_wire::client::DerivationFile;
use kiln_wire::{DrvPath, StoreDir};

use crate::farm::Farm;
use crate::run;

/// Derivations to build together.
#[derive(Clone, Debug)]
pub struct Set {
    /// The files of the roots.
    pub files: Vec<PathBuf>,
    /// Every output of every derivation in their closure.
    pub outputs: BTreeSet<String>,
}

impl Set {
    /// Reads a list of `.drv` files, one a line.
    ///
    /// # Errors
    /// If a derivation is missing or no derivation.
    pub fn read(list: &Path) -> anyhow::Result<Self> {
        let files = files_of(list)?;
        let dir = files.first().and_then(|file| file.parent()).with_context(|| format!("`{}` names no derivation", list.display()))?;
        let store_dir = StoreDir::default();
        let roots = files.iter().map(|file| path_of(file)).collect::<anyhow::Result<Vec<_>>>()?;
        let read = |path: &DrvPath| fs::read(dir.join(path.as_str())).map(Some);
        let closure = Closure::load(&store_dir, roots, read).context("read the derivations to build")?;
        let outputs = closure.derivations().iter().flat_map(|(_, derivation)| derivation.outputs.values());
        let outputs = outputs.filter_map(|output| output.path()).map(|path| store_dir.join(path)).collect();
        Ok(Self { files, outputs })
    }

    /// Returns the arguments that name it.
    pub fn arguments(&self) -> Vec<&str> {
        self.files.iter().filter_map(|file| file.to_str()).collect()
    }

    /// Returns the NAR hash of every output, as the farm has it.
    ///
    /// # Errors
    /// If the farm lacks one.
    pub fn hashes(&self, farm: &Farm) -> anyhow::Result<BTreeMap<String, String>> {
        let mut hashes = BTreeMap::new();
        let paths: Vec<&str> = self.outputs.iter().map(String::as_str).collect();
        for paths in paths.chunks(PATHS_A_COMMAND) {
            let shown = run::finish(&mut farm.client(&[&["path-info", "--json"], paths].concat()))?;
            let infos: Vec<serde_json::Value> = serde_json::from_str(&shown).context("read `kiln path-info --json`")?;
            for info in infos {
                let text = |key: &str| info[key].as_str().map(str::to_owned).with_context(|| format!("`{key}` in {info}"));
                hashes.insert(text("path")?, text("narHash")?);
            }
        }
        Ok(hashes)
    }
}

/// Reads the derivations of a list of `.drv` files.
///
/// # Errors
/// If one cannot be read.
pub fn read_files(list: &Path) -> anyhow::Result<Vec<DerivationFile>> {
    let file = |file: PathBuf| {
        let bytes = fs::read(&file).with_context(|| format!("read `{}`", file.display()))?;
        Ok(DerivationFile { path: path_of(&file)?, bytes })
    };
    files_of(list)?.into_iter().map(file).collect()
}

fn files_of(list: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let text = fs::read_to_string(list).with_context(|| format!("read `{}`", list.display()))?;
    let files: Vec<PathBuf> = text.split_whitespace().map(PathBuf::from).collect();
    match files.is_empty() {
        true => bail!("`{}` names no derivation", list.display()),
        false => Ok(files),
    }
}

fn path_of(file: &Path) -> anyhow::Result<DrvPath> {
    let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    DrvPath::parse(name).with_context(|| format!("read `{}`", file.display()))
}

/// Paths in one command line.
const PATHS_A_COMMAND: usize = 500;
