//! What clients upload over HTTP: by a real Nix with a token in its `netrc` file, and by others who lie.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::crashes::Daemons;
use crate::farm::{Place, Process, Ran, wait_for};
use crate::shared::{Bucket, beside, share_store};
use crate::upstream::{Origin, at, nix};

/// A farm without workers that takes uploads, and a Nix with something to upload.
struct Uploads {
    origin: Origin,
    daemons: Daemons,
    _coordinator: Process,
    cache: String,
    /// The farm's key.
    key: String,
}

impl Uploads {
    fn new() -> Self {
        Self::with(|_| ())
    }

    /// Starts a farm whose configuration was completed.
    fn with(complete: impl FnOnce(&Daemons)) -> Self {
        let origin = Origin::new();
        let daemons = Daemons::with("{ }");
        complete(&daemons);
        let file = daemons.place.path("coordinator.toml");
        let mut config = std::fs::read_to_string(&file).expect("a configuration");
        let port = config.lines().find_map(|line| line.strip_prefix("http = '")).expect("an address").trim_end_matches('\'').to_owned();
        config.insert_str(0, &format!("trusted_upload_keys = ['{}']\n", origin.key.trim()));
        for scope in ["upload", "trusted"] {
            let made = daemons.place.run(&["token", "create", "--name", scope, "--scope", scope]).expect_success().out();
            let (token, lines) = made.split_once('\n').expect("lines");
            config.push_str(lines);
            std::fs::write(origin.place.path(scope), format!("machine 127.0.0.1 login kiln password {token}\n")).expect("write");
        }
        std::fs::write(&file, config).expect("write");
        let coordinator = daemons.start("coordinator");
        daemons.wait_until_up();
        let key = daemons.place.run(&[&["status"][..], &daemons.farm()].concat()).expect_success().out();
        let key = key.split_whitespace().find(|word| word.starts_with("test-1:") || word.starts_with("test:")).expect("a key").to_owned();
        Self { origin, daemons, _coordinator: coordinator, cache: format!("http://{port}"), key }
    }

    /// Runs Nix with the token of this scope.
    fn nix(&self, scope: &str, args: &[&str]) -> Ran {
        let place = &self.origin.place;
        // Every run knows as little as the first one.
        let _absent = std::fs::remove_dir_all(place.path(".cache"));
        nix(
            place,
            "nix",
            &[args, &["--option", "netrc-file", &at(place, scope), "--option", "trusted-public-keys", self.origin.key.trim()]].concat(),
        )
    }

    fn built(&self, attribute: &str) -> String {
        let place = &self.origin.place;
        place.run(&["build", "-f", "set.nix", "-A", attribute]).expect_success().out().trim().to_owned()
    }

    fn has(&self, path: &str) -> bool {
        self.daemons.place.run(&[&["path-info", path][..], &self.daemons.farm()].concat()).out().contains(path)
    }

    /// Sends a request as it is, with the token of this scope, and returns status and body.
    fn put(&self, scope: &str, name: &str, body: &[u8]) -> (u16, String) {
        let netrc = std::fs::read_to_string(self.origin.place.path(scope)).unwrap_or_default();
        let token = netrc.split_whitespace().last().unwrap_or("none");
        let host = self.cache.strip_prefix("http://").expect("plain HTTP");
        let mut stream = TcpStream::connect(host).expect("the cache listens");
        let head =
            format!("PUT /{name} HTTP/1.0\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\nContent-Length: {}\r\n\r\n", body.len());
        // Whoever is refused early is not listened to.
        let _sent = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
        let mut answer = Vec::new();
        let _reset = stream.read_to_end(&mut answer);
        let text = String::from_utf8_lossy(&answer).into_owned();
        (text.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0), text)
    }
}

#[test]
fn nix_copies_signed_paths_to_a_farm_and_back() {
    let uploads = Uploads::new();
    let (top, tool) = (uploads.built("top"), uploads.built("tool"));
    let from = format!("file://{}", at(&uploads.origin.place, "cache"));
    let stranger = uploads.nix("nobody", &["copy", "--from", &from, "--to", &uploads.cache, &top]);
    assert!(stranger.code() != 0 && stranger.err().contains("401") && !uploads.has(&top), "{}", stranger.err());
    for compression in ["xz", "zstd", "none", "bzip2"] {
        let to = format!("{}?compression={compression}&write-nar-listing=true", uploads.cache);
        let path = if compression == "xz" { &top } else { &tool };
        uploads.nix("upload", &["copy", "--from", &from, "--to", &to, path]).expect_success();
        assert!(uploads.has(path), "{compression}");
    }
    // Both keys vouch for it, and it is read by whatever reads a cache.
    for (name, key) in [("by-upstream", uploads.origin.key.trim()), ("by-farm", uploads.key.as_str())] {
        let to = format!("local?root={}", at(&uploads.origin.place, name));
        let args = ["copy", "--option", "trusted-public-keys", key, "--from", &uploads.cache, "--to", &to, &top];
        let _absent = std::fs::remove_dir_all(uploads.origin.place.path(".cache"));
        nix(&uploads.origin.place, "nix", &args).expect_success();
    }
    let read = uploads.nix("nobody", &["store", "cat", "--store", &uploads.cache, &tool]).expect_success();
    assert_eq!(read.out(), "tool\n");
    let infos = uploads.nix("nobody", &["path-info", "--store", &uploads.cache, "--json", "-r", &top]).expect_success().json();
    assert_eq!(infos.as_array().expect("a list").len(), 3, "{infos}");
    uploads.nix("nobody", &["store", "ls", "--store", &uploads.cache, "--json", &top]).expect_success();
}

#[test]
fn a_coordinator_that_does_not_lead_hands_uploads_on() {
    let mut bucket = None;
    let uploads = Uploads::with(|daemons| {
        let served = Bucket::serve(&daemons.place.path("s3"));
        share_store(daemons, &served);
        daemons.place.run(&["ca", "issue", "--dir", "ca", "--role", "admin/root", "--out", "id/admin/root"]).expect_success();
        bucket = Some(served);
    });
    let daemons = &uploads.daemons;
    let (link, http) = beside(daemons, 2);
    let _second = daemons.start_as("coordinator", "coordinator-2.toml");
    let add = ["cluster", "add", "2", &link, "--farm", &daemons.url, "--identity", "id/admin/root"];
    wait_for("the second is taken in", || (daemons.place.run(&add).code() == 0).then_some(()));
    let from = format!("file://{}", at(&uploads.origin.place, "cache"));
    let top = uploads.built("top");
    let follower = format!("http://{http}");
    let stranger = uploads.nix("nobody", &["copy", "--from", &from, "--to", &follower, &top]);
    assert!(stranger.code() != 0 && stranger.err().contains("401"), "{}", stranger.err());
    uploads.nix("upload", &["copy", "--from", &from, "--to", &follower, &top]).expect_success();
    assert!(uploads.has(&top));
    let leaf = &uploads.built("leaf")["/nix/store/".len()..][..32];
    let text = std::fs::read(uploads.origin.place.path("cache").join(format!("{leaf}.narinfo"))).expect("a narinfo");
    let other = Uploads { cache: follower, ..uploads };
    let (status, words) = other.put("upload", &format!("{}.narinfo", "0".repeat(32)), &text);
    assert!(status == 400 && words.contains("describes"), "the leader's words: {words}");
}

#[test]
fn what_a_client_remembers_of_its_upload_can_be_read() {
    let uploads = Uploads::new();
    let top = uploads.built("top");
    let from = format!("file://{}", at(&uploads.origin.place, "cache"));
    uploads.nix("upload", &["copy", "--from", &from, "--to", &uploads.cache, &top]).expect_success();
    // The same home: Nix has the narinfo that it made itself, and asks for the archive under that name.
    let to = format!("local?root={}", at(&uploads.origin.place, "again"));
    let place = &uploads.origin.place;
    let args = ["copy", "--option", "trusted-public-keys", uploads.origin.key.trim(), "--from", &uploads.cache, "--to", &to, &top];
    nix(place, "nix", &args).expect_success();
}

#[test]
fn what_nobody_vouches_for_needs_a_token_that_is_trusted() {
    let uploads = Uploads::new();
    let (top, place) = (uploads.built("top"), &uploads.origin.place);
    // Signed by the farm that built it, which this one does not know.
    let from = place.beacon()["cache"].as_str().expect("an address").to_owned();
    let refused = uploads.nix("upload", &["copy", "--from", &from, "--to", &uploads.cache, &top]);
    assert!(refused.code() != 0 && !uploads.has(&top), "{}", refused.err());
    uploads.nix("trusted", &["copy", "--from", &from, "--to", &uploads.cache, &top]).expect_success();
    assert!(uploads.has(&top));
    // What follows from its content needs nobody.
    std::fs::write(place.path("source"), "a source\n").expect("write");
    let own = format!("local?root={}", at(place, "own"));
    let added = nix(place, "nix", &["store", "add-file", "--store", &own, &at(place, "source")]).expect_success().out().trim().to_owned();
    uploads.nix("upload", &["copy", "--from", &own, "--to", &uploads.cache, &added]).expect_success();
    assert!(uploads.has(&added));
}

#[test]
fn two_paths_of_equal_content_are_both_taken() {
    let uploads = Uploads::new();
    let place = &uploads.origin.place;
    let own = format!("local?root={}", at(place, "own"));
    std::fs::write(place.path("source"), "a source\n").expect("write");
    // The archive of the second is there already, and Nix does not send it.
    for name in ["one", "two"] {
        let add = ["store", "add-file", "--name", name, "--store", &own, &at(place, "source")];
        let added = nix(place, "nix", &add).expect_success().out().trim().to_owned();
        uploads.nix("upload", &["copy", "--from", &own, "--to", &uploads.cache, &added]).expect_success();
        assert!(uploads.has(&added), "{name}");
        uploads.nix("nobody", &["store", "cat", "--store", &uploads.cache, &added]).expect_success();
    }
}

/// What is uploaded: with which token, under which name, and which status and words are the answer.
type Case<'a> = (&'a str, &'a str, &'a str, &'a [u8], u16, &'a str);

#[test]
fn what_is_uploaded_is_held_against_what_is_said_of_it() {
    let uploads = Uploads::new();
    let cache = uploads.origin.place.path("cache");
    let narinfo_of = |attribute: &str| {
        let path = uploads.built(attribute);
        let hash_part = path.trim_start_matches("/nix/store/")[..32].to_owned();
        let text = std::fs::read_to_string(cache.join(format!("{hash_part}.narinfo"))).expect("a narinfo");
        let url = text.lines().find_map(|line| line.strip_prefix("URL: ")).expect("a URL").to_owned();
        let archive = std::fs::read(cache.join(&url)).expect("an archive");
        (path, format!("{hash_part}.narinfo"), text, url, archive)
    };
    let (leaf, leaf_name, leaf_text, leaf_url, leaf_archive) = narinfo_of("leaf");
    let (mid, mid_name, mid_text, mid_url, mid_archive) = narinfo_of("mid");
    let unsigned: String = leaf_text.lines().filter(|line| !line.starts_with("Sig")).map(|line| format!("{line}\n")).collect();
    let other_hash = match unsigned.contains("NarHash: sha256:0") {
        true => unsigned.replace("NarHash: sha256:0", "NarHash: sha256:1"),
        false => unsigned.replace("NarHash: sha256:1", "NarHash: sha256:0"),
    };
    let larger = unsigned.replace("NarSize: ", "NarSize: 1");
    let other = format!("nar/{}.nar", "0".repeat(52));
    let table: Vec<Case<'_>> = vec![
        ("no token", "nobody", &leaf_url, &leaf_archive, 401, "netrc"),
        ("a narinfo before its archive", "upload", &leaf_name, leaf_text.as_bytes(), 409, "upload it first"),
        ("no name for an archive", "upload", "nar/x.nar", &leaf_archive, 415, "SHA-256"),
        ("a compression that nobody reads", "upload", "nar/x.nar.br", &leaf_archive, 415, "SHA-256"),
        ("another name", "upload", &other, &mid_archive, 400, "has SHA-256"),
        ("no archive", "upload", &leaf_url, b"<html>", 400, "read"),
        ("the archive", "upload", &leaf_url, &leaf_archive, 201, ""),
        ("unsigned", "upload", &leaf_name, unsigned.as_bytes(), 403, "trusted_upload_keys"),
        ("another size", "trusted", &leaf_name, larger.as_bytes(), 400, "were stated"),
        ("another hash", "trusted", &leaf_name, other_hash.as_bytes(), 400, "was stated"),
        ("another path's name", "upload", &mid_name, leaf_text.as_bytes(), 400, "describes"),
        ("a narinfo that is none", "upload", &leaf_name, b"x", 400, "narinfo"),
        ("a narinfo without end", "upload", &leaf_name, &[b'x'; (1 << 20) + 1], 413, "at most"),
        ("a reference that is not there, its archive", "upload", &mid_url, &mid_archive, 201, ""),
        ("a reference that is not there", "upload", &mid_name, mid_text.as_bytes(), 409, "refers to"),
        ("the cache's own file", "trusted", "nix-cache-info", b"StoreDir: /x", 405, ""),
        ("a log", "upload", "log/x.drv", b"x", 403, "scope `trusted`"),
        ("a log of nothing", "trusted", "log/x.drv", b"x", 400, "no derivation"),
        ("a realisation", "trusted", "realisations/x.doi", b"x", 400, "no name of a realisation"),
    ];
    for (case, scope, name, body, status, words) in table {
        let (found, text) = uploads.put(scope, name, body);
        assert!(found == status && text.contains(words), "{case}: want {status} and `{words}`: {text}");
        assert!(!uploads.has(&leaf) && !uploads.has(&mid), "{case}: nothing is valid");
    }
    for (name, body) in [(&leaf_name, &leaf_text), (&mid_name, &mid_text), (&mid_name, &mid_text)] {
        let (status, text) = uploads.put("upload", name, body.as_bytes());
        assert_eq!(status, 201, "{text}");
    }
    assert!(uploads.has(&leaf) && uploads.has(&mid));
    let closed = Place::new("{ }");
    let _farm = closed.up();
    let cache = closed.beacon()["cache"].as_str().expect("an address").to_owned();
    let (status, text) = Uploads { cache, ..uploads }.put("trusted", &leaf_url, &leaf_archive);
    assert!(status == 403 && text.contains("takes no uploads"), "{text}");
}
