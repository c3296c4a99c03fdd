//! Nix's ways to write a hash: base 16, base 32, base 64 and SRI. Does not compute content addresses (see [`crate::content`]).

use std::fmt;
use std::str::FromStr;

use kiln_wire::Sha256Hash;
use nix_derivation::nixbase32;

/// A hash algorithm that Nix knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Algorithm {
    /// 16 bytes, broken; a few old recipes name it.
    Md5,
    /// 20 bytes, broken; old recipes and Git name it.
    Sha1,
    /// 32 bytes.
    Sha256,
    /// 64 bytes.
    Sha512,
    /// 32 bytes.
    Blake3,
}

impl Algorithm {
    /// Returns Nix's name of the algorithm.
    pub fn as_str(self) -> &'static str {
        self.theirs().as_str()
    }

    /// Reads Nix's name of an algorithm.
    ///
    /// # Errors
    /// [`HashError::Unknown`] if Nix has no algorithm of that name.
    pub fn parse(name: &str) -> Result<Self, HashError> {
        name.parse::<nix_derivation::HashAlgorithm>().map(Self::from_theirs).map_err(|_| HashError::Unknown { name: cut(name) })
    }

    /// Returns the length of its digests in bytes.
    pub fn digest_bytes(self) -> usize {
        match self {
            Self::Md5 => 16,
            Self::Sha1 => 20,
            Self::Sha256 | Self::Blake3 => 32,
            Self::Sha512 => 64,
        }
    }

    pub(crate) fn theirs(self) -> nix_derivation::HashAlgorithm {
        match self {
            Self::Md5 => nix_derivation::HashAlgorithm::Md5,
            Self::Sha1 => nix_derivation::HashAlgorithm::Sha1,
            Self::Sha256 => nix_derivation::HashAlgorithm::Sha256,
            Self::Sha512 => nix_derivation::HashAlgorithm::Sha512,
            Self::Blake3 => nix_derivation::HashAlgorithm::Blake3,
        }
    }

    pub(crate) fn from_theirs(theirs: nix_derivation::HashAlgorithm) -> Self {
        match theirs {
            nix_derivation::HashAlgorithm::Md5 => Self::Md5,
            nix_derivation::HashAlgorithm::Sha1 => Self::Sha1,
            nix_derivation::HashAlgorithm::Sha256 => Self::Sha256,
            nix_derivation::HashAlgorithm::Sha512 => Self::Sha512,
            nix_derivation::HashAlgorithm::Blake3 => Self::Blake3,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A digest with the algorithm that made it. The digest has the algorithm's length.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hash {
    algorithm: Algorithm,
    digest: Vec<u8>,
}

/// Text or bytes that are no hash.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HashError {
    /// Nix has no such algorithm.
    #[error("read hash algorithm `{name}`: want md5, sha1, sha256, sha512 or blake3")]
    Unknown {
        /// What was read, cut at 100 characters.
        name: String,
    },
    /// The text is in none of Nix's encodings.
    #[error("read hash `{text}`: want `ALGORITHM-BASE64` or `ALGORITHM:` with base 16, base 32 or base 64 of a whole digest")]
    Text {
        /// What was read, cut at 100 characters.
        text: String,
    },
    /// The digest has another length than the algorithm's.
    #[error("take {algorithm} digest of {length_bytes} bytes: want {}", .algorithm.digest_bytes())]
    Length {
        /// The stated algorithm.
        algorithm: Algorithm,
        /// The digest's length.
        length_bytes: usize,
    },
}

impl Hash {
    /// Takes a digest.
    ///
    /// # Errors
    /// [`HashError::Length`] if the digest is not as long as the algorithm's.
    pub fn new(algorithm: Algorithm, digest: &[u8]) -> Result<Self, HashError> {
        if digest.len() != algorithm.digest_bytes() {
            return Err(HashError::Length { algorithm, length_bytes: digest.len() });
        }
        Ok(Self { algorithm, digest: digest.to_vec() })
    }

    /// Reads `ALGORITHM-BASE64` (SRI), or `ALGORITHM:` followed by base 16, Nix's base 32, or base 64.
    ///
    /// # Errors
    /// [`HashError::Text`] for anything else.
    pub fn parse(text: &str) -> Result<Self, HashError> {
        let theirs = nix_derivation::NixHash::parse(text).map_err(|_| HashError::Text { text: cut(text) })?;
        Ok(Self::from_theirs(&theirs))
    }

    /// Returns the algorithm.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Returns the digest's bytes.
    pub fn digest(&self) -> &[u8] {
        &self.digest
    }

    /// Returns the digest in base 16, without the algorithm.
    pub fn to_base16(&self) -> String {
        base16(&self.digest)
    }

    /// Returns `ALGORITHM:` and the digest in Nix's base 32.
    pub fn to_nix32(&self) -> String {
        format!("{}:{}", self.algorithm, nix32(&self.digest))
    }

    /// Returns `ALGORITHM-BASE64`, as SRI wants it.
    pub fn to_sri(&self) -> String {
        self.theirs().to_sri_string()
    }

    /// Returns the digest if it is a SHA-256.
    pub fn as_sha256(&self) -> Option<Sha256Hash> {
        match self.algorithm {
            Algorithm::Sha256 => <[u8; 32]>::try_from(self.digest.as_slice()).ok().map(Sha256Hash),
            Algorithm::Md5 | Algorithm::Sha1 | Algorithm::Sha512 | Algorithm::Blake3 => None,
        }
    }

    pub(crate) fn theirs(&self) -> nix_derivation::NixHash {
        nix_derivation::NixHash::from_algorithm_and_digest(self.algorithm.theirs(), &self.digest)
            .expect("the digest's length was checked when it was taken")
    }

    pub(crate) fn from_theirs(theirs: &nix_derivation::NixHash) -> Self {
        Self { algorithm: Algorithm::from_theirs(theirs.algorithm()), digest: theirs.digest_as_bytes().to_vec() }
    }
}

impl From<Sha256Hash> for Hash {
    fn from(hash: Sha256Hash) -> Self {
        Self { algorithm: Algorithm::Sha256, digest: hash.0.to_vec() }
    }
}

impl FromStr for Hash {
    type Err = HashError;

    fn from_str(text: &str) -> Result<Self, HashError> {
        Self::parse(text)
    }
}

/// Computes a [`Hash`] over bytes as they come.
#[derive(Debug)]
pub struct Hasher(nix_derivation::NixHasher);

impl Hasher {
    /// Starts with no bytes.
    pub fn new(algorithm: Algorithm) -> Self {
        Self(nix_derivation::NixHasher::new(algorithm.theirs()))
    }

    /// Takes more bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Returns the hash of all bytes taken.
    pub fn finish(self) -> Hash {
        Hash::from_theirs(&self.0.finalize())
    }
}

impl std::io::Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Returns `bytes` in Nix's base 32, which is its own (other alphabet, other order of bits than RFC 4648).
pub fn nix32(bytes: &[u8]) -> String {
    nixbase32::encode(bytes)
}

/// Reads Nix's base 32.
///
/// # Errors
/// [`HashError::Text`] if a character is outside the alphabet or bits are left over.
pub fn parse_nix32(text: &str) -> Result<Vec<u8>, HashError> {
    nixbase32::decode(text.as_bytes()).map_err(|_| HashError::Text { text: cut(text) })
}

/// Returns `bytes` in base 16, lower case.
pub fn base16(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]).map(|nibble| char::from(DIGITS[usize::from(nibble)])).collect()
}

/// Reads `sha256:` followed by any of Nix's encodings, `sha256-BASE64`, or bare base 16 or base 32 of a SHA-256.
///
/// # Errors
/// [`HashError::Text`] if the text is none of these.
pub fn parse_sha256(text: &str) -> Result<Sha256Hash, HashError> {
    let typed = if text.contains([':', '-']) { Hash::parse(text) } else { Hash::parse(&format!("sha256:{text}")) };
    typed.ok().and_then(|hash| hash.as_sha256()).ok_or_else(|| HashError::Text { text: cut(text) })
}

/// Returns `sha256:` and the digest in Nix's base 32, as narinfo files and signatures have it.
pub fn sha256_nix32(hash: &Sha256Hash) -> String {
    format!("sha256:{}", nix32(&hash.0))
}

fn cut(text: &str) -> String {
    text.chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_encoding_of_a_digest_reads_back() {
        for algorithm in [Algorithm::Md5, Algorithm::Sha1, Algorithm::Sha256, Algorithm::Sha512, Algorithm::Blake3] {
            let mut hasher = Hasher::new(algorithm);
            hasher.update(b"abc");
            let hash = hasher.finish();
            assert_eq!(Algorithm::parse(algorithm.as_str()), Ok(algorithm));
            for text in [hash.to_nix32(), hash.to_sri(), format!("{algorithm}:{}", hash.to_base16())] {
                assert_eq!(Hash::parse(&text), Ok(hash.clone()), "{text}");
            }
        }
    }

    #[test]
    fn the_empty_sha256_has_its_known_spellings() {
        let hash = Hasher::new(Algorithm::Sha256).finish();
        assert_eq!(hash.to_base16(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(hash.to_nix32(), "sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73");
        assert_eq!(hash.to_sri(), "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=");
        let bare = hash.as_sha256();
        assert_eq!(parse_sha256("0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73").ok(), bare);
        assert_eq!(parse_sha256("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855").ok(), bare);
    }

    #[test]
    fn text_that_is_no_hash_is_refused() {
        for text in [
            "",
            "sha256",
            "sha256:",
            "sha256:00",
            "sha3:00",
            "sha256-AA==",
            "md5-é",
            "sha256:é0000000000000000000000000000000000000000000000000",
        ] {
            assert!(Hash::parse(text).is_err(), "{text}");
        }
        assert!(parse_sha256("md5:d41d8cd98f00b204e9800998ecf8427e").is_err());
        assert!(Hash::new(Algorithm::Sha1, &[0; 32]).is_err());
    }
}
