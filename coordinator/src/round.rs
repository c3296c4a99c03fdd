//! A round of bringing paths from upstream caches: what is fetched next, what may become valid, and what need not be fetched because
//! something that it refers to did not come. Pure.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use kiln_wire::StorePath;

/// Paths with those that they refer to, without themselves.
pub(crate) type References = BTreeMap<StorePath, BTreeSet<StorePath>>;

/// What is left of a round.
#[derive(Debug)]
pub(crate) struct Round {
    /// What has not been begun, by the cache that has it.
    queues: BTreeMap<usize, VecDeque<StorePath>>,
    /// How many archives are being fetched from each.
    under_way: BTreeMap<usize, usize>,
    under_way_max: usize,
    users: BTreeMap<StorePath, Vec<StorePath>>,
    /// How many paths of the round must be valid before this one.
    waits_for: BTreeMap<StorePath, usize>,
    /// What did not come, and what cannot be valid without it.
    lost: BTreeSet<StorePath>,
    /// What has come.
    here: BTreeSet<StorePath>,
}

impl Round {
    /// Begins a round: `ordered` has the paths of `closure`, each after those that it refers to, and `from` says which cache has them.
    pub(crate) fn new(closure: &References, ordered: Vec<StorePath>, from: impl Fn(&StorePath) -> usize, under_way_max: usize) -> Self {
        let (mut users, mut waits_for) = (BTreeMap::<_, Vec<_>>::new(), BTreeMap::new());
        for (path, references) in closure {
            let within: Vec<_> = references.iter().filter(|reference| closure.contains_key(*reference)).collect();
            waits_for.insert(path.clone(), within.len());
            within.into_iter().for_each(|reference| users.entry(reference.clone()).or_default().push(path.clone()));
        }
        let mut queues = BTreeMap::<_, VecDeque<_>>::new();
        ordered.into_iter().for_each(|path| queues.entry(from(&path)).or_default().push_back(path));
        Self { queues, under_way: BTreeMap::new(), under_way_max, users, waits_for, lost: BTreeSet::new(), here: BTreeSet::new() }
    }

    /// Returns a path to fetch from a cache that is not busy.
    pub(crate) fn next_fetch(&mut self) -> Option<StorePath> {
        for (cache, queue) in &mut self.queues {
            let under_way = self.under_way.entry(*cache).or_default();
            while *under_way < self.under_way_max
                && let Some(path) = queue.pop_front()
            {
                if !self.lost.contains(&path) {
                    *under_way += 1;
                    return Some(path);
                }
            }
        }
        None
    }

    /// Notes that a fetch has ended; returns whether what came may become valid.
    pub(crate) fn fetched(&mut self, path: &StorePath, cache: usize) -> bool {
        self.under_way.entry(cache).and_modify(|count| *count = count.saturating_sub(1));
        self.here.insert(path.clone());
        self.waits_for.get(path) == Some(&0) && !self.lost.contains(path)
    }

    /// Notes that a path is valid; returns those that came and may become valid after it.
    pub(crate) fn valid(&mut self, path: &StorePath) -> Vec<StorePath> {
        let mut able = Vec::new();
        for user in self.users.remove(path).into_iter().flatten() {
            let Some(count) = self.waits_for.get_mut(&user) else { continue };
            *count = count.saturating_sub(1);
            if *count == 0 && self.here.contains(&user) && !self.lost.contains(&user) {
                able.push(user);
            }
        }
        able
    }

    /// Notes that a path will not be valid in this round.
    pub(crate) fn failed(&mut self, path: &StorePath) {
        let mut waiting = vec![path.clone()];
        while let Some(path) = waiting.pop() {
            waiting.extend(self.users.get(&path).into_iter().flatten().filter(|user| !self.lost.contains(*user)).cloned());
            self.lost.insert(path);
        }
    }
}

/// Returns those of a closure that cannot be valid because something is nowhere, and what that is.
pub(crate) fn unattainable(closure: &References, nowhere: BTreeSet<StorePath>) -> BTreeSet<StorePath> {
    let mut users: BTreeMap<&StorePath, Vec<&StorePath>> = BTreeMap::new();
    for (path, references) in closure {
        references.iter().for_each(|reference| users.entry(reference).or_default().push(path));
    }
    let mut waiting: Vec<StorePath> = nowhere.iter().cloned().collect();
    let mut lost = nowhere;
    while let Some(path) = waiting.pop() {
        for user in users.get(&path).into_iter().flatten() {
            if lost.insert((*user).clone()) {
                waiting.push((*user).clone());
            }
        }
    }
    lost
}

/// Returns the paths of a closure, each after those of it that it refers to, and those that refer to themselves through others.
pub(crate) fn in_order(closure: &References) -> (Vec<StorePath>, BTreeSet<StorePath>) {
    let mut users: BTreeMap<&StorePath, Vec<&StorePath>> = BTreeMap::new();
    let mut left: BTreeMap<&StorePath, usize> = BTreeMap::new();
    for (path, references) in closure {
        let within = references.iter().filter(|reference| closure.contains_key(*reference));
        left.insert(path, within.clone().count());
        within.for_each(|reference| users.entry(reference).or_default().push(path));
    }
    let mut ready: Vec<&StorePath> = left.iter().filter(|(_, count)| **count == 0).map(|(path, _)| *path).collect();
    let mut ordered = Vec::with_capacity(closure.len());
    while let Some(path) = ready.pop() {
        left.remove(path);
        ordered.push(path.clone());
        for user in users.get(path).into_iter().flatten() {
            let count = left.get_mut(*user).expect("it waits for this one");
            *count -= 1;
            if *count == 0 {
                ready.push(user);
            }
        }
    }
    (ordered, left.into_keys().cloned().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: char) -> StorePath {
        StorePath::parse(&format!("{}-x", name.to_string().repeat(32))).expect("a path")
    }

    /// Reads `a>bc d>` as: a refers to b and c, d to nothing.
    fn closure(text: &str) -> References {
        let one = |(user, used): (&str, &str)| (path(user.chars().next().expect("a name")), used.chars().map(path).collect());
        text.split(' ').filter_map(|one| one.split_once('>')).map(one).collect()
    }

    fn names<'a>(paths: impl IntoIterator<Item = &'a StorePath>) -> String {
        paths.into_iter().filter_map(|path| path.as_str().chars().next()).collect()
    }

    #[test]
    fn paths_come_after_what_they_refer_to_and_circles_are_named() {
        for (text, ordered, circular) in [
            ("", "", ""),
            ("a>b b>c c>", "cba", ""),
            ("a>bc b>d c>d d>", "dcba", ""),
            ("a>z", "a", ""),
            ("a>b b>a c>", "c", "ab"),
            ("a>b b>a c>a d>", "d", "abc"),
        ] {
            let (found, left) = in_order(&closure(text));
            assert_eq!(names(&left), circular, "{text}");
            assert_eq!(found.len(), ordered.len(), "{text}: {}", names(&found));
            let place = |name: char| found.iter().position(|known| *known == path(name));
            for (user, used) in closure(text).iter().filter(|(user, _)| found.contains(user)) {
                assert!(
                    used.iter().all(|used| !found.contains(used)
                        || place(names([used]).chars().next().expect("one")) < found.iter().position(|known| known == user)),
                    "{text}"
                );
            }
        }
    }

    #[test]
    fn what_refers_to_something_that_is_nowhere_is_lost_and_nothing_else() {
        for (text, nowhere, expected) in
            [("a>b b>c d>", "c", "abc"), ("a>b b> d>z", "z", "dz"), ("a>b b>a", "", ""), ("a>bz b>a", "z", "abz")]
        {
            assert_eq!(names(&unattainable(&closure(text), nowhere.chars().map(path).collect())), expected, "{text}");
        }
    }

    /// Runs a round, in which some archives do not come; returns what was fetched and what became valid, in order.
    fn run(text: &str, failing: &str, under_way_max: usize) -> (String, String) {
        let closure = closure(text);
        let (ordered, _) = in_order(&closure);
        let mut round = Round::new(&closure, ordered, |path| usize::from(path.as_str() >= "n"), under_way_max);
        let (mut fetched, mut valid, mut under_way) = (Vec::new(), Vec::new(), VecDeque::new());
        loop {
            while let Some(path) = round.next_fetch() {
                under_way.push_back(path.clone());
                fetched.push(path);
            }
            assert!(under_way.len() <= 2 * under_way_max);
            let Some(path) = under_way.pop_front() else { return (names(&fetched), names(&valid)) };
            let cache = usize::from(path.as_str() >= "n");
            let mut able = Vec::new();
            match failing.contains(&names([&path])) {
                true => {
                    round.fetched(&path, cache);
                    round.failed(&path);
                }
                false if round.fetched(&path, cache) => able.push(path),
                false => {}
            }
            while let Some(path) = able.pop() {
                able.extend(round.valid(&path));
                valid.push(path);
            }
        }
    }

    #[test]
    fn what_refers_to_what_did_not_come_is_not_fetched() {
        for (text, failing, fetched, valid) in [
            ("a>b b>c c>", "", "cba", "cba"),
            ("a>b b>c c>", "b", "cb", "c"),
            ("a>b b>c c>", "c", "c", ""),
            ("a>z", "", "a", "a"),
            ("a>bc b>d c>d d>", "b", "dcb", "dc"),
        ] {
            let sorted = |text: &str| text.chars().collect::<BTreeSet<char>>();
            let (has_fetched, has_valid) = run(text, failing, 1);
            assert_eq!((sorted(&has_fetched), sorted(&has_valid)), (sorted(fetched), sorted(valid)), "{text} without {failing}");
        }
    }

    #[test]
    fn a_path_waits_for_all_that_it_refers_to_however_many_come_at_a_time() {
        let text = "a>bcd b>cx c>d d>x x>z z> y>z";
        for under_way_max in [1, 2, 16] {
            let (fetched, valid) = run(text, "", under_way_max);
            assert_eq!((fetched.len(), valid.len()), (7, 7));
            for (user, used) in [('a', "bcd"), ('b', "cx"), ('c', "d"), ('d', "x"), ('x', "z"), ('y', "z")] {
                assert!(used.chars().all(|used| valid.find(used) < valid.find(user)), "{valid}");
            }
        }
    }

    #[test]
    fn a_cache_that_is_slow_holds_up_no_other() {
        let closure = closure("a> b> c> x> y>");
        let (ordered, _) = in_order(&closure);
        let mut round = Round::new(&closure, ordered, |path| usize::from(path.as_str() >= "n"), 2);
        let begun: Vec<StorePath> = std::iter::from_fn(|| round.next_fetch()).collect();
        assert_eq!(begun.len(), 4, "{}", names(&begun));
        round.fetched(&path('x'), 1);
        assert!(round.next_fetch().is_none(), "the other has given all");
    }
}
