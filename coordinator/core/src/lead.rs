//! What a leader does with its farm, without the loop that does it: when it takes over, when it plans, what deadlines ask for, when to
//! look again.
//!
//! Pure: time comes in, commands come out; the shell proposes them and says what became of them. Does not do effects. Invariants: what
//! makes a job or a worker eligible leads to a plan; a proposal that failed is made again while the node leads.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec;
use alloc::vec::Vec;

use kiln_wire::{AttemptId, Epoch, Leader, Timestamp, WorkerId};

use crate::clock::Steady;
use crate::command::Command;
use crate::farm::Farm;
use crate::plan::{Limits, plan_beside};
use crate::report::PlanReport;
use crate::wake::WakeReason;

/// The leader's part of one coordinator.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lead {
    /// Under which leadership this node acts; none while it does not lead.
    leader: Option<Leader>,
    /// Something changed since the last plan.
    changed: bool,
    /// Leases are being proposed. Planning meanwhile would propose the same ones again.
    assigning: bool,
    /// The farm's deadlines up to this time were looked at. Those after it are not missed, whatever happens when they pass.
    looked_at: Timestamp,
    /// A proposal failed: not before this moment again.
    again_at: Option<Steady>,
    /// Registered workers that have no session with this leader, or one that is not registered yet, or that take nothing new: nothing is
    /// placed on them.
    away: BTreeSet<WorkerId>,
    /// Bounds of its plans.
    limits: Limits,
    /// Attempts whose builders have exited, by their workers: others may take their place.
    winding: BTreeMap<WorkerId, BTreeSet<AttemptId>>,
    /// When the last plan wants to look again whether a job is late.
    late_at: Option<Timestamp>,
}

/// What changed with the leadership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Nothing.
    Same,
    /// This node leads under a leadership that it has not acted under: it owes `Farm::pending_effects`, expects every registered
    /// worker, stamps nothing before `Farm::latest`, and looks at the deadlines, for one that passed while nobody led wakes nobody.
    TakesOver(Leader),
    /// This node leads no more: whatever it keeps for its workers is another's to keep.
    StepsDown,
}

impl Lead {
    /// Follows the leadership: `leader` is this node's own, none while it does not lead.
    pub fn follow(&mut self, leader: Option<Leader>) -> Turn {
        if leader == self.leader {
            return Turn::Same;
        }
        *self = Self { leader, changed: leader.is_some(), ..Self::default() };
        leader.map_or(Turn::StepsDown, Turn::TakesOver)
    }

    /// Returns the leadership under which this node acts.
    pub fn leader(&self) -> Option<Leader> {
        self.leader
    }

    /// Notes that something changed: the next [`Lead::plan`] plans.
    pub fn changed(&mut self) {
        self.changed = true;
    }

    /// Notes which registered workers are away, for the plans that follow.
    pub fn away(&mut self, away: BTreeSet<WorkerId>) {
        self.away = away;
    }

    /// Notes what bounds the plans that follow, and what the farm's version allows.
    pub fn bounded(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Notes which attempts only upload what they made, for the plans that follow.
    pub fn winding(&mut self, winding: BTreeMap<WorkerId, BTreeSet<AttemptId>>) {
        self.winding = winding;
    }

    /// Returns whether [`Lead::plan`] would plan.
    pub fn is_due(&self, steady: Steady) -> bool {
        self.leader.is_some() && self.changed && !self.assigning && self.again_at.is_none_or(|at| at <= steady)
    }

    /// Plans if that can tell something new. Returns the report with the leases to propose, if there are any: then
    /// [`Lead::assigned`] is owed.
    pub fn plan(&mut self, farm: &Farm, now: Timestamp, steady: Steady) -> Option<(Vec<Command>, PlanReport)> {
        if !self.is_due(steady) {
            return None;
        }
        self.changed = false;
        let (plan, report) = plan_beside(farm, now, &self.limits, &self.away, &self.winding);
        self.late_at = report.wake.filter(|(_, reason)| *reason == WakeReason::Late).map(|(at, _)| at);
        // An attempt's id is the index of its entry: one lease in each entry makes it unique in the farm. They are written together.
        let assign = |placement| Command::Assign { placements: vec![placement], now };
        let preempt = plan.preemptions.into_iter().map(|lease| Command::Preempt { lease, now });
        let copy = |(of, placement)| Command::Copy { of, placement, now };
        let commands = preempt.chain(plan.placements.into_iter().map(assign)).chain(plan.copies.into_iter().map(copy));
        let commands: Vec<Command> = commands.collect();
        self.assigning = !commands.is_empty();
        Some((commands, report))
    }

    /// Notes that the leases proposed under `leader` are applied, or that this failed.
    pub fn assigned(&mut self, leader: Leader, applied: bool, steady: Steady) {
        if self.leader == Some(leader) {
            self.assigning = false;
            self.changed = true;
            self.pause_if(!applied, steady);
        }
    }

    /// Returns the commands that deadlines ask for: of the farm, and of workers that are silent. They stay due until they are applied.
    pub fn enforce(&mut self, farm: &Farm, silent: impl IntoIterator<Item = (WorkerId, Option<Epoch>)>, now: Timestamp) -> Vec<Command> {
        if self.leader.is_none() {
            return Vec::new();
        }
        self.changed = true;
        self.again_at = None;
        self.looked_at = now;
        let judge = self.limits.judges;
        let lose = |(worker, epoch): (WorkerId, Option<Epoch>)| epoch.map(|epoch| Command::Lose { worker, epoch, judge, now });
        let mut commands = farm.due(now);
        commands.extend(silent.into_iter().filter_map(lose));
        commands
    }

    /// Notes what became of the proposal of [`Lead::enforce`] under `leader`. If it failed, silent workers are to be expected again.
    pub fn enforced(&mut self, leader: Leader, applied: bool, steady: Steady) {
        if self.leader == Some(leader) {
            self.pause_if(!applied, steady);
        }
    }

    /// Returns in how many milliseconds [`Lead::enforce`] is to be asked although nothing happens; none if only happenings matter.
    pub fn wake_after_ms(&self, farm: &Farm, silence: Option<Steady>, now: Timestamp, steady: Steady) -> Option<u64> {
        self.leader?;
        let late_at = self.late_at.filter(|at| *at > self.looked_at);
        let farm = farm.next_wake(self.looked_at).map(|(at, _reason)| at).into_iter().chain(late_at).min().map(|at| at.since_ms(now));
        let others = silence.into_iter().chain(self.again_at).map(|at| at.since_ms(steady));
        farm.into_iter().chain(others).min().map(|ms| ms.max(1))
    }

    fn pause_if(&mut self, failed: bool, steady: Steady) {
        if failed {
            self.again_at = Some(steady.after_ms(PAUSE_MS));
        }
    }
}

/// Milliseconds before a failed proposal is made again: what makes one fail while its node leads is a queue that is full.
const PAUSE_MS: u64 = 100;

#[cfg(test)]
mod tests {
    use alloc::string::String;

    use kiln_wire::worker::Offer;
    use kiln_wire::{DrvPath, JobKind, JobLimits, JobSpec, LogIndex, NodeId, RequestId, Resources};

    use super::*;

    const HERE: Leader = Leader { term: 1, node: NodeId(1) };

    /// A farm with one job that is ready for one worker.
    fn farm() -> Farm {
        let worker = WorkerId::parse("w1").expect("a name");
        let capacity = Resources { cores: 1, memory_mib: 1 };
        let offer = Offer {
            systems: BTreeSet::new(),
            features: BTreeSet::new(),
            capacity,
            slots: 1,
            guarantees: Default::default(),
            ..Offer::default()
        };
        let job = JobSpec {
            derivation: DrvPath::parse("0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar.drv").expect("a path"),
            system: String::from(crate::SYSTEM_BUILTIN),
            required_features: BTreeSet::new(),
            outputs: Default::default(),
            inputs: Vec::new(),
            kind: JobKind::Builtin,
            prefer_local: false,
            resources: Resources::default(),
            limits: JobLimits::default(),
            resolve: false,
        };
        let (request, now) = (RequestId(1), Timestamp(5));
        let mut farm = Farm::new();
        farm.apply(LogIndex(1), Command::Register { worker, offer, attempts: Vec::new(), since: None, judge: false, now });
        farm.apply(LogIndex(2), Command::Stage { request, jobs: vec![job], now: Timestamp(9) });
        farm.apply(LogIndex(3), Command::Submit { request, name: String::new(), roots: Vec::new(), keep_going: false, asker: None, now });
        farm
    }

    fn leases(lead: &mut Lead, farm: &Farm, steady: u64) -> Option<usize> {
        lead.plan(farm, Timestamp(10), Steady(steady)).map(|(commands, _)| commands.len())
    }

    #[test]
    fn the_latest_stamp_is_that_of_the_most_advanced_clock() {
        assert_eq!(farm().latest(), Timestamp(9));
    }

    #[test]
    fn a_plan_follows_a_change_and_no_second_one_while_leases_are_under_way() {
        let (farm, mut lead) = (farm(), Lead::default());
        lead.changed();
        assert_eq!(leases(&mut lead, &farm, 0), None, "a follower plans nothing");
        assert_eq!(lead.follow(Some(HERE)), Turn::TakesOver(HERE));
        assert_eq!(leases(&mut lead, &farm, 0), Some(1));
        lead.changed();
        assert_eq!(leases(&mut lead, &farm, 0), None);
        lead.assigned(HERE, true, Steady(0));
        assert_eq!(leases(&mut lead, &farm, 0), Some(1));
        lead.assigned(HERE, false, Steady(0));
        assert_eq!(leases(&mut lead, &farm, 1), None, "what failed is not proposed again at once");
        assert_eq!(lead.wake_after_ms(&farm, None, Timestamp(10), Steady(1)), Some(PAUSE_MS - 1));
        assert_eq!(lead.enforce(&farm, [], Timestamp(10)), []);
        assert_eq!(leases(&mut lead, &farm, 1), Some(1), "after the pause it is");
    }

    #[test]
    fn a_deadline_that_passes_while_something_else_happens_is_not_missed() {
        let (mut farm, mut lead) = (farm(), Lead::default());
        let (plan, _) = crate::plan(&farm, Timestamp(10), &Limits::STANDARD);
        farm.apply(LogIndex(4), Command::Assign { placements: plan.placements, now: Timestamp(10) });
        let worker = WorkerId::parse("w1").expect("a name");
        farm.apply(LogIndex(5), Command::Lose { worker, epoch: Epoch(1), judge: false, now: Timestamp(10) });
        lead.follow(Some(HERE));
        lead.enforce(&farm, [], Timestamp(10));
        let back_off = kiln_wire::limits::RETRY_BACKOFF_MS_MIN;
        assert_eq!(lead.wake_after_ms(&farm, None, Timestamp(10), Steady(0)), Some(back_off));
        let late = Timestamp(10 + back_off + 5);
        assert_eq!(lead.wake_after_ms(&farm, None, late, Steady(0)), Some(1), "asked too late, it is due at once");
        lead.enforce(&farm, [], late);
        assert_eq!(lead.wake_after_ms(&farm, None, late, Steady(0)), None);
    }

    #[test]
    fn a_worker_that_is_away_gets_nothing_until_it_is_back() {
        let (farm, mut lead) = (farm(), Lead::default());
        lead.follow(Some(HERE));
        lead.away(BTreeSet::from([WorkerId::parse("w1").expect("a name")]));
        assert_eq!(leases(&mut lead, &farm, 0), Some(0));
        lead.away(BTreeSet::new());
        lead.changed();
        assert_eq!(leases(&mut lead, &farm, 0), Some(1));
    }

    #[test]
    fn a_second_term_of_the_same_node_takes_over_again_and_forgets_what_was_under_way() {
        let (farm, mut lead) = (farm(), Lead::default());
        assert_eq!(lead.follow(Some(HERE)), Turn::TakesOver(HERE));
        assert_eq!(leases(&mut lead, &farm, 0), Some(1));
        let again = Leader { term: 3, ..HERE };
        assert_eq!(lead.follow(Some(again)), Turn::TakesOver(again));
        assert_eq!(leases(&mut lead, &farm, 0), Some(1));
        lead.assigned(HERE, true, Steady(0));
        lead.changed();
        assert_eq!(leases(&mut lead, &farm, 0), None, "the first term's proposal says nothing of the second's");
        assert_eq!(lead.follow(None), Turn::StepsDown);
        assert_eq!(lead.enforce(&farm, [(WorkerId::parse("w1").expect("a name"), Some(Epoch(1)))], Timestamp(10)), []);
        assert_eq!(lead.wake_after_ms(&farm, Some(Steady(5)), Timestamp(10), Steady(0)), None, "a follower has no deadlines");
    }
}
