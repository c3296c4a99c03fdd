//! What TLS asks of a peer's certificate in this farm: the chain and dates as webpki checks them, and a member's name and usages.
//!
//! The rules hold in the handshake itself, so that a refused peer never gets as far as a stream.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore, SignatureScheme};

use crate::leaf::{CertificateRefusal, Leaf};
use crate::name::FarmName;
use crate::{Identity, IdentityError, Role};

/// Checks the certificate of whoever dials in: any member of the farm.
#[derive(Debug)]
pub(crate) struct DialerVerifier {
    farm: FarmName,
    chain: Arc<dyn ClientCertVerifier>,
}

/// Checks the certificate of whoever is dialled: a coordinator of the farm, at whatever address.
#[derive(Debug)]
pub(crate) struct CoordinatorVerifier {
    farm: FarmName,
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl DialerVerifier {
    /// Makes a verifier that trusts what `identity` trusts.
    ///
    /// # Errors
    /// [`IdentityError::Setup`] if the root cannot anchor trust.
    pub fn new(identity: &Identity, provider: &Arc<CryptoProvider>) -> Result<Self, IdentityError> {
        let chain = WebPkiClientVerifier::builder_with_provider(identity.roots(), Arc::clone(provider))
            .build()
            .map_err(|err| IdentityError::Setup { reason: err.to_string() })?;
        Ok(Self { farm: identity.peer().farm.clone(), chain })
    }
}

impl CoordinatorVerifier {
    /// Makes a verifier that trusts what `identity` trusts.
    pub fn new(identity: &Identity, provider: &Arc<CryptoProvider>) -> Self {
        Self { farm: identity.peer().farm.clone(), roots: identity.roots(), provider: Arc::clone(provider) }
    }
}

impl ClientCertVerifier for DialerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.chain.verify_client_cert(end_entity, intermediates, now)?;
        member(end_entity, &self.farm)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

impl ServerCertVerifier for CoordinatorVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&ParsedCertificate::try_from(end_entity)?, &self.roots, intermediates, now, algorithms)?;
        match member(end_entity, &self.farm)?.peer.role {
            Role::Coordinator(_) => Ok(ServerCertVerified::assertion()),
            Role::Worker(_) | Role::Client(_) | Role::Admin(_) => Err(Error::InvalidCertificate(CertificateError::NotValidForName)),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn member(certificate: &CertificateDer<'_>, farm: &FarmName) -> Result<Leaf, Error> {
    let refuse = |refusal| Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(refusal))));
    let leaf = Leaf::read(certificate).map_err(refuse)?;
    if leaf.peer.farm == *farm {
        Ok(leaf)
    } else {
        Err(refuse(CertificateRefusal::Farm { found: leaf.peer.farm.to_string(), wanted: farm.to_string() }))
    }
}
