//! The binary cache over real HTTP: a raw client for what Nix never sends, and Nix itself.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::net::SocketAddr;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Output;

use futures::FutureExt;
use kiln_coordinator::http::{FinishedLog, Http, Snapshot, State};
use kiln_nix::scan::Candidates;
use kiln_nix::{Keyring, SecretKey};
use kiln_store::{BlobBytes, Location, Packer, Provenance, Store, StoreConfig};
use kiln_wire::limits::LISTING_BYTES_MAX;
use kiln_wire::{AttemptId, DrvPath, PathInfo, StoreDir, StorePath};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

struct Cache {
    dir: TempDir,
    store: Store,
    keys: Keyring,
    addr: SocketAddr,
    http: Http,
}

impl Cache {
    async fn start() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let store = Store::open(StoreConfig {
            location: Location::Local { dir: dir.path().join("store"), durable: false },
            store_dir: StoreDir::default(),
            spool_dir: dir.path().join("spool"),
            cached_paths_max: 10,
        });
        let store = store.await.expect("opens");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let addr = listener.local_addr().expect("bound");
        let keys = Keyring::of(SecretKey::from_seed("farm-1", [5; 32]).expect("a good name"));
        let snapshot = || Snapshot { builds_active: 3, ..Snapshot::default() };
        let log = |derivation: DrvPath| {
            let bytes = (derivation.name() == "app").then(|| BlobBytes::Memory(LOG.into()));
            async move { Ok(bytes.map(|bytes| FinishedLog { attempt: AttemptId(7), bytes })) }.boxed()
        };
        let http = Http::serve(listener, State::new(store.clone(), keys.clone(), snapshot, log));
        Self { dir, store, keys, addr, http }
    }

    /// Publishes a tree whose file names the paths that it refers to.
    async fn publish(&self, path: &StorePath, refers_to: &[&StorePath], filler_bytes: u32) -> PathInfo {
        self.publish_with(path, refers_to, filler_bytes, |_| ()).await
    }

    /// As [`Cache::publish`], of a tree to which `more` adds something.
    async fn publish_with(&self, path: &StorePath, refers_to: &[&StorePath], filler_bytes: u32, more: impl FnOnce(&Path)) -> PathInfo {
        let tree = self.dir.path().join(path.as_str());
        std::fs::create_dir(&tree).expect("makes a directory");
        let text: String = refers_to.iter().map(|path| format!("/nix/store/{path}\n")).collect();
        std::fs::write(tree.join("refers"), text).expect("writes");
        let filler: Vec<u8> = (0..filler_bytes).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        std::fs::write(tree.join("filler"), filler).expect("writes");
        more(&tree);
        let candidates: BTreeSet<StorePath> = refers_to.iter().map(|path| (*path).clone()).collect();
        let packer = Packer { level: 1, spool_dir: self.dir.path().to_owned() };
        let packed = packer.pack(&tree, &Candidates::new(candidates.iter().cloned())).expect("packs");
        let info = packed.path_info(path.clone(), None, None);
        let mut receiver = self.store.receive(info.clone(), Provenance::Built { candidates }).expect("begins");
        let mut blob = vec![0; usize::try_from(info.blob.size_bytes).expect("fits")];
        let mut have = 0;
        while have < blob.len() {
            have += packed.spool.read_at(&mut blob[have..], have as u64).expect("reads");
        }
        receiver.write(&blob).expect("takes the bytes");
        let info = self.store.finish_upload(receiver).await.expect("stores");
        self.store.publish(std::slice::from_ref(&info), &self.keys).await.expect("publishes");
        info
    }

    /// Sends one request as it is and returns status, headers in lower case, and body.
    async fn request(&self, line: &str, headers: &str) -> (u16, String, Vec<u8>) {
        let mut stream = TcpStream::connect(self.addr).await.expect("connects");
        let text = format!("{line} HTTP/1.1\r\nHost: cache\r\nConnection: close\r\n{headers}\r\n");
        stream.write_all(text.as_bytes()).await.expect("sends");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.expect("reads");
        let end = answer.windows(4).position(|window| window == b"\r\n\r\n").expect("headers end");
        let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
        (status, head, answer[end + 4..].to_vec())
    }

    /// Runs Nix against this cache with a store, configuration and home of its own.
    async fn nix(&self, place: &str, arguments: &[&str]) -> Output {
        let root = self.dir.path().join(place);
        for dir in ["conf", "home", "root"] {
            std::fs::create_dir_all(root.join(dir)).expect("makes a directory");
        }
        let store = format!("local?root={}", root.join("root").display());
        let arguments: Vec<String> = arguments.iter().map(|argument| argument.replace("STORE", &store)).collect();
        run_nix(&root, &arguments).await
    }
}

async fn run_nix(root: &Path, arguments: &[impl AsRef<OsStr>]) -> Output {
    let ran = tokio::process::Command::new("nix")
        .args(["--extra-experimental-features", "nix-command"])
        .args(arguments)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", root.join("home"))
        .env("NIX_CONF_DIR", root.join("conf"))
        .env("NIX_REMOTE", format!("local?root={}", root.join("root").display()))
        .env("NIX_CONFIG", "sandbox = false\nbuild-users-group =\nsubstituters =\n")
        .output()
        .await;
    ran.expect("`nix` must be installed: apt-get install nix-bin")
}

fn path(hash: &str, name: &str) -> StorePath {
    StorePath::parse(&format!("{hash}-{name}")).expect("a store path")
}

const APP: &str = "0hm2f1psjpcwg8fijsmr4wwxrx59s092";
const LIB: &str = "1bxagw21mzw0pr7y9jcyjfyrlya5fnxz";
/// What the builder of every derivation that is called `app` wrote.
const LOG: &[u8] = b"<b>one</b>\n\xff two\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_serves_its_own_files_and_nothing_else() {
    let cache = Cache::start().await;
    let info = cache.publish(&path(APP, "app"), &[], 200_000).await;
    std::fs::write(cache.dir.path().join("store/secret"), "secret").expect("writes");
    let nar = format!("/{}", kiln_nix::narinfo::blob_key(&info.blob.sha256));
    let size = info.blob.size_bytes;
    let (status, head, body) = cache.request("GET /nix-cache-info", "").await;
    assert_eq!((status, body.as_slice()), (200, &b"StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 40\n"[..]));
    assert!(head.contains("content-type: text/x-nix-cache-info"), "{head}");
    let (status, head, body) = cache.request(&format!("GET /{APP}.narinfo"), "").await;
    assert!(status == 200 && head.contains("content-type: text/x-nix-narinfo"), "{head}");
    let text = String::from_utf8(body).expect("text");
    assert!(text.contains(&format!("FileSize: {size}\n")) && text.contains("\nSig: farm-1:"), "{text}");
    assert!(text.contains(&format!("FileBlake3: {}\n", info.blob.blake3)), "{text}");
    let (status, head, body) = cache.request(&format!("GET {nar}"), "").await;
    assert!(status == 200 && head.contains(&format!("content-length: {size}")), "{head}");
    assert_eq!(blake3_of(&body), info.blob.blake3);
    assert_eq!(cache.store.traffic().served_bytes, size);
    let (status, head, part) = cache.request(&format!("GET {nar}"), "Range: bytes=1000-300999\r\n").await;
    assert!(status == 206 && head.contains(&format!("content-range: bytes 1000-300999/{size}")), "{head}");
    assert_eq!(part, body[1000..301_000]);
    assert_eq!(cache.request(&format!("GET {nar}"), &format!("Range: bytes={size}-\r\n")).await.0, 416);
    for range in ["bytes=0-9".to_owned(), format!("bytes={size}-")] {
        let (status, head, body) = cache.request(&format!("HEAD {nar}"), &format!("Range: {range}\r\n")).await;
        assert!(status == 200 && body.is_empty() && field(&head, "content-length") == Some(&size.to_string()), "{range}: {head}");
        assert_eq!(field(&head, "content-range"), None, "{range}: {head}");
    }
    for file in [nar.as_str(), "/nix-cache-info", &format!("/{APP}.narinfo")] {
        let (status, head, body) = cache.request(&format!("HEAD {file}"), "").await;
        assert!(status == 200 && body.is_empty() && head.contains("content-length: "), "{file}: {head}");
    }
    assert_eq!(cache.request(&format!("GET /{LIB}.narinfo"), "").await.0, 404);
    let page = String::from_utf8(cache.request("GET /metrics", "").await.2).expect("text");
    for counted in ["narinfo\",result=\"hit\"} 2", "narinfo\",result=\"miss\"} 1", "nar\",result=\"hit\"} 5", "nar\",result=\"error\"} 1"] {
        assert!(page.contains(&format!("\nkiln_cache_requests_total{{kind=\"{counted}\n")), "{counted} is not in\n{page}");
    }
    for hostile in [
        "/",
        "/secret",
        "/nar/",
        "/nar/secret",
        "/../../../etc/passwd",
        "/nar/../secret",
        "/nar/..%2fsecret",
        "/%2e%2e%2fsecret",
        "/..%2fsecret.narinfo",
        "/nar/%00.nar.zst",
        "/nar/%ff%fe.nar.zst",
        "/drv/x.drv",
        "//etc/passwd",
        &format!("/nar/{}.nar.zst", "0".repeat(52)),
        &format!("/{}.narinfo", "e".repeat(32)),
        &format!("/{}.narinfo", "0".repeat(5000)),
    ] {
        let (status, _, body) = cache.request(&format!("GET {hostile}"), "").await;
        assert!((status == 404 || status == 400) && !body.windows(6).any(|window| window == b"secret"), "{hostile}: {status}");
    }
    assert_eq!(cache.request("POST /nix-cache-info", "Content-Length: 0\r\n").await.0, 405);
    assert_eq!(cache.request("GET /healthz", "").await.0, 200);
    let (status, head, body) = cache.request("GET /metrics", "").await;
    assert!(status == 200 && head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    assert!(String::from_utf8(body).expect("text").contains("\nkiln_builds_active 3\n"));
    cache.http.stop().await;
    assert!(TcpStream::connect(cache.addr).await.is_err(), "it listens no more");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_be_kept_says_so_and_is_sent_once() {
    let cache = Cache::start().await;
    let info = cache.publish(&path(APP, "app"), &[], 1000).await;
    let nar = format!("/{}", kiln_nix::narinfo::blob_key(&info.blob.sha256));
    let narinfo = format!("/{APP}.narinfo");
    let table = [
        ("/nix-cache-info", "public, max-age=300", true),
        (&narinfo, "public, max-age=300", true),
        (&nar, "public, max-age=86400", true),
        (&format!("/{APP}.ls"), "public, max-age=300", true),
        (&format!("/log/{APP}-app.drv"), "public, no-cache", true),
        ("/healthz", "no-store", false),
        ("/metrics", "no-store", false),
    ];
    for (file, keep, tagged) in table {
        let (status, head, body) = cache.request(&format!("GET {file}"), "").await;
        assert!(status == 200 && field(&head, "cache-control") == Some(keep), "{file}: {head}");
        let (status, of_head, nothing) = cache.request(&format!("HEAD {file}"), "").await;
        let fields = ["cache-control", "etag", "content-type", "content-length"];
        assert!(status == 200 && nothing.is_empty(), "{file}: {of_head}");
        for name in fields.into_iter().filter(|_| tagged) {
            assert_eq!(field(&of_head, name), field(&head, name), "{file}: {name}");
        }
        assert_eq!(field(&head, "etag").is_some(), tagged, "{file}: {head}");
        let Some(tag) = field(&head, "etag") else { continue };
        for method in ["GET", "HEAD"] {
            let (status, again, nothing) = cache.request(&format!("{method} {file}"), &format!("If-None-Match: \"x\", {tag}\r\n")).await;
            assert!(status == 304 && nothing.is_empty(), "{file}: {again}");
            assert_eq!((field(&again, "etag"), field(&again, "cache-control")), (Some(tag), Some(keep)), "{file}: {again}");
        }
        let (status, _, other) = cache.request(&format!("GET {file}"), "If-None-Match: \"x\"\r\n").await;
        assert_eq!((status, other), (200, body), "{file}");
    }
    let tag = field(&cache.request(&format!("HEAD {nar}"), "").await.1, "etag").expect("a tag").to_owned();
    for (condition, expected) in [(tag.as_str(), 206), ("\"x\"", 200)] {
        let range = format!("Range: bytes=0-9\r\nIf-Range: {condition}\r\n");
        assert_eq!(cache.request(&format!("GET {nar}"), &range).await.0, expected, "{condition}");
    }
    for absent in [&format!("/{LIB}.narinfo"), &format!("/nar/{}.nar.zst", "0".repeat(52)), "/x/y/z"] {
        let (status, head, _) = cache.request(&format!("GET {absent}"), "If-None-Match: *\r\n").await;
        assert_eq!((status, field(&head, "cache-control")), (404, Some("no-store")), "{absent}: {head}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_text_and_only_a_derivations() {
    let cache = Cache::start().await;
    let (status, head, body) = cache.request(&format!("GET /log/{APP}-app.drv"), "").await;
    assert_eq!((status, body.as_slice()), (200, LOG));
    let tag = format!("\"7-{}\"", LOG.len());
    assert_eq!(field(&head, "etag"), Some(tag.as_str()), "a part of a log is not the whole: {head}");
    assert_eq!(field(&head, "content-type"), Some("text/plain; charset=utf-8"), "{head}");
    assert_eq!(field(&head, "x-content-type-options"), Some("nosniff"), "a browser makes no page of it: {head}");
    for absent in [&format!("{APP}-lib.drv"), &format!("{APP}-app"), "..%2f..%2fetc%2fpasswd.drv", "", "x.drv"] {
        assert_eq!(cache.request(&format!("GET /log/{absent}"), "").await.0, 404, "{absent}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_is_what_nix_writes_and_is_made_once() {
    let cache = Cache::start().await;
    let info = cache.publish(&path(APP, "app"), &[], 100_000).await;
    let (status, head, body) = cache.request(&format!("GET /{APP}.ls"), "").await;
    assert!(status == 200 && field(&head, "content-type") == Some("application/json"), "{head}");
    let binary = cache.dir.path().join("binary");
    let (url, to) = (format!("http://{}", cache.addr), format!("file://{}?write-nar-listing=true", binary.display()));
    let copied = cache.nix("listed", &["copy", "--no-check-sigs", "--from", &url, "--to", &to, &format!("/nix/store/{APP}-app")]).await;
    assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
    let theirs = std::fs::read(binary.join(format!("{APP}.ls"))).expect("Nix wrote a listing");
    let json = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).expect("JSON");
    assert_eq!(json(&body), json(&theirs));
    assert_eq!(cache.request(&format!("GET /{LIB}.ls"), "").await.0, 404);
    assert_eq!(cache.request("GET /..%2fx.ls", "").await.0, 404);

    // It is kept: the NAR is not read again. One that the farm has not listed yet is held against the path's hash.
    let object = cache.dir.path().join("store").join(kiln_nix::narinfo::blob_key(&info.blob.sha256));
    std::fs::write(&object, b"damaged").expect("writes");
    assert_eq!(cache.request(&format!("GET /{APP}.ls"), "").await.2, body);
    std::fs::remove_dir_all(cache.dir.path().join("store/listings")).expect("removes");
    let (status, head, nothing) = cache.request(&format!("GET /{APP}.ls"), "").await;
    assert!(status == 500 && nothing.is_empty() && field(&head, "cache-control") == Some("no-store"), "{head}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_that_is_too_long_is_not_made_again() {
    let cache = Cache::start().await;
    let long = |tree: &Path| {
        // JSON has six characters for one of these.
        let target = OsString::from_vec(vec![1; kiln_nix::nar::TARGET_BYTES_MAX]);
        let count = LISTING_BYTES_MAX / (6 * kiln_nix::nar::TARGET_BYTES_MAX as u64) + 1;
        (0..count).for_each(|number| symlink(&target, tree.join(number.to_string())).expect("links"));
    };
    let info = cache.publish_with(&path(APP, "app"), &[], 10, long).await;
    let ask = async || cache.request(&format!("GET /{APP}.ls"), "").await.0;
    assert_eq!(ask().await, 404);
    let object = cache.dir.path().join("store").join(kiln_nix::narinfo::blob_key(&info.blob.sha256));
    std::fs::write(&object, b"damaged").expect("writes");
    assert_eq!(ask().await, 404, "the NAR is not read again");
    std::fs::remove_dir_all(cache.dir.path().join("store/listings")).expect("removes");
    assert_eq!(ask().await, 500);
}

/// Returns the value of a header.
fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

fn blake3_of(bytes: &[u8]) -> kiln_wire::Blake3Hash {
    kiln_link::blob_root(bytes).expect("reads memory")
}

#[tokio::test(flavor = "multi_thread")]
async fn nix_copies_a_closure_and_refuses_what_was_tampered_with() {
    let cache = Cache::start().await;
    let (app, lib) = (path(APP, "app"), path(LIB, "lib"));
    cache.publish(&lib, &[], 10).await;
    let info = cache.publish(&app, &[&app, &lib], 200_000).await;
    let url = format!("http://{}", cache.addr);
    let full = format!("/nix/store/{app}");
    let key = cache.keys.trusted();
    let copy = ["copy", "--from", &url, "--to", "STORE", &full, "--trusted-public-keys", &key];
    let good = cache.nix("good", &copy).await;
    assert!(good.status.success(), "{}", String::from_utf8_lossy(&good.stderr));
    let copied = cache.dir.path().join("good/root/nix/store");
    assert_eq!(kiln_nix::nar::hash_path(&copied.join(app.as_str())).expect("hashes").hash, info.nar_hash);
    let told = cache.nix("good", &["path-info", "--json", "--store", "STORE", &full]).await;
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    for fact in [&format!("\"narSize\":{}", info.nar_size_bytes), LIB, "\"farm-1:"] {
        assert!(told.contains(fact), "{fact} is missing in {told}");
    }
    let other = SecretKey::from_seed("farm-1", [6; 32]).expect("a good name").public().to_string();
    let untrusted = ["copy", "--from", &url, "--to", "STORE", &full, "--trusted-public-keys", &other];
    let refused = cache.nix("untrusted", &untrusted).await;
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("signature"), "{refused:?}");
    let narinfo = cache.dir.path().join(format!("store/{APP}.narinfo"));
    let text = std::fs::read_to_string(&narinfo).expect("reads");
    std::fs::write(&narinfo, text.replace(&format!("References: {app} {lib}"), &format!("References: {app}"))).expect("writes");
    assert_ne!(std::fs::read_to_string(&narinfo).expect("reads"), text, "the references were cut");
    let refused = cache.nix("references", &copy).await;
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("signature"), "{refused:?}");
    std::fs::write(&narinfo, &text).expect("writes");
    let object = cache.dir.path().join("store").join(kiln_nix::narinfo::blob_key(&info.blob.sha256));
    let mut blob = std::fs::read(&object).expect("reads");
    let middle = blob.len() / 2;
    blob[middle] ^= 0x10;
    std::fs::write(&object, blob).expect("writes");
    let refused = cache.nix("bytes", &copy).await;
    assert!(!refused.status.success(), "{refused:?}");
    // Nix unpacks before it compares hashes, so files may lie there; what counts is that the path is not valid.
    let told = cache.nix("bytes", &["path-info", "--store", "STORE", &full]).await;
    assert!(!told.status.success(), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nix_that_reads_xz_only_has_a_cache_of_its_own() {
    let cache = Cache::start().await;
    let (app, lib) = (path(APP, "app"), path(LIB, "lib"));
    let kept = cache.publish(&lib, &[], 100_000).await;
    cache.publish(&app, &[&lib], 10).await;
    let text = String::from_utf8(cache.request(&format!("GET /xz/{LIB}.narinfo"), "").await.2).expect("text");
    assert!(text.contains("Compression: xz\n") && text.contains(".nar.xz\n") && !text.contains("\nFile"), "{text}");
    let url = format!("http://{}/xz", cache.addr);
    let key = cache.keys.trusted();
    let full = format!("/nix/store/{app}");
    let copied = cache.nix("xz", &["copy", "--from", &url, "--to", "STORE", "--option", "trusted-public-keys", &key, &full]).await;
    assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
    let copied = cache.dir.path().join(format!("xz/root/nix/store/{lib}/filler"));
    assert_eq!(std::fs::read(copied).expect("it was copied").len(), 400_000);
    // Under each ending, and whole.
    let hash = kiln_nix::hash::nix32(&kept.blob.sha256.0);
    let (status, head, plain) = cache.request(&format!("GET /nar/{hash}.nar"), "").await;
    assert!(status == 200 && plain.windows(13).any(|window| window == b"nix-archive-1"), "{head}");
    for (line, expected) in [
        (format!("HEAD /nar/{hash}.nar.xz"), 200),
        (format!("GET /nar/{hash}.nar.bz2"), 200),
        (format!("GET /nar/{hash}.nar.br"), 404),
        (format!("GET /nar/{}.nar.xz", "0".repeat(52)), 404),
        (format!("GET /nar/{hash}x.nar.xz"), 404),
        ("GET /nar/..%2f..%2fsecret.nar.xz".to_owned(), 404),
        ("GET /xz/nix-cache-info".to_owned(), 200),
        (format!("GET /xz/{LIB}.ls"), 200),
    ] {
        assert_eq!(cache.request(&line, "").await.0, expected, "{line}");
    }
    // A name under which a client uploaded it leads to the same.
    let uploaded = "1".repeat(52);
    cache.store.note_uploaded(&uploaded, &kept.blob.sha256).await.expect("notes");
    let (status, head, _) = cache.request(&format!("GET /nar/{uploaded}.nar.zst"), "").await;
    assert!(status == 307 && head.contains(&format!("location: {hash}.nar.zst")), "{head}");
    assert_eq!(cache.request(&format!("GET /nar/{uploaded}.nar"), "").await.0, 200);
    cache.http.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn debugging_information_is_found_by_the_id_in_the_program() {
    let cache = Cache::start().await;
    let app = path(APP, "app");
    let work = cache.dir.path().to_owned();
    let script = "set -e; echo 'int main(void) { return 0; }' >p.c; gcc -g -Wl,--build-id=sha1 -o p p.c; objcopy --only-keep-debug p p.debug; \
                  readelf -n p | sed -n 's/.*Build ID: //p'";
    let made = std::process::Command::new("sh").args(["-c", script]).current_dir(&work).output().expect("there is a shell");
    assert!(made.status.success(), "gcc and binutils are installed: {}", String::from_utf8_lossy(&made.stderr));
    let id = String::from_utf8(made.stdout).expect("text").trim().to_owned();
    assert_eq!(id.len(), 40, "{id}");
    let member = format!("lib/debug/.build-id/{}/{}.debug", &id[..2], &id[2..]);
    let info = cache
        .publish_with(&app, &[], 1, |tree| {
            let file = tree.join(&member);
            std::fs::create_dir_all(file.parent().expect("a directory")).expect("makes directories");
            std::fs::copy(work.join("p.debug"), file).expect("copies");
        })
        .await;
    for name in [format!("/debuginfo/{id}"), format!("/debuginfo/{id}.debug")] {
        let (status, head, body) = cache.request(&format!("GET {name}"), "").await;
        assert!(status == 200 && head.contains("content-type: application/json") && head.contains("etag: "), "{head}");
        let json: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        let archive = format!("../{}", kiln_nix::narinfo::blob_key(&info.blob.sha256));
        assert_eq!(json, serde_json::json!({ "archive": archive, "member": member }));
        // As a client resolves it from where the entry is.
        assert_eq!(cache.request(&format!("GET {}", archive.trim_start_matches("..")), "").await.0, 200);
    }
    for name in ["/debuginfo/x", "/debuginfo/..", &format!("/debuginfo/{}", "0".repeat(40)), &format!("/debuginfo/{id}.debug.debug")] {
        assert_eq!(cache.request(&format!("GET {name}"), "").await.0, 404, "{name}");
    }
    // Nix, asked to make the same index of the same archive, makes the same entry.
    let to = format!("file://{}?index-debug-info=true&compression=none", cache.dir.path().join("index").display());
    let from = format!("http://{}", cache.addr);
    let key = cache.keys.trusted();
    let full = format!("/nix/store/{app}");
    let copied = cache.nix("debug", &["copy", "--from", &from, "--to", &to, "--option", "trusted-public-keys", &key, &full]).await;
    assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
    let entries: Vec<_> = std::fs::read_dir(cache.dir.path().join("index/debuginfo")).expect("an index").filter_map(Result::ok).collect();
    let names: Vec<String> = entries.iter().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    assert!(names.len() == 1 && names[0].starts_with(&id), "{names:?}");
    let theirs: serde_json::Value = serde_json::from_slice(&std::fs::read(entries[0].path()).expect("reads")).expect("JSON");
    assert_eq!(theirs["member"], member);
    cache.http.stop().await;
}
