//! Facts about a store path, as a client states or hears them.

use std::collections::BTreeSet;

use kiln_wire::{Sha256Hash, StoreDir, StorePath};

use super::assembler::Item;
use super::encoder::Encoder;
use super::fields::{Fields, ProtocolError, value};

/// A path with facts about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValidPath {
    /// The path.
    pub path: StorePath,
    /// The facts.
    pub facts: Facts,
}

/// What is known of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// What made it. Nix takes any path here.
    pub deriver: Option<StorePath>,
    /// SHA-256 of its archive.
    pub nar_hash: Sha256Hash,
    /// What it refers to.
    pub references: BTreeSet<StorePath>,
    /// When it became valid, in seconds since 1970.
    pub registered_at_seconds: u64,
    /// Length of its archive.
    pub nar_size_bytes: u64,
    /// Whether the store itself built it, so that it needs no signature there.
    pub ultimate: bool,
    /// Signatures, as they are written.
    pub signatures: Vec<String>,
    /// Its content address, as it is written; empty for none.
    pub content_address: String,
}

impl ValidPath {
    /// What a path with facts is made of where archives follow each.
    pub const ITEMS: &'static [Item] =
        &[Item::Text, Item::Text, Item::Text, Item::Records(1), Item::Number, Item::Number, Item::Number, Item::Records(1), Item::Text];

    /// Reads what an [`super::Assembler`] of [`Self::ITEMS`] has gathered.
    ///
    /// # Errors
    /// [`ProtocolError`] names the field and its rule.
    pub fn decode(store_dir: &StoreDir, bytes: &[u8]) -> Result<Self, ProtocolError> {
        let mut fields = Fields::new(bytes, store_dir);
        let read = Self::read(&mut fields)?;
        fields.finish()?;
        Ok(read)
    }

    pub(super) fn read(fields: &mut Fields<'_>) -> Result<Self, ProtocolError> {
        Ok(Self { path: fields.path("path")?, facts: Facts::read(fields)? })
    }

    /// Adds the path and its facts to an answer.
    pub fn encode(&self, store_dir: &StoreDir, to: &mut Encoder) {
        to.path(store_dir, &self.path);
        self.facts.encode(store_dir, to);
    }
}

impl Facts {
    fn read(fields: &mut Fields<'_>) -> Result<Self, ProtocolError> {
        Ok(Self {
            deriver: fields.path_if_any("deriver")?,
            nar_hash: {
                let text = fields.text("narHash")?;
                text.parse().map_err(|_| value("narHash", text, "want a SHA-256 as 64 hexadecimal digits"))?
            },
            references: fields.list("references", |fields| fields.path("references"))?,
            registered_at_seconds: fields.number("registrationTime")?,
            nar_size_bytes: fields.number("narSize")?,
            ultimate: fields.truth("ultimate")?,
            signatures: fields.list("sigs", |fields| fields.text("sigs").map(str::to_owned))?,
            content_address: fields.text("ca")?.to_owned(),
        })
    }

    /// Adds the facts to an answer.
    pub fn encode(&self, store_dir: &StoreDir, to: &mut Encoder) {
        to.path_if_any(store_dir, self.deriver.as_ref()).text(self.nar_hash.to_string());
        to.paths(store_dir, &self.references).number(self.registered_at_seconds).number(self.nar_size_bytes).truth(self.ultimate);
        to.list(&self.signatures, |to, signature| to.text(signature)).text(&self.content_address);
    }
}
