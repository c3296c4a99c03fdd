//! narinfo, signatures and content addresses, against what a real Nix writes and accepts.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use kiln_nix::content::{self, ContentAddress, ContentError, text_path};
use kiln_nix::narinfo::{self, NarInfoError};
use kiln_nix::{NarInfo, PublicKey, SecretKey, Signature, nar};
use kiln_wire::{Blake3Hash, Blob, DrvPath, PathInfo, Sha256Hash, StoreDir, StorePath};

fn path(text: &str) -> StorePath {
    StorePath::parse(text).expect("a store path")
}

fn info() -> PathInfo {
    PathInfo {
        path: path("0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar"),
        nar_hash: Sha256Hash([1; 32]),
        nar_size_bytes: 120,
        references: [path("1bxagw21mzw0pr7y9jcyjfyrlya5fnxz-dep"), path("0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar")].into(),
        deriver: Some(DrvPath::parse("zc842j0rz61mjsp3h3wp5ly71ak6qgdn-bar.drv").expect("a derivation's path")),
        content_address: None,
        blob: Blob { size_bytes: 60, blake3: Blake3Hash([2; 32]), sha256: Sha256Hash([3; 32]) },
    }
}

fn key() -> SecretKey {
    SecretKey::from_seed("farm-1", [7; 32]).expect("a key")
}

#[test]
fn a_narinfo_is_written_in_the_order_of_nix_and_reads_back() {
    let store_dir = StoreDir::default();
    let signature = narinfo::sign(&store_dir, &info(), &key());
    let text = narinfo::write(&store_dir, &info(), std::slice::from_ref(&signature)).expect("writes");
    let lines: Vec<&str> = text.lines().map(|line| line.split(':').next().expect("a name")).collect();
    assert_eq!(
        lines,
        ["StorePath", "URL", "Compression", "FileHash", "FileSize", "NarHash", "NarSize", "References", "Deriver", "Sig", "FileBlake3"]
    );
    assert!(text.contains("\nReferences: 0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar 1bxagw21mzw0pr7y9jcyjfyrlya5fnxz-dep\n"), "{text}");
    let parsed = NarInfo::parse(&store_dir, text.as_bytes()).expect("reads back");
    assert_eq!(parsed.path_info(), Ok(info()));
    assert_eq!((parsed.url.clone(), parsed.signatures.clone()), (narinfo::blob_key(&info().blob.sha256), vec![signature]));
    assert!(parsed.is_signed_by(&store_dir, &[key().public()]));
    assert_eq!(parsed, NarInfo::describe(&info(), parsed.signatures.clone()), "which says the same without the text");
}

#[test]
fn a32_a_signature_covers_path_hash_size_references_and_store_directory() {
    let store_dir = StoreDir::default();
    let fingerprint = narinfo::fingerprint(&store_dir, &info());
    let want = format!(
        "1;/nix/store/0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar;sha256:{};120;\
         /nix/store/0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar,/nix/store/1bxagw21mzw0pr7y9jcyjfyrlya5fnxz-dep",
        kiln_nix::hash::nix32(&[1; 32])
    );
    assert_eq!(fingerprint, want);
    let signature = narinfo::sign(&store_dir, &info(), &key());
    type Change = fn(&mut PathInfo);
    let changes: [(&str, Change, bool); 7] = [
        ("nothing", |_| {}, true),
        ("the deriver", |info| info.deriver = None, true),
        ("the blob", |info| info.blob.size_bytes += 1, true),
        ("the path", |info| info.path = path("0hm2f1psjpcwg8fijsmr4wwxrx59s092-baz"), false),
        ("the NAR hash", |info| info.nar_hash.0[0] ^= 1, false),
        ("the NAR size", |info| info.nar_size_bytes += 1, false),
        ("the references", |info| info.references.clear(), false),
    ];
    for (what, change, holds) in changes {
        let mut changed = info();
        change(&mut changed);
        assert_eq!(key().public().verifies(narinfo::fingerprint(&store_dir, &changed).as_bytes(), &signature), holds, "{what} changed");
    }
    let elsewhere = narinfo::fingerprint(&StoreDir::parse("/gnu/store").expect("a directory"), &info());
    assert!(!key().public().verifies(elsewhere.as_bytes(), &signature));
    let renamed = PublicKey::parse(&key().public().to_string().replace("farm-1", "farm-2")).expect("a key");
    assert!(!renamed.verifies(fingerprint.as_bytes(), &signature), "the same bytes under another name");
}

#[test]
fn keys_and_signatures_read_back_and_others_are_refused() {
    let key = key();
    assert_eq!(SecretKey::parse(&format!("{}\n", key.to_secret_text())).expect("reads").public(), key.public());
    assert_eq!(PublicKey::parse(&key.public().to_string()), Ok(key.public()));
    let signature = key.sign(b"message");
    assert_eq!(Signature::parse(&signature.to_string()), Ok(signature));
    assert!(!format!("{key:?}").contains(&key.to_secret_text()[10..]));
    let halves = key.to_secret_text().replace("farm-1:", "");
    let mixed = format!("a:{}{}", &halves[..44], &SecretKey::from_seed("a", [8; 32]).expect("a key").to_secret_text()[46..]);
    for text in ["", "a", "a:", ":AAAA", "a:AAAA", "a b:AAAA", "a:é", &mixed] {
        let err = SecretKey::parse(text).expect_err(text).to_string();
        assert!(text.len() < 10 || !err.contains(&text[2..]), "{err}");
        assert!(PublicKey::parse(text).is_err() && Signature::parse(text).is_err() || text == mixed, "{text}");
    }
    assert_ne!(SecretKey::generate("a").expect("random").public(), SecretKey::generate("a").expect("random").public());
}

#[test]
fn a_narinfo_of_another_cache_is_read_and_is_not_taken_for_ours() {
    // The shape of cache.nixos.org.
    let text = "StorePath: /nix/store/0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar\nURL: nar/x.nar.xz\nCompression: xz\n\
                FileHash: sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73\nFileSize: 5\n\
                NarHash: sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73\nNarSize: 9\nReferences: \n\
                Deriver: unknown-deriver\nSig: broken\nCA: fixed:r:sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73\n";
    let store_dir = StoreDir::default();
    let parsed = NarInfo::parse(&store_dir, text.as_bytes()).expect("reads");
    assert_eq!((parsed.compression.as_str(), parsed.deriver.clone(), parsed.signatures.len()), ("xz", None, 0));
    assert_eq!(parsed.path_info(), Err(NarInfoError::Foreign { path: parsed.path.clone(), line: "FileBlake3" }));
    for line in ["StorePath: /nix/store/0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar\n", "URL: nar/x.nar.xz\n", "NarSize: 9\n"] {
        assert!(NarInfo::parse(&store_dir, text.replace(line, "").as_bytes()).is_err(), "without {line}");
        assert!(NarInfo::parse(&store_dir, format!("{text}{line}").as_bytes()).is_err(), "twice {line}");
    }
    for (from, to) in [("NarSize: 9", "NarSize: 0"), ("NarHash: sha256", "NarHash: sha1"), ("/nix/store/", "/tmp/"), ("CA: fixed", "CA: x")]
    {
        assert!(NarInfo::parse(&store_dir, text.replace(from, to).as_bytes()).is_err(), "{to}");
    }
}

/// A store of its own for the real Nix, below a temporary directory.
struct Nix(tempfile::TempDir);

impl Nix {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary directory"))
    }

    fn dir(&self, name: &str) -> String {
        self.0.path().join(name).to_string_lossy().into_owned()
    }

    fn store_dir(&self) -> StoreDir {
        StoreDir::parse(&self.dir("store")).expect("a store directory")
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new(program);
        for (variable, name) in [("NIX_STORE_DIR", "store"), ("NIX_STATE_DIR", "state"), ("NIX_LOG_DIR", "log"), ("NIX_CONF_DIR", "conf")] {
            command.env(variable, self.dir(name));
        }
        command.env("HOME", self.dir("home")).env("NIX_REMOTE", "local");
        command.args(arguments).output().expect("Debian's nix-bin is installed")
    }

    fn text(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.run(program, arguments);
        assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
    }
}

fn content_of(store_dir: &StoreDir, full: &str, address: String) -> PathInfo {
    let digest = nar::hash_path(Path::new(full)).expect("hashes");
    let blob = Blob { size_bytes: 1, blake3: Blake3Hash([0; 32]), sha256: Sha256Hash([0; 32]) };
    let (path, references) = (store_dir.strip(full).expect("a store path"), BTreeSet::new());
    let (nar_hash, nar_size_bytes) = (digest.hash, digest.size_bytes);
    PathInfo { path, nar_hash, nar_size_bytes, references, deriver: None, content_address: Some(address), blob }
}

#[test]
fn paths_of_content_are_those_that_nix_gives() {
    let nix = Nix::new();
    let store_dir = nix.store_dir();
    let source = nix.dir("source");
    fs::write(&source, "hello\n").expect("a file");
    let hash_of = |arguments: &[&str]| nix.text("nix-hash", &[&["--base32"], arguments, &[&source]].concat());
    let table = [
        (vec!["--add"], format!("fixed:r:sha256:{}", hash_of(&["--type", "sha256"]))),
        (vec!["--add-fixed", "sha256"], format!("fixed:sha256:{}", hash_of(&["--type", "sha256", "--flat"]))),
        (vec!["--add-fixed", "sha1"], format!("fixed:sha1:{}", hash_of(&["--type", "sha1", "--flat"]))),
        (vec!["--add-fixed", "--recursive", "sha512"], format!("fixed:r:sha512:{}", hash_of(&["--type", "sha512"]))),
    ];
    for (arguments, address) in table {
        let full = nix.text("nix-store", &[&arguments[..], &[&source]].concat());
        let info = content_of(&store_dir, &full, address.clone());
        let address = content::check_path(&store_dir, &info).unwrap_or_else(|err| panic!("{address}: {err}"));
        let mut nar = Vec::new();
        nar::dump(Path::new(&full), &mut nar).expect("packs");
        content::check_content(&info, &address, nar.as_slice()).unwrap_or_else(|err| panic!("{address}: {err}"));
        assert_eq!(content::check_nar_hash(&info, &address).expect("agrees"), arguments == ["--add"]);
        let mut renamed = info.clone();
        renamed.path = StorePath::parse(&format!("{}-other", info.path.hash_part())).expect("a path");
        assert!(matches!(content::check_path(&store_dir, &renamed), Err(ContentError::WrongPath { .. })), "{address}");
        let start = nar.windows(5).position(|window| window == b"hello").expect("the content");
        nar[start] = b'j';
        assert!(matches!(content::check_content(&info, &address, nar.as_slice()), Err(ContentError::WrongContent { .. })), "{address}");
    }
    let file = nix.text("nix-instantiate", &["--eval", "--read-write-mode", "-E", "builtins.toFile \"t\" \"text\""]);
    let computed = text_path(&store_dir, "t", b"text", &BTreeSet::new()).expect("a path");
    assert_eq!(file.trim_matches('"'), store_dir.join(&computed));
    assert!(ContentAddress::parse("text:sha1:0000").is_err() && ContentAddress::parse("sha256:0").is_err());
}

#[test]
fn content_that_refers_to_itself_is_hashed_as_nix_does() {
    let nix = Nix::new();
    let store_dir = nix.store_dir();
    // A path that names itself: a script that calls a file beside it, made by a build.
    let recipe = r#"derivation {
        name = "own"; system = builtins.currentSystem; builder = "/bin/bash";
        args = [ "-c" "/bin/mkdir $out; echo $out/a $out/b > $out/a; true" ];
    }"#;
    fs::write(nix.dir("own.nix"), recipe).expect("a file");
    let drv = nix.text("nix-instantiate", &[&nix.dir("own.nix")]);
    let options = ["--option", "sandbox", "false", "--option", "build-users-group", "", "--option", "substitute", "false"];
    let built = nix.text("nix-store", &[&["--realise", &drv][..], &options].concat());
    let command = ["--extra-experimental-features", "nix-command ca-derivations", "store", "make-content-addressed", "--json", &built];
    let made: serde_json::Value = serde_json::from_str(&nix.text("nix", &command)).expect("JSON");
    let full = made["rewrites"][&built].as_str().expect("a rewritten path").to_owned();
    let facts = ["--extra-experimental-features", "nix-command", "path-info", "--json", &full];
    let facts: serde_json::Value = serde_json::from_str(&nix.text("nix", &facts)).expect("JSON");
    let mut info = content_of(&store_dir, &full, facts[0]["ca"].as_str().expect("a content address").to_owned());
    info.references.insert(info.path.clone());
    let address = content::check_path(&store_dir, &info).expect("the path follows");
    assert!(!content::check_nar_hash(&info, &address).expect("it cannot be told by the NAR's hash"));
    let mut nar = Vec::new();
    nar::dump(Path::new(&full), &mut nar).expect("packs");
    content::check_content(&info, &address, nar.as_slice()).expect("the content hashes to its address");
    let changed = String::from_utf8_lossy(&nar).replace("/a ", "/c ").into_bytes();
    assert!(matches!(content::check_content(&info, &address, changed.as_slice()), Err(ContentError::WrongContent { .. })));
}

#[test]
fn nix_takes_what_we_sign_and_we_take_what_nix_signs() {
    let nix = Nix::new();
    let store_dir = nix.store_dir();
    let (cache, source) = (nix.dir("cache"), nix.dir("hello"));
    fs::create_dir_all(format!("{cache}/nar")).expect("directories");
    fs::write(&source, "hello\n").expect("a file");
    // An input-addressed path: Nix would take a content-addressed one without any signature.
    let full = nix.text("nix-store", &["--add", &source]);
    let mut info = content_of(&store_dir, &full, String::new());
    info.content_address = None;
    let mut nar = Vec::new();
    nar::dump(Path::new(&full), &mut nar).expect("packs");
    let compressed = zstd::encode_all(nar.as_slice(), 1).expect("compresses");
    let sha256 = <sha2::Sha256 as sha2::Digest>::digest(&compressed);
    info.blob = Blob { size_bytes: compressed.len() as u64, sha256: Sha256Hash(sha256.into()), ..info.blob };
    fs::write(format!("{cache}/{}", narinfo::blob_key(&info.blob.sha256)), compressed).expect("a file");
    fs::write(format!("{cache}/nix-cache-info"), format!("StoreDir: {store_dir}\n")).expect("a file");
    let write = |key: &SecretKey| {
        let text = narinfo::write(&store_dir, &info, &[narinfo::sign(&store_dir, &info, key)]).expect("writes");
        fs::write(format!("{cache}/{}", narinfo::narinfo_key(&info.path)), text).expect("a file");
    };
    nix.text("nix-store", &["--delete", "--ignore-liveness", &full]);
    let url = format!("file://{cache}");
    let copy = |key: &PublicKey| {
        let trusted = key.to_string();
        let options = ["--extra-experimental-features", "nix-command", "--option", "trusted-public-keys", &trusted];
        nix.run("nix", &[&options[..], &["copy", "--from", &url, &full]].concat())
    };
    let stranger = SecretKey::from_seed("farm-1", [9; 32]).expect("a key");
    write(&stranger);
    let refused = copy(&key().public());
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("signature"), "{refused:?}");
    write(&key());
    let taken = copy(&key().public());
    assert!(taken.status.success(), "{}", String::from_utf8_lossy(&taken.stderr));
    assert_eq!(fs::read_to_string(&full).expect("the file"), "hello\n");

    // The other way: Nix signs with a key file of ours, and its signature is ours.
    let (key_file, second) = (nix.dir("secret"), nix.dir("second"));
    fs::write(&key_file, key().to_secret_text()).expect("a file");
    let target = format!("file://{second}?secret-key={key_file}&compression=none");
    nix.text("nix", &["--extra-experimental-features", "nix-command", "copy", "--no-check-sigs", "--to", &target, &full]);
    let text = fs::read(format!("{second}/{}", narinfo::narinfo_key(&info.path))).expect("a narinfo");
    let theirs = NarInfo::parse(&store_dir, &text).expect("reads");
    assert_eq!((theirs.nar_hash, theirs.nar_size_bytes), (info.nar_hash, info.nar_size_bytes));
    assert!(theirs.is_signed_by(&store_dir, &[key().public()]));
    assert!(theirs.signatures.contains(&narinfo::sign(&store_dir, &info, &key())));
}
