//! Random interleavings, one step of anybody at a time: a collection, clients that rely on what they were told is there, uploads, retired
//! roots, and leaders that are deposed in the middle, whose last deletions come late. Each planted bug is found by some seed.

use std::collections::{BTreeMap, BTreeSet};

use kiln_core::Steady;
use kiln_core::garbage::{BlobSweep, Doomed, Gate, Graph, HashPart, Key, Pass, Roots, Rules, Sweep};
use kiln_wire::{Blake3Hash, Blob, PathInfo, Sha256Hash, StorePath};

use crate::facts::{Dice, path};

/// What is left out, to see that the checks find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bug {
    None,
    /// Who meets a condemned object goes on.
    PassesCondemned,
    /// The collection does not look at what was touched since it began.
    SparesNothing,
    /// What goes together goes in any order.
    AnyOrder,
    /// An upload that finds its blob does not touch it.
    BlobUntouched,
    /// What took long is published without a look whether all of it is still there.
    PublishesUnlooked,
    /// Roots are read before the collection begins to note what is touched.
    RootsFirst,
    /// A new leader does not know what the last one was deleting.
    InheritsNothing,
    /// A new leader deletes at once, while the last one may still publish.
    DeletesAtOnce,
}

const BUGS: [Bug; 8] = [
    Bug::PassesCondemned,
    Bug::SparesNothing,
    Bug::AnyOrder,
    Bug::BlobUntouched,
    Bug::PublishesUnlooked,
    Bug::RootsFirst,
    Bug::InheritsNothing,
    Bug::DeletesAtOnce,
];

const NAMES: usize = 12;
/// Milliseconds that a touch counts; a step takes one.
const GRACE_MS: u64 = 15;
/// Milliseconds that a deposed leader may still do what it began.
const LATE_MS: u64 = 40;

struct World {
    bug: Bug,
    dice: Dice,
    now: Steady,
    /// Narinfos: references and blob.
    paths: BTreeMap<StorePath, (BTreeSet<StorePath>, Sha256Hash)>,
    blobs: BTreeSet<Sha256Hash>,
    /// What the farm has committed to.
    roots: Vec<StorePath>,
    gate: Gate,
    led_since: Steady,
    inherited_until: Option<Steady>,
    clients: Vec<Client>,
    collection: Collection,
    /// Deletions that a deposed leader had begun.
    late: Vec<Key>,
    late_until: Steady,
}

#[derive(Debug)]
enum Client {
    Idle,
    /// Wants these to be there, and touches them.
    Asks(Vec<StorePath>),
    /// Was told then that these are there. A request takes less time than a touch counts.
    Knows(Vec<StorePath>, Steady),
    /// Brings a path, and touches all that it is made of.
    Offers(Upload),
    /// The blob is stored, by this one or by another before. Who was deposed goes on until then.
    Stored(Upload, Option<Steady>),
}

#[derive(Clone, Debug)]
struct Upload {
    path: StorePath,
    references: BTreeSet<StorePath>,
    blob: Sha256Hash,
}

impl Upload {
    fn keys(&self) -> Vec<Key> {
        self.references.iter().chain([&self.path]).map(Key::from).chain([Key::Blob(self.blob)]).collect()
    }
}

enum Collection {
    Idle,
    Lists { roots: Roots, graph: Graph, seen: Option<StorePath> },
    Sweeps { sweep: Sweep, batch: Vec<Doomed> },
    SweepsBlobs { sweep: BlobSweep, batch: Vec<Sha256Hash> },
}

fn gate() -> Gate {
    Gate::new(GRACE_MS, 1_000)
}

fn number(at: usize) -> StorePath {
    path(&format!("p{at}"))
}

impl World {
    fn new(seed: u64, bug: Bug) -> Self {
        Self {
            bug,
            dice: Dice(seed),
            now: Steady(0),
            paths: BTreeMap::new(),
            blobs: BTreeSet::new(),
            roots: Vec::new(),
            gate: gate(),
            led_since: Steady(0),
            inherited_until: None,
            clients: (0..3).map(|_| Client::Idle).collect(),
            collection: Collection::Idle,
            late: Vec::new(),
            late_until: Steady(0),
        }
    }

    fn step(&mut self) {
        self.now = self.now.after_ms(1);
        if self.inherited_until.is_some_and(|until| until <= self.now) {
            self.inherited_until = None;
            self.gate.settle();
        }
        match self.dice.below(12) {
            0..4 => {
                let who = self.dice.below(self.clients.len());
                let client = std::mem::replace(&mut self.clients[who], Client::Idle);
                self.clients[who] = self.client(client);
            }
            4..10 => self.collect(),
            10 => match self.dice.below(10) {
                0 => self.depose(),
                1..6 if matches!(&self.collection, Collection::Sweeps { batch, .. } if batch.len() > 1) => self.depose(),
                1..7 if !self.roots.is_empty() => drop(self.roots.remove(self.dice.below(self.roots.len()))),
                _ => {}
            },
            _ => self.delete_late(),
        }
    }

    fn touch(&mut self, keys: &[Key]) -> Pass {
        match self.gate.touch(keys, self.now) {
            Pass::Wait if self.bug == Bug::PassesCondemned => Pass::Free,
            pass => pass,
        }
    }

    fn client(&mut self, client: Client) -> Client {
        match client {
            Client::Idle if self.dice.below(2) == 0 => {
                Client::Asks((0..1 + self.dice.below(3)).map(|_| number(self.dice.below(NAMES))).collect())
            }
            Client::Idle => {
                let at = self.dice.below(NAMES);
                let references =
                    if at == 0 { BTreeSet::new() } else { (0..self.dice.below(3)).map(|_| number(self.dice.below(at))).collect() };
                // Two paths may have one blob.
                let blob = Sha256Hash([u8::try_from(at / 2).expect("few"); 32]);
                Client::Offers(Upload { path: number(at), references, blob })
            }
            Client::Asks(wanted) => {
                let keys: Vec<Key> = wanted.iter().map(Key::from).collect();
                match self.touch(&keys) {
                    Pass::Wait => Client::Asks(wanted),
                    Pass::Free => Client::Knows(wanted.into_iter().filter(|path| self.paths.contains_key(path)).collect(), self.now),
                }
            }
            Client::Knows(_, since) if self.now.since_ms(since) >= GRACE_MS => Client::Idle,
            Client::Knows(there, _) => {
                self.roots.extend(there);
                Client::Idle
            }
            Client::Offers(upload) => {
                let mut keys = upload.keys();
                if self.bug == Bug::BlobUntouched && self.blobs.contains(&upload.blob) {
                    keys.pop();
                }
                match self.touch(&keys) {
                    Pass::Wait => Client::Offers(upload),
                    Pass::Free
                        if upload.references.iter().all(|path| self.paths.contains_key(path)) && !self.paths.contains_key(&upload.path) =>
                    {
                        self.blobs.insert(upload.blob);
                        Client::Stored(upload, None)
                    }
                    Pass::Free => Client::Idle,
                }
            }
            Client::Stored(_, Some(until)) if until <= self.now => Client::Idle,
            // It may have taken longer than a touch counts: all is touched and looked at again, by who was deposed at another gate.
            Client::Stored(upload, until) => {
                if until.is_none() && self.touch(&upload.keys()) == Pass::Wait {
                    return Client::Stored(upload, until);
                }
                let is_whole = upload.references.iter().all(|path| self.paths.contains_key(path)) && self.blobs.contains(&upload.blob);
                if !is_whole && self.bug != Bug::PublishesUnlooked {
                    return Client::Idle;
                }
                self.paths.insert(upload.path, (upload.references, upload.blob));
                Client::Idle
            }
        }
    }

    fn collect(&mut self) {
        self.collection = match std::mem::replace(&mut self.collection, Collection::Idle) {
            Collection::Idle => self.begin(),
            Collection::Lists { roots, graph, seen } => self.list(roots, graph, seen),
            Collection::Sweeps { sweep, batch } => self.sweep(sweep, batch),
            Collection::SweepsBlobs { sweep, batch } => self.sweep_blobs(sweep, batch),
        };
    }

    fn begin(&mut self) -> Collection {
        let waits = self.bug != Bug::DeletesAtOnce && self.now.since_ms(self.led_since) < LATE_MS;
        if waits || self.inherited_until.is_some() || self.dice.below(2) == 0 {
            return Collection::Idle;
        }
        let mut roots = Roots::default();
        if self.bug == Bug::RootsFirst {
            // Somebody takes a step in between, which nobody notes.
            roots.add("root", &self.roots);
            (0..3).for_each(|who| {
                let client = std::mem::replace(&mut self.clients[who], Client::Idle);
                self.clients[who] = self.client(client);
            });
            self.gate = gate();
        }
        let touched = self.gate.begin(self.now).expect("no other goes on");
        roots.add_parts("touched", touched.iter().filter_map(|key| if let Key::Path(part) = key { Some(*part) } else { None }));
        if self.bug != Bug::RootsFirst {
            roots.add("root", &self.roots);
        }
        Collection::Lists { roots, graph: Graph::new(Rules { keep_outputs: false, keep_derivations: false }), seen: None }
    }

    /// Reads one narinfo after the other: the store is never seen at one moment.
    fn list(&mut self, roots: Roots, mut graph: Graph, seen: Option<StorePath>) -> Collection {
        let next = self.paths.iter().find(|(path, _)| seen.as_ref().is_none_or(|seen| *path > seen));
        if let Some((path, (references, blob))) = next {
            graph.add_path(&info(path, references, *blob));
            return Collection::Lists { roots, seen: Some(path.clone()), graph };
        }
        let marks = graph.mark(&roots);
        Collection::Sweeps { sweep: Sweep::new(graph, &marks, None), batch: Vec::new() }
    }

    fn sweep(&mut self, mut sweep: Sweep, mut batch: Vec<Doomed>) -> Collection {
        if batch.is_empty() {
            let paths_max = 1 + self.dice.below(8);
            batch = match self.bug {
                Bug::SparesNothing => sweep.next_batch(paths_max),
                _ => self.gate.condemn(&mut sweep, paths_max),
            };
            if batch.is_empty() {
                let mut blobs: BTreeMap<Sha256Hash, u64> = self.blobs.iter().map(|blob| (*blob, 1)).collect();
                let kept: BTreeSet<Sha256Hash> = sweep.facts_kept().map(|facts| facts.blob).chain(self.touched_blobs()).collect();
                blobs.retain(|blob, _| !kept.contains(blob));
                return Collection::SweepsBlobs { sweep: BlobSweep::new(blobs), batch: Vec::new() };
            }
        }
        let doomed = if self.bug == Bug::AnyOrder { batch.pop() } else { Some(batch.remove(0)) };
        doomed.iter().for_each(|doomed| drop(self.paths.remove(&doomed.path)));
        if batch.is_empty() {
            self.gate.release();
        }
        Collection::Sweeps { sweep, batch }
    }

    /// What was touched before the collection began counts for blobs too.
    fn touched_blobs(&mut self) -> Vec<Sha256Hash> {
        let touched = self.gate.touched(self.now);
        touched.into_iter().filter_map(|key| if let Key::Blob(blob) = key { Some(blob) } else { None }).collect()
    }

    fn sweep_blobs(&mut self, mut sweep: BlobSweep, mut batch: Vec<Sha256Hash>) -> Collection {
        if batch.is_empty() {
            batch = self.gate.condemn_blobs(&mut sweep, 2).into_iter().map(|(blob, _)| blob).collect();
            if batch.is_empty() {
                self.gate.end();
                return Collection::Idle;
            }
        }
        batch.pop().iter().for_each(|blob| assert!(self.blobs.remove(blob)));
        if batch.is_empty() {
            self.gate.release();
        }
        Collection::SweepsBlobs { sweep, batch }
    }

    /// Another leads: it knows nothing of what was touched, and asks begin anew. The old one does not know that yet.
    fn depose(&mut self) {
        self.late = match std::mem::replace(&mut self.collection, Collection::Idle) {
            Collection::Sweeps { batch, .. } => batch.iter().map(Doomed::key).collect(),
            Collection::SweepsBlobs { batch, .. } => batch.into_iter().map(Key::Blob).collect(),
            Collection::Idle | Collection::Lists { .. } => Vec::new(),
        };
        self.late_until = self.now.after_ms(LATE_MS);
        self.led_since = self.now;
        self.gate = gate();
        if self.bug != Bug::InheritsNothing && !self.late.is_empty() {
            self.gate.inherit(self.late.iter().copied());
            self.inherited_until = Some(self.late_until);
        }
        for client in &mut self.clients {
            *client = match std::mem::replace(client, Client::Idle) {
                Client::Stored(upload, until) => Client::Stored(upload, Some(until.unwrap_or(self.late_until))),
                _ => Client::Idle,
            };
        }
    }

    fn delete_late(&mut self) {
        let Some(key) = self.late.first().copied() else { return };
        self.late.remove(0);
        if self.now >= self.late_until {
            return;
        }
        match key {
            Key::Path(part) => self.paths.retain(|path, _| HashPart::from(path) != part),
            Key::Blob(blob) => drop(self.blobs.remove(&blob)),
        }
    }

    fn check(&self) -> Result<(), String> {
        for (path, (references, blob)) in &self.paths {
            if let Some(gone) = references.iter().find(|reference| !self.paths.contains_key(reference)) {
                return Err(format!("{path} is there without {gone}"));
            }
            if !self.blobs.contains(blob) {
                return Err(format!("{path} is there without its blob"));
            }
        }
        match self.roots.iter().find(|root| !self.paths.contains_key(root)) {
            Some(root) => Err(format!("{root} is wanted, and gone")),
            None => Ok(()),
        }
    }

    /// Lets everybody come to rest, and collects once more.
    fn rest(&mut self) -> Result<(), String> {
        self.clients.iter_mut().for_each(|client| *client = Client::Idle);
        for _ in 0..1_000 {
            self.now = self.now.after_ms(1);
            if self.inherited_until.take_if(|until| *until <= self.now).is_some() {
                self.gate.settle();
            }
            self.collect();
        }
        while !matches!(self.collection, Collection::Idle) {
            self.collect();
        }
        self.check()?;
        let mut kept: BTreeSet<StorePath> = self.roots.iter().cloned().collect();
        let mut open: Vec<StorePath> = self.roots.clone();
        while let Some(path) = open.pop() {
            open.extend(self.paths[&path].0.iter().filter(|reference| kept.insert((*reference).clone())).cloned());
        }
        let named: BTreeSet<Sha256Hash> = self.paths.values().map(|(_, blob)| *blob).collect();
        if !self.paths.keys().eq(&kept) {
            return Err(format!("{} paths are left, and {} wanted", self.paths.len(), kept.len()));
        }
        if named == self.blobs { Ok(()) } else { Err(format!("{} blobs are left, and {} named", self.blobs.len(), named.len())) }
    }
}

fn info(path: &StorePath, references: &BTreeSet<StorePath>, blob: Sha256Hash) -> PathInfo {
    PathInfo {
        path: path.clone(),
        nar_hash: blob,
        nar_size_bytes: 1,
        references: references.clone(),
        deriver: None,
        content_address: None,
        blob: Blob { sha256: blob, blake3: Blake3Hash([0; 32]), size_bytes: 1 },
    }
}

fn run(seed: u64, bug: Bug) -> Result<(), String> {
    let mut world = World::new(seed, bug);
    for step in 0..250 {
        world.step();
        world.check().map_err(|broken| format!("seed {seed}, step {step}: {broken}"))?;
    }
    world.rest().map_err(|broken| format!("seed {seed}, at rest: {broken}"))
}

#[test]
fn nothing_that_somebody_relies_on_goes_and_in_the_end_all_else_has_gone() {
    for seed in 0..3_000 {
        run(seed, Bug::None).unwrap_or_else(|broken| panic!("{broken}"));
    }
}

#[test]
fn each_planted_bug_is_found() {
    for bug in BUGS {
        let found = (0..3_000).find_map(|seed| run(seed, bug).err());
        println!("{bug:?}: {found:?}");
        assert!(found.is_some(), "{bug:?} is found by no seed");
    }
}

#[test]
fn a_gate_that_lost_sight_lets_no_collection_begin_until_nothing_of_it_counts() {
    let mut gate = Gate::new(100, 3);
    let keys: Vec<Key> = (0..4).map(|at| Key::from(&number(at))).collect();
    assert_eq!(gate.touch(&keys[..3], Steady(0)), Pass::Free);
    assert_eq!(gate.touch(&keys[3..], Steady(10)), Pass::Free);
    for (at, wait_ms) in [(10, Some(100)), (109, Some(1)), (110, None)] {
        let blind = gate.begin(Steady(at)).err();
        assert_eq!(
            blind.map(|why| why.to_string().contains(&format!("in {wait} ms", wait = wait_ms.unwrap_or_default()))),
            wait_ms.map(|_| true)
        );
    }
    assert!(gate.begin(Steady(111)).is_err(), "one at a time");
    gate.end();
    gate.touch(&keys[..1], Steady(120));
    for (at, counts) in [(130, true), (220, true), (320, false)] {
        assert_eq!(!gate.begin(Steady(at)).expect("ready").is_empty(), counts, "at {at}");
        gate.end();
    }
}

#[test]
fn a_collection_of_another_leadership_is_over_and_ends_nothing_that_came_after_it() {
    let mut gate = Gate::new(100, 10);
    let late = Key::from(&number(0));
    gate.begin(Steady(0)).expect("ready");
    let old = gate.collection();
    gate.reset();
    gate.inherit([late]);
    assert_eq!((old.is_some(), gate.collection()), (true, None));
    gate.begin(Steady(1)).expect("ready");
    assert!(gate.collection() != old && gate.collection().is_some());
    // Whatever becomes of that one, what an earlier leader may be deleting stays condemned until it is gone.
    gate.release();
    gate.end();
    assert_eq!(gate.touch(&[late], Steady(2)), Pass::Wait);
    gate.settle();
    assert_eq!(gate.touch(&[late], Steady(2)), Pass::Free);
}
