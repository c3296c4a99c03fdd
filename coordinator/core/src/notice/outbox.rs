//! Notices, numbered, and up to which number each receiver was told. Pure.
//!
//! Invariant: as long as nobody is to be told, nothing is kept; a notice that everybody was told is gone.

use alloc::borrow::ToOwned;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use kiln_wire::client::BuildState;
use kiln_wire::limits::{NOTICES_MAX, RECEIVER_NAME_BYTES_MAX, RECEIVERS_MAX};
use kiln_wire::{BuildId, Timestamp, WorkerId};
use serde::{Deserialize, Serialize};

use crate::effect::BuildRecord;

/// Something that receivers are told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// When it happened.
    pub at: Timestamp,
    /// What did.
    pub what: What,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum What {
    /// A build ended, what it made is published, and the archive has its record.
    Finished(BuildId),
    /// As `Finished`, of a build with failures: those are held against the build of its name before. If none is new, there is nothing to tell.
    Failing(BuildId),
    /// A worker gets no more jobs, for they kept failing there.
    Quarantined {
        /// Which.
        worker: WorkerId,
        /// The last failure, in words.
        message: String,
    },
}

/// What waits to be told, and how far each receiver is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outbox {
    /// The last number that was given.
    last: u64,
    /// By number, without gaps up to the last.
    notices: BTreeMap<u64, Notice>,
    /// Up to which number each receiver was told.
    receivers: BTreeMap<String, u64>,
}

impl Outbox {
    /// Returns whether it says nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Returns who is told.
    pub fn receivers(&self) -> impl Iterator<Item = &str> {
        self.receivers.keys().map(String::as_str)
    }

    /// Returns up to which number a receiver was told.
    pub fn told_upto(&self, receiver: &str) -> Option<u64> {
        self.receivers.get(receiver).copied()
    }

    /// Returns the notices with a number above this one, in their order.
    pub fn after(&self, number: u64) -> impl Iterator<Item = (u64, &Notice)> {
        let from = number.saturating_add(1);
        self.notices.range(from..).map(|(number, notice)| (*number, notice))
    }

    /// Returns how many notices with a number above this one are gone, though somebody who was told up to there was not told of them.
    pub fn lost_after(&self, number: u64) -> u64 {
        let first = self.notices.keys().next().copied().unwrap_or(self.last.saturating_add(1));
        first.saturating_sub(number.saturating_add(1))
    }

    /// Returns whether these are the receivers.
    pub fn is_for(&self, receivers: &[String]) -> bool {
        receivers.len() == self.receivers.len() && receivers.iter().all(|receiver| self.receivers.contains_key(receiver))
    }

    /// Returns whether its notices are the last ones, without gaps, and each waits for somebody, as far as there are few enough.
    pub(crate) fn is_sound(&self) -> bool {
        let least = self.receivers.values().min().copied().unwrap_or(self.last);
        let first = least.saturating_add(1).max(self.last.saturating_sub(u64::try_from(NOTICES_MAX).unwrap_or(u64::MAX)).saturating_add(1));
        self.receivers.values().all(|upto| *upto <= self.last)
            && self.notices.len() <= NOTICES_MAX
            && self.notices.keys().copied().eq(first..=self.last)
    }

    /// Has these receivers told, and no others. More of them than may be, or longer names, are left out.
    pub(crate) fn announce(&mut self, receivers: Vec<String>) {
        let fits = |name: &String| name.len() <= RECEIVER_NAME_BYTES_MAX;
        let last = self.last;
        let told = |name: String| {
            let upto = self.receivers.get(&name).copied().unwrap_or(last);
            (name, upto)
        };
        self.receivers = receivers.into_iter().filter(fits).take(RECEIVERS_MAX).map(told).collect();
        self.tidy();
    }

    /// Notes up to which number a receiver was told; nobody is told less by it.
    pub(crate) fn told(&mut self, receiver: &str, upto: u64) {
        if let Some(known) = self.receivers.get_mut(receiver) {
            *known = upto.min(self.last).max(*known);
            self.tidy();
        }
    }

    /// Adds that a build ended.
    pub(crate) fn ended(&mut self, record: &BuildRecord, now: Timestamp) {
        self.add(Notice { at: now, what: What::Finished(record.build) });
        let fails = match record.state {
            BuildState::Active | BuildState::Built => false,
            // Whoever cancels a build knows what it did.
            BuildState::Cancelled => false,
            BuildState::Failed => true,
        };
        let has_errors = record.evaluation.as_ref().is_some_and(|evaluation| evaluation.errors_count() > 0);
        if fails || has_errors && record.state != BuildState::Cancelled {
            self.add(Notice { at: now, what: What::Failing(record.build) });
        }
    }

    /// Adds that a worker was quarantined.
    pub(crate) fn quarantined(&mut self, worker: &WorkerId, message: &str, now: Timestamp) {
        self.add(Notice { at: now, what: What::Quarantined { worker: worker.clone(), message: message.to_owned() } });
    }

    fn add(&mut self, notice: Notice) {
        if self.receivers.is_empty() {
            return;
        }
        self.last = self.last.saturating_add(1);
        self.notices.insert(self.last, notice);
        if self.notices.len() > NOTICES_MAX {
            self.notices.pop_first();
        }
    }

    /// Lets go of what everybody was told.
    fn tidy(&mut self) {
        let Some(least) = self.receivers.values().min().copied() else {
            self.notices.clear();
            return;
        };
        self.notices = self.notices.split_off(&least.saturating_add(1));
    }
}

#[cfg(test)]
mod tests {
    use alloc::format;

    use super::*;

    fn outbox(receivers: &[&str]) -> Outbox {
        let mut outbox = Outbox::default();
        outbox.announce(receivers.iter().map(|name| (*name).to_owned()).collect());
        outbox
    }

    fn add(outbox: &mut Outbox, count: u64) {
        (0..count).for_each(|_| outbox.quarantined(&WorkerId::parse("w1").expect("a name"), "no", Timestamp(1)));
    }

    fn waiting(outbox: &Outbox, receiver: &str) -> Vec<u64> {
        outbox.after(outbox.told_upto(receiver).expect("it is told")).map(|(number, _)| number).collect()
    }

    #[test]
    fn a_notice_stays_until_everybody_was_told() {
        let mut outbox = outbox(&["a", "b"]);
        add(&mut outbox, 3);
        outbox.told("a", 2);
        assert_eq!((waiting(&outbox, "a"), waiting(&outbox, "b")), (alloc::vec![3], alloc::vec![1, 2, 3]));
        outbox.told("a", 1);
        assert_eq!(waiting(&outbox, "a"), [3], "nobody is told less by a late word");
        outbox.told("b", 99);
        assert_eq!((waiting(&outbox, "b"), outbox.notices.len()), (Vec::new(), 1), "nobody was told what did not happen");
        outbox.told("c", 3);
        outbox.told("a", 3);
        assert!(outbox.notices.is_empty());
    }

    #[test]
    fn who_is_new_is_told_of_what_happens_from_then_on_and_who_is_gone_holds_nothing() {
        let mut outbox = outbox(&["a"]);
        add(&mut outbox, 2);
        outbox.announce(alloc::vec!["a".into(), "b".into()]);
        assert_eq!((waiting(&outbox, "a"), waiting(&outbox, "b")), (alloc::vec![1, 2], Vec::new()));
        add(&mut outbox, 1);
        outbox.announce(alloc::vec!["b".into()]);
        assert_eq!((waiting(&outbox, "b"), outbox.notices.len()), (alloc::vec![3], 1));
        outbox.announce(Vec::new());
        add(&mut outbox, 1);
        assert!(outbox.notices.is_empty(), "nobody is to be told");
        let many: Vec<String> = (0..=RECEIVERS_MAX).map(|number| format!("r{number:02}")).collect();
        outbox.announce(many);
        assert_eq!(outbox.receivers().count(), RECEIVERS_MAX);
    }

    #[test]
    fn what_waits_is_bounded_and_what_is_lost_by_that_is_known() {
        let mut outbox = outbox(&["a"]);
        let count = u64::try_from(NOTICES_MAX).expect("few") + 5;
        add(&mut outbox, count);
        assert_eq!((outbox.notices.len(), outbox.lost_after(0), outbox.lost_after(3), outbox.lost_after(5)), (NOTICES_MAX, 5, 2, 0));
        outbox.told("a", count);
        assert_eq!(outbox.lost_after(count), 0);
    }

    #[test]
    fn an_outbox_from_elsewhere_is_looked_at() {
        let mut sound = outbox(&["a", "b"]);
        add(&mut sound, 4);
        sound.told("a", 3);
        sound.told("b", 2);
        assert!(sound.is_sound() && Outbox::default().is_sound());
        let stays_sound = |change: fn(&mut Outbox)| {
            let mut outbox = sound.clone();
            change(&mut outbox);
            outbox.is_sound()
        };
        assert!(!stays_sound(|of| of.notices.retain(|number, _| *number != 3)), "a gap");
        assert!(!stays_sound(|of| of.receivers.extend([("a".into(), 5)])), "told of what did not happen");
        assert!(!stays_sound(|of| of.receivers.extend([("b".into(), 3)])), "nobody waits for it");
        assert!(!stays_sound(|of| of.receivers.clear()), "nobody waits for any");
        assert!(!stays_sound(|of| of.last = 9), "the last are missing");
    }
}
