//! Environments as tables: packages in, links out.

use super::super::testing::{Store, bounds, full, listed, short};
use super::*;

/// Makes the environment of `derivations` from `inputs`; returns its links but for the manifest's (or the error), and the notes.
fn environment(inputs: &[&str], derivations: &str, output_bytes_max: u64) -> (Result<String, BuildenvError>, String) {
    let store = Store::new(inputs);
    let variables = [("derivations", derivations), ("manifest", "{d}")];
    let variables = variables.map(|(name, value)| (name.to_owned(), full(value).into_bytes()));
    let request = Request::of(&variables.into()).expect("a recipe");
    let out = store.dir.path().join("out");
    let mut notes = String::new();
    let made = make(&request, &store.closure, &bounds(output_bytes_max), &out, &mut |note| notes.push_str(&short(note)));
    let links = made.map(|()| listed(&out).split(' ').filter(|line| *line != "manifest.nix→{d}").collect::<Vec<_>>().join(" "));
    (links, notes)
}

fn check(inputs: &[&str], derivations: &str, expect: &str) {
    let (links, notes) = environment(inputs, derivations, 1 << 30);
    let links = links.map_err(|err| crate::failure::chain(&err)).expect(derivations);
    assert_eq!((links.as_str(), notes.as_str()), (expect, ""), "{inputs:?} {derivations}");
}

#[test]
fn what_one_package_has_is_one_link_and_what_several_have_is_merged() {
    let one = "a: bin/x share/doc/a/x";
    check(&[one], "true 5 1 {a}", "bin→{a}/bin share→{a}/share");
    check(&[one, "b: bin/y"], "true 5 1 {a} true 5 1 {b}", "bin/x→{a}/bin/x bin/y→{b}/bin/y share→{a}/share");
    check(&[one, "b: share/doc/b/y"], "true 5 2 {a} {b}", "bin→{a}/bin share/doc/a→{a}/share/doc/a share/doc/b→{b}/share/doc/b");
    check(&[one, "b: lib/"], "true 5 1 {a} false 5 1 {b}", "bin→{a}/bin share→{a}/share");
    check(&[one], "true 5 1 {a} 1 7 1 {a}", "bin→{a}/bin share→{a}/share");
    check(&[], "", "");
}

#[test]
fn the_lowest_priority_wins_a_file_in_whatever_order_they_come() {
    let (one, two) = ("a: bin/x etc", "b: bin/x bin/y");
    for order in ["true 5 1 {a} true 4 1 {b}", "true 4 1 {b} true 5 1 {a}"] {
        check(&[one, two], order, "bin/x→{b}/bin/x bin/y→{b}/bin/y etc→{a}/etc");
    }
    check(&[one, two], "true -1 1 {a} true 0 1 {b}", "bin/x→{a}/bin/x bin/y→{b}/bin/y etc→{a}/etc");
    check(&[one, two], "true 5.000000 1 {a} true 6 1 {b}", "bin/x→{a}/bin/x bin/y→{b}/bin/y etc→{a}/etc");
    // A file may win against a link to a directory, but not the other way round.
    check(&["a: x", "b: x/y"], "true 5 1 {a} true 4 1 {b}", "x→{b}/x");
}

#[test]
fn files_that_mean_something_in_their_package_only_are_left_out() {
    let input = "a: .hidden bin/x bin/.y propagated-build-inputs nix-support/z lib/perllocal.pod lib/perl share/info/dir share/info/a \
                 log/x share/log manifest.nix manifest.json dir b: lib/p share/info/b";
    let (one, two) = input.split_once(" b:").expect("two");
    check(
        &[one, &format!("b:{two}")],
        "true 5 2 {a} {b}",
        "bin→{a}/bin dir→{a}/dir lib/perl→{a}/lib/perl lib/p→{b}/lib/p share/info/a→{a}/share/info/a share/info/b→{b}/share/info/b",
    );
}

#[test]
fn packages_that_others_bring_along_come_last_and_never_conflict() {
    let support = "nix-support/propagated-user-env-packages";
    let table = [
        (format!("a: bin/x {support}={{b}}"), "b: bin/x bin/y".to_owned(), "c:".to_owned(), "bin/x→{a}/bin/x bin/y→{b}/bin/y"),
        (format!("a: {support}={{b}}+{{c}}+"), "b: bin/x".into(), "c: bin/x".into(), "bin/x→{b}/bin/x"),
        (format!("a: {support}={{b}}"), format!("b: bin/x {support}={{c}}+{{a}}"), "c: bin/x lib".into(), "bin/x→{b}/bin/x lib→{c}/lib"),
    ];
    for (one, two, three, expect) in table {
        let three = if three == "c:" { "c: unused" } else { &three };
        check(&[&one, &two, three], "true 5 1 {a}", expect);
    }
}

#[test]
fn links_in_packages_are_followed_within_the_inputs_only() {
    // A link to a directory is merged under the names that the directory really has.
    check(&["a: lib→lib64 lib64/x", "b: lib/y", "c: lib→{b}/lib"], "true 5 2 {a} {b}", "lib/x→{a}/lib64/x lib/y→{b}/lib/y lib64→{a}/lib64");
    check(&["a: x", "b: .→{a}"], "true 5 1 {b}", "x→{b}/x");
    check(&["a: null→/dev/null tmp→/tmp"], "true 5 1 {a}", "null→{a}/null tmp→{a}/tmp");
    let (links, notes) = environment(&["a: bin/x shadow→/etc/shadow up→../../../../../root gone→x/y"], "true 5 1 {a}", 1 << 30);
    assert_eq!(links.expect("made"), "bin→{a}/bin");
    let dangling = |name: &str| format!("warning: skipping dangling symlink `{{a}}/{name}`\n");
    assert_eq!(notes, format!("{}{}{}", dangling("gone"), dangling("shadow"), dangling("up")));
    let (links, notes) = environment(&["a: .=file", "b: x"], "true 5 2 {a} {b}", 1 << 30);
    assert_eq!(links.expect("made"), "x→{b}/x");
    assert_eq!(notes, "warning: not including `{a}` in the user environment because it's not a directory\n");
}

#[test]
fn what_a_sandbox_shows_beside_the_store_can_be_linked_to() {
    // Nix 2.8 links and leaves out the same, but for `/dev/kvm`, which it shows every build.
    let seen = "bin bin/sh build dev/fd dev/full dev/null dev/ptmx dev/pts dev/random dev/shm dev/stderr dev/stdin dev/stdout dev/tty \
                dev/urandom dev/zero etc etc/group etc/hosts etc/passwd nix nix/store proc proc/self tmp";
    let unseen = "dev/console etc/nsswitch.conf etc/resolv.conf etc/services etc/shadow home nix/var root sys usr var";
    for (names, linked) in [(seen, true), (unseen, false)] {
        for name in names.split(' ') {
            let (links, notes) = environment(&[&format!("a: link→/{name}")], "true 5 1 {a}", 1 << 30);
            let expect = if linked { ("link→{a}/link", false) } else { ("", true) };
            assert_eq!((links.expect("made").as_str(), !notes.is_empty()), expect, "{name}");
        }
    }
}

#[test]
fn what_does_not_fit_together_is_refused_with_names_class_and_reason() {
    use FailureClass::{BuildFailure, LimitExceeded};
    let both = "true 5 1 {a} true 5 1 {b}";
    // Each level doubles what is merged below.
    let doubles: String = (0..30).map(|level| format!(" l{level}/p→../l{0} l{level}/q→../l{0}", level + 1)).collect();
    let (doubles_a, doubles_b) = (format!("a:{doubles} l30/"), format!("b:{doubles} l30/"));
    let gone: String = (0..30).map(|number| format!(" gone{number}→x")).collect();
    let gone = format!("a:{gone}");
    let table = [
        ([&gone, "b: x"], both, 1 << 20, LimitExceeded, "wrote more than 1000 bytes of log, its limit"),
        (["a: bin/x", "b: bin/x"], both, 1 << 20, BuildFailure, "files `{a}/bin/x` and `{b}/bin/x` have the same priority 5;"),
        (
            ["a: bin/x", "b: bin"],
            "true 5 1 {a} true 5 1 {b}",
            1 << 20,
            BuildFailure,
            "files `{a}/bin` and `{b}/bin` have the same priority 5;",
        ),
        (["a: bin", "b: bin/x"], both, 1 << 20, BuildFailure, "collision between directory `{b}/bin` and non-directory `{a}/bin`"),
        (["a: x", "b: x"], "true 5 1 {c}", 1 << 20, BuildFailure, "package `{c}` is not among the job's inputs"),
        (["a: x", "b: x"], "true 5 1 /etc", 1 << 20, BuildFailure, "read `/etc`: it lies outside of the job's inputs"),
        (["a: x", "b: x"], "true 5 1 /root", 1 << 20, BuildFailure, "package `/root` is not among the job's inputs"),
        (["a: x", "b: x"], "true 5 1 x", 1 << 20, BuildFailure, "look up `x`: it is not an absolute path"),
        (["a: tmp→/etc", "b: tmp→/etc"], both, 1 << 20, BuildFailure, "read `/etc`: it lies outside of the job's inputs"),
        (["a: x→.", "b: x→."], both, 1 << 20, BuildFailure, "it leads through too many symbolic links"),
        (["a: x→x", "b: y"], both, 1 << 20, BuildFailure, "it leads through too many symbolic links"),
        ([&doubles_a, &doubles_b], both, 1 << 16, LimitExceeded, "the environment has more than 65536 bytes of names"),
        (["a: abcdefghij klmno", "b: x"], both, 100, LimitExceeded, "the environment has more than 100 bytes of names"),
        (["a: nix-support/propagated-user-env-packages/", "b: x"], both, 1 << 20, BuildFailure, "it lies outside of the job's inputs"),
    ];
    for (inputs, derivations, bytes_max, class, words) in table {
        let error = environment(&inputs, derivations, bytes_max).0.expect_err(words);
        let message = short(&crate::failure::chain(&error));
        assert!(message.contains(words) && error.class() == class, "{inputs:?}: {:?} {message}", error.class());
    }
}

#[test]
fn a_directory_and_a_file_never_merge_whichever_comes_first() {
    let inputs = ["a: bin/x", "b: bin/y", "c: bin"];
    let error = environment(&inputs, "true 1 1 {a} true 2 1 {b} true 3 1 {c}", 1 << 20).0.expect_err("a collision");
    assert_eq!(short(&error.to_string()), "collision between directory `bin` and non-directory `{c}/bin`");
}

#[test]
fn an_environment_is_stopped_between_two_files() {
    let store = Store::new(&["a: x"]);
    let stop = crate::stop::Stop::new().expect("a handle");
    stop.stop();
    let request = Request { packages: vec![Package { priority: 5, path: full("{a}").into_bytes() }], manifest: b"/m".to_vec() };
    let bounds = Bounds::new(stop, kiln_wire::JobLimits::default());
    let error = make(&request, &store.closure, &bounds, &store.dir.path().join("out"), &mut |_| ()).expect_err("stopped");
    assert_eq!(error.class(), FailureClass::Cancelled);
}

#[test]
fn a_list_of_packages_is_read_or_refused_with_its_rule() {
    let table = [
        ("true 5 1 /a", "5 /a"),
        (" true\t5\n2 /b /a  1 -3 1 /c ", "-3 /c, 5 /a, 5 /b"),
        ("false 5 1 /a", ""),
        ("true 5 0", ""),
        ("true 5", "it ends before a package's number of outputs"),
        ("true", "it ends before a package's priority"),
        ("true 5 2 /a", "it ends before all of a package's outputs"),
        ("true high 1 /a", "`high` is no priority"),
        ("true 99999999999 1 /a", "`99999999999` is no priority"),
        ("true 5 -1 /a", "a package has no number of outputs"),
        ("true 5 4000000000 /a", "a package has no number of outputs"),
        ("true 5 2000000000 /a", "it ends before all of a package's outputs"),
    ];
    for (text, expect) in table {
        let variables = [("derivations".to_owned(), text.as_bytes().to_vec()), ("manifest".to_owned(), b"/m".to_vec())];
        let found = match Request::of(&variables.into()) {
            Ok(request) => {
                let packages = request.packages.iter().map(|package| format!("{} {}", package.priority, shown(&package.path)));
                packages.collect::<Vec<_>>().join(", ")
            }
            Err(error) => error.to_string().trim_start_matches("builtin:buildenv: read attribute `derivations`: ").to_owned(),
        };
        assert_eq!(found, expect, "{text}");
    }
}
