//! Linearizability: whether a history of calls that overlap could have happened one at a time, each between its call and its return.
//!
//! Goals: exact for histories of a few thousand calls by a few clients; a call without an answer may have taken effect at any time after
//! it was made, or never. Non-goals: histories that cannot be split by object and have dozens of clients: the problem is NP-complete, and
//! a search that passes its bound says so.
//!
//! Source: Wing and Gong, "Testing and verifying concurrent objects", 1993; with the memory of configurations of Lowe, "Testing for
//! linearizability", 2017. Pure.

use std::collections::BTreeSet;
use std::fmt::Debug;

/// A sequential object: what may be answered in which state.
pub trait Model {
    /// The object's state.
    type State: Clone + Ord + Debug;
    /// An operation with its answer; one of its own for an unknown answer.
    type Operation: Debug;

    /// The state before any call.
    fn start(&self) -> Self::State;

    /// The state after `operation` in `state`; none if it cannot be answered so in this state.
    fn step(&self, state: &Self::State, operation: &Self::Operation) -> Option<Self::State>;
}

/// One call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call<Operation> {
    /// What was asked and answered.
    pub operation: Operation,
    /// When it was made.
    pub called: u64,
    /// When its answer came; none if none came.
    pub returned: Option<u64>,
}

/// Whether a history is linearizable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is, in this order of the calls given; an unanswered call that is absent never took effect.
    Linearizable(Vec<usize>),
    /// It is not. The longest order that was found, and the call whose answer then contradicts it.
    Broken {
        /// The calls that could be put in order.
        order: Vec<usize>,
        /// The call that had to come next and cannot.
        stuck: usize,
    },
    /// More than the allowed number of configurations was looked at.
    Unknown,
}

/// Checks a history of one object.
pub fn check<M: Model>(model: &M, calls: &[Call<M::Operation>], configurations_max: usize) -> Verdict {
    Search::new(model, calls).run(configurations_max)
}

/// A call or a return, in the list of what is not yet in order.
#[derive(Clone, Copy, Debug)]
struct Event {
    call: usize,
    is_return: bool,
}

struct Search<'a, M: Model> {
    model: &'a M,
    calls: &'a [Call<M::Operation>],
    events: Vec<Event>,
    /// Where in `events` a call returns.
    returns: Vec<Option<usize>>,
    /// The events not yet in order, as a list: the one after each, and the one before. The last index is the list's head and end.
    next: Vec<usize>,
    before: Vec<usize>,
    /// The calls in order so far: the event of each, and the state before it.
    order: Vec<(usize, M::State)>,
    taken: Vec<u64>,
    state: M::State,
    seen: BTreeSet<(Vec<u64>, M::State)>,
    longest: Vec<usize>,
    stuck: usize,
}

impl<'a, M: Model> Search<'a, M> {
    fn new(model: &'a M, calls: &'a [Call<M::Operation>]) -> Self {
        let mut events: Vec<(u64, Event)> = Vec::new();
        for (call, made) in calls.iter().enumerate() {
            events.push((made.called, Event { call, is_return: false }));
            events.extend(made.returned.map(|at| (at, Event { call, is_return: true })));
        }
        // A call at the very time of another's return overlaps it: the weaker assumption.
        events.sort_by_key(|(at, event)| (*at, event.is_return, event.call));
        let events: Vec<Event> = events.into_iter().map(|(_, event)| event).collect();
        let mut returns = vec![None; calls.len()];
        for (place, event) in events.iter().enumerate().filter(|(_, event)| event.is_return) {
            returns[event.call] = Some(place);
        }
        let head = events.len();
        Self {
            model,
            calls,
            next: (1..=head).chain([0]).collect(),
            before: [head].into_iter().chain(0..head).collect(),
            events,
            returns,
            order: Vec::new(),
            taken: vec![0; calls.len().div_ceil(64)],
            state: model.start(),
            seen: BTreeSet::new(),
            longest: Vec::new(),
            stuck: 0,
        }
    }

    fn run(mut self, configurations_max: usize) -> Verdict {
        let head = self.events.len();
        let mut place = self.next[head];
        loop {
            let event = self.events.get(place).copied();
            match event {
                // Only calls without an answer are left, if any: they need not have happened.
                None => return Verdict::Linearizable(self.calls_in_order()),
                Some(event) if !event.is_return => match self.take(place, event.call) {
                    true => place = self.next[head],
                    false => place = self.next[place],
                },
                // This call had to take effect before its return, and could not after what is in order so far.
                Some(event) => {
                    if self.longest.is_empty() || self.order.len() > self.longest.len() {
                        self.longest = self.calls_in_order();
                        self.stuck = event.call;
                    }
                    match self.untake() {
                        Some(undone) => place = self.next[undone],
                        None => return Verdict::Broken { order: self.longest, stuck: self.stuck },
                    }
                }
            }
            if self.seen.len() > configurations_max {
                return Verdict::Unknown;
            }
        }
    }

    fn calls_in_order(&self) -> Vec<usize> {
        self.order.iter().map(|(place, _)| self.events[*place].call).collect()
    }

    /// Puts a call next in order, if its answer fits and the configuration is new.
    fn take(&mut self, place: usize, call: usize) -> bool {
        let Some(after) = self.model.step(&self.state, &self.calls[call].operation) else { return false };
        self.taken[call / 64] |= 1 << (call % 64);
        if !self.seen.insert((self.taken.clone(), after.clone())) {
            self.taken[call / 64] &= !(1 << (call % 64));
            return false;
        }
        self.order.push((place, std::mem::replace(&mut self.state, after)));
        self.unlink(place);
        if let Some(end) = self.returns[call] {
            self.unlink(end);
        }
        true
    }

    /// Takes the last call out of the order again; returns its event.
    fn untake(&mut self) -> Option<usize> {
        let (place, state) = self.order.pop()?;
        let call = self.events[place].call;
        self.taken[call / 64] &= !(1 << (call % 64));
        self.state = state;
        // The reverse of taking: each event finds its neighbours as they were.
        if let Some(end) = self.returns[call] {
            self.link(end);
        }
        self.link(place);
        Some(place)
    }

    fn unlink(&mut self, place: usize) {
        let (before, next) = (self.before[place], self.next[place]);
        self.next[before] = next;
        self.before[next] = before;
    }

    fn link(&mut self, place: usize) {
        let (before, next) = (self.before[place], self.next[place]);
        self.next[before] = place;
        self.before[next] = place;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A register of one number, as the papers have it.
    struct Register;

    #[derive(Clone, Debug, PartialEq, Eq)]
    enum Access {
        Write(u64),
        Read(u64),
    }

    impl Model for Register {
        type State = u64;
        type Operation = Access;

        fn start(&self) -> u64 {
            0
        }

        fn step(&self, state: &u64, operation: &Access) -> Option<u64> {
            match operation {
                Access::Write(value) => Some(*value),
                Access::Read(value) => (value == state).then_some(*state),
            }
        }
    }

    /// Reads `w1 0-10, r1 2-3, w2 5-?`: write or read, the value, from when to when; `?` is an answer that never came.
    fn history(text: &str) -> Vec<Call<Access>> {
        let call = |word: &str| {
            let (what, when) = word.trim().split_once(' ').expect("an access and its times");
            let value = what[1..].parse().expect("a number");
            let operation = if what.starts_with('w') { Access::Write(value) } else { Access::Read(value) };
            let (called, returned) = when.split_once('-').expect("from-to");
            Call { operation, called: called.parse().expect("a time"), returned: returned.parse().ok() }
        };
        text.split(',').filter(|word| !word.trim().is_empty()).map(call).collect()
    }

    fn holds(text: &str) -> bool {
        match check(&Register, &history(text), 100_000) {
            Verdict::Linearizable(_) => true,
            Verdict::Broken { .. } => false,
            Verdict::Unknown => panic!("`{text}` is small"),
        }
    }

    #[test]
    fn histories_that_could_have_happened_pass() {
        for text in [
            "",
            "r0 0-1",
            "w1 0-1, r1 2-3",
            // A read during a write sees either value.
            "w1 0-10, r0 1-2, r1 3-4",
            "w1 0-10, r1 1-2, r1 3-4",
            // Two writes at a time, in either order.
            "w1 0-10, w2 0-10, r1 11-12, r1 13-14",
            "w1 0-10, w2 0-10, r2 11-12",
            // A write without an answer happened late, early or never.
            "w1 0-?, r0 5-6, r1 7-8, r1 9-10",
            "w1 0-?, r0 5-6, r0 7-8",
            "w1 0-1, w2 2-?, r1 3-4, w3 5-6, r2 7-8",
            // The example of Wing and Gong's kind that needs going back.
            "w1 0-20, w2 1-8, r2 9-30, r1 9-30",
        ] {
            assert!(holds(text), "{text}");
        }
    }

    #[test]
    fn histories_that_cannot_have_happened_are_refused() {
        for text in [
            "r1 0-1",
            // A stale read: the write's answer had come.
            "w1 0-1, r0 2-3",
            // A value comes and goes again.
            "w1 0-10, r1 1-2, r0 3-4",
            "w1 0-?, r1 5-6, r0 7-8",
            // Two readers disagree about the order of two writes.
            "w1 0-10, w2 0-10, r1 11-12, r2 13-14",
            "w1 0-10, w2 0-10, r1 11-13, r2 14-15, r1 16-17",
            // What was never written.
            "w1 0-?, r2 5-6",
        ] {
            assert!(!holds(text), "{text}");
        }
    }

    #[test]
    fn a_refusal_names_the_call_that_contradicts_and_an_order_is_one() {
        let calls = history("w1 0-1, r1 2-3, r0 4-5");
        assert_eq!(check(&Register, &calls, 1000), Verdict::Broken { order: vec![0, 1], stuck: 2 });
        let calls = history("w1 0-20, w2 1-8, r1 9-30, r2 9-30");
        let Verdict::Linearizable(order) = check(&Register, &calls, 1000) else { panic!("it is linearizable") };
        let end = order.iter().try_fold(0, |state, call| Register.step(&state, &calls[*call].operation));
        assert!(end.is_some() && order.len() == 4, "{order:?}");
    }

    #[test]
    fn a_search_that_passes_its_bound_does_not_pass_the_history() {
        assert_eq!(check(&Register, &history("w1 0-10, w2 0-10, w3 0-10, r4 11-12"), 3), Verdict::Unknown);
    }

    proptest::proptest! {
        /// Calls that took effect one by one at some moment within their times are found linearizable, whatever their times.
        #[test]
        fn what_happened_one_at_a_time_passes(steps in proptest::collection::vec((0u64..4, proptest::bool::ANY, 0u64..30, 0u64..30), 0..60)) {
            let mut value = 0;
            let calls: Vec<Call<Access>> = (1u64..).zip(steps).map(|(number, (new, write, early, late))| {
                let effect = number * 10;
                let operation = if write { value = new; Access::Write(new) } else { Access::Read(value) };
                Call { operation, called: effect.saturating_sub(early), returned: Some(effect + late + 1) }
            }).collect();
            proptest::prop_assert!(matches!(check(&Register, &calls, 1_000_000), Verdict::Linearizable(_)));
        }
    }
}
