//! Whose turn it is, within one plan.
//!
//! The security class goes first. Then the tenant that is furthest below its share, of its projects the one that is furthest below its
//! own, and of that project's jobs the most urgent: by priority, then by upward rank. What a plan places counts at once. With one tenant
//! and one project the order is that of urgency alone.

use alloc::collections::{BTreeMap, BinaryHeap};
use alloc::vec::Vec;
use core::cmp::Reverse;

use kiln_wire::{Account, Resources, Share, TenantName, Timestamp};

use super::amount::{ALL, Amount, Whole};
use super::party::{Aged, Member, Party};
use crate::farm::Farm;
use crate::index::{Lines, ReadyEntry};

/// A line of ready jobs in a plan, by its place among all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LineNo(pub usize);

/// The lines of a plan, in the order of their turns.
pub(crate) struct Turns<'a> {
    whole: Whole,
    now: Timestamp,
    farm: &'a Farm,
    tenants: Vec<Standing>,
    tenants_known: BTreeMap<Option<&'a TenantName>, usize>,
    projects: Vec<Standing>,
    projects_known: BTreeMap<&'a Account, usize>,
    groups: Vec<Group>,
    groups_known: BTreeMap<(Reverse<bool>, &'a [Member]), usize>,
    /// By line.
    lines: Vec<(usize, Aged)>,
    /// Groups with a job that waits for its turn. A score that has risen since is found when its turn comes.
    order: BinaryHeap<Reverse<Turn>>,
    /// Groups that are to be entered in the order again.
    open: Vec<usize>,
    /// All lines are entered, so that it is known who used least.
    settled: bool,
}

/// A group's turn: the security class first, then whoever is furthest below its share, then the most urgent.
type Turn = (Reverse<bool>, Score, Head, usize);

/// How far somebody is towards its share: the tenant, then the project.
type Score = (u64, u64);

/// The first job of a line.
type Head = (Aged, ReadyEntry, LineNo);

/// Lines whose jobs are charged to the same accounts.
struct Group {
    security: Reverse<bool>,
    /// Tenants and projects, by their places, and how many builds of each want the jobs.
    members: Vec<(usize, usize, u32)>,
    builds: usize,
    heads: BinaryHeap<Reverse<Head>>,
}

/// What somebody holds, against what it is entitled to.
struct Standing {
    held: Amount,
    /// What it held lately, in the mean, of [`ALL`].
    lately: u64,
    /// What all that is divided by.
    weight: u64,
    /// Among whom it is: those of equal numbers share.
    among: usize,
    /// What counts as held because it used more than others lately: at most a slot, of [`ALL`].
    ahead: u64,
}

impl<'a> Turns<'a> {
    /// Begins without lines.
    pub fn of(farm: &'a Farm, now: Timestamp) -> Self {
        Self {
            whole: farm.index.fleet.whole,
            now,
            farm,
            tenants: Vec::new(),
            tenants_known: BTreeMap::new(),
            projects: Vec::new(),
            projects_known: BTreeMap::new(),
            groups: Vec::new(),
            groups_known: BTreeMap::new(),
            lines: Vec::new(),
            order: BinaryHeap::new(),
            open: Vec::new(),
            settled: false,
        }
    }

    /// Enters a line of a party's jobs.
    pub fn enter(&mut self, party: &'a Party) -> LineNo {
        let known = self.groups_known.get(&(Reverse(party.security), &*party.members)).copied();
        let group = known.unwrap_or_else(|| {
            let members = party.members.iter().map(|member| (self.tenant(&member.account), self.project(&member.account), member.builds));
            let members: Vec<(usize, usize, u32)> = members.collect();
            let builds = members.iter().map(|(.., builds)| *builds as usize).sum();
            self.groups.push(Group { security: Reverse(party.security), members, builds, heads: BinaryHeap::new() });
            self.groups_known.insert((Reverse(party.security), &*party.members), self.groups.len() - 1);
            self.groups.len() - 1
        });
        self.lines.push((group, party.aged(self.now)));
        LineNo(self.lines.len() - 1)
    }

    /// Gives a line its next job, if it has one.
    pub fn put(&mut self, line: LineNo, entry: Option<ReadyEntry>) {
        let (group, aged) = self.lines[line.0];
        if let Some(entry) = entry {
            self.groups[group].heads.push(Reverse((aged, entry, line)));
            if self.open.last() != Some(&group) {
                self.open.push(group);
            }
        }
    }

    /// Takes the job whose turn it is. Its line is to get its next one.
    pub fn next(&mut self) -> Option<(LineNo, ReadyEntry)> {
        self.settle();
        while let Some(group) = self.open.pop() {
            self.queue(group);
        }
        while let Some(Reverse((_, score, head, group))) = self.order.pop() {
            // What came before it since has taken its turn, or it has become another's.
            let Some(Reverse(first)) = self.groups[group].heads.peek() else { continue };
            if *first != head {
                continue;
            }
            if self.score(group) != score {
                self.queue(group);
                continue;
            }
            self.groups[group].heads.pop();
            self.open.push(group);
            let (_, entry, line) = head;
            return Some((line, entry));
        }
        None
    }

    /// Says who is ahead by what was used lately, once all lines are entered.
    fn settle(&mut self) {
        if !core::mem::replace(&mut self.settled, true) {
            settle(&mut self.tenants, self.whole);
            settle(&mut self.projects, self.whole);
        }
    }

    /// Counts what a job of a line was given.
    pub fn charge(&mut self, line: LineNo, granted: Resources, light: bool) {
        let group = &self.groups[self.lines[line.0].0];
        let each = Amount::of(granted, light, group.builds);
        for (tenant, project, builds) in &group.members {
            for standing in [&mut self.tenants[*tenant], &mut self.projects[*project]] {
                standing.held = standing.held.and(each.times(*builds));
            }
        }
    }

    fn queue(&mut self, group: usize) {
        let (score, known) = (self.score(group), &self.groups[group]);
        if let Some(Reverse(head)) = known.heads.peek() {
            self.order.push(Reverse((known.security, score, head.clone(), group)));
        }
    }

    /// Returns the score of whoever of a group is furthest below its share. It never falls within a plan.
    fn score(&self, group: usize) -> Score {
        let of = |(tenant, project, _): &(usize, usize, u32)| {
            (self.tenants[*tenant].score(self.whole), self.projects[*project].score(self.whole))
        };
        self.groups[group].members.iter().map(of).min().unwrap_or_default()
    }

    fn tenant(&mut self, account: &'a Account) -> usize {
        if let Some(known) = self.tenants_known.get(&account.tenant.as_ref()) {
            return *known;
        }
        let (index, ledger) = (&self.farm.index, &self.farm.facts.ledger);
        let first = Account { tenant: account.tenant.clone(), project: None };
        let own = index.held.range(first..).take_while(|(other, _)| other.tenant == account.tenant);
        self.tenants.push(Standing {
            held: own.fold(Amount::default(), |sum, (_, held)| sum.and(*held)),
            lately: ledger.lately_of(account.tenant.as_ref(), self.now),
            weight: weight(ledger.share(account, false)),
            among: 0,
            ahead: 0,
        });
        self.tenants_known.insert(account.tenant.as_ref(), self.tenants.len() - 1);
        self.tenants.len() - 1
    }

    fn project(&mut self, account: &'a Account) -> usize {
        if let Some(known) = self.projects_known.get(account) {
            return *known;
        }
        let among = self.tenant(account);
        let ledger = &self.farm.facts.ledger;
        self.projects.push(Standing {
            held: self.farm.index.held.get(account).copied().unwrap_or_default(),
            lately: ledger.lately(account, self.now),
            weight: weight(ledger.share(account, true)),
            among,
            ahead: 0,
        });
        self.projects_known.insert(account, self.projects.len() - 1);
        self.projects.len() - 1
    }
}

impl Farm {
    /// Returns whether of the ready jobs of a class those of others go first: of the security class, or of whoever is further below its share.
    pub(crate) fn others_first(&self, party: &Party, class: &Lines) -> bool {
        if class.len() > CLASS_PARTIES_MAX {
            return false;
        }
        let mut turns = Turns::of(self, self.facts.latest);
        let own = turns.enter(party);
        class.keys().for_each(|other| {
            turns.enter(other);
        });
        turns.settle();
        let key = |group: usize| (turns.groups[group].security, turns.score(group));
        let own = key(turns.lines[own.0].0);
        (0..turns.groups.len()).any(|group| key(group) < own)
    }
}

/// Parties of a class that are looked at for one job's reason: a bound on what it costs to list them all.
const CLASS_PARTIES_MAX: usize = 64;

impl Standing {
    /// Returns the part of the fleet that it holds over its weight.
    fn score(&self, whole: Whole) -> u64 {
        over(self.held.dominant(whole).saturating_add(self.ahead), self.weight)
    }
}

/// Says who is ahead by what was used lately. That counts many times, so that the slots which do not divide go round, and as a slot at most,
/// so that nobody is kept from its share who comes after a rest.
fn settle(standings: &mut [Standing], whole: Whole) {
    let mut least: BTreeMap<usize, u64> = BTreeMap::new();
    for standing in standings.iter() {
        let used = over(standing.lately.min(ALL), standing.weight);
        least.entry(standing.among).and_modify(|least| *least = used.min(*least)).or_insert(used);
    }
    for standing in standings {
        let used = over(standing.lately.min(ALL), standing.weight);
        let more = used - least.get(&standing.among).copied().unwrap_or(used);
        let part = (u128::from(more) * u128::from(standing.weight)) >> WEIGHT_BITS;
        let ahead = u64::try_from(part).unwrap_or(u64::MAX).saturating_mul(LATELY_COUNTS);
        standing.ahead = ahead.min(ALL / whole.slots.max(1));
    }
}

/// Returns a part of the fleet over a weight.
fn over(part: u64, weight: u64) -> u64 {
    u64::try_from((u128::from(part) << WEIGHT_BITS) / u128::from(weight.max(1))).unwrap_or(u64::MAX)
}

/// How many times what was used lately counts: whoever is ahead by an eighth of a slot in the mean waits for the others.
const LATELY_COUNTS: u64 = 8;

/// Returns what a part of the fleet is divided by: the weight, doubled for each ten points of priority.
pub(crate) fn weight(share: Share) -> u64 {
    let points = usize::try_from(i32::from(share.priority.points()) + 100).unwrap_or(100);
    u64::from(share.weight.max(1)).saturating_mul(TENTHS[points % 10] << (points / 10))
}

/// 1024 times 2 to the power of so many tenths.
const TENTHS: [u64; 10] = [1024, 1098, 1176, 1261, 1351, 1448, 1552, 1663, 1783, 1911];

/// Scores are shifted by so much: the largest divisor is 2^40, and one slot of 10,000 is 2^17 of [`ALL`].
const WEIGHT_BITS: u32 = 30;

#[cfg(test)]
mod tests {
    use kiln_wire::Priority;

    use super::*;

    #[test]
    fn ten_points_double_a_weight() {
        let of = |weight, points: i8| super::weight(Share { weight, priority: Priority::from(points), ..Share::default() });
        for points in -100..=90 {
            let (once, twice) = (of(3, points), of(3, points + 10));
            assert_eq!(twice, 2 * once, "{points} points");
            assert!(of(3, points + 1) > once, "{points} points");
        }
        assert_eq!(of(1_000, 0), 1_000 * of(1, 0));
        assert!(of(1_000, 100) < 1 << 41);
    }

    #[test]
    fn a_score_tells_slots_of_a_large_fleet_apart_for_every_weight() {
        let whole = Whole { cores: 100_000, memory_mib: 1 << 28, slots: 10_000 };
        for weight in [1, 1_000] {
            for points in [-100, 0, 100] {
                let divisor = super::weight(Share { weight, priority: Priority::from(points), ..Share::default() });
                let score = |slots: u32| {
                    let held = Amount::of(Resources { cores: 1, memory_mib: 0 }, false, 1).times(slots);
                    Standing { held, lately: 0, weight: divisor, among: 0, ahead: 0 }.score(whole)
                };
                assert!(score(0) < score(1) && score(1) < score(2) && score(9_999) < score(10_000), "{weight} and {points} points");
            }
        }
    }
}
