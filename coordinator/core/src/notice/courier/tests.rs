//! The courier under leaders that die, logs that forget nothing and receivers that fail: from seeds.

use alloc::collections::BTreeSet;

use kiln_wire::limits::NOTICES_MAX;
use kiln_wire::{LogIndex, WorkerId};

use super::*;
use crate::notice::What;
use crate::{Command, Farm};

/// Returns whether a notice is about a worker with an even number: what receiver `half` wants.
fn is_even(notice: &Notice) -> bool {
    match &notice.what {
        What::Quarantined { worker, .. } => worker.as_str().ends_with(['0', '2', '4', '6', '8']),
        What::Finished(_) | What::Failing(_) => false,
    }
}

fn wants(receiver: &str, notice: &Notice) -> bool {
    receiver != "half" || is_even(notice)
}

/// Draws numbers from a seed (SplitMix64).
struct Draw(u64);

impl Draw {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 33) % bound
    }
}

/// A farm whose leaders come and go.
struct World {
    farm: Farm,
    courier: Courier,
    now: Timestamp,
    happened: Vec<(u64, Notice)>,
    under_way: Vec<Sending>,
    /// What each receiver took, in order.
    taken: BTreeMap<String, Vec<u64>>,
    lost: BTreeMap<String, u64>,
    given_up: u64,
}

impl World {
    fn new(receivers: &[&str]) -> Self {
        let mut world = Self {
            farm: Farm::new(),
            courier: Courier::default(),
            now: Timestamp(1),
            happened: Vec::new(),
            under_way: Vec::new(),
            taken: BTreeMap::new(),
            lost: BTreeMap::new(),
            given_up: 0,
        };
        let receivers = receivers.iter().map(|name| (*name).to_owned()).collect();
        world.apply(Command::Announce { receivers, now: world.now });
        world
    }

    fn apply(&mut self, command: Command) {
        let index = LogIndex(self.farm.applied().map_or(1, |applied| applied.0 + 1));
        self.farm.apply(index, command);
    }

    fn happen(&mut self) {
        let number = u64::try_from(self.happened.len()).expect("few") + 1;
        let worker = WorkerId::parse(&alloc::format!("w{number}")).expect("a name");
        self.farm.facts.outbox.quarantined(&worker, "no", self.now);
        let what = What::Quarantined { worker, message: "no".into() };
        self.happened.push((number, Notice { at: self.now, what }));
    }

    /// Does what is to be done; a note gets into the log if `notes`.
    fn act(&mut self, notes: bool) {
        let (tasks, _) = self.courier.tasks(self.farm.outbox(), wants, self.now);
        for task in tasks {
            match task {
                Task::Send(sending) => {
                    assert!(self.under_way.iter().all(|other| other.receiver != sending.receiver), "one at a time");
                    self.under_way.push(sending);
                }
                Task::Told { receiver, upto } if notes => self.apply(Command::Told { receiver, upto, now: self.now }),
                Task::Told { receiver, upto } => self.courier.noted(&receiver, upto, false, self.now, upto),
                Task::Lost { receiver, count } => *self.lost.entry(receiver).or_default() += count,
            }
        }
    }

    /// Ends what is under way at a place: taken, taken though the sender does not hear of it, or not taken.
    fn end(&mut self, place: usize, draw: u64) {
        let sending = self.under_way.swap_remove(place);
        if draw < 2 {
            self.taken.entry(sending.receiver.clone()).or_default().push(sending.number);
        }
        let fate = if draw == 0 { Fate::Taken } else { Fate::Failed("status 500".into()) };
        let given_up = self.courier.settle(&sending, fate, self.now, draw * 977);
        self.given_up += u64::from(given_up.is_some());
    }

    /// Another coordinator leads: it knows what the log says, and nothing of what was under way.
    fn fail_over(&mut self) {
        self.courier = Courier::default();
        for sending in core::mem::take(&mut self.under_way) {
            // It may have arrived all the same.
            if sending.number % 2 == 0 {
                self.taken.entry(sending.receiver).or_default().push(sending.number);
            }
        }
    }

    /// Lets everything arrive that is left.
    fn calm(&mut self) {
        for _ in 0..4 * (self.happened.len() + 4) {
            self.now = self.now.after_ms(2 * WEBHOOK_PAUSE_MS.1);
            self.act(true);
            while !self.under_way.is_empty() {
                self.end(0, 0);
            }
        }
    }

    fn check(&self, receiver: &str) {
        let wanted: Vec<u64> = self.happened.iter().filter(|(_, notice)| wants(receiver, notice)).map(|(number, _)| *number).collect();
        let taken = self.taken.get(receiver).cloned().unwrap_or_default();
        let (mut first, mut seen) = (Vec::new(), BTreeSet::new());
        for number in taken {
            if seen.insert(number) {
                first.push(number);
            }
        }
        assert_eq!(first, wanted, "{receiver}: every notice that it wants, first in order, whatever comes twice");
    }
}

#[test]
fn every_notice_arrives_in_order_whatever_dies() {
    for seed in 0..400 {
        let mut draw = Draw(seed);
        let mut world = World::new(&["all", "half"]);
        for _ in 0..120 {
            match draw.below(12) {
                0..3 => world.happen(),
                3..6 => world.act(draw.below(3) > 0),
                6..10 if !world.under_way.is_empty() => {
                    let place = usize::try_from(draw.below(u64::try_from(world.under_way.len()).expect("few"))).expect("few");
                    let fate = draw.below(4);
                    world.end(place, fate);
                }
                10 => world.fail_over(),
                _ => world.now = world.now.after_ms(draw.below(4_000)),
            }
        }
        world.calm();
        assert_eq!(world.given_up, 0, "seed {seed}: nothing failed for so long");
        ["all", "half"].iter().for_each(|receiver| world.check(receiver));
        assert_eq!(world.farm.outbox().after(0).count(), 0, "seed {seed}: what everybody was told is gone from the log's state");
    }
}

#[test]
fn a_receiver_that_is_away_holds_up_nobody_and_is_given_up_in_the_end() {
    let mut world = World::new(&["away", "here"]);
    world.happen();
    world.happen();
    let mut tries = 0;
    while world.given_up < 2 {
        world.act(true);
        while let Some(place) = world.under_way.iter().position(|sending| sending.receiver == "here") {
            world.end(place, 0);
            world.act(true);
        }
        if !world.under_way.is_empty() {
            world.end(0, 3);
            tries += 1;
        }
        world.now = world.now.after_ms(60_000);
        assert!(tries <= 2 * WEBHOOK_TRIES_MAX, "it is not tried for ever");
    }
    world.act(true);
    assert_eq!((world.taken["here"].as_slice(), tries), (&[1, 2][..], 2 * WEBHOOK_TRIES_MAX));
    let (delivered, given_up, settled, failing) = world.courier.standing("away");
    assert_eq!((delivered, given_up, settled, failing), (0, 2, 2, None));
    world.happen();
    world.calm();
    assert_eq!(world.taken["away"], [3], "it is back");
}

#[test]
fn pauses_double_up_to_a_bound_and_chance_adds_half_at_most() {
    let (least, most) = WEBHOOK_PAUSE_MS;
    assert_eq!((pause_ms(1, 0), pause_ms(2, 0), pause_ms(5, 0)), (least, 2 * least, 16 * least));
    for tries in 1..200 {
        let pause = pause_ms(tries, 0);
        assert!(pause <= most && pause_ms(tries, u64::MAX) < pause + pause / 2 + 1, "{tries}");
    }
    let whole: u64 = (1..WEBHOOK_TRIES_MAX).map(|tries| pause_ms(tries, 0)).sum();
    assert!((2..6).contains(&(whole / 3_600_000)), "some hours: {whole} ms");
}

#[test]
fn it_is_asked_again_when_a_pause_is_over() {
    let mut world = World::new(&["all"]);
    world.happen();
    world.act(true);
    world.end(0, 3);
    let (tasks, wake) = world.courier.tasks(world.farm.outbox(), wants, world.now);
    assert!(tasks.is_empty() && wake.is_some_and(|at| at > world.now), "{tasks:?} {wake:?}");
    world.now = wake.expect("it was looked at");
    let (tasks, wake) = world.courier.tasks(world.farm.outbox(), wants, world.now);
    assert!(matches!(tasks[..], [Task::Send(_)]) && wake.is_none(), "{tasks:?}");
    let (_, _, _, failing) = world.courier.standing("all");
    assert_eq!(failing.map(|failing| failing.tries), Some(1));
}

#[test]
fn too_many_that_wait_are_lost_once_and_that_is_said() {
    let mut world = World::new(&["all"]);
    (0..NOTICES_MAX + 7).for_each(|_| world.happen());
    world.act(true);
    world.act(true);
    assert_eq!(world.lost["all"], 7);
    assert_eq!(world.under_way[0].number, 8);
}

#[test]
fn a_leader_whose_notes_are_not_taken_sends_nothing_more_and_asks_the_log_less_and_less_often() {
    let mut world = World::new(&["all"]);
    (0..5).for_each(|_| world.happen());
    let (mut asked, begun) = (0, world.now);
    for _ in 0..600 {
        let (tasks, wake) = world.courier.tasks(world.farm.outbox(), wants, world.now);
        for task in tasks {
            match task {
                Task::Send(sending) => {
                    assert_eq!(sending.number, 1, "the log does not say yet that this was told");
                    let _ = world.courier.settle(&sending, Fate::Taken, world.now, 0);
                }
                Task::Told { receiver, upto } => {
                    asked += 1;
                    world.courier.noted(&receiver, upto, false, world.now, 0);
                }
                Task::Lost { .. } => panic!("nothing is lost"),
            }
        }
        assert!(wake.is_none_or(|at| at > world.now));
        world.now = world.now.after_ms(1_000);
    }
    assert!((5..=12).contains(&asked), "{asked} times in {} ms", world.now.since_ms(begun));
    world.now = world.now.after_ms(2 * WEBHOOK_PAUSE_MS.1);
    world.calm();
    assert_eq!(world.taken["all"], [2, 3, 4, 5], "it goes on when the log does");
}

#[test]
fn a_note_that_was_taken_though_it_seemed_not_to_be_holds_up_nothing() {
    let mut world = World::new(&["all"]);
    (0..2).for_each(|_| world.happen());
    world.act(true);
    world.end(0, 0);
    world.act(false);
    world.apply(Command::Told { receiver: "all".into(), upto: 1, now: world.now });
    world.act(true);
    assert_eq!(world.under_way.first().map(|sending| sending.number), Some(2));
}
