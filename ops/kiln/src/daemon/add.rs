//! What clients add to the store: derivations and input sources, which must have the path that follows from their content; and what was
//! built elsewhere, if somebody signed it whom the farm trusts for that.

use std::collections::BTreeSet;
use std::io::{self, BufRead, Read, Write};
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use kiln_nix::content::{ContentAddress, Method};
use kiln_nix::daemon::{Assembler, Facts, ValidPath};
use kiln_nix::derivation::path_of_parsed;
use kiln_nix::hash::{Algorithm, Hasher};
use kiln_nix::nar;
use kiln_nix::scan::Candidates;
use kiln_nix::{Derivation, drv_path_of};
use kiln_store::{BlobBytes, Packed, Packer, Spool};
use kiln_wire::limits::{DERIVATION_BATCH_BYTES, DERIVATION_BYTES_MAX, NAR_BYTES_MAX};
use kiln_wire::{DrvPath, StorePath};
use tokio::runtime::Handle;

use super::content::Content;
use super::store::Store;
use super::stream::{Failure, Stream};
use crate::import::{UPLOAD_LEVEL, import, import_signed};

/// What is to be made of content that follows.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) name: String,
    pub(super) method: Method,
    pub(super) algorithm: Algorithm,
    pub(super) references: BTreeSet<StorePath>,
}

/// Makes a path of the content that follows, and returns what is known of it.
pub(super) async fn content(store: &Store, stream: &mut Stream, wanted: Wanted) -> Result<ValidPath, Failure> {
    let adding = Adding::new(store);
    stream.content(move |content| adding.content(wanted, content)).await
}

/// Takes a path whose archive follows.
pub(super) async fn archive(store: &Store, stream: &mut Stream, stated: ValidPath) -> Result<(), Failure> {
    let mut adding = Adding::new(store);
    let work = move |mut content: Content| {
        adding.archive(stated, &mut content)?;
        adding.flush()
    };
    stream.content(work).await
}

/// Takes many paths, each before its archive, references first.
pub(super) async fn archives(store: &Store, stream: &mut Stream) -> Result<(), Failure> {
    let mut adding = Adding::new(store);
    let work = move |mut content: Content| {
        let mut count = [0; 8];
        content.read_exact(&mut count).context("read how many paths follow")?;
        for _ in 0..u64::from_le_bytes(count) {
            let stated = read_stated(&adding.store, &mut content)?;
            let size_bytes = stated.facts.nar_size_bytes;
            let mut nar = (&mut content).take(size_bytes);
            adding.archive(stated, &mut nar)?;
            io::copy(&mut nar, &mut io::sink())?;
        }
        adding.flush()
    };
    stream.content(work).await
}

fn read_stated(store: &Store, content: &mut Content) -> anyhow::Result<ValidPath> {
    let mut assembler = Assembler::new(ValidPath::ITEMS);
    while !assembler.is_complete() {
        let bytes = content.fill_buf().context("read what is stated of a path")?;
        ensure!(!bytes.is_empty(), "read what is stated of a path: it ends early");
        let taken = assembler.take(bytes)?;
        content.consume(taken);
    }
    Ok(ValidPath::decode(store.store_dir(), &assembler.into_bytes())?)
}

/// Additions of one request. Blocks.
struct Adding {
    store: Store,
    runtime: Handle,
    /// Derivations that wait to be handed over together.
    derivations: Vec<(DrvPath, Arc<Derivation>)>,
    derivation_bytes: usize,
}

impl Adding {
    fn new(store: &Store) -> Self {
        Self { store: store.clone(), runtime: Handle::current(), derivations: Vec::new(), derivation_bytes: 0 }
    }

    fn content(mut self, wanted: Wanted, mut content: Content) -> anyhow::Result<ValidPath> {
        if wanted.method == Method::Text && wanted.name.ends_with(".drv") {
            return self.derivation_content(&wanted, content);
        }
        ensure!(
            !wanted.name.ends_with(".drv"),
            "add `{}`: a source whose name ends as those of derivations do; give it another",
            wanted.name
        );
        let mut hasher = Hasher::new(wanted.algorithm);
        let (packed, hash) = match wanted.method {
            Method::Nar => (pack(&wanted.name, nar::Tee::new(&mut content, &mut hasher))?, hasher.finish()),
            Method::Flat | Method::Text => {
                let (body, size_bytes) = spooled(&wanted.name, nar::Tee::new(content, &mut hasher))?;
                (pack(&wanted.name, nar::of_file(body.reader(), size_bytes))?, hasher.finish())
            }
            // Clients send an archive, as for NARs.
            Method::Git => {
                let (body, _) = spooled(&wanted.name, content)?;
                (pack(&wanted.name, body.reader())?, nar::git_hash(body.reader(), wanted.algorithm)?)
            }
        };
        let address = ContentAddress { method: wanted.method, hash };
        let path = address.path(self.store.store_dir(), &wanted.name, &wanted.references, false)?;
        let facts = Facts {
            deriver: None,
            nar_hash: packed.nar_hash,
            references: wanted.references,
            registered_at_seconds: 0,
            nar_size_bytes: packed.nar_size_bytes,
            ultimate: false,
            signatures: Vec::new(),
            content_address: address.to_string(),
        };
        let added = ValidPath { path, facts };
        self.upload(&added, packed)?;
        Ok(added)
    }

    fn derivation_content(&mut self, wanted: &Wanted, content: Content) -> anyhow::Result<ValidPath> {
        let mut bytes = Vec::new();
        content.take(DERIVATION_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).with_context(|| format!("receive `{}`", wanted.name))?;
        let stem = wanted.name.strip_suffix(".drv").unwrap_or(&wanted.name);
        let derivation = Derivation::parse_canonical(self.store.store_dir(), stem, &bytes)?;
        ensure!(derivation.references() == wanted.references, "add `{}`: the references that are stated are not its own", wanted.name);
        let path = path_of_parsed(self.store.store_dir(), &derivation, &bytes)?;
        self.derivations.push((path.clone(), Arc::new(derivation)));
        self.flush()?;
        let facts = self.runtime.block_on(self.store.facts(path.as_path()))?;
        let facts = facts.with_context(|| format!("add `{path}`: the farm does not have what it took a moment ago"))?;
        Ok(ValidPath { path: path.as_path().clone(), facts })
    }

    /// Takes a path with its archive.
    fn archive(&mut self, stated: ValidPath, nar: &mut impl Read) -> anyhow::Result<()> {
        if let Ok(path) = DrvPath::from_path(stated.path.clone()) {
            return self.derivation_archive(path, nar);
        }
        if self.runtime.block_on(self.store.is_valid(&stated.path))? {
            io::copy(nar, &mut io::sink())?;
            return Ok(());
        }
        if stated.facts.content_address.is_empty() && stated.facts.signatures.is_empty() {
            bail!(
                "add `{}`: its path does not follow from its content, and nobody has signed it: build it on the farm, or sign it with a key of the \
                 farm's `trusted_upload_keys` (`nix store sign`)",
                self.store.store_dir().join(&stated.path)
            );
        }
        let packed = pack(stated.path.as_str(), nar)?;
        ensure!(packed.nar_hash == stated.facts.nar_hash, "add `{}`: its archive has another hash than is stated", stated.path);
        self.upload(&stated, packed)
    }

    fn derivation_archive(&mut self, path: DrvPath, nar: &mut impl Read) -> anyhow::Result<()> {
        let mut bytes = Capped(Vec::new());
        nar::read_single_file(nar, &mut bytes).with_context(|| format!("receive `{path}`"))?;
        let Capped(bytes) = bytes;
        let computed = drv_path_of(self.store.store_dir(), path.name(), &bytes)?;
        ensure!(computed == path, "add `{path}`: its content belongs to `{computed}`");
        let derivation = Derivation::parse_canonical(self.store.store_dir(), path.name(), &bytes)?;
        self.derivation_bytes += bytes.len();
        self.derivations.push((path, Arc::new(derivation)));
        if self.derivation_bytes >= DERIVATION_BATCH_BYTES || self.derivations.len() >= DERIVATIONS_PER_BATCH {
            self.flush()
        } else {
            Ok(())
        }
    }

    fn upload(&mut self, added: &ValidPath, packed: Packed) -> anyhow::Result<()> {
        let ValidPath { path, facts } = added;
        let needed: BTreeSet<StorePath> = facts.references.iter().filter(|reference| *reference != path).cloned().collect();
        let is_derivation = |path: &&StorePath| path.name().ends_with(".drv");
        if let Some(reference) = needed.iter().find(is_derivation) {
            bail!("add `{path}`: it refers to the derivation `{reference}`, which the farm does not keep beside sources");
        }
        let valid = self.runtime.block_on(self.store.valid(needed.iter().chain([path]).cloned().collect()))?;
        if let Some(lacking) = needed.iter().find(|reference| !valid.contains(*reference)) {
            bail!("add `{path}`: it refers to `{lacking}`, which the farm does not have; add that first");
        }
        if !valid.contains(path) {
            let deriver = facts.deriver.clone().and_then(|deriver| DrvPath::from_path(deriver).ok());
            let address = Some(facts.content_address.clone()).filter(|address| !address.is_empty());
            let is_built = address.is_none();
            let mut info = packed.path_info(path.clone(), deriver.filter(|_| is_built), address);
            info.references = facts.references.clone();
            let (client, body) = (self.store.client(), packed.spool.into_bytes());
            self.runtime.block_on(async {
                match is_built {
                    true => import_signed(client, &info, facts.signatures.clone(), &body).await,
                    false => import(client, &info, &body).await,
                }
            })?;
        }
        // Brought while it is at hand, if files are kept here: its client may read it next.
        self.runtime.block_on(self.store.facts(path)).map(drop)
    }

    /// Hands over the derivations that wait.
    fn flush(&mut self) -> anyhow::Result<()> {
        self.derivation_bytes = 0;
        self.runtime.block_on(self.store.add_derivations(std::mem::take(&mut self.derivations)))
    }
}

/// Receives what is read more than once, and its size.
fn spooled(name: &str, content: impl Read) -> anyhow::Result<(BlobBytes, u64)> {
    let mut spool = Spool::new(&std::env::temp_dir());
    io::copy(&mut content.take(NAR_BYTES_MAX), &mut spool).with_context(|| format!("receive `{name}`"))?;
    let size_bytes = spool.size_bytes();
    Ok((spool.into_bytes(), size_bytes))
}

fn pack(name: &str, nar: impl Read) -> anyhow::Result<Packed> {
    let packer = Packer { level: UPLOAD_LEVEL, spool_dir: std::env::temp_dir() };
    // The client says what a source refers to, and its path follows from that.
    Ok(packer.pack_nar(name, nar.take(NAR_BYTES_MAX), &Candidates::new([]))?)
}

/// Takes no more bytes than a derivation may have.
struct Capped(Vec<u8>);

impl Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > DERIVATION_BYTES_MAX {
            return Err(io::Error::other(format!("a derivation has at most {DERIVATION_BYTES_MAX} bytes")));
        }
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Derivations handed over together: as many as `kiln build` does.
const DERIVATIONS_PER_BATCH: usize = 512;
