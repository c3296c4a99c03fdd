//! What a run is made of, all drawn from its seed: sizes, delays, and which kinds of faults it has.

use crate::dice::Dice;

/// The shape of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Voting coordinators at the start.
    pub coordinators: usize,
    /// Workers.
    pub workers: usize,
    /// Clients.
    pub clients: usize,
    /// Derivations that can be asked for.
    pub jobs: usize,
    /// Longest usual delay of a message, in microseconds.
    pub delay_us_max: u64,
    /// Messages lost, of a thousand.
    pub loss: u64,
    /// Messages that come twice, of a thousand.
    pub duplicated: u64,
    /// Milliseconds during which faults happen.
    pub faults_ms: u64,
    /// Coordinators crash and restart, hand over, and lose what they did not sync.
    pub coordinators_fail: bool,
    /// Links between coordinators are cut, in one direction or both.
    pub coordinators_part: bool,
    /// Coordinators' clocks are apart, drift and jump.
    pub clocks: bool,
    /// Coordinators' disks fill up and are slow.
    pub disks: bool,
    /// Coordinators join, leave and are replaced.
    pub members: bool,
    /// Workers crash, with and without their journal, stand still, and are told to finish.
    pub workers_fail: bool,
    /// Workers' machines are short of something for a while.
    pub workers_strain: bool,
    /// One worker fails everything that it is given, until everything is mended.
    pub black_hole: bool,
    /// Workers are cut off from coordinators.
    pub workers_part: bool,
    /// The store fails for a while.
    pub store_fails: bool,
    /// Derivations that fail, need more memory, or are not deterministic.
    pub jobs_fail: bool,
    /// Clients cancel.
    pub cancels: bool,
    /// Somebody bumps, restarts and, if clients cancel, cancels jobs.
    pub steers: bool,
    /// Running jobs get a second attempt now and then, whether they are late or not.
    pub copies: bool,
    /// Proposals find the queue full, of a thousand.
    pub busy: u64,
}

impl Options {
    /// Draws the shape of the run.
    pub(crate) fn draw(dice: &mut Dice) -> Self {
        let coordinators = [1, 3, 3, 3, 3, 5][dice.place(6)];
        Self {
            coordinators,
            workers: 1 + dice.place(4),
            clients: 1 + dice.place(3),
            jobs: 2 + dice.place(9),
            delay_us_max: [200, 2_000, 20_000][dice.place(3)],
            loss: [0, 0, 10, 100][dice.place(4)],
            duplicated: [0, 10, 100][dice.place(3)],
            faults_ms: dice.between(2_000, 30_000),
            coordinators_fail: dice.chance(600),
            coordinators_part: dice.chance(500),
            clocks: dice.chance(400),
            disks: dice.chance(300),
            members: coordinators > 1 && dice.chance(300),
            workers_fail: dice.chance(500),
            workers_part: dice.chance(400),
            store_fails: dice.chance(300),
            jobs_fail: dice.chance(400),
            cancels: dice.chance(400),
            busy: [0, 0, 30][dice.place(3)],
            // Drawn aside: runs without it stay what they were.
            workers_strain: dice.clone().chance(300),
            steers: dice.clone().chance(500),
            copies: {
                let mut aside = dice.clone();
                aside.below(1_000);
                aside.chance(500)
            },
            black_hole: dice.clone().place(10) == 9,
        }
    }

    /// Returns whether somebody cancels single jobs.
    pub(crate) fn jobs_are_cancelled(&self) -> bool {
        self.steers && self.cancels
    }

    /// Returns whether a worker, its link or the store may fail a job that is sound.
    pub(crate) fn sound_work_may_fail(&self) -> bool {
        self.workers_fail || self.workers_part || self.store_fails || self.black_hole
    }
}
