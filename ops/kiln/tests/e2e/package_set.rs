//! A real package set: the small one of `loadtest/pkgset`, from sources that `loadtest/pkgset/fetch small` has brought. Parts of it are built
//! by a real Nix through each face of one farm, the rest by `kiln build`, and all of it is read back from the farm's cache.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::faces::Faces;
use crate::farm::Ran;
use crate::nix::Nix;

/// Has a package of the set built in a store, and returns its outputs.
fn build(faces: &Faces, nix: Nix, store: &str, more: &[&str], package: &str) -> Vec<String> {
    let (set, attribute) = (set(), format!("packages.{package}"));
    let args = ["--store", store, &set, "-A", &attribute, "--no-out-link"];
    let mut command = faces.command(nix, "nix-build", &[&args[..], more].concat());
    let built = Ran(command.env("KILN_PKGSET_SOURCES", sources()).output().expect("nix-bin is installed")).expect_success();
    assert!(built.err().contains(&format!("-{package}-")), "it is built: {}", built.err());
    built.out().lines().map(str::to_owned).collect()
}

fn set() -> String {
    let set = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../loadtest/pkgset").canonicalize().expect("the set is in the tree");
    set.to_str().expect("text").to_owned()
}

/// The sources lie in the cache of whoever runs the tests.
fn sources() -> PathBuf {
    let from = |name: &str, below: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(|dir| Path::new(&dir).join(below));
    from("KILN_PKGSET_SOURCES", "")
        .or_else(|| from("XDG_CACHE_HOME", "kiln/pkgset"))
        .or_else(|| from("HOME", ".cache/kiln/pkgset"))
        .expect("there is a HOME")
}

#[test]
fn the_small_package_set_is_built_through_each_face_and_runs() {
    let faces = Faces::new("{ }");
    let (place, root, hook) = (&faces.place, faces.at("root"), faces.at("hook"));
    let (socket, ssh) = (faces.socket(), faces.ssh());
    let hooked = ["-j0", "--option", "build-hook", &hook];
    // Each package is built once, by whoever asks first; all of them need the toolchain.
    for (nix, number, [first, second, third]) in [(Nix::Installed, 1, ["bzip2", "lz4", "tree"]), (Nix::Debian13, 2, ["zlib", "lua", "xz"])]
    {
        let made = build(&faces, nix, &socket, &[], first);
        assert!(made.iter().all(|path| Path::new(&format!("{root}{path}")).exists()), "{made:?} are on this machine");
        let made = build(&faces, nix, &ssh, &[], second);
        faces.copy(nix, &ssh, &format!("ssh-{number}"), &made);
        let own = format!("hook-{number}");
        let made = build(&faces, nix, &faces.own(&own), &hooked, third);
        faces.run(nix, "nix-store", &["--store", &faces.own(&own), "--verify", "--check-contents"]).expect_success();
        assert!(made.iter().all(|path| Path::new(&format!("{}{path}", faces.at(&own))).exists()), "{made:?} are in its store");
    }
    let mut command = place.kiln(&["build", "-A", "small", "--to", "root", "-f", &set()]);
    let built = Ran(command.env("KILN_PKGSET_SOURCES", sources()).output().expect("the binary runs"));
    assert_eq!(built.code(), 0, "run `loadtest/pkgset/fetch small` first if sources are missing:\n{}", built.err());
    let paths: Vec<String> = built.out().lines().map(str::to_owned).collect();
    assert!(paths.len() >= 12, "about a dozen packages:\n{paths:?}");
    let lua = paths.iter().find(|path| path.contains("-lua-5")).expect("lua is in the set");
    let ran = Command::new(format!("{root}{lua}/bin/lua")).args(["-e", "print(6 * 7)"]).output().expect("lua is a static program");
    assert_eq!(String::from_utf8_lossy(&ran.stdout), "42\n");
    // Each was built once, whoever asked.
    assert!(place.attempts("farm/logs").iter().all(|(_, count)| *count == 1), "{:?}", place.attempts("farm/logs"));
    for (nix, to) in [(Nix::Installed, "http-1"), (Nix::Debian13, "http-2")] {
        faces.copy(nix, &faces.cache(), to, &paths);
    }
}
