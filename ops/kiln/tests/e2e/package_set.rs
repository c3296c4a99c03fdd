//! A real package set: the small one of `loadtest/pkgset`, from sources that `loadtest/pkgset/fetch small` has brought.

use std::path::Path;
use std::process::Command;

use crate::farm::Place;

#[test]
fn the_small_package_set_builds_and_runs() {
    let set = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../loadtest/pkgset").canonicalize().expect("the package set is in the tree");
    let place = Place::new("{ }");
    let _farm = place.up();
    let mut command = place.kiln(&["build", "-A", "small", "--to", "root", "-f", set.to_str().expect("text")]);
    // The sources lie in the cache of whoever runs the tests.
    if let Some(home) = std::env::var_os("HOME") {
        command.env("HOME", home);
    }
    let built = command.output().expect("the binary runs");
    let said = String::from_utf8_lossy(&built.stderr);
    assert!(built.status.success(), "run `loadtest/pkgset/fetch small` first if sources are missing:\n{said}");
    let paths = String::from_utf8_lossy(&built.stdout).into_owned();
    assert!(paths.lines().count() >= 12, "about a dozen packages:\n{paths}");
    let lua = paths.lines().find(|path| path.contains("-lua-5")).expect("lua is in the set");
    let program = format!("{}{lua}/bin/lua", place.path("root").display());
    let ran = Command::new(&program).args(["-e", "print(6 * 7)"]).output().expect("lua is a static program");
    assert_eq!(String::from_utf8_lossy(&ran.stdout), "42\n");
}
