//! Numbers, strings and lists as bytes.

use kiln_wire::{StoreDir, StorePath};

use super::fields::WORD_BYTES;

/// Collects the bytes of an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoder {
    bytes: Vec<u8>,
}

impl Encoder {
    /// Adds a number.
    pub fn number(&mut self, number: u64) -> &mut Self {
        self.bytes.extend_from_slice(&number.to_le_bytes());
        self
    }

    /// Adds a truth value.
    pub fn truth(&mut self, truth: bool) -> &mut Self {
        self.number(u64::from(truth))
    }

    /// Adds a string.
    pub fn text(&mut self, text: impl AsRef<[u8]>) -> &mut Self {
        let text = text.as_ref();
        self.number(text.len() as u64);
        self.bytes.extend_from_slice(text);
        self.bytes.extend_from_slice(&[0; WORD_BYTES][..text.len().wrapping_neg() % WORD_BYTES]);
        self
    }

    /// Adds a store path, in full.
    pub fn path(&mut self, store_dir: &StoreDir, path: &StorePath) -> &mut Self {
        self.text(store_dir.join(path))
    }

    /// Adds a store path, or what stands for none.
    pub fn path_if_any(&mut self, store_dir: &StoreDir, path: Option<&StorePath>) -> &mut Self {
        self.text(path.map(|path| store_dir.join(path)).unwrap_or_default())
    }

    /// Adds a count, and each of `items` as `add` does.
    pub fn list<T>(
        &mut self,
        items: impl IntoIterator<Item = T, IntoIter: ExactSizeIterator>,
        add: impl Fn(&mut Self, T) -> &mut Self,
    ) -> &mut Self {
        let items = items.into_iter();
        self.number(items.len() as u64);
        for item in items {
            add(self, item);
        }
        self
    }

    /// Adds a set of store paths.
    pub fn paths<'a>(
        &mut self,
        store_dir: &StoreDir,
        paths: impl IntoIterator<Item = &'a StorePath, IntoIter: ExactSizeIterator>,
    ) -> &mut Self {
        self.list(paths, |to, path| to.path(store_dir, path))
    }

    /// Returns the bytes.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}
