//! Reading who a peer is from its certificate. TLS has verified the chain and the dates by then; names and usages it does not check.
//!
//! Source: SPIFFE X.509-SVID, section 4 and 5.

use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::name::{NameError, Peer};

/// What a verified leaf certificate says.
#[derive(Clone, Debug)]
pub(crate) struct Leaf {
    /// Who holds it.
    pub peer: Peer,
    /// Until when it is valid.
    pub not_after: SystemTime,
}

/// Why a certificate does not make its holder a member of a farm.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateRefusal {
    /// There is none.
    #[error("no certificate was shown")]
    Missing,
    /// It is no certificate.
    #[error("the certificate cannot be read")]
    Malformed,
    /// It is an authority's.
    #[error("the certificate is an authority's, not a member's")]
    Authority,
    /// The key is not for signatures.
    #[error("the certificate's key usage lacks digitalSignature, or includes signing certificates")]
    KeyUsage,
    /// It is not for both ends of a connection.
    #[error("the certificate's extended key usage is not both client and server")]
    ExtendedKeyUsage,
    /// It names nobody, or more than one.
    #[error("the certificate has {count} URI names, not one")]
    UriCount {
        /// How many it has.
        count: usize,
    },
    /// Its name is not a member's.
    #[error("the certificate's name is not a member's")]
    Name(#[source] NameError),
    /// It is of another farm.
    #[error("the certificate is for farm `{found}`, not `{wanted}`")]
    Farm {
        /// Its farm.
        found: String,
        /// Ours.
        wanted: String,
    },
}

impl Leaf {
    /// Reads a leaf certificate.
    ///
    /// # Errors
    /// [`CertificateRefusal`] names the first rule it breaks.
    pub fn read(der: &CertificateDer<'_>) -> Result<Self, CertificateRefusal> {
        let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| CertificateRefusal::Malformed)?;
        if !rest.is_empty() {
            return Err(CertificateRefusal::Malformed);
        }
        check_usage(&certificate)?;
        let uri = only_uri(&certificate)?;
        let peer = Peer::parse_uri(uri).map_err(CertificateRefusal::Name)?;
        let seconds = u64::try_from(certificate.validity().not_after.timestamp()).map_err(|_| CertificateRefusal::Malformed)?;
        let not_after = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).ok_or(CertificateRefusal::Malformed)?;
        Ok(Self { peer, not_after })
    }
}

fn check_usage(certificate: &X509Certificate<'_>) -> Result<(), CertificateRefusal> {
    let malformed = |_| CertificateRefusal::Malformed;
    if certificate.basic_constraints().map_err(malformed)?.is_some_and(|ext| ext.value.ca) {
        return Err(CertificateRefusal::Authority);
    }
    match certificate.key_usage().map_err(malformed)? {
        Some(ext) if ext.value.digital_signature() && !ext.value.key_cert_sign() && !ext.value.crl_sign() => {}
        Some(_) | None => return Err(CertificateRefusal::KeyUsage),
    }
    match certificate.extended_key_usage().map_err(malformed)? {
        Some(ext) if ext.value.server_auth && ext.value.client_auth => Ok(()),
        Some(_) | None => Err(CertificateRefusal::ExtendedKeyUsage),
    }
}

/// Returns the one URI among the subject's alternative names. A common name never counts.
pub(crate) fn only_uri<'a>(certificate: &'a X509Certificate<'_>) -> Result<&'a str, CertificateRefusal> {
    let names = certificate.subject_alternative_name().map_err(|_| CertificateRefusal::Malformed)?;
    let uris: Vec<&str> = names
        .iter()
        .flat_map(|ext| &ext.value.general_names)
        .filter_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None })
        .collect();
    match uris.as_slice() {
        [uri] => Ok(uri),
        [] | [_, _, ..] => Err(CertificateRefusal::UriCount { count: uris.len() }),
    }
}
