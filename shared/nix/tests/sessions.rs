//! Recorded sessions of Nix 2.26.3, which speaks version 1.38 with features, with a farm's daemon: over a socket, and as over ssh (`ssh-…`).
//! Both directions. What the client said is read, request by request; what the daemon said is taken apart in step with it, and written anew
//! with the same bytes: a real client has understood those.
//!
//! Each session is `sessions/nix-2.26-NAME.up` and `.down`. `nix-2.26-nixd-NAME` are sessions with Nix's own daemon, whose answers
//! are taken apart by the same rules.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use kiln_nix::daemon::{
    ActivityKind, Assembler, BuildResult, CLIENT_MAGIC, Encoder, Field, Frames, Item, Level, Note, Operation, Request, ResultKind,
    SERVER_MAGIC, Status, Step, ValidPath, Version,
};
use kiln_wire::{OutputName, StoreDir, StorePath};

const VERSION: Version = Version { major: 1, minor: 38 };

/// One direction of a session, and how far it was read.
struct Said<'a> {
    left: &'a [u8],
    session: &'a str,
}

impl<'a> Said<'a> {
    fn gather(&mut self, items: &'static [Item]) -> &'a [u8] {
        let mut assembler = Assembler::new(items);
        let taken = assembler.take(self.left).expect("it is not too long");
        assert!(assembler.is_complete(), "{}: it breaks off", self.session);
        let (gathered, left) = self.left.split_at(taken);
        self.left = left;
        gathered
    }

    fn number(&mut self) -> u64 {
        u64::from_le_bytes(self.gather(&[Item::Number]).try_into().expect("a number"))
    }

    fn text(&mut self) -> &'a [u8] {
        let whole = self.gather(&[Item::Text]);
        let length = u64::from_le_bytes(whole[..8].try_into().expect("a number"));
        &whole[8..][..usize::try_from(length).expect("it is small")]
    }

    fn words(&mut self) -> &'a str {
        std::str::from_utf8(self.text()).expect("text")
    }

    fn list<T>(&mut self, mut one: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.number()).map(|_| one(self)).collect()
    }

    /// What is streamed after a request.
    fn frames(&mut self) -> Vec<u8> {
        let (mut frames, mut content) = (Frames::default(), Vec::new());
        loop {
            let (taken, step) = frames.take(self.left);
            self.left = &self.left[taken..];
            match step {
                Step::Data(data) => content.extend_from_slice(data),
                Step::End => return content,
                Step::More => assert!(taken > 0, "{}: what is streamed has an end", self.session),
            }
        }
    }

    /// The next request. What it streams must be as long as it says.
    fn request(&mut self) -> (Operation, Request) {
        let operation = Operation::from_number(self.number()).unwrap_or_else(|| panic!("{}: an unknown operation", self.session));
        let request = Request::decode(operation, &StoreDir::default(), self.gather(operation.items()));
        let request = request.unwrap_or_else(|error| panic!("{}: {operation}: {error}", self.session));
        if operation.is_followed_by_frames() {
            let content = self.frames();
            if operation == Operation::AddMultipleToStore {
                let mut content = Said { left: &content, session: self.session };
                for _ in 0..content.number() {
                    let stated = ValidPath::decode(&StoreDir::default(), content.gather(ValidPath::ITEMS)).expect("facts");
                    content.left = &content.left[usize::try_from(stated.facts.nar_size_bytes).expect("it is small")..];
                }
                assert!(content.left.is_empty(), "{}: nothing follows the last archive", self.session);
            }
        }
        (operation, request)
    }

    /// Takes notes to the last; each of ours of which is written anew. Returns what went wrong, if something did.
    fn notes(&mut self, is_ours: bool) -> Option<String> {
        loop {
            let before = self.left;
            let kind = self.number();
            let fields;
            let note = match kind {
                0x616c_7473 => Note::Last,
                0x6f6c_6d67 => Note::Text(self.words()),
                0x6378_7470 => {
                    let (_type, _level, _name) = (self.text(), self.number(), self.text());
                    let message = self.words();
                    let (_position, _traces) = (self.number(), self.list(|said| (said.number(), said.text())));
                    Note::Error(message)
                }
                0x5354_5254 => {
                    let (id, level, kind, text) = (self.number(), self.number(), self.number(), self.words());
                    fields = self.fields();
                    Note::Start { id, level: level_of(level), kind: activity_of(kind), text, fields: &fields, parent: self.number() }
                }
                0x5354_4f50 => Note::Stop { id: self.number() },
                0x5253_4c54 => {
                    let (id, kind) = (self.number(), self.number());
                    fields = self.fields();
                    Note::Result { id, kind: result_of(kind), fields: &fields }
                }
                other => panic!("{}: `{other:#x}` is no note", self.session),
            };
            if is_ours {
                let mut written = Encoder::default();
                note.encode(VERSION, &mut written);
                assert_eq!(written.into_bytes(), before[..before.len() - self.left.len()], "{}: {note:?}", self.session);
            }
            match note {
                Note::Last => return None,
                Note::Error(message) => return Some(message.to_owned()),
                _ => {}
            }
        }
    }

    fn fields(&mut self) -> Vec<Field<'a>> {
        self.list(|said| if said.number() == 0 { Field::Number(said.number()) } else { Field::Text(said.text()) })
    }

    /// What became of a target, written anew.
    fn result(&mut self, is_ours: bool) {
        let before = self.left;
        let (status, message, times_built) = (self.number(), self.words().to_owned(), self.number());
        let (_deterministic, started_at_seconds, ended_at_seconds) = (self.number(), self.number(), self.number());
        for _user_and_system in 0..2 {
            if self.number() == 1 {
                self.number();
            }
        }
        let outputs = self.list(|said| {
            let (id, realisation) = (said.words(), said.words());
            let name = OutputName::parse(id.split_once('!').expect("an output").1).expect("a name");
            let realisation: serde_json::Value = serde_json::from_str(realisation).expect("JSON");
            (name, StorePath::parse(realisation["outPath"].as_str().expect("a path")).expect("a path"))
        });
        if is_ours {
            let statuses = [Status::Built, Status::AlreadyValid, Status::PermanentFailure, Status::DependencyFailed, Status::MiscFailure];
            let status = statuses.into_iter().find(|known| *known as u64 == status).expect("a status");
            let outputs: BTreeMap<_, _> = outputs.into_iter().collect();
            let result = BuildResult { status, message, times_built, started_at_seconds, ended_at_seconds, outputs };
            let mut written = Encoder::default();
            result.encode(VERSION, &mut written);
            assert_eq!(written.into_bytes(), before[..before.len() - self.left.len()], "{}: {result:?}", self.session);
        }
    }

    /// Facts of a path, with or without the path, written anew.
    fn facts(&mut self, path: Option<&StorePath>) {
        let before = self.left;
        let store_dir = StoreDir::default();
        let (whole, skipped) = match path {
            None => (self.gather(ValidPath::ITEMS).to_vec(), 0),
            Some(path) => {
                let mut head = Encoder::default();
                head.path(&store_dir, path);
                let head = head.into_bytes();
                (([&head[..], self.gather(&ValidPath::ITEMS[1..])]).concat(), head.len())
            }
        };
        let facts = ValidPath::decode(&store_dir, &whole).unwrap_or_else(|error| panic!("{}: {error}", self.session));
        let mut written = Encoder::default();
        facts.encode(&store_dir, &mut written);
        assert_eq!(written.into_bytes()[skipped..], before[..before.len() - self.left.len()], "{}: {facts:?}", self.session);
    }

    /// An archive, which says itself where it ends.
    fn archive(&mut self) {
        assert_eq!(self.words(), "nix-archive-1", "{}", self.session);
        let mut open = 0;
        loop {
            match self.text() {
                b"(" => open += 1,
                b")" if open == 1 => return,
                b")" => open -= 1,
                b"contents" | b"target" | b"name" => _ = self.text(),
                _ => {}
            }
        }
    }

    /// What follows the last note.
    fn answer(&mut self, request: &Request, operation: Operation, is_ours: bool) {
        use Operation as O;
        match operation {
            O::IsValidPath | O::BuildPaths | O::EnsurePath | O::AddTempRoot | O::AddIndirectRoot => _ = self.number(),
            O::OptimiseStore | O::VerifyStore | O::AddSignatures | O::AddBuildLog => _ = self.number(),
            O::QueryReferrers | O::QueryAllValidPaths | O::QueryValidPaths | O::QuerySubstitutablePaths | O::QueryValidDerivers => {
                drop(self.list(|said| said.words()));
            }
            O::QueryRealisation => drop(self.list(|said| said.words())),
            O::AddToStore => self.facts(None),
            O::QueryPathInfo => {
                let Request::QueryPathInfo(path) = request else { panic!("it was decoded as another") };
                if self.number() == 1 {
                    self.facts(Some(path));
                }
            }
            O::FindRoots | O::QueryDerivationOutputMap => drop(self.list(|said| (said.words(), said.words()))),
            O::CollectGarbage => drop((self.list(|said| said.words()), self.number(), self.number())),
            O::QueryPathFromHashPart | O::AddPermRoot => _ = self.words(),
            O::QueryMissing => {
                (0..3).for_each(|_| drop(self.list(|said| said.words())));
                let _sizes = (self.number(), self.number());
            }
            O::BuildDerivation => self.result(is_ours),
            O::BuildPathsWithResults => drop(self.list(|said| (said.words(), said.result(is_ours)))),
            O::NarFromPath => self.archive(),
            O::SetOptions | O::AddToStoreNar | O::RegisterDrvOutput | O::AddMultipleToStore => {}
        }
    }
}

fn level_of(number: u64) -> Level {
    if number == Level::Info as u64 { Level::Info } else { Level::Error }
}

fn activity_of(number: u64) -> ActivityKind {
    if number == ActivityKind::Builds as u64 { ActivityKind::Builds } else { ActivityKind::Build }
}

fn result_of(number: u64) -> ResultKind {
    let kinds = [ResultKind::BuildLogLine, ResultKind::SetPhase, ResultKind::Progress];
    kinds.into_iter().find(|kind| *kind as u64 == number).unwrap_or(ResultKind::Progress)
}

/// Reads a session; returns the operations, with `!` after those that were refused.
fn replay(session: &str, is_ours: bool) -> String {
    let file = |direction| fs::read(dir().join(format!("nix-2.26-{session}.{direction}"))).expect("it was recorded");
    let (up, down) = (file("up"), file("down"));
    let (mut up, mut down) = (Said { left: &up, session }, Said { left: &down, session });
    assert_eq!((up.number(), Version::from_number(up.number())), (CLIENT_MAGIC, VERSION), "{session}");
    assert_eq!((down.number(), Version::from_number(down.number())), (SERVER_MAGIC, VERSION), "{session}");
    // Features; then what means nothing any more, and who the daemon is and whether it trusts its client.
    let _features = (up.list(|said| said.words()), down.list(|said| said.words()));
    assert_eq!((up.number(), up.number()), (0, 0), "{session}");
    let (name, trust) = (down.words(), down.number());
    assert_eq!((name.starts_with("kiln "), matches!(trust, 1 | 2)), (is_ours, true), "{session}: {name}");
    assert_eq!(down.notes(is_ours), None, "{session}");
    let mut asked = Vec::new();
    while !up.left.is_empty() {
        let (operation, request) = up.request();
        let refused = down.notes(is_ours);
        if refused.is_none() {
            down.answer(&request, operation, is_ours);
        }
        asked.push(format!("{operation}{}", if refused.is_some() { "!" } else { "" }));
    }
    assert!(down.left.is_empty(), "{session}: {} bytes were said that nobody asked for", down.left.len());
    asked.join(" ")
}

fn dir() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sessions"))
}

/// Operations of each session, `!` after those that were refused.
const SESSIONS: &str = "
add: SetOptions AddToStore
add-fixed: SetOptions IsValidPath AddToStoreNar
add-root: SetOptions QueryMissing BuildPaths IsValidPath AddTempRoot AddIndirectRoot
build: SetOptions AddToStore AddToStore AddToStore QueryMissing QueryPathInfo QueryPathInfo BuildPaths QueryDerivationOutputMap AddTempRoot AddIndirectRoot
build-failing: SetOptions AddToStore AddToStore QueryMissing QueryPathInfo QueryPathInfo BuildPathsWithResults
build-floating: SetOptions AddToStore QueryMissing QueryPathInfo BuildPathsWithResults AddTempRoot AddIndirectRoot
build-results: SetOptions AddToStore AddToStore QueryMissing QueryPathInfo QueryPathInfo BuildPathsWithResults
builder: SetOptions QueryValidPaths AddMultipleToStore BuildDerivation QueryPathInfo
check: SetOptions AddToStore AddToStore QueryMissing BuildPaths QueryDerivationOutputMap AddTempRoot AddIndirectRoot
copy-built: SetOptions QueryValidPaths AddMultipleToStore!
copy-derivation: SetOptions QueryValidPaths AddMultipleToStore
copy-from: SetOptions QueryMissing BuildPathsWithResults QueryPathInfo QueryPathInfo
copy-log: SetOptions AddBuildLog!
copy-realisation: SetOptions QueryValidPaths AddMultipleToStore RegisterDrvOutput!
copy-to: SetOptions QueryValidPaths AddMultipleToStore
dead: SetOptions CollectGarbage
delete: SetOptions CollectGarbage!
derivers: SetOptions QueryValidDerivers QueryPathInfo
gc: SetOptions CollectGarbage
live: SetOptions CollectGarbage
log: SetOptions QueryPathInfo
nixd-build: QueryMissing QueryValidPaths AddMultipleToStore BuildPathsWithResults
nixd-cat: IsValidPath NarFromPath IsValidPath
nixd-copy-to: QueryValidPaths AddMultipleToStore
nixd-failing: AddToStore QueryMissing QueryPathInfo BuildPaths!
optimise: SetOptions OptimiseStore!
path-info: SetOptions QueryMissing QueryPathInfo QueryPathInfo
path-info-all: SetOptions QueryAllValidPaths QueryPathInfo QueryPathInfo QueryPathInfo QueryPathInfo QueryPathInfo QueryPathInfo QueryPathInfo QueryPathInfo QueryPathInfo QueryPathInfo QueryPathInfo QueryPathInfo QueryPathInfo QueryPathInfo
realisation: SetOptions AddToStore QueryMissing QueryDerivationOutputMap IsValidPath QueryRealisation
realise: SetOptions QueryMissing BuildPaths IsValidPath
references: SetOptions QueryPathInfo QueryPathInfo
referrers: SetOptions QueryReferrers
roots: SetOptions FindRoots
sign: SetOptions QueryMissing QueryPathInfo AddSignatures!
ssh-build: QueryMissing QueryValidPaths AddMultipleToStore BuildPathsWithResults
ssh-builder: QueryValidPaths AddMultipleToStore QueryValidPaths AddMultipleToStore BuildPathsWithResults QueryPathInfo NarFromPath
ssh-cat: IsValidPath NarFromPath IsValidPath
ssh-copy-from: QueryMissing BuildPathsWithResults QueryPathInfo QueryPathInfo NarFromPath
ssh-copy-from-2: NarFromPath
ssh-copy-to: QueryValidPaths AddMultipleToStore
ssh-failing: AddToStore AddToStore QueryMissing QueryPathInfo QueryPathInfo BuildPaths!
ssh-info:
verify: SetOptions QueryMissing QueryPathInfo
verify-store: SetOptions VerifyStore!
";

fn sessions() -> impl Iterator<Item = (&'static str, &'static str)> {
    SESSIONS.trim().lines().map(|line| line.split_once(':').expect("a session")).map(|(name, asked)| (name, asked.trim()))
}

#[test]
fn what_nix_2_26_said_is_read_and_what_it_understood_is_said_with_the_same_bytes() {
    for (session, expected) in sessions() {
        assert_eq!(replay(session, !session.starts_with("nixd-")), expected, "{session}");
    }
}

#[test]
fn every_session_and_every_operation_that_a_client_sends_is_there() {
    let listed: BTreeSet<String> = sessions().map(|(session, _)| format!("nix-2.26-{session}.up")).collect();
    let names = fs::read_dir(dir()).expect("a directory").map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned());
    assert_eq!(names.filter(|name| name.ends_with(".up")).collect::<BTreeSet<_>>(), listed);
    let seen: BTreeSet<&str> = sessions().flat_map(|(_, asked)| asked.split(' ')).map(|name| name.trim_end_matches('!')).collect();
    let unseen: Vec<String> = Operation::ALL.iter().map(ToString::to_string).filter(|name| !seen.contains(name.as_str())).collect();
    // Nix 2.8 sends the first and third (`daemon.rs`), and no command of either the others.
    assert_eq!(unseen.join(" "), "EnsurePath QueryPathFromHashPart QuerySubstitutablePaths AddPermRoot");
}
