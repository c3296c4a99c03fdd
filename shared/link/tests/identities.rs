//! Who is let in: hostile and wrong certificates, in both directions, against real endpoints (attacks A36 and A37).

mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use common::{authority, identity};
use kiln_link::{Authority, Closed, Credentials, Dialer, FarmName, Identity, LinkError, Listener, Protocol, Role, config};
use kiln_wire::client::Request;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};

const DAY: Duration = Duration::from_secs(86_400);

/// A certificate and its key, however wrong.
type Shown = Option<(CertificateDer<'static>, PrivateKeyDer<'static>)>;

/// A farm whose authority's key the test can misuse.
struct Farm {
    authority: Authority,
    issuer: Issuer<'static, KeyPair>,
    _dir: tempfile::TempDir,
}

impl Farm {
    fn new(name: &str) -> Self {
        let dir = tempfile::tempdir().expect("directory");
        let farm: FarmName = name.parse().expect("name");
        let authority = Authority::create(dir.path(), &farm).expect("authority");
        assert_eq!(Authority::open(dir.path()).expect("opens").farm(), &farm);
        let key = std::fs::read_to_string(dir.path().join("ca.key")).expect("key");
        let issuer = Issuer::from_ca_cert_pem(authority.root_pem(), KeyPair::from_pem(&key).expect("key")).expect("issuer");
        Self { authority, issuer, _dir: dir }
    }

    /// Issues what the authority itself would issue for a URI, with one thing changed.
    fn forge(&self, uris: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Shown {
        let mut params = CertificateParams::default();
        params.not_before = (SystemTime::now() - DAY).into();
        params.not_after = (SystemTime::now() + DAY).into();
        params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().expect("ascii"))).collect();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        change(&mut params);
        let key = KeyPair::generate().expect("key");
        let leaf = params.signed_by(&key, &self.issuer).expect("signs");
        Some((leaf.der().clone(), PrivateKeyDer::try_from(key.serialize_der()).expect("key")))
    }
}

fn shown(credentials: &Credentials) -> Shown {
    let certificate = CertificateDer::from_pem_slice(credentials.certificate_pem.as_bytes()).expect("certificate");
    Some((certificate, PrivateKeyDer::from_pem_slice(credentials.key_pem.as_bytes()).expect("key")))
}

/// Certificates that make nobody a member of farm `demo`, each with what is wrong with it. `name` is the good URI otherwise.
fn wrong(farm: &Farm, name: &str) -> Vec<(&'static str, Shown)> {
    let role: Role = name.strip_prefix("spiffe://demo/").expect("demo").parse().expect("role");
    let impostor = Farm::new("demo");
    let self_signed = {
        let own = Farm::new("demo");
        own.forge(&[name], |_| {})
    };
    vec![
        ("other authority", shown(&impostor.authority.issue(&role, DAY).expect("issue"))),
        ("self-made authority", self_signed),
        ("expired", farm.forge(&[name], |p| p.not_after = (SystemTime::now() - Duration::from_secs(60)).into())),
        ("not yet valid", farm.forge(&[name], |p| p.not_before = (SystemTime::now() + Duration::from_secs(600)).into())),
        ("serverAuth only", farm.forge(&[name], |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth])),
        ("clientAuth only", farm.forge(&[name], |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth])),
        ("no extended key usage", farm.forge(&[name], |p| p.extended_key_usages = vec![])),
        ("no key usage", farm.forge(&[name], |p| p.key_usages = vec![])),
        ("key usage without signatures", farm.forge(&[name], |p| p.key_usages = vec![KeyUsagePurpose::KeyEncipherment])),
        ("two URIs", farm.forge(&[name, "spiffe://demo/admin/root"], |_| {})),
        ("the same URI twice", farm.forge(&[name, name], |_| {})),
        ("other farm's name", farm.forge(&[&name.replace("demo", "else")], |_| {})),
        ("unknown role", farm.forge(&["spiffe://demo/builder/w1"], |_| {})),
        ("wildcard", farm.forge(&["spiffe://demo/worker/*"], |_| {})),
        ("encoded", farm.forge(&["spiffe://demo/worker/%77%31"], |_| {})),
        ("query", farm.forge(&[&format!("{name}?admin")], |_| {})),
        ("fragment", farm.forge(&[&format!("{name}#admin")], |_| {})),
        ("upper-case scheme", farm.forge(&[&name.replace("spiffe", "SPIFFE")], |_| {})),
        ("extra part", farm.forge(&[&format!("{name}/admin")], |_| {})),
        ("no URI, common name only", farm.forge(&[], |p| p.distinguished_name.push(DnType::CommonName, name))),
        ("DNS name only", farm.forge(&[], |p| p.subject_alt_names = vec![SanType::DnsName("demo".try_into().expect("ascii"))])),
        ("an authority's certificate", farm.forge(&[name], |p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)))),
        ("may sign certificates", farm.forge(&[name], |p| p.key_usages.push(KeyUsagePurpose::KeyCertSign))),
    ]
}

/// Trusts whoever answers: the client of an attacker.
#[derive(Debug)]
struct Credulous;

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Returns what an attacker dials with.
fn client(shown: Shown, alpn: &[&[u8]], change: impl FnOnce(&mut rustls::ClientConfig)) -> quinn::ClientConfig {
    let builder = rustls::ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous));
    let mut tls = match shown {
        Some((certificate, key)) => builder.with_client_auth_cert(vec![certificate], key).expect("key"),
        None => builder.with_no_client_auth(),
    };
    tls.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    change(&mut tls);
    quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).expect("TLS 1.3")))
}

/// Dials with whatever certificate and protocols, and returns the connection once the listener has let it in.
async fn dial(addr: SocketAddr, shown: Shown, alpn: &[&[u8]]) -> Result<(quinn::Endpoint, quinn::Connection), quinn::ConnectionError> {
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().expect("address")).expect("socket");
    let connection = endpoint.connect_with(client(shown, alpn, |_| {}), addr, "coordinator.kiln").expect("starts").await?;
    connection.accept_uni().await?;
    Ok((endpoint, connection))
}

/// Answers every dialer with whatever certificate, and welcomes it.
fn serve(shown: Shown, alpn: &[&[u8]]) -> quinn::Endpoint {
    let (certificate, key) = shown.expect("a server has a certificate");
    let mut tls = rustls::ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .expect("key");
    tls.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let server = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).expect("TLS 1.3")));
    let endpoint = quinn::Endpoint::server(server, "127.0.0.1:0".parse().expect("address")).expect("socket");
    let answering = endpoint.clone();
    tokio::spawn(async move {
        while let Some(incoming) = answering.accept().await {
            if let Ok(connection) = incoming.await {
                let mut mark = connection.open_uni().await.expect("opens");
                let _ = mark.finish();
                connection.closed().await;
            }
        }
    });
    endpoint
}

fn listen(farm: &Farm) -> Listener {
    Listener::bind("127.0.0.1:0".parse().expect("address"), &identity(&farm.authority, "coordinator/1"), None).expect("bind")
}

#[tokio::test(flavor = "multi_thread")]
async fn a36_a_dialer_with_a_wrong_certificate_or_protocol_is_refused() {
    let farm = Farm::new("demo");
    let listener = listen(&farm);
    let good = || farm.forge(&["spiffe://demo/worker/w1"], |_| {});
    let mut cases: Vec<(&str, Shown, Vec<&[u8]>)> =
        wrong(&farm, "spiffe://demo/worker/w1").into_iter().map(|(what, shown)| (what, shown, vec![config::ALPN])).collect();
    cases.push(("no certificate", None, vec![config::ALPN]));
    cases.push(("no protocol", good(), vec![]));
    cases.push(("other protocol", good(), vec![b"h3"]));
    cases.push(("other version", good(), vec![b"kiln/2"]));
    for role in ["worker/w1", "client/ann", "admin/ops"] {
        cases.push((role, farm.forge(&[&format!("spiffe://demo/{role}")], |_| {}), vec![config::RAFT_ALPN]));
    }
    for (what, shown, alpn) in cases {
        let let_in = dial(listener.local_addr(), shown, &alpn).await.is_ok();
        assert!(!let_in, "let in: {what}");
    }
    let (_endpoint, _connection) = dial(listener.local_addr(), good(), &[config::ALPN]).await.expect("a good one is let in");
    let first = listener.accept().await.expect("accepts");
    assert_eq!(first.peer().uri(), "spiffe://demo/worker/w1", "none of the others got this far");
}

#[tokio::test(flavor = "multi_thread")]
async fn a36_a_dialer_believes_only_a_coordinator_of_its_farm() {
    let farm = Farm::new("demo");
    let dialer = Dialer::new(&identity(&farm.authority, "worker/w1")).expect("dialer");
    let mut cases = wrong(&farm, "spiffe://demo/coordinator/1");
    for role in ["worker/w2", "client/ann", "admin/ops"] {
        cases.push((role, shown(&farm.authority.issue(&role.parse().expect("role"), DAY).expect("issue"))));
    }
    for (what, shown) in cases {
        let server = serve(shown, &[config::ALPN]);
        let outcome = dialer.connect(server.local_addr().expect("address")).await;
        assert!(matches!(outcome, Err(LinkError::Connect { closed: Closed::Refused { .. }, .. })), "{what}: {outcome:?}");
    }
    let good = || farm.forge(&["spiffe://demo/coordinator/1"], |_| {});
    let wrong_protocol = serve(good(), &[b"h3"]);
    assert!(dialer.connect(wrong_protocol.local_addr().expect("address")).await.is_err());
    let server = serve(good(), &[config::ALPN]);
    dialer.connect(server.local_addr().expect("address")).await.expect("a good one is believed");
}

#[tokio::test(flavor = "multi_thread")]
async fn coordinators_speak_of_consensus_among_themselves() {
    let farm = Farm::new("demo");
    let listener = listen(&farm);
    let dialer = Dialer::speaking(&identity(&farm.authority, "coordinator/2"), Protocol::Raft).expect("dialer");
    let dialled = dialer.connect(listener.local_addr()).await.expect("let in");
    let accepted = listener.accept().await.expect("accepts");
    assert_eq!((dialled.protocol(), accepted.protocol()), (Protocol::Raft, Protocol::Raft));
    let worker =
        Dialer::new(&identity(&farm.authority, "worker/w1")).expect("dialer").connect(listener.local_addr()).await.expect("let in");
    assert_eq!((worker.protocol(), listener.accept().await.expect("accepts").protocol()), (Protocol::Farm, Protocol::Farm));
    let worker = Dialer::speaking(&identity(&farm.authority, "worker/w1"), Protocol::Raft).expect("dialer");
    assert!(matches!(worker.connect(listener.local_addr()).await, Err(LinkError::Connect { .. })));
}

/// A dialer that keeps whatever it could resume with, and dials again with it.
#[tokio::test(flavor = "multi_thread")]
async fn a37_nothing_is_resumed_and_nothing_is_sent_early() {
    let farm = Farm::new("demo");
    let listener = listen(&farm);
    let client = client(farm.forge(&["spiffe://demo/worker/w1"], |_| {}), &[config::ALPN], |tls| tls.enable_early_data = true);
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().expect("address")).expect("socket");
    for again in [false, true] {
        let connecting = endpoint.connect_with(client.clone(), listener.local_addr(), "coordinator.kiln").expect("starts");
        let Err(connecting) = connecting.into_0rtt() else { panic!("something may be sent early (again: {again})") };
        let connection = connecting.await.expect("let in");
        // By then a ticket would have come.
        connection.accept_uni().await.expect("welcome");
        let _accepted = listener.accept().await.expect("accepts");
    }
}

#[test]
fn a_member_with_a_wrong_certificate_learns_it_at_its_start() {
    let farm = authority("demo");
    let mut credentials = farm.issue(&"worker/w1".parse().expect("role"), DAY).expect("issue");
    credentials.certificate_pem = farm.root_pem().to_owned();
    assert!(Identity::from_credentials(&credentials).is_err());
    assert!(farm.issue(&"worker/w1".parse().expect("role"), Duration::ZERO).is_err());
    assert!(farm.issue(&"worker/w1".parse().expect("role"), DAY * 826).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_bytes_in_place_of_messages_are_errors_of_that_stream_only() {
    let farm = Farm::new("demo");
    let listener = listen(&farm);
    let member = farm.forge(&["spiffe://demo/client/eve"], |_| {});
    let (_endpoint, evil) = dial(listener.local_addr(), member, &[config::ALPN]).await.expect("let in");
    let connection = listener.accept().await.expect("accepts");
    let good = kiln_wire::frame::to_frame(&Request::Status).expect("small");
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("a length of 4 GiB", vec![0xff; 4]),
        ("a length just over the limit", (kiln_wire::limits::FRAME_BYTES_MAX as u32 + 1).to_le_bytes().to_vec()),
        ("the largest length and little else", [&(kiln_wire::limits::FRAME_BYTES_MAX as u32).to_le_bytes()[..], &[1; 10]].concat()),
        ("no bytes", vec![]),
        ("half a header", vec![1, 0]),
        ("a header alone", vec![9, 0, 0, 0]),
        ("half a message", good[..good.len() - 1].to_vec()),
        ("a body of one byte", vec![1, 0, 0, 0, 0xc1]),
        ("an array of 4 billion", vec![5, 0, 0, 0, 0xdd, 0xff, 0xff, 0xff, 0xff]),
        ("bytes after the end mark", vec![0, 0, 0, 0, 7]),
    ];
    for (what, bytes) in cases {
        let (mut send, _receive) = evil.open_bi().await.expect("opens");
        let accept = async {
            let (_sender, mut receiver) = connection.accept().await.expect("accepts").expect("stream");
            receiver.recv::<Request>().await
        };
        let write = async {
            send.write_all(&bytes).await.expect("writes");
            let _ = send.finish();
        };
        let outcome = tokio::join!(accept, write).0;
        assert!(outcome.is_err(), "{what}: {outcome:?}");
    }
    let (mut send, _receive) = evil.open_bi().await.expect("opens");
    let (accepted, ()) = tokio::join!(connection.accept(), async {
        for byte in &good {
            send.write_all(&[*byte]).await.expect("writes");
            tokio::task::yield_now().await;
        }
        send.write_all(&[0; 4]).await.expect("writes");
        let _ = send.finish();
    });
    let (_sender, mut receiver) = accepted.expect("accepts").expect("stream");
    assert_eq!(receiver.recv::<Request>().await.expect("byte by byte"), Some(Request::Status));
    assert_eq!(receiver.recv::<Request>().await.expect("end"), None);
}
