//! A farm's certificate authority: one self-signed root that issues a short-lived certificate to each member.
//!
//! Does not revoke: certificates are short-lived, and the farm's replicated state says who is still a member.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::identity::{CA_FILE, CERTIFICATE_FILE, KEY_FILE};
use crate::leaf::{CertificateRefusal, only_uri};
use crate::name::{FarmName, NameError, Peer, Role};

/// The authority's certificate within its directory.
const ROOT_FILE: &str = "ca.pem";
/// The authority's private key within its directory.
const ROOT_KEY_FILE: &str = "ca.key";
/// Certificates are valid from this long before they are issued, because members' clocks differ.
const BACKDATE: Duration = Duration::from_secs(300);
/// How long a root is valid. Replacing it means replacing every certificate, so: long.
const ROOT_TTL: Duration = Duration::from_secs(3650 * 86_400);
/// The longest a member's certificate may be valid.
const TTL_MAX: Duration = Duration::from_secs(825 * 86_400);

/// A farm's certificate authority, with its private key in memory.
pub struct Authority {
    farm: FarmName,
    root_pem: String,
    root_not_after: SystemTime,
    issuer: Issuer<'static, KeyPair>,
}

/// A member's certificate, its private key, and the root to trust.
#[derive(Clone)]
pub struct Credentials {
    /// The member's certificate, leaf first, as PEM.
    pub certificate_pem: String,
    /// Its private key, as PEM (PKCS#8).
    pub key_pem: String,
    /// The farm's root certificate, as PEM.
    pub ca_pem: String,
}

/// Why an authority cannot be made, opened or used.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// There is one already.
    #[error("{} holds an authority already; choose another directory", dir.display())]
    Exists {
        /// Where.
        dir: PathBuf,
    },
    /// A file cannot be read or written.
    #[error("{operation} {}", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        err: io::Error,
    },
    /// The root's certificate does not name a farm.
    #[error("read the authority's certificate")]
    Root(#[source] CertificateRefusal),
    /// The farm's name in the root's certificate breaks the rules.
    #[error("read the farm's name in the authority's certificate")]
    FarmName(#[source] NameError),
    /// The lifetime is zero or too long.
    #[error("issue a certificate for {seconds} s: it must be valid for at least a second and at most {max_days} days")]
    Lifetime {
        /// What was asked.
        seconds: u64,
        /// What is allowed.
        max_days: u64,
    },
    /// The root itself is expired.
    #[error("the authority's own certificate is expired; make a new authority with `kiln ca init` and issue every certificate anew")]
    RootExpired,
    /// The role's name cannot stand in a certificate.
    #[error("name the role in a certificate")]
    Role(#[source] NameError),
    /// Cryptography failed.
    #[error("{operation}")]
    Crypto {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        #[source]
        err: rcgen::Error,
    },
}

impl Authority {
    /// Makes a new authority for `farm` and keeps it in `dir` (made with mode 0700; files 0600).
    ///
    /// # Errors
    /// [`AuthorityError::Exists`] if `dir` holds one already, [`AuthorityError::File`] if it cannot be written.
    pub fn create(dir: &Path, farm: &FarmName) -> Result<Self, AuthorityError> {
        let root_path = dir.join(ROOT_FILE);
        let key_path = dir.join(ROOT_KEY_FILE);
        if root_path.exists() || key_path.exists() {
            return Err(AuthorityError::Exists { dir: dir.to_owned() });
        }
        make_private_dir(dir)?;
        let authority = Self::ephemeral(farm)?;
        write_private(&key_path, &authority.issuer.key().serialize_pem())?;
        write_private(&root_path, &authority.root_pem)?;
        Ok(authority)
    }

    /// Makes a new authority for `farm` in memory only.
    ///
    /// # Errors
    /// [`AuthorityError::Crypto`] if no key can be made.
    pub fn ephemeral(farm: &FarmName) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate().map_err(crypto("make the authority's key"))?;
        let mut params = params_for(&format!("spiffe://{farm}"), &format!("Kiln farm {farm}"), SystemTime::now(), ROOT_TTL)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let root = params.self_signed(&key).map_err(crypto("sign the authority's certificate"))?;
        Self::assemble(root.pem(), root.der(), key)
    }

    /// Opens the authority kept in `dir`.
    ///
    /// # Errors
    /// [`AuthorityError::File`] if there is none, others if what is there is damaged.
    pub fn open(dir: &Path) -> Result<Self, AuthorityError> {
        let root_pem = read(&dir.join(ROOT_FILE))?;
        let key_path = dir.join(ROOT_KEY_FILE);
        let key = KeyPair::from_pem(&read(&key_path)?).map_err(crypto("read the authority's key"))?;
        let der = <rustls::pki_types::CertificateDer<'_> as rustls::pki_types::pem::PemObject>::from_pem_slice(root_pem.as_bytes())
            .map_err(|_| AuthorityError::Root(CertificateRefusal::Malformed))?;
        Self::assemble(root_pem, &der, key)
    }

    /// Returns the farm whose members it names.
    pub fn farm(&self) -> &FarmName {
        &self.farm
    }

    /// Returns the root certificate as PEM: what every member trusts.
    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }

    /// Makes a key and a certificate for `role`, valid for `ttl` from now (or until the root itself expires).
    ///
    /// # Errors
    /// [`AuthorityError::Lifetime`] if `ttl` is below a second or over 825 days, [`AuthorityError::Role`] if the name cannot
    /// stand in a certificate, [`AuthorityError::RootExpired`].
    pub fn issue(&self, role: &Role, ttl: Duration) -> Result<Credentials, AuthorityError> {
        if ttl < Duration::from_secs(1) || ttl > TTL_MAX {
            return Err(AuthorityError::Lifetime { seconds: ttl.as_secs(), max_days: TTL_MAX.as_secs() / 86_400 });
        }
        let now = SystemTime::now();
        let root_left = self.root_not_after.duration_since(now).map_err(|_| AuthorityError::RootExpired)?;
        let uri = Peer { farm: self.farm.clone(), role: role.clone() }.uri();
        Peer::parse_uri(&uri).map_err(AuthorityError::Role)?;
        let mut params = params_for(&uri, &role.to_string(), now, ttl.min(root_left))?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        self.sign(params)
    }

    fn sign(&self, params: CertificateParams) -> Result<Credentials, AuthorityError> {
        let key = KeyPair::generate().map_err(crypto("make the member's key"))?;
        let leaf = params.signed_by(&key, &self.issuer).map_err(crypto("sign the member's certificate"))?;
        Ok(Credentials { certificate_pem: leaf.pem(), key_pem: key.serialize_pem(), ca_pem: self.root_pem.clone() })
    }

    fn assemble(root_pem: String, der: &rustls::pki_types::CertificateDer<'_>, key: KeyPair) -> Result<Self, AuthorityError> {
        let (_, root) = X509Certificate::from_der(der).map_err(|_| AuthorityError::Root(CertificateRefusal::Malformed))?;
        let uri = only_uri(&root).map_err(AuthorityError::Root)?;
        let farm = uri.strip_prefix("spiffe://").unwrap_or(uri).parse().map_err(AuthorityError::FarmName)?;
        let seconds = u64::try_from(root.validity().not_after.timestamp()).unwrap_or(0);
        let issuer = Issuer::from_ca_cert_der(der, key).map_err(crypto("read the authority's certificate"))?;
        Ok(Self { farm, root_pem, root_not_after: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds), issuer })
    }
}

impl Credentials {
    /// Writes `cert.pem`, `key.pem` and `ca.pem` into `dir` (made with mode 0700 if missing; files 0600), each replaced whole.
    ///
    /// # Errors
    /// [`AuthorityError::File`] names the file.
    pub fn write(&self, dir: &Path) -> Result<(), AuthorityError> {
        make_private_dir(dir)?;
        write_private(&dir.join(CA_FILE), &self.ca_pem)?;
        write_private(&dir.join(KEY_FILE), &self.key_pem)?;
        write_private(&dir.join(CERTIFICATE_FILE), &self.certificate_pem)
    }
}

fn params_for(uri: &str, common_name: &str, now: SystemTime, ttl: Duration) -> Result<CertificateParams, AuthorityError> {
    let mut params = CertificateParams::default();
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + ttl).into();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.subject_alt_names = vec![SanType::URI(uri.try_into().map_err(crypto("name the holder"))?)];
    Ok(params)
}

fn crypto(operation: &'static str) -> impl FnOnce(rcgen::Error) -> AuthorityError {
    move |err| AuthorityError::Crypto { operation, err }
}

fn read(path: &Path) -> Result<String, AuthorityError> {
    fs::read_to_string(path).map_err(|err| AuthorityError::File { operation: "read", path: path.to_owned(), err })
}

pub(crate) fn make_private_dir(dir: &Path) -> Result<(), AuthorityError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|err| AuthorityError::File { operation: "make directory", path: dir.to_owned(), err })
}

/// Writes beside the target and renames, so that neither a crash nor a reader ever meets half a key.
pub(crate) fn write_private(path: &Path, text: &str) -> Result<(), AuthorityError> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    let written = (|| {
        match fs::remove_file(&beside) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
            Ok(()) | Err(_) => {}
        }
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, path)
    })();
    written.map_err(|err| AuthorityError::File { operation: "write", path: path.to_owned(), err })
}
