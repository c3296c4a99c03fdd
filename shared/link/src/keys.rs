//! A node's QUIC keys. Kept across restarts they let a peer learn within a round trip that the node has restarted; with fresh
//! keys the peer waits until it has heard nothing for the whole idle time.

use std::io;
use std::path::Path;
use std::sync::Arc;

use quinn::EndpointConfig;
use quinn::crypto::{CryptoError, HmacKey};
#[cfg(not(feature = "simulation"))]
use rustls::crypto::aws_lc_rs;

use crate::LinkError;
use crate::ca::{make_private_dir, write_private};
use crate::config::{LOOPBACK_DATAGRAM_BYTES, RESET_INTERVAL_MIN};

/// The keys' file within a node's directory.
const KEYS_FILE: &str = "quic.keys";
/// Key for stateless resets, then key for connection ids.
const KEYS_BYTES: usize = 32 + 8;

/// The keys of one endpoint.
pub(crate) struct NodeKeys([u8; KEYS_BYTES]);

impl NodeKeys {
    /// Makes keys from what a simulation gives out as randomness: an endpoint's choices follow from them.
    #[cfg(feature = "simulation")]
    pub fn fresh() -> Self {
        use std::hash::{BuildHasher, RandomState};
        let mut keys = [0; KEYS_BYTES];
        for (index, chunk) in keys.chunks_mut(8).enumerate() {
            chunk.copy_from_slice(&RandomState::new().hash_one(index).to_le_bytes());
        }
        Self(keys)
    }

    /// Makes keys for an endpoint that need not outlive the process.
    #[cfg(not(feature = "simulation"))]
    pub fn fresh() -> Self {
        let mut keys = [0; KEYS_BYTES];
        aws_lc_rs::default_provider().secure_random.fill(&mut keys).expect("the system has randomness");
        Self(keys)
    }

    /// Reads the keys kept in `dir`, or makes them there (and the directory, with mode 0700).
    ///
    /// # Errors
    /// [`LinkError::Keys`] if the file cannot be read or written, or is no such file.
    pub fn open(dir: &Path) -> Result<Self, LinkError> {
        let path = dir.join(KEYS_FILE);
        let fail = |err| LinkError::Keys { path: path.clone(), err };
        match std::fs::read_to_string(&path) {
            Ok(text) => parse_hex(text.trim())
                .map(Self)
                .ok_or_else(|| fail(io::Error::new(io::ErrorKind::InvalidData, "not 80 hexadecimal digits"))),
            Err(err) if err.kind() == io::ErrorKind::NotFound => {
                let keys = Self::fresh();
                let text: String = keys.0.iter().map(|byte| format!("{byte:02x}")).collect();
                make_private_dir(dir).and_then(|()| write_private(&path, &text)).map_err(|err| fail(io::Error::other(err)))?;
                Ok(keys)
            }
            Err(err) => Err(fail(err)),
        }
    }

    /// Returns a seed for an endpoint of a simulation: what it draws follows from its keys.
    #[cfg(feature = "simulation")]
    pub fn seed(&self) -> [u8; 32] {
        *blake3::hash(&self.0).as_bytes()
    }

    /// Returns the settings of an endpoint with these keys.
    pub fn endpoint(&self) -> EndpointConfig {
        let (reset, ids) = self.0.split_first_chunk::<32>().expect("40 bytes begin with 32");
        let ids = u64::from_le_bytes(*ids.first_chunk().expect("8 bytes are left"));
        let mut endpoint = EndpointConfig::new(Arc::new(ResetKey(*reset)));
        endpoint
            .cid_generator(move || Box::new(quinn_proto::HashedConnectionIdGenerator::from_key(ids)))
            .min_reset_interval(RESET_INTERVAL_MIN)
            .max_udp_payload_size(LOOPBACK_DATAGRAM_BYTES)
            .expect("within quinn's bounds");
        endpoint
    }
}

/// BLAKE3 as the keyed hash behind stateless reset tokens.
struct ResetKey([u8; 32]);

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        signature_out.copy_from_slice(blake3::keyed_hash(&self.0, data).as_bytes());
    }

    fn signature_len(&self) -> usize {
        blake3::OUT_LEN
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        // Comparing `blake3::Hash` takes the same time whatever differs.
        if blake3::keyed_hash(&self.0, data) == *signature { Ok(()) } else { Err(CryptoError) }
    }
}

fn parse_hex(text: &str) -> Option<[u8; KEYS_BYTES]> {
    let mut keys = [0; KEYS_BYTES];
    if text.len() != 2 * KEYS_BYTES || !text.is_ascii() {
        return None;
    }
    for (index, byte) in keys.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    Some(keys)
}
