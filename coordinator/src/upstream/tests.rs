//! Upstream caches over real HTTP, honest ones and others.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use kiln_nix::hash::nix32;
use kiln_nix::{Keyring, SecretKey};
use kiln_store::{Location, StoreConfig};
use kiln_wire::PathInfo;
use tempfile::TempDir;

use super::*;

const PATH: &str = "0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar";
const LIB: &str = "1bxagw21mzw0pr7y9jcyjfyrlya5fnxz-lib";

/// What a server answers to a path.
type Said = Box<dyn Fn(&str) -> Response + Send + Sync>;

type Answer = Arc<dyn Fn(&str) -> Response + Send + Sync>;

/// A server on loopback, and how often it was asked.
#[derive(Clone)]
struct Server {
    answer: Answer,
    asked: Arc<AtomicUsize>,
}

impl Server {
    async fn start(answer: impl Fn(&str) -> Response + Send + Sync + 'static) -> (Self, String) {
        let server = Self { answer: Arc::new(answer), asked: Arc::default() };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let url = format!("http://{}/cache", listener.local_addr().expect("bound"));
        let handler = |State(server): State<Self>, request: Request| async move {
            server.asked.fetch_add(1, Ordering::Relaxed);
            (server.answer)(request.uri().path())
        };
        let router = Router::new().fallback(handler).with_state(server.clone());
        tokio::spawn(axum::serve(listener, router).into_future());
        (server, url)
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

fn key(name: &str) -> SecretKey {
    SecretKey::from_seed(name, [name.as_bytes()[0]; 32]).expect("a good name")
}

fn absent() -> Response {
    StatusCode::NOT_FOUND.into_response()
}

fn nar(contents: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut kiln_nix::nar::of_file(contents.as_bytes(), contents.len() as u64), &mut bytes).expect("in memory");
    bytes
}

/// What is said of a NAR that holds the hash part of [`LIB`], signed by `by` if that is given.
fn describe(nar: &[u8], by: Option<&str>) -> NarInfo {
    let mut digest = kiln_nix::nar::HashWriter::new(std::io::sink());
    std::io::Write::write_all(&mut digest, nar).expect("in memory");
    let hash = digest.finish().0.hash;
    let text = format!(
        "StorePath: /nix/store/{PATH}\nURL: nar/x.nar\nCompression: none\nNarHash: sha256:{}\nNarSize: {}\nReferences: {LIB}\n",
        nix32(&hash.0),
        nar.len(),
    );
    let mut info = NarInfo::parse(&StoreDir::default(), text.as_bytes()).expect("a narinfo");
    let message = info.fingerprint(&StoreDir::default());
    info.signatures = by.map(|name| key(name).sign(message.as_bytes())).into_iter().collect();
    info
}

fn text(info: &NarInfo) -> String {
    let references: Vec<&str> = info.references.iter().map(StorePath::as_str).collect();
    let mut text = format!(
        "StorePath: /nix/store/{}\nURL: {}\nCompression: {}\nNarHash: sha256:{}\nNarSize: {}\nReferences: {}\n",
        info.path,
        info.url,
        info.compression,
        nix32(&info.nar_hash.0),
        info.nar_size_bytes,
        references.join(" ")
    );
    info.signatures.iter().for_each(|signature| text.push_str(&format!("Sig: {signature}\n")));
    text
}

/// A cache with this narinfo and this archive.
fn serving(info: NarInfo, archive: Vec<u8>) -> impl Fn(&str) -> Response + Send + Sync + 'static {
    move |path| match path {
        "/cache/nix-cache-info" => "StoreDir: /nix/store\nPriority: 30\n".into_response(),
        path if path == format!("/cache/{}.narinfo", &PATH[..32]) => text(&info).into_response(),
        path if path.starts_with("/cache/nar/x.nar") => archive.clone().into_response(),
        _ => absent(),
    }
}

fn upstreams(urls: &[&str]) -> Upstreams {
    let configured: Vec<Substituter> =
        urls.iter().map(|url| Substituter::parse(&format!("{url} {}", key("up-1").public())).expect("a substituter")).collect();
    let upstreams = Upstreams::new(&configured, StoreDir::default()).expect("a client");
    Upstreams { pauses: vec![Duration::ZERO; PAUSES.len()], ..upstreams }
}

fn path() -> StorePath {
    StorePath::parse(PATH).expect("a path")
}

async fn find(upstreams: &Upstreams) -> Option<Found> {
    upstreams.find(&upstreams.order().await, &path(), &BTreeSet::new()).await
}

async fn store() -> (Store, TempDir) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let config = StoreConfig {
        location: Location::Memory,
        store_dir: StoreDir::default(),
        spool_dir: dir.path().join("spool"),
        cached_paths_max: 10,
    };
    (Store::open(config).await.expect("opens"), dir)
}

/// Finds and takes the path; returns what went wrong, with everything that caused it.
async fn take(answer: impl Fn(&str) -> Response + Send + Sync + 'static) -> Result<PathInfo, String> {
    let (_server, url) = Server::start(answer).await;
    let upstreams = upstreams(&[&url]);
    let (store, _dir) = store().await;
    let found = find(&upstreams).await.ok_or("not found")?;
    match upstreams.take(&store, &found).await {
        Ok(endorsed) => {
            assert_eq!(endorsed.signatures, found.believed.signatures);
            let keys = Keyring::of(key("farm-1"));
            // What it refers to is not there, so it is not valid.
            assert!(matches!(store.publish_endorsed(&endorsed, &keys).await, Err(StoreError::MissingReference { .. })));
            Ok(endorsed.info)
        }
        Err(error) => Err(Chain(&error).to_string()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_is_taken_as_its_cache_signed_it_whatever_it_was_compressed_with() {
    let plain = nar(&format!("/nix/store/{LIB}\n").repeat(1000));
    let honest = describe(&plain, Some("up-1"));
    let frames: Vec<u8> = plain.chunks(9000).flat_map(zstd).collect();
    for (compression, archive) in [("none", plain.clone()), ("zstd", zstd(&plain)), ("zstd", frames)] {
        let info = take(serving(NarInfo { compression: compression.to_owned(), ..honest.clone() }, archive)).await.expect(compression);
        assert_eq!((info.nar_hash, info.nar_size_bytes), (honest.nar_hash, plain.len() as u64));
        assert!(info.blob.size_bytes < 1000, "packed as the farm's own");
    }
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).expect("in memory")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_cache_lies_about_is_not_taken() {
    let plain = nar(&format!("/nix/store/{LIB}\n"));
    let honest = || describe(&plain, Some("up-1"));
    let other = nar(&format!("/nix/store/{LIB}!"));
    let huge = || resigned(NarInfo { nar_size_bytes: 1 << 35, ..honest() });
    let endless = || Body::from_stream(futures::stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from(vec![0_u8; 1 << 16]))));
    let table: Vec<(&str, Said, &str)> = vec![
        ("signed by nobody", Box::new(serving(describe(&plain, None), plain.clone())), "not found"),
        ("signed by a stranger", Box::new(serving(describe(&plain, Some("other-1")), plain.clone())), "not found"),
        ("a signature for other facts", Box::new(serving(NarInfo { nar_size_bytes: 8, ..honest() }, plain.clone())), "not found"),
        ("an archive elsewhere", Box::new(serving(NarInfo { url: "../../etc/passwd".to_owned(), ..honest() }, plain.clone())), "not found"),
        ("another archive", Box::new(serving(honest(), other.clone())), "was stated"),
        ("a cut archive", Box::new(serving(honest(), plain[..plain.len() - 8].to_vec())), "ends too early"),
        ("bytes after it", Box::new(serving(honest(), [plain.clone(), vec![0; 8]].concat())), "more comes out of it"),
        ("no archive at all", Box::new(serving(honest(), b"<html>".to_vec())), "read NAR"),
        ("another compression", Box::new(serving(NarInfo { compression: "xz".to_owned(), ..honest() }, plain.clone())), "read the archive"),
        ("a huge size", Box::new(serving(huge(), plain.clone())), "were stated"),
        (
            "a body without end",
            Box::new(move |path| match path.ends_with(".nar") {
                true => endless().into_response(),
                false => serving(describe(&nar(&format!("/nix/store/{LIB}\n")), Some("up-1")), vec![])(path),
            }),
            "read NAR",
        ),
        (
            "a reference that is not there",
            Box::new(serving(
                resigned(NarInfo {
                    references: [StorePath::parse(&PATH.replace("bar", "lib")).expect("a path"), path()].into(),
                    ..honest()
                }),
                plain.clone(),
            )),
            "not found there",
        ),
        (
            "a narinfo without end",
            Box::new(move |path| match path.ends_with(".narinfo") {
                true => endless().into_response(),
                false => "StoreDir: /nix/store\n".into_response(),
            }),
            "not found",
        ),
        ("another store directory", Box::new(|_| "StoreDir: /gnu/store\n".into_response()), "not found"),
        (
            "a failure",
            Box::new({
                let serve = serving(honest(), plain.clone());
                move |path| if path.ends_with(".nar") { StatusCode::BAD_GATEWAY.into_response() } else { serve(path) }
            }),
            "status 502",
        ),
    ];
    for (case, answer, expected) in table {
        let error = take(answer).await.expect_err(case);
        assert!(error.contains(expected), "{case}: {error}");
    }
}

fn resigned(mut info: NarInfo) -> NarInfo {
    let message = info.fingerprint(&StoreDir::default());
    info.signatures = vec![key("up-1").sign(message.as_bytes())];
    info
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_cache_is_asked_and_what_is_absent_is_not_asked_again() {
    let plain = nar(&format!("/nix/store/{LIB}\n"));
    let (empty, empty_url) =
        Server::start(
            |path| if path.ends_with("nix-cache-info") { "StoreDir: /nix/store\nPriority: 10\n".into_response() } else { absent() },
        )
        .await;
    let (full, full_url) = Server::start(serving(describe(&plain, Some("up-1")), plain)).await;
    let upstreams = upstreams(&[&full_url, &empty_url]);
    assert_eq!(upstreams.order().await, [1, 0], "by what they say of themselves");
    assert_eq!(find(&upstreams).await.expect("the second has it").from, 0);
    assert_eq!((empty.asked(), full.asked()), (2, 2));
    find(&upstreams).await.expect("still");
    assert_eq!((empty.asked(), full.asked()), (2, 3), "what is absent is remembered");
    let order = upstreams.order().await;
    assert!(upstreams.find(&order, &path(), &BTreeSet::from([0])).await.is_none(), "one that did not give it is left out");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_is_ill_is_left_alone_and_does_not_count_as_empty() {
    let (down, url) = Server::start(|_| StatusCode::SERVICE_UNAVAILABLE.into_response()).await;
    let upstreams = upstreams(&[&url]);
    assert!(upstreams.order().await.is_empty());
    assert!(upstreams.order().await.is_empty());
    assert_eq!(down.asked(), 1, "it rests after the first");
    assert!(!upstreams.absent().is_absent(0, &path(), upstreams.now_ms()));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_cache_that_turns_ill_does_not_ask_it_as_well() {
    let (down, url) = Server::start(|_| StatusCode::SERVICE_UNAVAILABLE.into_response()).await;
    let upstreams = upstreams(&[&url]);
    join_all((0..4).map(|_| upstreams.order())).await;
    assert_eq!(down.asked(), 1, "those who waited for its greeting ask for none");

    let (ill, url) = Server::start(|path| match path.ends_with("nix-cache-info") {
        true => "StoreDir: /nix/store\n".into_response(),
        false => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    })
    .await;
    let upstreams = self::upstreams(&[&url]);
    let (order, path, nothing) = (upstreams.order().await, path(), BTreeSet::new());
    let found = join_all((0..300).map(|_| upstreams.find(&order, &path, &nothing))).await;
    assert!(found.iter().all(Option::is_none));
    // Those that had been begun are tried to their end, of all others none: three tries of each would be 900.
    assert!(ill.asked() < 250, "asked {} times", ill.asked());
    assert!(!upstreams.absent().is_absent(0, &path, upstreams.now_ms()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_is_asked_for_again_when_the_network_failed_and_not_when_the_cache_lied() {
    let plain = nar(&format!("/nix/store/{LIB}\n"));
    let cut = |plain: &[u8]| {
        let pieces = [Ok(Bytes::copy_from_slice(&plain[..plain.len() - 8])), Err(std::io::Error::other("torn"))];
        Body::from_stream(futures::stream::iter(pieces)).into_response()
    };
    let table: [(&str, usize, Said, usize, bool); 4] = [
        ("a failure", 2, Box::new(|_| StatusCode::BAD_GATEWAY.into_response()), 3, true),
        (
            "a torn body",
            3,
            Box::new({
                let plain = plain.clone();
                move |_| cut(&plain)
            }),
            4,
            true,
        ),
        ("a failure that stays", 99, Box::new(|_| StatusCode::TOO_MANY_REQUESTS.into_response()), 4, false),
        ("a lie", 99, Box::new(|_| "no archive".into_response()), 1, false),
    ];
    for (case, failing, fail, expected, comes) in table {
        let fetched = Arc::<AtomicUsize>::default();
        let serve = serving(describe(&plain, Some("up-1")), plain.clone());
        let counted = fetched.clone();
        let answer = move |path: &str| match path.ends_with(".nar") && counted.fetch_add(1, Ordering::Relaxed) < failing {
            true => fail(path),
            false => serve(path),
        };
        assert_eq!(take(answer).await.is_ok(), comes, "{case}");
        assert_eq!(fetched.load(Ordering::Relaxed), expected, "{case}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_somebody_in_between_is_no_answer() {
    let (page, url) = Server::start(|path| match path.ends_with("nix-cache-info") {
        true => "StoreDir: /nix/store\n".into_response(),
        false => "<html>Sign in</html>".into_response(),
    })
    .await;
    let upstreams = upstreams(&[&url]);
    assert!(find(&upstreams).await.is_none());
    assert_eq!(page.asked(), 4);
    assert!(!upstreams.absent().is_absent(0, &path(), upstreams.now_ms()));
}
