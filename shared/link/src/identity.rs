//! A member's own certificate and key, ready for use.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;
use std::{fs, io};

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::Credentials;
use crate::leaf::{CertificateRefusal, Leaf};
use crate::name::Peer;

/// The farm's root within a member's directory.
pub(crate) const CA_FILE: &str = "ca.pem";
/// The member's certificate within its directory.
pub(crate) const CERTIFICATE_FILE: &str = "cert.pem";
/// The member's private key within its directory.
pub(crate) const KEY_FILE: &str = "key.pem";

/// A member's certificate chain, private key and trusted root. Cheap to clone.
#[derive(Clone)]
pub struct Identity(Arc<Inner>);

struct Inner {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: Arc<RootCertStore>,
    leaf: Leaf,
}

/// Why an identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file cannot be read.
    #[error("read {}; `kiln ca issue` makes it", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        err: io::Error,
    },
    /// A PEM text does not hold what it should.
    #[error("read the {what} as PEM")]
    Pem {
        /// What it should hold.
        what: &'static str,
        /// Why it does not.
        #[source]
        err: rustls::pki_types::pem::Error,
    },
    /// There is no certificate in the chain.
    #[error("the certificate file holds no certificate")]
    Empty,
    /// The own certificate does not name a member of a farm.
    #[error("read the own certificate")]
    Certificate(#[source] CertificateRefusal),
    /// TLS refuses the certificate, the key or the root.
    #[error("use the certificate, key and root for TLS")]
    Tls(#[source] rustls::Error),
    /// TLS lacks what QUIC needs, or the trusted root cannot be used.
    #[error("set up TLS for QUIC: {reason}")]
    Setup {
        /// In rustls' words.
        reason: String,
    },
}

impl Identity {
    /// Reads `cert.pem`, `key.pem` and `ca.pem` in `dir`.
    ///
    /// # Errors
    /// [`IdentityError`] names the file, or what is wrong with its content.
    pub fn load(dir: &Path) -> Result<Self, IdentityError> {
        let read = |name: &str| {
            let path = dir.join(name);
            fs::read_to_string(&path).map_err(|err| IdentityError::Read { path, err })
        };
        Self::from_credentials(&Credentials { certificate_pem: read(CERTIFICATE_FILE)?, key_pem: read(KEY_FILE)?, ca_pem: read(CA_FILE)? })
    }

    /// Makes an identity of credentials in memory.
    ///
    /// # Errors
    /// [`IdentityError`] says what is wrong with them.
    pub fn from_credentials(credentials: &Credentials) -> Result<Self, IdentityError> {
        let chain = CertificateDer::pem_slice_iter(credentials.certificate_pem.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|err| IdentityError::Pem { what: "certificate", err })?;
        let key =
            PrivateKeyDer::from_pem_slice(credentials.key_pem.as_bytes()).map_err(|err| IdentityError::Pem { what: "private key", err })?;
        let root =
            CertificateDer::from_pem_slice(credentials.ca_pem.as_bytes()).map_err(|err| IdentityError::Pem { what: "farm's root", err })?;
        let leaf = Leaf::read(chain.first().ok_or(IdentityError::Empty)?).map_err(IdentityError::Certificate)?;
        let mut roots = RootCertStore::empty();
        roots.add(root).map_err(IdentityError::Tls)?;
        Ok(Self(Arc::new(Inner { chain, key, roots: Arc::new(roots), leaf })))
    }

    /// Returns who this is.
    pub fn peer(&self) -> &Peer {
        &self.0.leaf.peer
    }

    /// Returns when the certificate expires. Peers close their connections then.
    pub fn expires_at(&self) -> SystemTime {
        self.0.leaf.not_after
    }

    pub(crate) fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.0.chain.clone()
    }

    pub(crate) fn key(&self) -> PrivateKeyDer<'static> {
        self.0.key.clone_key()
    }

    pub(crate) fn roots(&self) -> Arc<RootCertStore> {
        Arc::clone(&self.0.roots)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.peer())
    }
}
