//! The order of a submission's new jobs: inputs before what needs them.
//!
//! Each job has a place, that of its path among the sorted ones, and each input is looked for once: from then on all goes by numbers. A map
//! by path is a walk over a hundred thousand texts for each of a million edges. Iterative, O(V log V + E log V).

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;

use kiln_wire::{DrvPath, JobSpec};

use crate::effect::Refused;
use crate::job::JobKey;

/// New jobs in an order in which inputs come first, with the inputs of each.
pub(super) struct Order {
    places: Vec<usize>,
    inputs: Edges<Input>,
}

/// What a new job needs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Input {
    /// The new job of this place.
    New(usize),
    /// A job of the farm.
    Known(JobKey),
}

impl Order {
    /// Orders new jobs; `known` finds the jobs of the farm.
    ///
    /// # Errors
    /// [`Refused::UnknownInput`] names an input that is neither new nor known, [`Refused::Cycle`] one cycle.
    pub fn of(specs: &BTreeMap<DrvPath, JobSpec>, known: impl Fn(&DrvPath) -> Option<JobKey>) -> Result<Self, Refused> {
        // In one piece: a search stays within a few pages.
        let paths: Vec<DrvPath> = specs.keys().cloned().collect();
        let mut inputs = Edges { items: Vec::new(), ends: Vec::with_capacity(paths.len()) };
        for spec in specs.values() {
            for input in &spec.inputs {
                let place = paths.binary_search(&input.derivation).ok().map(Input::New);
                let unknown = || Refused::UnknownInput { derivation: spec.derivation.clone(), input: input.derivation.clone() };
                inputs.push(place.or_else(|| known(&input.derivation).map(Input::Known)).ok_or_else(unknown)?);
            }
            inputs.end();
        }
        let (places, missing) = inputs_first(&inputs);
        match places.len() == paths.len() {
            true => Ok(Self { places, inputs }),
            false => Err(Refused::Cycle(cycle(&inputs, &missing).into_iter().map(|place| paths[place].clone()).collect())),
        }
    }

    /// Returns the places of the jobs, inputs first.
    pub fn places(&self) -> &[usize] {
        &self.places
    }

    /// Returns what the job of a place needs, each once.
    pub fn inputs(&self, place: usize) -> &[Input] {
        self.inputs.of(place)
    }
}

/// What leads from each place, in one list.
struct Edges<T> {
    items: Vec<T>,
    ends: Vec<usize>,
}

impl<T: Copy + Ord> Edges<T> {
    fn push(&mut self, item: T) {
        self.items.push(item);
    }

    /// Ends the list of a place: sorted, each once.
    fn end(&mut self) {
        let start = self.ends.last().copied().unwrap_or(0);
        self.items[start..].sort_unstable();
        let mut kept = start;
        for at in start..self.items.len() {
            if at == start || self.items[at] != self.items[kept - 1] {
                self.items[kept] = self.items[at];
                kept += 1;
            }
        }
        self.items.truncate(kept);
        self.ends.push(kept);
    }

    fn of(&self, place: usize) -> &[T] {
        let start = if place == 0 { 0 } else { self.ends[place - 1] };
        &self.items[start..self.ends[place]]
    }

    fn places(&self) -> usize {
        self.ends.len()
    }
}

impl Edges<Input> {
    fn new_of(&self, place: usize) -> impl Iterator<Item = usize> + '_ {
        self.of(place).iter().filter_map(|input| match input {
            Input::New(place) => Some(*place),
            Input::Known(_) => None,
        })
    }
}

/// Returns the places of jobs with inputs before those that need them, and how many inputs each has that could not be placed.
fn inputs_first(inputs: &Edges<Input>) -> (Vec<usize>, Vec<usize>) {
    let count = inputs.places();
    let mut dependents: Vec<Vec<usize>> = vec![Vec::new(); count];
    let mut missing: Vec<usize> = vec![0; count];
    for (place, missing) in missing.iter_mut().enumerate() {
        for input in inputs.new_of(place) {
            dependents[input].push(place);
            *missing += 1;
        }
    }
    let mut open: Vec<usize> = (0..count).filter(|place| missing[*place] == 0).collect();
    let mut order = Vec::with_capacity(count);
    while let Some(place) = open.pop() {
        order.push(place);
        for dependent in &dependents[place] {
            missing[*dependent] -= 1;
            if missing[*dependent] == 0 {
                open.push(*dependent);
            }
        }
    }
    (order, missing)
}

/// Walks from input to input among the jobs that no order could place; each has such an input, so the walk comes back to itself.
fn cycle(inputs: &Edges<Input>, missing: &[usize]) -> Vec<usize> {
    let mut walk: Vec<usize> = Vec::new();
    let mut seen: BTreeMap<usize, usize> = BTreeMap::new();
    let mut at = (0..missing.len()).find(|place| missing[*place] > 0);
    while let Some(place) = at {
        if let Some(start) = seen.get(&place) {
            return walk.split_off(*start);
        }
        seen.insert(place, walk.len());
        walk.push(place);
        at = inputs.new_of(place).find(|input| missing[*input] > 0);
    }
    Vec::new()
}
