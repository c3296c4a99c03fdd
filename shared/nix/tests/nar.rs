//! Archives: hostile ones are refused with the rule they break and make nothing outside; real ones are Nix's, byte for byte.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use kiln_nix::hash::base16;
use kiln_nix::nar::{self, HashWriter, Listing, NarError, Node, Tee};
use kiln_nix::scan::Candidates;
use kiln_wire::StorePath;
use serde_json::Value;

/// Builds archives, right or wrong, token by token.
#[derive(Clone, Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn token(mut self, token: impl AsRef<[u8]>) -> Self {
        let token = token.as_ref();
        self.0.extend((token.len() as u64).to_le_bytes());
        self.0.extend(token);
        self.0.extend(vec![0; token.len().next_multiple_of(8) - token.len()]);
        self
    }

    fn tokens<'a>(self, tokens: impl IntoIterator<Item = &'a str>) -> Self {
        tokens.into_iter().fold(self, Self::token)
    }

    fn entry(self, name: impl AsRef<[u8]>, node: Bytes) -> Self {
        let mut open = self.tokens(["entry", "(", "name"]).token(name).token("node");
        open.0.extend(node.0);
        open.token(")")
    }
}

fn file(contents: &str) -> Bytes {
    Bytes::default().tokens(["(", "type", "regular", "contents", contents, ")"])
}

fn link(target: impl AsRef<[u8]>) -> Bytes {
    Bytes::default().tokens(["(", "type", "symlink", "target"]).token(target).token(")")
}

fn directory(entries: Vec<(&[u8], Bytes)>) -> Bytes {
    let open = Bytes::default().tokens(["(", "type", "directory"]);
    entries.into_iter().fold(open, |open, (name, node)| open.entry(name, node)).token(")")
}

fn archive(root: Bytes) -> Vec<u8> {
    let mut bytes = Bytes::default().token("nix-archive-1").0;
    bytes.extend(root.0);
    bytes
}

fn nested(levels: usize) -> Vec<u8> {
    let mut bytes = Bytes::default().token("nix-archive-1");
    for _ in 1..levels {
        bytes = bytes.tokens(["(", "type", "directory", "entry", "(", "name", "a", "node"]);
    }
    bytes.0.extend(file("x").0);
    for _ in 1..levels {
        bytes = bytes.tokens([")", ")"]);
    }
    bytes.0
}

fn with_padding() -> Vec<u8> {
    let mut bytes = archive(file("x"));
    let last = bytes.iter().rposition(|byte| *byte == b'x').expect("the content");
    bytes[last + 3] = 1;
    bytes
}

fn with_length(length: u64) -> Vec<u8> {
    let mut bytes = Bytes::default().tokens(["nix-archive-1", "(", "type", "regular", "contents"]).0;
    bytes.extend(length.to_le_bytes());
    bytes.extend(b"short");
    bytes
}

fn variant(err: &NarError) -> &'static str {
    match err {
        NarError::Format { .. } => "format",
        NarError::Truncated => "truncated",
        NarError::TrailingBytes => "trailing",
        NarError::Padding => "padding",
        NarError::Name { .. } => "name",
        NarError::Order { .. } => "order",
        NarError::Depth => "depth",
        NarError::Target { .. } => "target",
        NarError::NotOneFile { .. } => "not one file",
        NarError::LongListing { .. } => "long listing",
        NarError::Read(_) => "read",
        NarError::Exists { .. } => "exists",
        NarError::Restore { .. } => "restore",
        NarError::FileType { .. } => "file type",
        NarError::Changed { .. } => "changed",
        NarError::TreeDepth { .. } => "tree depth",
        NarError::Dump { .. } => "dump",
        NarError::LongTrees => "long-trees",
    }
}

/// Attack A22.
fn hostile() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let named = |name: &[u8]| archive(directory(vec![(name, file("x"))]));
    let through_link = directory(vec![(b"a", link("/etc")), (b"a/passwd", file("x"))]);
    let executable = |value: &str| archive(Bytes::default().tokens(["(", "type", "regular", "executable", value, "contents", "x", ")"]));
    let mut trailing = archive(file("x"));
    trailing.extend([0; 8]);
    vec![
        ("an empty name", named(b""), "name"),
        ("`.`", named(b"."), "name"),
        ("`..`", named(b".."), "name"),
        ("a slash in a name", named(b"a/b"), "name"),
        ("an absolute name", named(b"/etc"), "name"),
        ("a NUL in a name", named(b"a\0b"), "name"),
        ("a name of 256 bytes", named(&[b'a'; 256]), "name"),
        ("a name of 2 MiB", named(&vec![b'a'; 2 << 20]), "format"),
        ("names out of order", archive(directory(vec![(b"b", file("x")), (b"a", file("x"))])), "order"),
        ("a name twice", archive(directory(vec![(b"a", file("x")), (b"a", file("y"))])), "order"),
        ("a directory over a symlink", archive(directory(vec![(b"a", link("/etc")), (b"a", directory(vec![]))])), "order"),
        ("an entry through a symlink", archive(through_link), "name"),
        ("65 levels", nested(65), "depth"),
        ("100,000 levels", nested(100_000), "depth"),
        ("a length of 2^63", with_length(1 << 63), "truncated"),
        ("a length of 2^64-1", with_length(u64::MAX), "truncated"),
        ("padding that is not zero", with_padding(), "padding"),
        ("bytes after the end", trailing, "trailing"),
        ("an unknown type", archive(Bytes::default().tokens(["(", "type", "socket", ")"])), "format"),
        ("an unknown field", archive(Bytes::default().tokens(["(", "type", "regular", "owner", "root", ")"])), "format"),
        ("a type twice", archive(Bytes::default().tokens(["(", "type", "regular", "type", "symlink", "target", "x", ")"])), "format"),
        ("a value for executable", executable("yes"), "format"),
        ("a symlink to nothing", archive(link("")), "target"),
        ("a NUL in a target", archive(link("a\0b")), "target"),
        ("a target of 5,000 bytes", archive(link([b'a'; 5000])), "target"),
        ("nothing", Vec::new(), "format"),
        ("another magic", Bytes::default().token("nix-archive-2").0, "format"),
        ("half an archive", archive(file("x"))[..60].to_vec(), "truncated"),
        ("no archive", b"\x7fELF and so on, which is long enough".to_vec(), "format"),
    ]
}

/// Returns every path below `directory` that is not `allowed` or below it.
fn others(directory: &Path, allowed: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry").path());
    entries.filter(|path| path != allowed).collect()
}

#[test]
fn the_archive_of_one_file_is_made_of_its_contents_as_they_come() {
    for contents in ["", "a", "seven b", "8 bytes!", "longer than a word"] {
        let mut made = Vec::new();
        nar::of_file(contents.as_bytes(), contents.len() as u64).read_to_end(&mut made).expect("reads memory");
        assert_eq!(made, archive(file(contents)), "{contents}");
    }
}

#[test]
fn a22_hostile_archives_are_refused_with_their_rule_and_make_nothing_outside() {
    for (what, bytes, want) in hostile() {
        let temporary = tempfile::tempdir().expect("a temporary directory");
        let destination = temporary.path().join("destination");
        let err = nar::restore(bytes.as_slice(), &destination).expect_err(what);
        assert_eq!(variant(&err), want, "restore {what}: {err}");
        let err = nar::check(bytes.as_slice()).expect_err(what);
        assert_eq!(variant(&err), want, "check {what}: {err}");
        assert!(Listing::read(bytes.as_slice()).is_err(), "list {what}");
        assert!(err.to_string().len() < 500, "{what}: {err}");
        assert_eq!(others(temporary.path(), &destination), Vec::<PathBuf>::new(), "{what}");
    }
}

#[test]
fn the_limits_themselves_are_allowed() {
    let temporary = tempfile::tempdir().expect("a temporary directory");
    let table = [
        ("64 levels", nested(64)),
        ("a name of 255 bytes", archive(directory(vec![(&[b'a'; 255], file("x"))]))),
        ("a target of 4,095 bytes", archive(link([b'a'; 4095]))),
        ("names that differ in case", archive(directory(vec![(b"A", file("x")), (b"a", file("y"))]))),
        ("a name that is not UTF-8", archive(directory(vec![(b"\xff\xfe", file("x"))]))),
        ("an absolute target", archive(link("/etc/passwd"))),
    ];
    for (number, (what, bytes)) in table.into_iter().enumerate() {
        let destination = temporary.path().join(number.to_string());
        nar::restore(bytes.as_slice(), &destination).unwrap_or_else(|err| panic!("{what}: {err}"));
        let mut again = Vec::new();
        nar::dump(&destination, &mut again).unwrap_or_else(|err| panic!("{what}: {err}"));
        assert_eq!(again, bytes, "{what}");
    }
}

#[test]
fn a_listing_that_grows_too_long_is_given_up() {
    let names: Vec<String> = (10..30).map(|number| format!("file-{number}")).collect();
    let bytes = archive(directory(names.iter().map(|name| (name.as_bytes(), file(""))).collect()));
    assert!(Listing::read_within(bytes.as_slice(), 10_000).is_ok());
    assert!(matches!(Listing::read_within(bytes.as_slice(), 1000), Err(NarError::LongListing { bytes_max: 1000 })));
    let listing = Listing::read(bytes.as_slice()).expect("lists");
    let json = listing.to_json();
    for (bytes_max, fits) in [(json.len(), true), (json.len() - 1, false), (0, false)] {
        let mut written = Vec::new();
        assert_eq!(listing.write_json(&mut written, bytes_max as u64).expect("memory takes all"), fits, "{bytes_max}");
        assert!(written.len() <= bytes_max && (!fits || written == json.as_bytes()), "{bytes_max}");
    }
}

#[test]
fn a22_nothing_is_unpacked_over_what_exists() {
    let temporary = tempfile::tempdir().expect("a temporary directory");
    let outside = temporary.path().join("outside");
    let places = ["file", "directory", "link", "dangling"].map(|name| temporary.path().join(name));
    fs::write(&places[0], "kept").expect("a file");
    fs::create_dir(&places[1]).expect("a directory");
    symlink(&places[1], &places[2]).expect("a symlink");
    symlink(&outside, &places[3]).expect("a symlink");
    for place in &places {
        for bytes in [archive(file("x")), archive(directory(vec![(b"a", file("x"))])), archive(link("x"))] {
            let err = nar::restore(bytes.as_slice(), place).expect_err("it exists");
            assert_eq!(variant(&err), "exists", "{err}");
        }
    }
    assert_eq!(fs::read_to_string(&places[0]).expect("the file"), "kept");
    assert!(!outside.exists() && fs::read_dir(&places[1]).expect("the directory").next().is_none());
}

#[test]
fn a_stream_that_fails_is_not_called_a_broken_archive() {
    struct Failing(usize, Vec<u8>);
    impl Read for Failing {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.0 == self.1.len() {
                return Err(io::Error::new(io::ErrorKind::ConnectionReset, "gone"));
            }
            buffer[0] = self.1[self.0];
            self.0 += 1;
            Ok(1)
        }
    }
    let whole = archive(file("contents"));
    for length in [0, 10, 100, whole.len() - 20] {
        let temporary = tempfile::tempdir().expect("a temporary directory");
        let err = nar::restore(Failing(0, whole[..length].to_vec()), &temporary.path().join("x")).expect_err("the stream fails");
        assert_eq!(variant(&err), "read", "after {length} bytes: {err}");
    }
}

/// Makes a tree with everything that an archive can hold.
fn tree(root: &Path) {
    fs::create_dir_all(root.join("bin/empty")).expect("directories");
    for (name, contents) in [("bin/run", "#!/bin/sh\n"), ("a", ""), ("b", "12345678"), ("ünï", "123456789"), ("a.b", "x"), ("big", "")] {
        fs::write(root.join(name), contents).expect("a file");
    }
    fs::write(root.join("big"), vec![7; 300_000]).expect("a file");
    fs::set_permissions(root.join("bin/run"), fs::Permissions::from_mode(0o755)).expect("a mode");
    symlink("../bin/run", root.join("link")).expect("a symlink");
    symlink("/nowhere", root.join("dangling")).expect("a symlink");
}

fn output(command: &mut Command) -> Vec<u8> {
    let output = command.output().expect("Debian's nix-bin is installed");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[test]
fn archives_are_those_of_nix_store_dump() {
    let temporary = tempfile::tempdir().expect("a temporary directory");
    tree(&temporary.path().join("tree"));
    for path in ["tree", "tree/a", "tree/bin/run", "tree/link", "tree/bin/empty"].map(|path| temporary.path().join(path)) {
        let mut ours = HashWriter::new(Vec::new());
        nar::dump(&path, &mut ours).expect("packs");
        let (digest, ours) = ours.finish();
        let theirs = output(Command::new("nix-store").arg("--dump").arg(&path));
        assert!(ours == theirs, "{} differs", path.display());
        assert_eq!(digest, nar::hash_path(&path).expect("hashes"));
        assert_eq!(digest.size_bytes, theirs.len() as u64);
        let hash = output(Command::new("nix-hash").args(["--type", "sha256"]).arg(&path));
        assert_eq!(base16(&digest.hash.0), String::from_utf8_lossy(&hash).trim(), "{}", path.display());
    }
}

#[test]
fn one_pass_unpacks_hashes_and_scans() {
    let temporary = tempfile::tempdir().expect("a temporary directory");
    let path = |hash: &str| StorePath::parse(&format!("{hash}-x")).expect("a store path");
    let (used, unused) = (path("0hm2f1psjpcwg8fijsmr4wwxrx59s092"), path("1bxagw21mzw0pr7y9jcyjfyrlya5fnxz"));
    let bytes = archive(directory(vec![(b"a", link(format!("/nix/store/{used}/bin"))), (b"b", file("nothing"))]));
    let candidates = Candidates::new([used.clone(), unused]);
    let mut tee = Tee::new(bytes.as_slice(), candidates.writer(HashWriter::new(io::sink())));
    nar::restore(&mut tee, &temporary.path().join("x")).expect("unpacks");
    let (found, hashed) = tee.into_parts().1.finish();
    assert_eq!(found.into_iter().collect::<Vec<_>>(), vec![used]);
    assert_eq!(hashed.finish().0, nar::hash_path(&temporary.path().join("x")).expect("hashes"));
}

#[test]
fn listings_are_those_of_nix_nar_ls() {
    let temporary = tempfile::tempdir().expect("a temporary directory");
    let root = temporary.path().join("tree");
    tree(&root);
    let mut bytes = Vec::new();
    nar::dump(&root, &mut bytes).expect("packs");
    let nar_file = temporary.path().join("x.nar");
    fs::write(&nar_file, &bytes).expect("a file");
    let listing = Listing::read(bytes.as_slice()).expect("lists");
    let nix = ["--extra-experimental-features", "nix-command", "nar", "ls", "--json", "--recursive"];
    let theirs: Value = serde_json::from_slice(&output(Command::new("nix").args(nix).arg(&nar_file).arg("/"))).expect("JSON");
    let ours: Value = serde_json::from_str(&listing.to_json()).expect("JSON");
    assert_eq!(ours["version"], 1);
    assert_eq!(ours["root"], theirs);
    for (path, node) in listing.paths() {
        if let Node::Regular { size_bytes, offset_bytes, .. } = node {
            let (start, length) = (usize::try_from(*offset_bytes).expect("fits"), usize::try_from(*size_bytes).expect("fits"));
            let contents = fs::read(root.join(String::from_utf8(path).expect("UTF-8"))).expect("a file");
            assert!(bytes[start..start + length] == contents[..]);
        }
    }
}

#[test]
fn what_an_archive_cannot_hold_is_not_packed() {
    let temporary = tempfile::tempdir().expect("a temporary directory");
    let root = temporary.path().join("tree");
    fs::create_dir(&root).expect("a directory");
    let _socket = std::os::unix::net::UnixListener::bind(root.join("socket")).expect("a socket");
    let err = nar::dump(&root, &mut io::sink()).expect_err("a socket");
    assert_eq!(variant(&err), "file type", "{err}");
    let err = nar::dump(&temporary.path().join("gone"), &mut io::sink()).expect_err("nothing there");
    assert_eq!(variant(&err), "dump", "{err}");
    let deep = (0..70).fold(temporary.path().join("deep"), |path, _| path.join("a"));
    fs::create_dir_all(&deep).expect("directories");
    let err = nar::dump(&temporary.path().join("deep"), &mut io::sink()).expect_err("too deep");
    assert_eq!(variant(&err), "tree depth", "{err}");
}
