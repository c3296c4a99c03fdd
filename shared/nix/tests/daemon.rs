//! The worker protocol, message by message: bytes as they are on the wire against what they mean, in whatever pieces they come.
//!
//! Bytes are written as words: a number is 8 bytes, little-endian; `'text'` is its length, itself, and zeros up to a multiple of 8.

use std::collections::{BTreeMap, BTreeSet};

use kiln_nix::content::Method;
use kiln_nix::daemon::{
    ActivityKind, Assembler, BuildResult, CLIENT_MAGIC, Collection, CollectionAction, Encoder, Facts, Field, Frames, Item, Level, Mode,
    Note, Operation, Options, ProtocolError, Request, ResultKind, Status, Step, Target, ValidPath, Version,
};
use kiln_nix::hash::Algorithm;
use kiln_wire::limits::NIX_REQUEST_BYTES_MAX;
use kiln_wire::{DrvPath, OutputName, Sha256Hash, StoreDir, StorePath};
use proptest::prelude::*;

const A: &str = "/nix/store/0hm2f1psjpcwg8fijsmr4wwxrx59s092-a";
const B: &str = "/nix/store/1hm2f1psjpcwg8fijsmr4wwxrx59s092-b";
const D: &str = "/nix/store/2hm2f1psjpcwg8fijsmr4wwxrx59s092-d.drv";
const HASH: &str = "0101010101010101010101010101010101010101010101010101010101010101";

/// Makes bytes of words; `A`, `B`, `D` and `HASH` stand for the texts above.
fn bytes(words: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = words.trim_start();
    while !rest.is_empty() {
        let (word, after) = match rest.strip_prefix('\'') {
            Some(text) => text.split_once('\'').expect("a closing quote"),
            None => rest.split_once(char::is_whitespace).unwrap_or((rest, "")),
        };
        match (rest.starts_with('\''), word.parse::<u64>()) {
            (false, Ok(number)) => bytes.extend(number.to_le_bytes()),
            (is_quoted, _) => {
                let text = if is_quoted { word } else { named(word) };
                bytes.extend((text.len() as u64).to_le_bytes());
                bytes.extend(text.as_bytes());
                bytes.resize(bytes.len().next_multiple_of(8), 0);
            }
        }
        rest = after.trim_start();
    }
    bytes
}

fn named(word: &str) -> &'static str {
    let texts = BTreeMap::from([("A", A), ("B", B), ("D", D), ("HASH", HASH)]);
    texts.get(word).unwrap_or_else(|| panic!("`{word}` is no number, no text and no name"))
}

fn path(full: &str) -> StorePath {
    StoreDir::default().strip(full).expect("a path")
}

fn derivation() -> DrvPath {
    DrvPath::from_path(path(D)).expect("a derivation")
}

fn output(name: &str) -> OutputName {
    OutputName::parse(name).expect("a name")
}

fn made(through: &[&str]) -> Target {
    Target::Made { derivation: derivation(), through: through.iter().map(|name| output(name)).collect(), outputs: [output("out")].into() }
}

fn target(names: &[&str]) -> Target {
    Target::Outputs { derivation: derivation(), outputs: names.iter().map(|name| output(name)).collect() }
}

fn facts() -> Facts {
    Facts {
        deriver: Some(path(D)),
        nar_hash: Sha256Hash([1; 32]),
        references: BTreeSet::from([path(A), path(B)]),
        registered_at_seconds: 7,
        nar_size_bytes: 120,
        ultimate: true,
        signatures: vec!["key-1:sig".to_owned()],
        content_address: "fixed:r:sha256:x".to_owned(),
    }
}

/// A path of which little is stated.
fn plain() -> ValidPath {
    let facts = facts();
    let nothing = Facts { deriver: None, references: BTreeSet::new(), ultimate: false, signatures: Vec::new(), ..facts };
    ValidPath { path: path(B), facts: Facts { content_address: String::new(), ..nothing } }
}

const FACTS: &str = "D HASH 2 A B 7 120 1 1 'key-1:sig' 'fixed:r:sha256:x'";

/// Feeds arguments in pieces of `size` and returns the request, and what was left.
fn decode(number: u64, input: &[u8], size: usize) -> Result<(Request, usize), ProtocolError> {
    let operation = Operation::from_number(number).expect("an operation");
    let mut assembler = Assembler::new(operation.items());
    let mut taken = 0;
    for piece in input.chunks(size) {
        let part = assembler.take(piece)?;
        taken += part;
        if part < piece.len() {
            break;
        }
    }
    assert!(assembler.is_complete(), "{operation} wants more than {} bytes", input.len());
    Ok((Request::decode(operation, &StoreDir::default(), &assembler.into_bytes())?, input.len() - taken))
}

fn collection(action: CollectionAction, paths: &[&str], bytes_max: u64) -> Request {
    Request::CollectGarbage(Collection { action, paths: paths.iter().map(|text| path(text)).collect(), ignores_liveness: false, bytes_max })
}

/// Requests about the store as a whole.
fn about_the_store() -> Vec<(u64, String, Request)> {
    vec![
        (6, "A".into(), Request::QueryReferrers(path(A))),
        (11, "A".into(), Request::AddTempRoot(path(A))),
        (12, "'/home/ann/result'".into(), Request::AddIndirectRoot("/home/ann/result".to_owned())),
        (14, String::new(), Request::FindRoots),
        (20, "3 1 A 0 0 0 0 0".into(), collection(CollectionAction::DeleteSpecific, &[A], 0)),
        (20, "0 0 0 7 0 0 0".into(), collection(CollectionAction::ReturnLive, &[], 7)),
        (20, "1 0 0 7 0 0 0".into(), collection(CollectionAction::ReturnDead, &[], 7)),
        (20, "2 2 A B 0 9 1 2 3".into(), collection(CollectionAction::DeleteDead, &[A, B], 9)),
        (23, String::new(), Request::QueryAllValidPaths),
        (47, "A '/home/ann/result'".into(), Request::AddPermRoot(path(A), "/home/ann/result".to_owned())),
    ]
}

#[test]
fn requests_are_read_from_their_bytes_in_pieces_of_any_size() {
    let paths = BTreeSet::from([path(A), path(B)]);
    let stated = ValidPath { path: path(A), facts: facts() };
    let text = |method, algorithm| Request::AddToStore { name: "n".to_owned(), method, algorithm, references: BTreeSet::from([path(A)]) };
    let targets = vec![Target::Path(path(A)), target(&[]), target(&["dev", "out"]), made(&["dev"]), made(&["dev", "out"])];
    let five = format!("5 A '{D}!*' '{D}!out,dev' '{D}!dev!out' '{D}!dev!out!out'");
    let table: Vec<(u64, String, Request)> = vec![
        (1, "A".into(), Request::IsValidPath(path(A))),
        (7, "'n' 'text:sha256' 1 A 0".into(), text(Method::Text, Algorithm::Sha256)),
        (7, "'n' 'fixed:sha512' 1 A 0".into(), text(Method::Flat, Algorithm::Sha512)),
        (7, "'n' 'fixed:r:sha256' 1 A 1".into(), text(Method::Nar, Algorithm::Sha256)),
        (7, "'n' 'fixed:git:sha1' 1 A 0".into(), text(Method::Git, Algorithm::Sha1)),
        (9, format!("{five} 0"), Request::BuildPaths(targets.clone(), Mode::Normal)),
        (46, format!("{five} 2"), Request::BuildPathsWithResults(targets.clone(), Mode::Check)),
        (
            36,
            "D 2 'dev' B '' '' 'out' A 'r:sha256' 'ff' 1 A 'x86_64-linux' '/bin/sh' 2 '-c' 'x' 1 'k' 'v' 1".into(),
            Request::BuildDerivation {
                derivation: derivation(),
                outputs: BTreeMap::from([(output("dev"), B.to_owned()), (output("out"), A.to_owned())]),
                mode: Mode::Repair,
            },
        ),
        (10, "A".into(), Request::EnsurePath(path(A))),
        (
            19,
            "0 1 0 3 2 0 1 0 0 0 0 1 1 'system-features' ''".into(),
            Request::SetOptions(Options { keep_going: true, silent_seconds_max: 0, seconds_max: 0 }),
        ),
        (
            19,
            "0 0 0 3 2 60 1 0 0 0 0 1 2 'cores' '2' 'timeout' '3600'".into(),
            Request::SetOptions(Options { keep_going: false, silent_seconds_max: 60, seconds_max: 3600 }),
        ),
        (19, "0 0 0 3 2 0 1 0 0 0 0 1 1 'timeout' 'never'".into(), Request::SetOptions(Options::default())),
        (26, "A".into(), Request::QueryPathInfo(path(A))),
        (29, "'0hm2f1psjpcwg8fijsmr4wwxrx59s092'".into(), Request::QueryPathFromHashPart(path(A).hash_part().to_owned())),
        (31, "2 B A 1".into(), Request::QueryValidPaths(paths.clone())),
        (32, "2 B A".into(), Request::QuerySubstitutablePaths(paths)),
        (33, "A".into(), Request::QueryValidDerivers(path(A))),
        (34, String::new(), Request::Other(Operation::OptimiseStore)),
        (35, "1 0".into(), Request::VerifyStore { contents: true, repair: false }),
        (37, "A 1 'key-1:sig'".into(), Request::Other(Operation::AddSignatures)),
        (38, "A".into(), Request::NarFromPath(path(A))),
        (39, format!("A {FACTS} 0 1"), Request::AddToStoreNar(stated)),
        (39, "B '' HASH 0 7 120 0 0 '' 0 0".into(), Request::AddToStoreNar(plain())),
        (40, five, Request::QueryMissing(targets)),
        (41, "D".into(), Request::QueryDerivationOutputMap(derivation())),
        (42, "'{}'".into(), Request::RegisterDrvOutput("{}".into())),
        (43, "'sha256:00!out'".into(), Request::QueryRealisation("sha256:00!out".to_owned())),
        (44, "0 1".into(), Request::AddMultipleToStore),
        (45, "D".into(), Request::Other(Operation::AddBuildLog)),
    ];
    let table: Vec<_> = table.into_iter().chain(about_the_store()).collect();
    let seen: BTreeSet<u64> = table.iter().map(|(number, ..)| *number).collect();
    assert_eq!(seen, Operation::ALL.iter().map(|operation| *operation as u64).collect(), "every operation is in the table");
    for (number, words, request) in table {
        let mut input = bytes(&words);
        for size in [1, 3, 8, 64, input.len() + 1] {
            assert_eq!(decode(number, &input, size).as_ref(), Ok(&(request.clone(), 0)), "{number}: {words}");
        }
        // What follows is the next request's.
        let length = input.len();
        input.extend_from_slice(&[0xff; 11]);
        let (read, left) = decode(number, &input, length + 11).expect("as before");
        assert_eq!((read, left), (request, 11), "{number}: {words}");
    }
}

#[test]
fn a_word_and_a_text_are_the_bytes_that_nix_sends() {
    assert_eq!(bytes("1 'ab'"), [&[1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0][..], b"ab\0\0\0\0\0\0"].concat());
    let mut encoded = Encoder::default();
    encoded.number(1).text("ab").text("").text("12345678").list(["x"], |to, text| to.text(text)).truth(true);
    assert_eq!(encoded.into_bytes(), bytes("1 'ab' '' '12345678' 1 'x' 1"));
}

#[test]
fn a_bad_argument_is_named_with_its_rule() {
    let table = [
        (1, "'/elsewhere/0hm2f1psjpcwg8fijsmr4wwxrx59s092-a'", "`path` is `/elsewhere"),
        (1, "'/nix/store/x'", "32 characters"),
        (7, "'n' 'sha256' 0 0", "`method` is `sha256`"),
        (7, "'n' 'fixed:crc' 0 0", "hash algorithm `crc`"),
        (9, "1 '/nix/store/2hm2f1psjpcwg8fijsmr4wwxrx59s092-d.drv!!dev' 0", "output name"),
        (9, "1 '/nix/store/2hm2f1psjpcwg8fijsmr4wwxrx59s092-d.drv!out!de v' 0", "output name"),
        (9, "1 '/nix/store/0hm2f1psjpcwg8fijsmr4wwxrx59s092-a!out!dev' 0", "ends in `.drv`"),
        (9, "1 '/nix/store/0hm2f1psjpcwg8fijsmr4wwxrx59s092-a!out' 0", "ends in `.drv`"),
        (9, "0 3", "`mode` is `3`"),
        (39, "A '' 'sha256:00' 0 0 0 0 0 '' 0 0", "`narHash` is `sha256:00`"),
        (41, "A", "ends in `.drv`"),
    ];
    for (number, words, expected) in table {
        let error = decode(number, &bytes(words), 8).expect_err(words);
        assert!(error.to_string().contains(expected), "{words}: {error}");
    }
    let mut padded = bytes("'/nix/store/0hm2f1psjpcwg8fijsmr4wwxrx59s092-a'");
    *padded.last_mut().expect("bytes") = 1;
    assert_eq!(decode(1, &padded, 8), Err(ProtocolError::Padding { field: "path" }));
    let mut latin = bytes("'/nix/store/0hm2f1psjpcwg8fijsmr4wwxrx59s092-a'");
    latin[8] = 0xff;
    assert!(decode(1, &latin, 8).expect_err("no UTF-8").to_string().contains("UTF-8"));
}

#[test]
fn what_claims_to_be_too_long_is_refused_before_it_comes() {
    let over = NIX_REQUEST_BYTES_MAX as u64;
    for (items, words) in [
        (&[Item::Text][..], vec![over]),
        (&[Item::Text], vec![u64::MAX]),
        (&[Item::Text], vec![u64::MAX - 3]),
        (&[Item::Records(1)], vec![over / 8]),
        (&[Item::Records(4)], vec![u64::MAX / 2]),
        (&[Item::Records(1)], vec![2, u64::MAX]),
        (&[Item::Number, Item::Text], vec![0, over - 8]),
    ] {
        let mut assembler = Assembler::new(items);
        let input: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!(assembler.take(&input), Err(ProtocolError::TooLong), "{items:?} {words:?}");
    }
}

fn encoded(version: Version, note: &Note<'_>) -> Vec<u8> {
    let mut to = Encoder::default();
    note.encode(version, &mut to);
    to.into_bytes()
}

#[test]
fn notes_are_the_bytes_that_nix_reads() {
    let fields = [Field::Text(D.as_bytes()), Field::Text(b"w1"), Field::Number(1), Field::Number(1)];
    let start = Note::Start { id: 9, level: Level::Info, kind: ActivityKind::Build, text: "building", fields: &fields, parent: 8 };
    let line = [Field::Text(b"a line")];
    let counts = [1, 2, 3, 4].map(Field::Number);
    let table = [
        (Note::Last, "1634497651".to_owned()),
        (Note::Error("no"), "1668838512 'Error' 0 'Error' 'no' 0 0".to_owned()),
        (Note::Text("hear"), "1869376871 'hear'".to_owned()),
        (start, format!("1398035028 9 3 105 'building' 4 1 '{D}' 1 'w1' 0 1 0 1 8")),
        (Note::Stop { id: 9 }, "1398034256 9".to_owned()),
        (Note::Result { id: 9, kind: ResultKind::BuildLogLine, fields: &line }, "1381190740 9 101 1 1 'a line'".to_owned()),
        (Note::Result { id: 9, kind: ResultKind::SetPhase, fields: &[] }, "1381190740 9 104 0".to_owned()),
        (Note::Result { id: 8, kind: ResultKind::Progress, fields: &counts }, "1381190740 8 105 4 0 1 0 2 0 3 0 4".to_owned()),
    ];
    for (note, words) in &table {
        assert_eq!(encoded(Version::OLDEST, note), bytes(words), "{note:?}");
    }
    assert_eq!(encoded(Version { major: 1, minor: 25 }, &Note::Error("no")), bytes("1668838512 'no' 1"));
}

#[test]
fn facts_survive_their_bytes() {
    let whole = ValidPath { path: path(A), facts: facts() };
    let mut to = Encoder::default();
    whole.encode(&StoreDir::default(), &mut to);
    let written = to.into_bytes();
    assert_eq!(written, bytes(&format!("A {FACTS}")));
    assert_eq!(ValidPath::decode(&StoreDir::default(), &written), Ok(whole));
    let mut assembler = Assembler::new(ValidPath::ITEMS);
    assert_eq!(assembler.take(&written), Ok(written.len()));
    assert!(assembler.is_complete());
}

#[test]
fn results_of_builds_are_the_bytes_that_nix_reads() {
    let made = BuildResult {
        status: Status::Built,
        message: String::new(),
        times_built: 1,
        started_at_seconds: 5,
        ended_at_seconds: 6,
        outputs: BTreeMap::from([(output("out"), path(A))]),
    };
    let id = format!("sha256:{}!out", "0".repeat(64));
    let realisation =
        format!(r#"{{"dependentRealisations":{{}},"id":"{id}","outPath":"0hm2f1psjpcwg8fijsmr4wwxrx59s092-a","signatures":[]}}"#);
    let failed = BuildResult { status: Status::DependencyFailed, message: "why".to_owned(), outputs: BTreeMap::new(), ..made.clone() };
    let table = [
        (34, &made, format!("0 '' 1 0 5 6 1 '{id}' '{realisation}'")),
        (37, &made, format!("0 '' 1 0 5 6 0 0 1 '{id}' '{realisation}'")),
        (34, &failed, "10 'why' 1 0 5 6 0".to_owned()),
    ];
    for (minor, result, words) in table {
        let mut to = Encoder::default();
        result.encode(Version { major: 1, minor }, &mut to);
        assert_eq!(to.into_bytes(), bytes(&words), "1.{minor}");
    }
}

#[test]
fn a_target_is_written_as_clients_write_it() {
    let store_dir = StoreDir::default();
    for (target, text) in [
        (Target::Path(path(A)), A.to_owned()),
        (target(&[]), format!("{D}!*")),
        (target(&["out", "dev"]), format!("{D}!dev,out")),
        (made(&["dev"]), format!("{D}!dev!out")),
        (made(&["out", "dev"]), format!("{D}!out!dev!out")),
    ] {
        assert_eq!(target.to_text(&store_dir), text);
    }
}

#[test]
fn the_newest_version_that_both_speak_is_agreed_on() {
    let version = |minor| Version { major: 1, minor };
    for (client, agreed) in [
        (version(34), Some(version(34))),
        (version(37), Some(version(37))),
        (version(38), Some(version(38))),
        (version(200), Some(version(38))),
        (version(33), None),
        (Version { major: 0, minor: 255 }, None),
        (Version { major: 2, minor: 40 }, None),
    ] {
        assert_eq!(Version::agreed(client), agreed, "{client}");
    }
    assert_eq!((Version::NEWEST.number(), Version::from_number(0x122)), (0x126, version(34)));
}

/// Takes frames apart in pieces of `size`; returns the content, and how much was left after the end, if that came.
fn unframed(input: &[u8], size: usize) -> (Vec<u8>, Option<usize>) {
    let mut frames = Frames::default();
    let (mut content, mut at) = (Vec::new(), 0);
    while at < input.len() {
        let piece = &input[at..(at + size).min(input.len())];
        let (taken, step) = frames.take(piece);
        at += taken;
        match step {
            Step::Data(data) => content.extend_from_slice(data),
            Step::End => return (content, Some(input.len() - at)),
            Step::More => assert_eq!(taken, piece.len(), "it takes all that it can use"),
        }
    }
    (content, None)
}

proptest! {
    #[test]
    fn frames_give_their_content_in_pieces_of_any_size(
        contents in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..6),
        after in proptest::collection::vec(any::<u8>(), 0..20),
        size in 1_usize..60,
    ) {
        let mut input = Vec::new();
        for content in &contents {
            input.extend((content.len() as u64).to_le_bytes());
            input.extend(content);
        }
        input.extend(0_u64.to_le_bytes());
        let whole = input.len();
        prop_assert_eq!(unframed(&input[..whole - 1], size), (contents.concat(), None));
        input.extend(&after);
        prop_assert_eq!(unframed(&input, size), (contents.concat(), Some(after.len())));
    }

    #[test]
    fn any_arguments_are_gathered_whole_in_pieces_of_any_size(
        texts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..30), 0..8),
        number in any::<u64>(),
        size in 1_usize..60,
    ) {
        const ITEMS: &[Item] = &[Item::Number, Item::Records(1), Item::Text, Item::Records(2), Item::Number];
        let mut to = Encoder::default();
        to.number(number).list(&texts, |to, text| to.text(text)).text(texts.concat());
        to.list(&texts, |to, text| to.text(text).text("value")).number(number);
        let whole = to.into_bytes();
        let mut assembler = Assembler::new(ITEMS);
        for piece in whole.chunks(size) {
            prop_assert!(!assembler.is_complete());
            prop_assert_eq!(assembler.take(piece), Ok(piece.len()));
        }
        prop_assert!(assembler.is_complete());
        prop_assert_eq!(assembler.take(b"more"), Ok(0));
        prop_assert_eq!(assembler.into_bytes(), whole);
    }

    #[test]
    fn whatever_comes_is_read_or_refused_and_not_more_held_than_came(
        number in 0_usize..Operation::ALL.len(),
        words in proptest::collection::vec(prop_oneof![0_u64..40, any::<u64>()], 0..40),
        cut in 0_usize..9,
    ) {
        let operation = Operation::ALL[number];
        let mut input: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        input.truncate(input.len().saturating_sub(cut));
        let mut assembler = Assembler::new(operation.items());
        if assembler.take(&input).is_ok() {
            let gathered = assembler.clone().into_bytes();
            prop_assert!(gathered.len() <= input.len());
            // Complete or not, reading ends with a request or an error.
            let read = Request::decode(operation, &StoreDir::default(), &gathered);
            prop_assert!(assembler.is_complete() || read.is_err() || matches!(read, Ok(Request::Other(_))));
        }
        let _no_panic = Request::decode(operation, &StoreDir::default(), &input);
        let _no_panic = ValidPath::decode(&StoreDir::default(), &input);
    }
}

/// What a client said on one connection, and how far it was read.
struct Said<'a>(&'a [u8]);

impl Said<'_> {
    fn gather(&mut self, items: &'static [Item]) -> Vec<u8> {
        let mut assembler = Assembler::new(items);
        let taken = assembler.take(self.0).expect("it is not too long");
        assert!(assembler.is_complete(), "it breaks off");
        self.0 = &self.0[taken..];
        assembler.into_bytes()
    }

    fn number(&mut self) -> u64 {
        u64::from_le_bytes(self.gather(&[Item::Number]).try_into().expect("a number"))
    }

    /// Reads the next request. What it streams must be of the right length, if its length is known before.
    fn request(&mut self) -> String {
        let operation = Operation::from_number(self.number()).expect("a known operation");
        let arguments = self.gather(operation.items());
        let request = Request::decode(operation, &StoreDir::default(), &arguments).unwrap_or_else(|error| panic!("{operation}: {error}"));
        if operation.is_followed_by_frames() {
            let (content, left) = unframed(self.0, 7);
            self.0 = &self.0[self.0.len() - left.expect("what is streamed has an end")..];
            if matches!(request, Request::AddMultipleToStore) {
                let mut content = Said(&content);
                for _ in 0..content.number() {
                    let stated = ValidPath::decode(&StoreDir::default(), &content.gather(ValidPath::ITEMS)).expect("facts");
                    content.0 = &content.0[usize::try_from(stated.facts.nar_size_bytes).expect("it is small")..];
                }
                assert!(content.0.is_empty(), "nothing follows the last archive");
            }
        }
        operation.to_string()
    }
}

macro_rules! recorded {
    ($name:literal) => {
        ($name, &include_bytes!(concat!("sessions/nix-2.8-", $name, ".bin"))[..])
    };
}

#[test]
fn what_nix_2_8_said_is_read() {
    let table = [
        (
            recorded!("build"),
            "SetOptions AddToStore AddToStore AddToStore QueryMissing QueryPathInfo QueryPathInfo BuildPaths QueryDerivationOutputMap AddTempRoot AddIndirectRoot",
        ),
        (recorded!("build-results"), "SetOptions AddToStore AddToStore AddToStore BuildPathsWithResults"),
        (recorded!("copy-derivations"), "SetOptions QueryValidPaths AddMultipleToStore"),
        (recorded!("copy-sources"), "SetOptions QueryValidPaths AddMultipleToStore"),
        (recorded!("add"), "SetOptions IsValidPath AddToStoreNar"),
        (recorded!("query"), "SetOptions QueryMissing QueryPathInfo QueryPathInfo"),
        (recorded!("query-2"), "SetOptions QueryPathInfo"),
        (recorded!("query-3"), "SetOptions EnsurePath IsValidPath"),
        (recorded!("query-4"), "SetOptions QueryReferrers"),
        (recorded!("substitutable"), "SetOptions QueryValidPaths QuerySubstitutablePaths"),
        (recorded!("ssh-cat"), "IsValidPath NarFromPath IsValidPath"),
    ];
    for ((name, bytes), expected) in table {
        let mut said = Said(bytes);
        assert_eq!((said.number(), Version::from_number(said.number())), (CLIENT_MAGIC, Version { major: 1, minor: 34 }), "{name}");
        said.gather(&[Item::Number, Item::Number]);
        let mut asked = Vec::new();
        while !said.0.is_empty() {
            asked.push(said.request());
        }
        assert_eq!(asked.join(" "), expected, "{name}");
    }
}
