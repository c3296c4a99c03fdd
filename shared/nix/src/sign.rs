//! Keys and signatures: Ed25519, as Nix writes them.

use std::fmt;
use std::io::{self, Read};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature as Bytes, Signer, SigningKey, VerifyingKey};

/// A key that signs, `NAME:` and 64 bytes in base 64. Its text never shows in messages.
#[derive(Clone)]
pub struct SecretKey {
    name: String,
    key: SigningKey,
}

/// A key that verifies, `NAME:` and 32 bytes in base 64.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    name: String,
    key: VerifyingKey,
}

/// A signature, `NAME:` and 64 bytes in base 64. The name says whose key to verify it with.
#[derive(Clone, PartialEq, Eq)]
pub struct Signature {
    name: String,
    bytes: [u8; 64],
}

/// Text that is no key or signature.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("read {kind}: {rule}")]
pub struct KeyError {
    /// What the text was meant to be.
    pub kind: &'static str,
    /// The rule that it breaks. Never holds a part of the text, which may be secret.
    pub rule: &'static str,
}

impl SecretKey {
    /// Makes a key from 32 random bytes.
    ///
    /// # Errors
    /// [`KeyError`] if the name is empty or has a colon, a space or a control character.
    pub fn from_seed(name: &str, seed: [u8; 32]) -> Result<Self, KeyError> {
        check_name("secret key", name)?;
        Ok(Self { name: name.to_owned(), key: SigningKey::from_bytes(&seed) })
    }

    /// Makes a key from the system's randomness.
    ///
    /// # Errors
    /// `InvalidInput` if the name is none, else what reading randomness gave.
    pub fn generate(name: &str) -> io::Result<Self> {
        let mut seed = [0; 32];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut seed)?;
        Self::from_seed(name, seed).map_err(|err| io::Error::new(io::ErrorKind::InvalidInput, err))
    }

    /// Reads a key. White space around it is ignored.
    ///
    /// # Errors
    /// [`KeyError`] names the rule that the text breaks.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        const KIND: &str = "secret key";
        let (name, bytes) = split::<64>(KIND, text)?;
        let key =
            SigningKey::from_keypair_bytes(&bytes).map_err(|_| KeyError { kind: KIND, rule: "its two halves do not belong together" })?;
        Ok(Self { name, key })
    }

    /// Returns the text that goes to a file that only its owner may read.
    pub fn to_secret_text(&self) -> String {
        format!("{}:{}", self.name, STANDARD.encode(self.key.to_keypair_bytes()))
    }

    /// Returns the key's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the public half.
    pub fn public(&self) -> PublicKey {
        PublicKey { name: self.name.clone(), key: self.key.verifying_key() }
    }

    /// Signs a message, such as a path's fingerprint.
    pub fn sign(&self, message: &[u8]) -> Signature {
        Signature { name: self.name.clone(), bytes: self.key.sign(message).to_bytes() }
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey({})", self.name)
    }
}

impl PublicKey {
    /// Reads a key. White space around it is ignored.
    ///
    /// # Errors
    /// [`KeyError`] names the rule that the text breaks.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        const KIND: &str = "public key";
        let (name, bytes) = split::<32>(KIND, text)?;
        let key = VerifyingKey::from_bytes(&bytes).map_err(|_| KeyError { kind: KIND, rule: "its bytes are no point of the curve" })?;
        Ok(Self { name, key })
    }

    /// Returns the key's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Says whether `signature` is this key's, by name and by mathematics, for `message`.
    pub fn verifies(&self, message: &[u8], signature: &Signature) -> bool {
        self.name == signature.name && self.key.verify_strict(message, &Bytes::from_bytes(&signature.bytes)).is_ok()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, STANDARD.encode(self.key.as_bytes()))
    }
}

impl Signature {
    /// Reads a signature.
    ///
    /// # Errors
    /// [`KeyError`] names the rule that the text breaks.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let (name, bytes) = split::<64>("signature", text)?;
        Ok(Self { name, bytes })
    }

    /// Returns the name of the key that made it, as it claims.
    pub fn key_name(&self) -> &str {
        &self.name
    }

    /// Returns the bytes of it in base 64.
    pub fn to_base64(&self) -> String {
        STANDARD.encode(self.bytes)
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, STANDARD.encode(self.bytes))
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signature({self})")
    }
}

fn split<const N: usize>(kind: &'static str, text: &str) -> Result<(String, [u8; N]), KeyError> {
    let (name, encoded) = text.trim().split_once(':').ok_or(KeyError { kind, rule: "want `NAME:BASE64`" })?;
    check_name(kind, name)?;
    let bytes = STANDARD.decode(encoded).map_err(|_| KeyError { kind, rule: "the part after the colon is not base 64" })?;
    let rule = if N == 64 { "want 64 bytes after the colon" } else { "want 32 bytes after the colon" };
    Ok((name.to_owned(), bytes.try_into().map_err(|_| KeyError { kind, rule })?))
}

fn check_name(kind: &'static str, name: &str) -> Result<(), KeyError> {
    let fits =
        !name.is_empty() && !name.contains(|character: char| character == ':' || character.is_whitespace() || character.is_control());
    if fits { Ok(()) } else { Err(KeyError { kind, rule: "its name must not be empty or have colons, spaces or control characters" }) }
}
