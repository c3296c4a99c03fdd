//! TLS as QUIC uses it here: version 1.3 only, both sides authenticated, ALPN required, nothing resumed, nothing early.
//!
//! Resumption would reuse a peer's certificate without verifying it again, and early data could be replayed; both stay off.

use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::NoServerSessionStorage;

use crate::Protocol;
use crate::verifier::{CoordinatorVerifier, DialerVerifier};
use crate::{Identity, IdentityError};

/// Returns TLS for the side that is dialled.
pub(crate) fn server(identity: &Identity) -> Result<QuicServerConfig, IdentityError> {
    let provider = provider();
    let verifier = DialerVerifier::new(identity, &provider)?;
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(IdentityError::Tls)?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_single_cert(identity.chain(), identity.key())
        .map_err(IdentityError::Tls)?;
    tls.alpn_protocols = Protocol::ALL.iter().map(|protocol| protocol.alpn().to_vec()).collect();
    tls.max_early_data_size = 0;
    tls.send_half_rtt_data = false;
    tls.send_tls13_tickets = 0;
    tls.session_storage = Arc::new(NoServerSessionStorage {});
    QuicServerConfig::try_from(tls).map_err(|err| IdentityError::Setup { reason: err.to_string() })
}

/// Returns TLS for the side that dials, to speak `protocol`.
pub(crate) fn client(identity: &Identity, protocol: Protocol) -> Result<QuicClientConfig, IdentityError> {
    let provider = provider();
    let verifier = CoordinatorVerifier::new(identity, &provider);
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(IdentityError::Tls)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(identity.chain(), identity.key())
        .map_err(IdentityError::Tls)?;
    tls.alpn_protocols = vec![protocol.alpn().to_vec()];
    tls.enable_early_data = false;
    tls.enable_sni = false;
    tls.resumption = Resumption::disabled();
    QuicClientConfig::try_from(tls).map_err(|err| IdentityError::Setup { reason: err.to_string() })
}

/// Returns aws-lc-rs by name: with a second provider linked in, rustls' own choice would panic.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}
