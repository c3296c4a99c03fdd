//! Downloads from a server on the loopback that says what a table tells it to.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use kiln_nix::derivation::{Derivation, Output};
use kiln_wire::{OutputName, StorePath};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::super::xz;
use super::*;

/// An xz file that holds the NAR of a file with `hi` and a newline.
const NAR_XZ: &str = include_str!("hi.nar.xz.hex");

/// Serves each path with the raw answers listed for it, the last one for ever.
async fn serve(answers: Vec<(&'static str, Vec<Vec<u8>>)>) -> String {
    serve_at("127.0.0.1:0", answers).await
}

async fn serve_at(address: &str, answers: Vec<(&'static str, Vec<Vec<u8>>)>) -> String {
    let listener = TcpListener::bind(address).await.expect("loopback");
    let addr = listener.local_addr().expect("bound");
    let answers: BTreeMap<_, _> = answers.into_iter().map(|(path, list)| (path, (AtomicUsize::new(0), list))).collect();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut request = vec![0u8; 4096];
            let count = socket.read(&mut request).await.unwrap_or(0);
            let text = String::from_utf8_lossy(&request[..count]).into_owned();
            let path = text.split(' ').nth(1).unwrap_or("/").to_owned();
            let answer = answers.get(path.as_str()).map(|(next, list)| &list[next.fetch_add(1, Ordering::Relaxed).min(list.len() - 1)]);
            let missing = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec();
            // A client that has hung up is part of some cases.
            let _ = socket.write_all(answer.unwrap_or(&missing)).await;
        }
    });
    format!("http://{addr}")
}

fn ok(body: &[u8]) -> Vec<u8> {
    let mut answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len()).into_bytes();
    answer.extend_from_slice(body);
    answer
}

fn head(text: &str) -> Vec<u8> {
    format!("HTTP/1.1 {text}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").into_bytes()
}

fn nar_xz() -> Vec<u8> {
    let hex: String = NAR_XZ.split_whitespace().collect();
    (0..hex.len() / 2).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).expect("hex")).collect()
}

struct Fetched {
    dir: tempfile::TempDir,
    result: Result<(), String>,
    class: Option<FailureClass>,
    notes: String,
}

async fn get(urls: &[String], unpack: bool, executable: bool) -> Fetched {
    get_from(&Destinations::default(), urls, unpack, executable).await
}

async fn get_from(reachable: &Destinations, urls: &[String], unpack: bool, executable: bool) -> Fetched {
    let dir = tempfile::tempdir().expect("temporary directory");
    let urls = urls.iter().map(|url| Url::parse(url).expect("an address")).collect();
    let request = Request { urls, unpack, executable };
    let limits = JobLimits { wall_ms_max: 20_000, silence_ms_max: 0, log_bytes_max: 0, output_bytes_max: 1000 };
    let notes = Mutex::new(String::new());
    let result = fetch(&request, &dir.path().join("out"), &limits, reachable, |note| notes.lock().expect("no panic").push_str(note)).await;
    let class = result.as_ref().err().map(FetchError::class);
    let result = result.map_err(|err| crate::failure::caused(FailureClass::BuildFailure, "", &err).message);
    Fetched { dir, result, class, notes: notes.into_inner().expect("no panic") }
}

#[tokio::test]
async fn files_come_by_redirects_retries_and_mirrors() {
    let base = serve(vec![
        ("/file", vec![ok(b"content")]),
        ("/moved", vec![b"HTTP/1.1 302 Found\r\nLocation: /file\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec()]),
        ("/flaky", vec![head("503 Busy"), ok(b"content")]),
        ("/cut", vec![b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nConnection: close\r\n\r\ncon".to_vec(), ok(b"content")]),
    ])
    .await;
    for paths in [vec!["/file"], vec!["/moved"], vec!["/flaky"], vec!["/cut"], vec!["/absent", "/file"]] {
        let urls: Vec<_> = paths.iter().map(|path| format!("{base}{path}")).collect();
        let fetched = get(&urls, false, false).await;
        assert_eq!(fetched.result, Ok(()), "{paths:?}");
        assert_eq!(std::fs::read(fetched.dir.path().join("out")).expect("reads"), b"content", "{paths:?}");
        assert!(fetched.notes.contains("downloading http://127.0.0.1"), "{}", fetched.notes);
    }
}

#[tokio::test]
async fn an_executable_and_a_compressed_nar_are_written_as_asked() {
    let base = serve(vec![("/tool", vec![ok(b"tool")]), ("/hi.nar.xz", vec![ok(&nar_xz())])]).await;
    let fetched = get(&[format!("{base}/tool")], false, true).await;
    let mode = std::fs::metadata(fetched.dir.path().join("out")).expect("stat").permissions().mode();
    assert_eq!((fetched.result, mode & 0o777), (Ok(()), 0o755));
    let fetched = get(&[format!("{base}/hi.nar.xz")], true, false).await;
    assert_eq!(fetched.result, Ok(()));
    assert_eq!(std::fs::read(fetched.dir.path().join("out")).expect("reads"), b"hi\n");
}

#[tokio::test]
async fn what_cannot_be_had_is_refused_with_class_and_reason() {
    let mut cut = nar_xz();
    cut.truncate(cut.len() - 8);
    let base = serve(vec![
        ("/huge", vec![b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\nConnection: close\r\n\r\n".to_vec()]),
        ("/endless", vec![[&b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"[..], &[b'x'; 4000]].concat()]),
        ("/broken", vec![head("500 Broken")]),
        ("/loop", vec![b"HTTP/1.1 302 Found\r\nLocation: /loop\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec()]),
        ("/text", vec![ok(b"no NAR")]),
        ("/x.nar.bz2", vec![ok(b"BZh9")]),
        ("/cut.nar.xz", vec![ok(&cut)]),
        ("/hungry.nar.xz", vec![ok(&xz::tests::claiming(40))]),
    ])
    .await;
    let table = [
        ("/absent", false, FailureClass::BuildFailure, "the server answers 404 Not Found"),
        ("/broken", false, FailureClass::Infrastructure, "the server answers 500"),
        ("/huge", false, FailureClass::LimitExceeded, "more than 1000 bytes, the job's output size limit"),
        ("/endless", false, FailureClass::LimitExceeded, "more than 1000 bytes, the job's output size limit"),
        ("/loop", false, FailureClass::Infrastructure, "redirect"),
        ("/text", true, FailureClass::BuildFailure, "unpack the downloaded file as a NAR"),
        ("/x.nar.bz2", true, FailureClass::BuildFailure, "`bz2` is not supported"),
        ("/cut.nar.xz", true, FailureClass::BuildFailure, "unpack the downloaded file as a NAR"),
        ("/hungry.nar.xz", true, FailureClass::BuildFailure, "it asks for more than 128 MiB of memory"),
    ];
    for (path, unpack, class, words) in table {
        let fetched = get(&[format!("{base}{path}")], unpack, false).await;
        let message = fetched.result.expect_err(path);
        assert!(message.contains(words), "{path}: {message}");
        assert_eq!(fetched.class, Some(class), "{path}: {message}");
    }
    let both = get(&[format!("{base}/absent"), format!("{base}/gone")], false, false).await;
    assert!(both.result.expect_err("neither").starts_with("none of 2 addresses could be downloaded; the last one: download"));
}

#[tokio::test]
async fn what_builds_must_not_reach_is_not_connected_to_however_it_is_named() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback");
    closed.set_nonblocking(true).expect("a socket");
    let port = closed.local_addr().expect("bound").port();
    let to = |host: &str| format!("HTTP/1.1 302 Found\r\nLocation: http://{host}:{port}/x\r\nConnection: close\r\n\r\n").into_bytes();
    let base = serve_at(
        "127.0.0.2:0",
        vec![("/file", vec![ok(b"content")]), ("/address", vec![to("127.0.0.1")]), ("/name", vec![to("localhost")])],
    )
    .await;
    let reachable = Destinations::all_but(&["127.0.0.1/32", "::1/128"]);
    let hosts = ["127.0.0.1", "localhost", "LOCALHOST", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]", "[::1]"];
    let direct = hosts.map(|host| format!("http://{host}:{port}/x"));
    let table = direct.into_iter().chain(["/address", "/name"].map(|path| format!("{base}{path}")));
    for url in table {
        let fetched = get_from(&reachable, std::slice::from_ref(&url), false, false).await;
        let message = fetched.result.expect_err(&url);
        assert!(message.contains("is among the addresses that builds of this worker must not reach"), "{url}: {message}");
        assert_eq!(fetched.class, Some(FailureClass::BuildFailure), "{url}: {message}");
        assert_eq!(fetched.notes.matches("downloading").count(), 1, "another try leads there too: {}", fetched.notes);
        let called = closed.accept().expect_err("nothing has connected");
        assert_eq!(called.kind(), std::io::ErrorKind::WouldBlock, "{url}");
        let mirrors = [url.clone(), format!("{base}/file")];
        let fetched = get_from(&reachable, &mirrors, false, false).await;
        assert_eq!(fetched.result, Ok(()), "{url}");
    }
}

#[tokio::test]
async fn a_local_file_is_read_only_if_everyone_may() {
    let dir = tempfile::tempdir().expect("temporary directory");
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).expect("chmod");
    let file = |name: &str, mode| {
        let path = dir.path().join(name);
        std::fs::write(&path, "local").expect("write");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("chmod");
        format!("file://{}", path.display())
    };
    let fetched = get(&[file("open", 0o644)], false, false).await;
    assert_eq!(std::fs::read(fetched.dir.path().join("out")).expect("reads"), b"local");
    std::fs::create_dir(dir.path().join("closed")).expect("mkdir");
    let inside = file("closed/open", 0o644);
    std::fs::set_permissions(dir.path().join("closed"), std::fs::Permissions::from_mode(0o700)).expect("chmod");
    let table = [
        (file("secret", 0o600), "not readable for every user"),
        (inside, "is not open to every user"),
        ("file:///dev/zero".into(), "no regular file"),
        (format!("file://{}/absent", dir.path().display()), "No such file"),
    ];
    for (url, words) in table {
        let message = get(std::slice::from_ref(&url), false, false).await.result.expect_err(&url);
        assert!(message.contains(words), "{url}: {message}");
    }
}

#[test]
fn a_recipe_is_read_or_refused_with_its_rule() {
    let derivation = |env: &[(&str, &str)]| {
        let hash = "0".repeat(64);
        let address = kiln_nix::content::ContentAddress {
            method: kiln_nix::content::Method::Flat,
            hash: kiln_nix::hash::Hash::parse(&format!("sha256:{hash}")).expect("a hash"),
        };
        let path = StorePath::parse(&format!("{}-x", "0".repeat(32))).expect("a store path");
        Derivation {
            name: "x".into(),
            outputs: [(OutputName::parse("out").expect("a name"), Output::Fixed { address, path })].into(),
            inputs: BTreeMap::new(),
            sources: BTreeSet::new(),
            system: "builtin".into(),
            builder: NAME.into(),
            args: Vec::new(),
            env: env.iter().map(|(name, value)| ((*name).into(), value.as_bytes().to_vec())).collect(),
        }
    };
    let table = [
        (vec![("url", "http://a/b")], "http://a/b unpack=false executable=false"),
        (vec![("urls", "http://a/b https://c/d"), ("unpack", "1")], "http://a/b https://c/d unpack=true executable=false"),
        (vec![("url", "http://a/b"), ("urls", "http://a/b"), ("executable", "1")], "http://a/b unpack=false executable=true"),
        (vec![], "builtin:fetchurl: the derivation has neither `url` nor `urls`"),
        (vec![("url", "ftp://a/b")], "builtin:fetchurl: read address `ftp://a/b`: `ftp` is not supported; use https, http or file"),
        (vec![("url", "nothing")], "builtin:fetchurl: read address `nothing`: relative URL without a base"),
    ];
    for (env, expect) in table {
        let found = match Request::of(&derivation(&env)) {
            Ok(request) => {
                let urls: Vec<_> = request.urls.iter().map(Url::as_str).collect();
                format!("{} unpack={} executable={}", urls.join(" "), request.unpack, request.executable)
            }
            Err(error) => error.to_string(),
        };
        assert_eq!(found, expect, "{env:?}");
    }
}
