//! An upstream cache over TLS that speaks HTTP/2: questions share a connection, as many at a time as it allows.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use kiln_nix::SecretKey;
use kiln_nix::hash::nix32;
use kiln_wire::limits::{UPSTREAM_CONNECTIONS_MAX, UPSTREAM_QUERIES_MAX};
use kiln_wire::{StoreDir, StorePath};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::Substituter;
use super::cache::{self, Cache};

/// A cache that has nothing, and answers no question before enough are open at once.
struct Server {
    connections: AtomicUsize,
    /// Questions for narinfos, ever.
    asked: AtomicUsize,
    /// Questions that are open, and the most that ever were.
    open: watch::Sender<(usize, usize)>,
    /// How many must be open at once before any is answered.
    least: usize,
}

impl Server {
    /// Serves on loopback; returns the server, its URL and the certificate that vouches for it.
    async fn start(least: usize, streams_max: u32) -> (Arc<Self>, String, reqwest::Certificate) {
        let signed = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let root = reqwest::Certificate::from_der(signed.cert.der()).expect("a certificate");
        let key = PrivateKeyDer::try_from(signed.signing_key.serialize_der()).expect("a key");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let versions = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("versions");
        let mut tls = versions.with_no_client_auth().with_single_cert(vec![signed.cert.der().clone()], key).expect("they fit");
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let url = format!("https://localhost:{}", listener.local_addr().expect("bound").port());
        let open = watch::Sender::new((0, 0));
        let server = Arc::new(Self { connections: AtomicUsize::new(0), asked: AtomicUsize::new(0), open, least });
        let (serving, acceptor) = (server.clone(), TlsAcceptor::from(Arc::new(tls)));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(stream) = acceptor.accept(stream).await else { continue };
                serving.connections.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(serving.clone().serve(stream, streams_max));
            }
        });
        (server, url, root)
    }

    async fn serve(self: Arc<Self>, stream: tokio_rustls::server::TlsStream<tokio::net::TcpStream>, streams_max: u32) {
        let handshake = h2::server::Builder::new().max_concurrent_streams(streams_max).handshake(stream);
        let mut connection = handshake.await.expect("it speaks HTTP/2");
        while let Some(Ok((request, respond))) = connection.accept().await {
            tokio::spawn(self.clone().answer(request.uri().path().to_owned(), respond));
        }
    }

    async fn answer(self: Arc<Self>, path: String, mut respond: h2::server::SendResponse<Bytes>) {
        let response = |status| http_of(status);
        if path == "/nix-cache-info" {
            let mut body = respond.send_response(response(200), false).expect("it listens");
            return body.send_data(Bytes::from_static(b"StoreDir: /nix/store\n"), true).expect("it listens");
        }
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.open.send_modify(|(open, most)| (*open, *most) = (*open + 1, (*most).max(*open + 1)));
        self.open.subscribe().wait_for(|(_, most)| *most >= self.least).await.expect("the server lives");
        self.open.send_modify(|(open, _)| *open -= 1);
        respond.send_response(response(404), true).expect("it listens");
    }

    fn most_open(&self) -> usize {
        self.open.borrow().1
    }
}

fn http_of(status: u16) -> axum::http::Response<()> {
    axum::http::Response::builder().status(status).body(()).expect("a response")
}

/// Asks for that many paths, all at once.
async fn ask(url: &str, root: reqwest::Certificate, count: usize) {
    let key = SecretKey::from_seed("up-1", [1; 32]).expect("a name").public();
    let client = cache::builder().tls_certs_only([root]).build().expect("a client");
    let cache = Cache::new(client, &Substituter::parse(&format!("{url} {key}")).expect("a substituter"));
    let path = |number: usize| {
        let mut hash = [0; 20];
        hash[..8].copy_from_slice(&number.to_le_bytes());
        StorePath::parse(&format!("{}-x", nix32(&hash))).expect("a path")
    };
    let paths: Vec<StorePath> = (0..count).map(path).collect();
    let store_dir = StoreDir::default();
    let asking = join_all(paths.iter().map(|path| cache.narinfo(path, &store_dir)));
    let answers = tokio::time::timeout(PATIENCE, asking).await.expect("as many are asked at once as the server waits for");
    assert!(answers.into_iter().all(|answer| answer.expect("it answers").is_none()));
}

/// Longer than it takes on a machine that does other work too: passing it is a failure, never a measurement.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn thousands_of_questions_share_one_connection() {
    let least = 1_000;
    let (server, url, root) = Server::start(least, 4_096).await;
    ask(&url, root, 2 * UPSTREAM_QUERIES_MAX).await;
    assert_eq!(server.asked.load(Ordering::Relaxed), 2 * UPSTREAM_QUERIES_MAX, "each is asked once");
    assert_eq!(server.connections.load(Ordering::Relaxed), 1);
    let most = server.most_open();
    assert!((least..=UPSTREAM_QUERIES_MAX).contains(&most) && most > UPSTREAM_CONNECTIONS_MAX, "{most} at once");
}

#[tokio::test]
async fn a_server_that_allows_few_streams_is_asked_no_more_at_a_time() {
    let (server, url, root) = Server::start(1, 10).await;
    ask(&url, root, 500).await;
    assert_eq!((server.asked.load(Ordering::Relaxed), server.connections.load(Ordering::Relaxed)), (500, 1));
    assert!(server.most_open() <= 10, "{} at once", server.most_open());
}
