//! The keys of one cache, so that clients can go over from one key to the next: those that sign, those that did, and those that leaked.

use crate::narinfo::NarInfo;
use crate::sign::{KeyError, PublicKey, SecretKey, Signature};
use kiln_wire::StoreDir;

/// Keys that sign, the cache's own first, and public halves of keys that signed before: retired ones, whose signatures are still
/// believed, and revoked ones, whose are not. Clients know a key by its name, so that no two have the same.
#[derive(Clone, Debug)]
pub struct Keyring {
    own: SecretKey,
    further: Vec<SecretKey>,
    retired: Vec<PublicKey>,
    revoked: Vec<PublicKey>,
}

impl Keyring {
    /// Makes a ring of one key.
    pub fn of(own: SecretKey) -> Self {
        Self { own, further: Vec::new(), retired: Vec::new(), revoked: Vec::new() }
    }

    /// Adds a key that signs too.
    ///
    /// # Errors
    /// [`KeyError`] if a key of this name is there.
    pub fn add(&mut self, key: SecretKey) -> Result<(), KeyError> {
        self.check_new("secret key", key.name())?;
        self.further.push(key);
        Ok(())
    }

    /// Adds a key that signs no more.
    ///
    /// # Errors
    /// [`KeyError`] if a key of this name is there.
    pub fn retire(&mut self, key: PublicKey) -> Result<(), KeyError> {
        self.check_new("public key", key.name())?;
        self.retired.push(key);
        Ok(())
    }

    /// Adds a key that signs no more and that somebody else may have: its signatures say nothing.
    ///
    /// # Errors
    /// [`KeyError`] if a key of this name is there.
    pub fn revoke(&mut self, key: PublicKey) -> Result<(), KeyError> {
        self.check_new("public key", key.name())?;
        self.revoked.push(key);
        Ok(())
    }

    /// Returns the key that a farm is known by.
    pub fn own(&self) -> &SecretKey {
        &self.own
    }

    /// Returns the keys that sign, the own first.
    pub fn signing(&self) -> impl Iterator<Item = &SecretKey> {
        std::iter::once(&self.own).chain(&self.further)
    }

    /// Returns the public halves of all keys, those that sign first.
    pub fn known(&self) -> impl Iterator<Item = PublicKey> {
        self.vouching().chain(self.revoked.iter().cloned())
    }

    /// Returns what clients are to trust: the public halves of the keys that sign, as `trusted-public-keys` has them.
    pub fn trusted(&self) -> String {
        self.signing().map(|key| key.public().to_string()).collect::<Vec<_>>().join(" ")
    }

    /// Returns a signature of each key for what `message` says.
    pub fn sign(&self, message: &[u8]) -> Vec<Signature> {
        self.signing().map(|key| key.sign(message)).collect()
    }

    /// Returns the signatures that a narinfo lacks: those of keys that sign and have not signed it. None if no key of the ring, present
    /// or retired, has signed it: then nobody knows whether it is true. A revoked key's signature may be a forgery.
    pub fn lacking(&self, store_dir: &StoreDir, info: &NarInfo) -> Vec<Signature> {
        let message = info.fingerprint(store_dir);
        let has = |key: &PublicKey| info.signatures.iter().any(|signature| key.verifies(message.as_bytes(), signature));
        let lacking: Vec<&SecretKey> = self.signing().filter(|key| !has(&key.public())).collect();
        match lacking.is_empty() || !self.vouching().any(|key| has(&key)) {
            true => Vec::new(),
            false => lacking.into_iter().map(|key| key.sign(message.as_bytes())).collect(),
        }
    }

    /// Says whether a key of the ring, present or retired, made one of the signatures of `message`. A revoked key's says nothing.
    pub fn vouches(&self, message: &[u8], signatures: &[Signature]) -> bool {
        self.vouching().any(|key| signatures.iter().any(|signature| key.verifies(message, signature)))
    }

    /// The public halves of the keys whose signatures are believed.
    fn vouching(&self) -> impl Iterator<Item = PublicKey> {
        self.signing().map(SecretKey::public).chain(self.retired.iter().cloned())
    }

    fn check_new(&self, kind: &'static str, name: &str) -> Result<(), KeyError> {
        match self.known().any(|key| key.name() == name) {
            true => Err(KeyError { kind, rule: "another key of the same farm has its name, by which clients know it" }),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> SecretKey {
        SecretKey::from_seed(name, [name.as_bytes()[0]; 32]).expect("a good name")
    }

    /// A narinfo with the signatures of these keys.
    fn signed(by: &[&str]) -> NarInfo {
        let text = "StorePath: /nix/store/0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar\nURL: x\nCompression: none\n\
                    NarHash: sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73\nNarSize: 9\nReferences: \n";
        let mut info = NarInfo::parse(&StoreDir::default(), text.as_bytes()).expect("a narinfo");
        let message = info.fingerprint(&StoreDir::default());
        info.signatures = by.iter().map(|name| key(name).sign(message.as_bytes())).collect();
        info
    }

    #[test]
    fn what_a_key_of_the_ring_signed_is_signed_by_those_that_sign() {
        let mut ring = Keyring::of(key("b"));
        ring.add(key("c")).expect("another name");
        ring.retire(key("a").public()).expect("another name");
        ring.revoke(key("r").public()).expect("another name");
        let table: [(&[&str], &[&str]); 9] = [
            (&["b", "c"], &[]),
            (&["b"], &["c"]),
            (&["c"], &["b"]),
            (&["a"], &["b", "c"]),
            (&["a", "b", "c"], &[]),
            (&["x"], &[]),
            (&["r"], &[]),
            (&["r", "b"], &["c"]),
            (&[], &[]),
        ];
        for (by, expected) in table {
            let lacking = ring.lacking(&StoreDir::default(), &signed(by));
            assert_eq!(lacking.iter().map(Signature::key_name).collect::<Vec<_>>(), expected, "{by:?}");
        }
        // The right name and other bytes are no signature.
        let mut forged = signed(&["a"]);
        forged.nar_size_bytes += 1;
        assert_eq!(ring.lacking(&StoreDir::default(), &forged), []);
        assert_eq!(ring.trusted(), format!("{} {}", key("b").public(), key("c").public()));
    }

    #[test]
    fn no_two_keys_of_a_ring_have_one_name() {
        let mut ring = Keyring::of(key("b"));
        assert!(ring.add(key("b")).is_err() && ring.retire(key("b").public()).is_err());
        ring.add(key("c")).expect("another name");
        assert!(ring.add(key("c")).is_err() && ring.retire(key("c").public()).is_err() && ring.revoke(key("c").public()).is_err());
        ring.revoke(key("d").public()).expect("another name");
        assert!(ring.add(key("d")).is_err() && ring.retire(key("d").public()).is_err());
        assert!(ring.known().any(|known| known == key("d").public()), "the farm is known by it");
    }
}
