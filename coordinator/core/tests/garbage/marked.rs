//! The mark and the sweep's order, as tables and beside a simple model.

use std::collections::{BTreeMap, BTreeSet};

use kiln_core::garbage::{Roots, Rules, Sweep};
use kiln_wire::StorePath;

use crate::facts::{Dice, Object, graph, names, path, store};

const ALL: Rules = Rules { keep_outputs: true, keep_derivations: true };
const NONE: Rules = Rules { keep_outputs: false, keep_derivations: false };

fn roots(held: &str) -> Roots {
    let mut roots = Roots::default();
    for name in held.split_whitespace() {
        roots.add(&format!("pin {name}"), &[path(name)]);
    }
    roots
}

#[test]
fn what_no_root_reaches_goes_and_nothing_else_does() {
    let built = "app:app.drv>lib,gcc lib:lib.drv>libc libc gcc>libc doc:app.drv app.drv>lib.drv,src=app,doc lib.drv>src=lib src";
    let table = [
        (built, "", ALL, "app app.drv doc gcc lib lib.drv libc src"),
        (built, "app", ALL, ""),
        (built, "app", NONE, "app.drv doc lib.drv src"),
        (built, "app", Rules { keep_outputs: false, keep_derivations: true }, "doc"),
        (built, "app", Rules { keep_outputs: true, keep_derivations: false }, "app.drv doc lib.drv src"),
        (built, "lib", ALL, "app app.drv doc gcc"),
        (built, "app.drv", NONE, "app doc gcc lib libc"),
        (built, "app.drv", ALL, ""),
        (built, "lib.drv", Rules { keep_outputs: true, keep_derivations: false }, "app app.drv doc gcc"),
        // A root that is not there keeps nothing, nor does what is only named.
        (built, "other", NONE, "app app.drv doc gcc lib lib.drv libc src"),
        ("a>b c>b", "a", NONE, "c"),
        // A path that refers to itself is no circle; two that refer to each other go together.
        ("a>a b>c c>b", "", NONE, "a b c"),
        ("a>a b>c c>b", "b", NONE, "a"),
    ];
    for (text, held, rules, expected) in table {
        let graph = graph(&store(text), rules);
        let marks = graph.mark(&roots(held));
        assert_eq!(names(graph.marked(&marks, false)), expected, "{text}: roots {held}, {rules:?}");
        let sweep = Sweep::new(graph, &marks, None);
        assert_eq!(names(sweep.outlook()), expected, "the sweep of {text}");
    }
}

#[test]
fn a_derivation_makes_what_its_realisation_leads_to_whoever_made_that() {
    let text = "lib:first.drv first.drv second.drv";
    for (realised, kept) in [(false, false), (true, true)] {
        let mut graph = graph(&store(text), ALL);
        if realised {
            graph.add_realisation(&path("second.drv"), &path("lib"));
        }
        let second = path("second.drv");
        assert_eq!(graph.outputs_of([&second], false).contains(&(&path("lib")).into()), kept);
        let marks = graph.mark(&roots("second.drv"));
        assert_eq!(graph.marked(&marks, true).any(|path| path.name() == "lib"), kept);
    }
}

#[test]
fn it_is_said_why_a_path_is_kept() {
    let graph = graph(&store("app:app.drv>lib lib>libc libc app.drv=app"), ALL);
    let roots = roots("app.drv");
    let marks = graph.mark(&roots);
    let (reason, chain) = graph.why(&marks, &roots, &path("libc")).expect("it is kept");
    let chain: Vec<&str> = chain.iter().map(StorePath::name).collect();
    assert_eq!((reason.as_str(), chain), ("pin app.drv", vec!["app.drv", "app", "lib", "libc"]));
    assert_eq!(graph.why(&marks, &roots, &path("other")), None);
    assert_eq!(names(&graph.referrers(&path("lib"))), "app");
}

#[test]
fn of_chosen_paths_those_that_others_refer_to_stay() {
    let table = [("a", "a"), ("b", ""), ("a b", "a b"), ("b c", ""), ("a b c", "a b c"), ("k", "")];
    for (chosen, expected) in table {
        let graph = graph(&store("a>b b>c c k"), NONE);
        let marks = graph.mark(&roots("k"));
        let only: BTreeSet<StorePath> = chosen.split_whitespace().map(path).collect();
        assert_eq!(names(Sweep::new(graph, &marks, Some(&only)).outlook()), expected, "only {chosen}");
    }
}

#[test]
fn what_is_touched_before_its_batch_is_spared_with_all_that_it_needs() {
    let graph = graph(&store("a>b b>c c d>c e"), NONE);
    let marks = graph.mark(&Roots::default());
    let mut sweep = Sweep::new(graph, &marks, None);
    let first = sweep.next_batch(1);
    assert_eq!(first.len(), 1, "one that nothing uses");
    sweep.spare((&path("b")).into());
    sweep.spare((&first[0].path).into());
    let rest: Vec<StorePath> =
        std::iter::from_fn(|| Some(sweep.next_batch(1)).filter(|batch| !batch.is_empty())).flatten().map(|doomed| doomed.path).collect();
    let gone: BTreeSet<&str> = rest.iter().chain([&first[0].path]).map(StorePath::name).collect();
    assert_eq!(gone, BTreeSet::from(["a", "d", "e"]), "c is kept with b, and what was handed out is gone");
}

/// Draws a store whose paths refer to earlier ones.
fn drawn(dice: &mut Dice) -> Vec<Object> {
    let count = 2 + dice.below(30);
    let name = |at: usize| if at.is_multiple_of(3) { format!("p{at}.drv") } else { format!("p{at}") };
    (0..count)
        .map(|at| {
            let mut some = |most: usize| -> BTreeSet<String> {
                if at == 0 { BTreeSet::new() } else { (0..dice.below(most)).map(|_| name(dice.below(at))).collect() }
            };
            let references = some(4);
            let outputs =
                if at.is_multiple_of(3) { some(3).into_iter().filter(|name| !name.ends_with(".drv")).collect() } else { BTreeSet::new() };
            let deriver = (!at.is_multiple_of(3)).then(|| name(dice.below(count) / 3 * 3));
            Object { name: name(at), references, outputs, deriver }
        })
        .collect()
}

/// What stays, by the plainest reading of the rules: again and again, until nothing more comes.
fn kept(objects: &[Object], held: &BTreeSet<String>, rules: Rules) -> BTreeSet<String> {
    let mut kept = held.clone();
    loop {
        let mut more = BTreeSet::new();
        for object in objects.iter().filter(|object| kept.contains(&object.name)) {
            more.extend(object.references.iter().cloned());
            more.extend(object.outputs.iter().filter(|_| rules.keep_outputs).cloned());
            more.extend(object.deriver.iter().filter(|_| rules.keep_derivations).cloned());
        }
        if rules.keep_outputs {
            more.extend(
                objects.iter().filter(|made| made.deriver.as_ref().is_some_and(|by| kept.contains(by))).map(|made| made.name.clone()),
            );
        }
        let before = kept.len();
        kept.extend(more);
        if kept.len() == before {
            return kept;
        }
    }
}

#[test]
fn a_random_store_keeps_what_the_model_keeps_and_goes_users_first() {
    for seed in 0..2_000 {
        let mut dice = Dice(seed);
        let objects = drawn(&mut dice);
        let rules = Rules { keep_outputs: dice.below(2) == 0, keep_derivations: dice.below(2) == 0 };
        let held: BTreeSet<String> = (0..dice.below(4)).map(|_| objects[dice.below(objects.len())].name.clone()).collect();
        let graph = graph(&objects, rules);
        let marks = graph.mark(&roots(&held.iter().cloned().collect::<Vec<_>>().join(" ")));
        let expected = kept(&objects, &held, rules);
        let mut sweep = Sweep::new(graph, &marks, None);
        let mut there: BTreeMap<&str, &Object> = objects.iter().map(|object| (object.name.as_str(), object)).collect();
        let mut last_step = 0;
        loop {
            let batch = sweep.next_batch(1 + dice.below(5));
            if batch.is_empty() {
                break;
            }
            for doomed in batch {
                assert!(doomed.step >= last_step, "seed {seed}: steps come in their order");
                last_step = doomed.step;
                let name = doomed.path.name();
                assert!(there.remove(name).is_some(), "seed {seed}: {name} goes once");
                let user = there.values().find(|other| other.references.contains(name));
                assert!(user.is_none(), "seed {seed}: {name} goes before {user:?}");
            }
        }
        let stayed: BTreeSet<String> = there.keys().map(|name| (*name).to_owned()).collect();
        let stored = objects.iter().map(|object| object.name.clone()).collect();
        assert_eq!(stayed, expected.intersection(&stored).cloned().collect(), "seed {seed}");
    }
}
