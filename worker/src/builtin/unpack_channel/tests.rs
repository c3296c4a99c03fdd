//! Tarballs as tables, good ones and hostile ones.

use std::io::Write;

use super::super::testing::{Store, bounds, full, listed};
use super::super::xz;
use super::*;

/// Types of members as an archive writes them.
const FILE: u8 = b'0';
const HARD: u8 = b'1';
const SYM: u8 = b'2';
const CHAR: u8 = b'3';
const BLOCK: u8 = b'4';
const DIR: u8 = b'5';
const FIFO: u8 = b'6';
const SPARSE: u8 = b'S';
const PAX: u8 = b'x';
const GLOBAL: u8 = b'g';
const LONG_NAME: u8 = b'L';
const LONG_LINK: u8 = b'K';

/// A member as raw as an attacker writes it: name, type, and what it holds or leads to.
type Raw<'a> = (&'a str, u8, &'a str);

fn header(name: &str, kind: u8, link: &str, mode: u32, size_bytes: u64) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(tar::EntryType::new(kind));
    header.set_mode(mode);
    header.set_size(size_bytes);
    header.set_cksum();
    header.as_bytes().to_vec()
}

fn archive(members: &[Raw<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, kind, text) in members {
        let (name, mode) = name.strip_suffix('*').map_or((*name, 0o644), |name| (name, 0o6755));
        let (link, content) = if matches!(*kind, HARD | SYM) { (*text, "") } else { ("", *text) };
        bytes.extend(header(name, *kind, link, mode, content.len() as u64));
        bytes.extend(content.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

/// Unpacks `bytes` as the channel `nixos`; a file lies beside the output.
fn unpack(bytes: &[u8], output_bytes_max: u64) -> Result<String, UnpackError> {
    let store = Store::new(&["a: src"]);
    let host = store.dir.path().join("host");
    std::fs::write(&host, "alive").expect("write");
    let src = store.dir.path().join("cache").join(super::super::testing::path_of("a").as_str()).join("src");
    std::fs::write(src, bytes).expect("write");
    let request = Request { src: full("{a}/src").into_bytes(), channel_name: b"nixos".to_vec() };
    let out = store.dir.path().join("out");
    let made = make(&request, &store.closure, &bounds(output_bytes_max), &out);
    assert_eq!(std::fs::read_to_string(&host).expect("is there"), "alive");
    let beside: Vec<_> = std::fs::read_dir(store.dir.path()).expect("lists").map(|entry| entry.expect("an entry").file_name()).collect();
    assert!(beside.iter().all(|name| ["cache", "host", "out"].map(std::ffi::OsString::from).contains(name)), "{beside:?}");
    made.map(|()| listed(&out))
}

fn refused(bytes: &[u8], output_bytes_max: u64, class: FailureClass, words: &str) {
    let error = unpack(bytes, output_bytes_max).expect_err(words);
    let message = crate::failure::chain(&error);
    assert!(message.contains(words) && error.class() == class, "want {words}: {:?} {message}", error.class());
}

const GOOD: [Raw<'static>; 5] = [
    ("top/", DIR, ""),
    ("top/default.nix", FILE, "{ }"),
    ("top/pkgs/build*", FILE, "#!"),
    ("top/link", SYM, "../../etc/shadow"),
    ("top/pkgs/same", HARD, "top/default.nix"),
];
/// The same, made by Python's `tarfile` and xz.
const CHANNEL_XZ: &str = include_str!("channel.tar.xz.hex");
const GOOD_LISTED: &str = "nixos/default.nix={ } nixos/link→../../etc/shadow nixos/pkgs/build*=#! nixos/pkgs/same={ }";

#[test]
fn a_channel_is_its_one_directory_under_the_channels_name() {
    let long = format!("top/{}", "n".repeat(120));
    let pax = format!("{} path={long}\n", long.len() + 10);
    let table: Vec<(Vec<Raw<'_>>, String)> = vec![
        (GOOD.into(), GOOD_LISTED.into()),
        (vec![("./", DIR, ""), ("./top/./x", FILE, "1"), ("./top//y/", FILE, "")], "nixos/x=1 nixos/y/".into()),
        (vec![("top/x", FILE, "1"), ("top/x", FILE, "2")], "nixos/x=2".into()),
        (vec![("top/x", SYM, "/etc/shadow"), ("top/x", FILE, "2")], "nixos/x=2".into()),
        (vec![("top/x", b'7', "1")], "nixos/x=1".into()),
        // A directory takes the place of a link; what follows goes into the directory.
        (vec![("top/l", SYM, "../.."), ("top/l", DIR, ""), ("top/l/host", FILE, "x")], "nixos/l/host=x".into()),
        (vec![("top/l", SYM, "../../host"), ("top/h", HARD, "top/l")], "nixos/h→../../host nixos/l→../../host".into()),
        (vec![("nixos", FILE, "1")], "nixos=1".into()),
        (vec![("pax_global_header", GLOBAL, "20 comment=a6f8bee1\n"), ("top/x", FILE, "1")], "nixos/x=1".into()),
        (vec![("././@LongLink", LONG_NAME, &long), ("cut", FILE, "1")], format!("nixos/{}=1", "n".repeat(120))),
        (vec![("././@LongLink", LONG_LINK, &long), ("top/x", SYM, "cut")], format!("nixos/x→{long}")),
        (vec![("pax", PAX, &pax), ("cut", FILE, "1")], format!("nixos/{}=1", "n".repeat(120))),
    ];
    for (members, expect) in table {
        assert_eq!(unpack(&archive(&members), 1 << 20).expect("unpacks"), expect, "{members:?}");
    }
}

#[test]
fn compression_is_told_by_content_and_what_is_unknown_is_named() {
    let plain = archive(&GOOD);
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).expect("compresses");
        encoder.finish().expect("compresses")
    };
    let hex: String = CHANNEL_XZ.split_whitespace().collect();
    let xz = (0..hex.len() / 2).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).expect("hex")).collect::<Vec<_>>();
    let (first, second) = plain.split_at(700);
    let packed: [Vec<u8>; 4] =
        [gzip(&plain), [gzip(first), gzip(second)].concat(), xz, zstd::encode_all(plain.as_slice(), 1).expect("compresses")];
    for bytes in &packed {
        assert_eq!(unpack(bytes, 1 << 20).expect("unpacks"), GOOD_LISTED);
        let mut cut = bytes.clone();
        cut.truncate(bytes.len() - 3);
        refused(&cut, 1 << 20, FailureClass::BuildFailure, "read the archive");
    }
    refused(&xz::tests::claiming(40), 1 << 20, FailureClass::BuildFailure, "it asks for more than 128 MiB of memory");
    for (start, name) in [("BZh91AY", "bzip2"), ("PK\x03\x04", "zip"), ("LZIP", "lzip")] {
        refused(start.as_bytes(), 1 << 20, FailureClass::BuildFailure, &format!("{name} is not supported"));
    }
}

#[test]
fn a34_names_that_lead_out_of_the_archive_are_refused() {
    let table: Vec<(Vec<Raw<'_>>, &str)> = vec![
        (vec![("/abs", FILE, "x")], "refuse `/abs`: the name is absolute"),
        (vec![("../host", FILE, "x")], "refuse `../host`: the name has `..` in it"),
        (vec![("top/../../host", FILE, "x")], "the name has `..` in it"),
        (vec![("top/..", DIR, "")], "the name has `..` in it"),
        (vec![("././@LongLink", LONG_NAME, "../host"), ("top/x", FILE, "x")], "refuse `../host`: the name has `..` in it"),
        (vec![("pax", PAX, "16 path=../host\n"), ("top/x", FILE, "x")], "refuse `../host`: the name has `..` in it"),
        (vec![("pax", GLOBAL, "16 path=../host\n"), ("top/x", FILE, "x")], "a global header gives every file the same name"),
        (vec![("", FILE, "x")], "it has no name"),
        (vec![("./", SYM, "/etc")], "it has no name"),
    ];
    for (members, words) in table {
        refused(&archive(&members), 1 << 20, FailureClass::BuildFailure, words);
    }
    let deep = "d/".repeat(45);
    let pax = format!("{} path={}x\n", deep.len() * 2 + 11, deep.repeat(2));
    refused(&archive(&[("pax", PAX, &pax), ("x", FILE, "")]), 1 << 20, FailureClass::BuildFailure, "more than 64 directories deep");
}

#[test]
fn a34_nothing_is_written_through_a_link() {
    let table: Vec<(Vec<Raw<'_>>, &str)> = vec![
        (vec![("top/l", SYM, "../.."), ("top/l/host", FILE, "x")], "refuse `top/l/host`: `l` in its way is a link or a file"),
        (vec![("top/l", SYM, "/tmp"), ("top/l/x", FILE, "x")], "`l` in its way is a link or a file"),
        (vec![("top/l", SYM, "/tmp"), ("top/l/x", SYM, "y")], "`l` in its way is a link or a file"),
        (vec![("top", SYM, ".."), ("top/host", FILE, "x")], "`top` in its way is a link or a file"),
        (vec![("top/f", FILE, ""), ("top/f/x", FILE, "x")], "`f` in its way is a link or a file"),
        (vec![("top/d/x", FILE, ""), ("top/d", FILE, "x")], "refuse `top/d`: a directory has its name"),
        (vec![("top/d", DIR, ""), ("top/d", SYM, "x")], "refuse `top/d`: a directory has its name"),
    ];
    for (members, words) in table {
        refused(&archive(&members), 1 << 20, FailureClass::BuildFailure, words);
    }
}

#[test]
fn a34_a_hard_link_leads_to_a_file_of_the_archive_only() {
    let none = "it is a hard link to something that is no file or link of the archive";
    let table: Vec<(Vec<Raw<'_>>, &str)> = vec![
        (vec![("top/h", HARD, "/etc/passwd")], "refuse `top/h`: it is a hard link to `/etc/passwd`: the name is absolute"),
        (vec![("top/h", HARD, "../host")], "it is a hard link to `../host`: the name has `..` in it"),
        (vec![("top/l", SYM, "../.."), ("top/h", HARD, "top/l/host")], "`l` in its way is a link or a file"),
        (vec![("top/d", DIR, ""), ("top/h", HARD, "top/d")], none),
        (vec![("top/h", HARD, "top/absent")], none),
        (vec![("top/h", HARD, "absent/x")], none),
        (vec![("top/h", HARD, "")], "it is a hard link to nothing"),
        (vec![("top/h", FILE, "x"), ("top/h", HARD, "top/h")], "it is a hard link to itself"),
    ];
    for (members, words) in table {
        refused(&archive(&members), 1 << 20, FailureClass::BuildFailure, words);
    }
}

#[test]
fn a34_devices_and_extensions_that_change_meaning_are_refused() {
    let table: Vec<(Vec<Raw<'_>>, &str)> = vec![
        (vec![("top/c", CHAR, "")], "refuse `top/c`: it is a character device"),
        (vec![("top/b", BLOCK, "")], "refuse `top/b`: it is a block device"),
        (vec![("top/p", FIFO, "")], "refuse `top/p`: it is a fifo"),
        (vec![("top/s", SPARSE, "")], "refuse `top/s`: sparse files are not supported"),
        (vec![("pax", PAX, "22 GNU.sparse.major=1\n"), ("top/s", FILE, "")], "refuse `pax`: sparse files are not supported"),
        (vec![("pax", PAX, "99 path=x\n"), ("top/s", FILE, "")], "its extended header is damaged"),
        (vec![("top/v", b'V', "")], "type `V` is not supported"),
        (vec![("top/l", SYM, "")], "its target cannot be the text of a symbolic link"),
    ];
    for (members, words) in table {
        refused(&archive(&members), 1 << 20, FailureClass::BuildFailure, words);
    }
}

#[test]
fn a34_set_id_bits_are_never_applied() {
    // The star in the listing stands for mode 0755 exactly; the member's mode is 06755.
    assert_eq!(unpack(&archive(&[("top/su*", FILE, "")]), 1 << 20).expect("unpacks"), "nixos/su*=");
}

#[test]
fn a34_sizes_that_lie_are_found_out() {
    let lies = |name: &str, kind, size_bytes| [header(name, kind, "", 0o644, size_bytes), vec![b'x'; 512]].concat();
    let mut damaged = archive(&GOOD);
    damaged[0] ^= 1;
    let table = [
        (lies("top/x", FILE, 5000), FailureClass::BuildFailure, "`top/x` is cut off"),
        (lies("top/x", FILE, 2 << 20), FailureClass::LimitExceeded, "it holds more than 1048576 bytes"),
        (lies("top/x", FILE, u64::MAX >> 1), FailureClass::LimitExceeded, "it holds more than 1048576 bytes"),
        (lies("././@LongLink", LONG_NAME, u64::MAX >> 1), FailureClass::BuildFailure, "its name or extended header has more than 1048576"),
        (lies("pax", PAX, 2000), FailureClass::BuildFailure, "the archive is cut off in it"),
        (
            archive(&[("pax", PAX, "12 size=512\n"), ("top/x", FILE, "x")]),
            FailureClass::BuildFailure,
            "refuse `top/x`: its two headers give different sizes",
        ),
        (damaged, FailureClass::BuildFailure, "read the archive"),
        (archive(&GOOD)[..700].to_vec(), FailureClass::BuildFailure, "read the archive"),
    ];
    for (bytes, class, words) in table {
        refused(&bytes, 1 << 20, class, words);
    }
}

#[test]
fn a34_bombs_end_at_the_jobs_output_size() {
    let zeros = vec![0u8; 8 << 20];
    let file = [header("top/zeros", FILE, "", 0o644, zeros.len() as u64), zeros.clone()].concat();
    let bombs = [
        zstd::encode_all(file.as_slice(), 1).expect("compresses"),
        // Nothing but padding after the end.
        zstd::encode_all([archive(&GOOD), zeros].concat().as_slice(), 1).expect("compresses"),
    ];
    refused(&bombs[0], 1 << 20, FailureClass::LimitExceeded, "it holds more than 1048576 bytes");
    // What follows the end costs time only, and that has a limit of its own.
    assert_eq!(unpack(&bombs[1], 1 << 20).expect("unpacks"), GOOD_LISTED);
    let mut two = archive(&[("top/a", FILE, &"x".repeat(700)), ("top/b", FILE, &"x".repeat(700))]);
    refused(&two, 1000, FailureClass::LimitExceeded, "it holds more than 1000 bytes");
    two.truncate(1024);
    refused(&two, 1000, FailureClass::BuildFailure, "`top/a` is cut off");
}

#[test]
fn a_tarball_with_nothing_or_several_things_at_its_top_is_refused() {
    refused(&archive(&[]), 1000, FailureClass::BuildFailure, "contains nothing, not one directory");
    refused(&archive(&[("./", DIR, "")]), 1000, FailureClass::BuildFailure, "contains nothing, not one directory");
    refused(&archive(&[("a/x", FILE, ""), ("b", FILE, "")]), 1000, FailureClass::BuildFailure, "contains more than one file");
    refused(b"", 1000, FailureClass::BuildFailure, "contains nothing");
    refused(b"no tarball at all", 1000, FailureClass::BuildFailure, "read the archive");
}

#[test]
fn the_source_is_a_file_of_the_inputs() {
    let store = Store::new(&["a: src dir/ shadow→/etc/shadow passwd→/etc/passwd"]);
    let table = [
        ("{a}/dir", "it is no file of the job's inputs"),
        ("{a}/absent", "it is no file of the job's inputs"),
        ("{a}/shadow", "it is no file of the job's inputs"),
        ("{a}/passwd", "read `/etc/passwd`: it lies outside of the job's inputs"),
        ("/etc/shadow", "it is no file of the job's inputs"),
        ("src", "it is not an absolute path"),
    ];
    for (src, words) in table {
        let request = Request { src: full(src).into_bytes(), channel_name: b"c".to_vec() };
        let error = make(&request, &store.closure, &bounds(1000), &store.dir.path().join("out")).expect_err(src);
        assert!(error.to_string().ends_with(words) && error.class() == FailureClass::BuildFailure, "{src}: {error}");
    }
}

#[test]
fn a_channels_name_is_the_name_of_one_directory() {
    for (name, good) in [("nixos-24.05", true), ("", false), (".", false), ("..", false), ("a/b", false), ("/a", false), ("a\0", false)] {
        let variables = [("src".to_owned(), b"/x".to_vec()), ("channelName".to_owned(), name.as_bytes().to_vec())];
        assert_eq!(Request::of(&variables.into()).is_ok(), good, "{name:?}");
    }
}

#[test]
fn an_unpacking_is_stopped_within_the_archive() {
    let store = Store::new(&["a: src"]);
    let stop = crate::stop::Stop::new().expect("a handle");
    stop.stop();
    let request = Request { src: full("{a}/src").into_bytes(), channel_name: b"c".to_vec() };
    let bounds = Bounds::new(stop, kiln_wire::JobLimits::default());
    let error = make(&request, &store.closure, &bounds, &store.dir.path().join("out")).expect_err("stopped");
    assert_eq!((error.class(), error.to_string()), (FailureClass::Cancelled, Ended::Stopped.to_string()));
}

/// Members that are hostile together.
const POOL: [Raw<'static>; 10] = [
    ("top/l", SYM, "../.."),
    ("top/l/host", FILE, "dead"),
    ("top/m", SYM, "l"),
    ("top/m/host", SYM, "dead"),
    ("top/l", DIR, ""),
    ("top/h", HARD, "top/l/host"),
    ("top/h", HARD, "top/x"),
    ("top/x", FILE, "../host"),
    ("x", PAX, "16 path=../host\n"),
    ("top/", DIR, ""),
];

type Edits = Vec<(usize, u8)>;

/// Members in any order, with bytes of their headers that an attacker sets.
fn hostile() -> impl proptest::strategy::Strategy<Value = Vec<(usize, Edits)>> {
    use proptest::prelude::*;
    let known = prop_oneof![Just(0u8), Just(b'/'), Just(b'.'), Just(0x80), Just(0xff), b'0'..b'8', Just(PAX), Just(LONG_NAME)];
    // Names, sizes, types and link names matter more than the rest.
    let at = prop_oneof![0usize..12, 124usize..136, Just(156usize), 157usize..170, 0usize..512];
    let edits = prop::collection::vec((at, prop_oneof![known, any::<u8>()]), 0..2);
    prop::collection::vec((0..POOL.len(), edits), 1..8)
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { failure_persistence: None, ..Default::default() })]

    #[test]
    fn no_archive_leads_out_or_makes_a_panic(members in hostile()) {
        let mut bytes = Vec::new();
        for (member, edits) in members {
            let mut one = archive(&[POOL[member]]);
            one.truncate(one.len() - 1024);
            let mut header = tar::Header::new_old();
            header.as_mut_bytes().copy_from_slice(&one[..512]);
            edits.into_iter().for_each(|(at, byte)| header.as_mut_bytes()[at] = byte);
            header.set_cksum();
            bytes.extend(header.as_bytes());
            bytes.extend(&one[512..]);
        }
        // What lies beside the output is checked there, whatever becomes of the archive.
        let _ = unpack(&bytes, 1 << 20);
    }
}
