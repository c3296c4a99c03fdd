//! What the leader sends to whom next, and when. Pure: time and chance come in as values.
//!
//! To each receiver one message is under way at a time, so that it hears everything in order. A message that fails is tried again after a
//! pause that doubles, and is given up after [`WEBHOOK_TRIES_MAX`] tries; receivers do not wait for each other. What was told is noted in the
//! log before the next one is sent: a leader that dies in between, or that the others have cut off, leaves one message that its successor sends
//! again, under the same number. A note that the log does not take is tried again after such a pause too.

use alloc::borrow::ToOwned;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use kiln_wire::limits::{WEBHOOK_PAUSE_MS, WEBHOOK_TRIES_MAX};
use kiln_wire::{Failing, Timestamp};

use super::{Notice, Outbox};

/// What the leader is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// Send this, then say what became of it.
    Send(Sending),
    /// Propose [`crate::Command::Told`].
    Told {
        /// Which receiver.
        receiver: String,
        /// Up to which number.
        upto: u64,
    },
    /// Say that a receiver will not be told of so many notices: too many waited.
    Lost {
        /// Which receiver.
        receiver: String,
        /// How many.
        count: u64,
    },
}

/// A message to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sending {
    /// To whom.
    pub receiver: String,
    /// The notice's number, the same from whichever leader.
    pub number: u64,
    /// What is told.
    pub notice: Notice,
}

/// What became of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The receiver has it.
    Taken,
    /// There was nothing to tell.
    Void,
    /// It failed, as these words say.
    Failed(String),
}

/// What a leader knows of the receivers. It begins anew with each leader.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Courier {
    lines: BTreeMap<String, Line>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Line {
    /// Everything up to this number is settled, whether the log says so already or not.
    settled: u64,
    /// The last number that was under way and is not any more.
    passed: u64,
    /// What the log is being asked to note.
    noting: Option<u64>,
    /// How often in a row the log did not take a note, and when it is asked again.
    not_noted: Option<(u32, Timestamp)>,
    /// The number of the message that is under way.
    under_way: Option<u64>,
    /// How the first message that waits fails, and when it is tried again.
    failing: Option<(Failing, Timestamp)>,
    delivered: u64,
    given_up: u64,
}

impl Courier {
    /// Returns what is to be done at this moment, and when to ask again at the latest; none: when something happens. `wants` says whether
    /// a receiver wants a notice.
    pub fn tasks(&mut self, outbox: &Outbox, wants: impl Fn(&str, &Notice) -> bool, now: Timestamp) -> (Vec<Task>, Option<Timestamp>) {
        self.lines.retain(|receiver, _| outbox.told_upto(receiver).is_some());
        let (mut tasks, mut wake) = (Vec::new(), None::<Timestamp>);
        for receiver in outbox.receivers() {
            let told = outbox.told_upto(receiver).unwrap_or_default();
            let line = self.lines.entry(receiver.to_owned()).or_default();
            line.settled = line.settled.max(told);
            // Also a note of which nobody said that the log took it.
            if line.settled <= told || line.noting.is_some_and(|upto| upto <= told) {
                (line.noting, line.not_noted) = (None, None);
            }
            let lost = if line.under_way.is_some() { 0 } else { outbox.lost_after(line.settled) };
            if lost > 0 {
                line.settled = line.settled.saturating_add(lost);
                line.given_up = line.given_up.saturating_add(lost);
                line.failing = None;
                tasks.push(Task::Lost { receiver: receiver.to_owned(), count: lost });
            }
            if line.under_way.is_none() && line.passed <= told && line.not_noted.is_none() {
                wake = [wake, line.next(receiver, outbox, &wants, now, &mut tasks)].into_iter().flatten().min();
            }
            if line.settled > told && line.noting.is_none() {
                match line.not_noted {
                    Some((_, due)) if due > now => wake = [wake, Some(due)].into_iter().flatten().min(),
                    Some(_) | None => {
                        line.noting = Some(line.settled);
                        tasks.push(Task::Told { receiver: receiver.to_owned(), upto: line.settled });
                    }
                }
            }
        }
        (tasks, wake)
    }

    /// Notes what became of a message. `chance` is any number. Returns how it fails, if it is given up by that.
    pub fn settle(&mut self, sending: &Sending, fate: Fate, now: Timestamp, chance: u64) -> Option<Failing> {
        let line = self.lines.get_mut(&sending.receiver).filter(|line| line.under_way == Some(sending.number))?;
        line.under_way = None;
        let failed = match fate {
            Fate::Taken => {
                line.delivered = line.delivered.saturating_add(1);
                None
            }
            Fate::Void => None,
            Fate::Failed(error) => Some(error),
        };
        let Some(error) = failed else {
            line.pass(sending.number);
            return None;
        };
        let (since, tries) = line.failing.as_ref().map_or((now, 0), |(failing, _)| (failing.since, failing.tries));
        let failing = Failing { since, tries: tries.saturating_add(1), error };
        if failing.tries >= WEBHOOK_TRIES_MAX {
            line.given_up = line.given_up.saturating_add(1);
            line.pass(sending.number);
            return Some(failing);
        }
        let due = now.after_ms(pause_ms(failing.tries, chance));
        line.failing = Some((failing, due));
        None
    }

    /// Notes whether the log took a note. One that it did not take is tried again later, and until then nothing is sent. `chance` is any number.
    pub fn noted(&mut self, receiver: &str, upto: u64, is_taken: bool, now: Timestamp, chance: u64) {
        let Some(line) = self.lines.get_mut(receiver).filter(|line| line.noting == Some(upto)) else { return };
        line.noting = None;
        line.not_noted = match is_taken {
            true => None,
            false => {
                let tries = line.not_noted.map_or(0, |(tries, _)| tries).saturating_add(1);
                Some((tries, now.after_ms(pause_ms(tries, chance))))
            }
        };
    }

    /// Returns how a receiver does: how many messages it took, how many it will never get, up to which number it is settled, and how it fails.
    pub fn standing(&self, receiver: &str) -> (u64, u64, u64, Option<Failing>) {
        let Some(line) = self.lines.get(receiver) else { return (0, 0, 0, None) };
        (line.delivered, line.given_up, line.settled, line.failing.as_ref().map(|(failing, _)| failing.clone()))
    }
}

impl Line {
    /// Begins with the next message that is wanted, if its time has come; returns when it will have.
    fn next(
        &mut self,
        receiver: &str,
        outbox: &Outbox,
        wants: &impl Fn(&str, &Notice) -> bool,
        now: Timestamp,
        tasks: &mut Vec<Task>,
    ) -> Option<Timestamp> {
        for (number, notice) in outbox.after(self.settled) {
            if !wants(receiver, notice) {
                self.settled = number;
                continue;
            }
            match &self.failing {
                Some((_, due)) if *due > now => return Some(*due),
                Some(_) | None => {
                    self.under_way = Some(number);
                    tasks.push(Task::Send(Sending { receiver: receiver.to_owned(), number, notice: notice.clone() }));
                    return None;
                }
            }
        }
        None
    }

    fn pass(&mut self, number: u64) {
        self.settled = self.settled.max(number);
        self.passed = number;
        self.failing = None;
    }
}

/// Returns the pause after so many tries of a message. `chance` is any number.
pub fn pause_ms(tries: u32, chance: u64) -> u64 {
    let (least, most) = WEBHOOK_PAUSE_MS;
    let pause = least.saturating_mul(1_u64.checked_shl(tries.saturating_sub(1)).unwrap_or(u64::MAX)).min(most);
    pause.saturating_add(chance % (pause / 2).max(1))
}

#[cfg(test)]
mod tests;
