//! What is addressed by its Git object, built by a farm and by Debian 13's Nix, which has the experimental feature `git-hashing`.

use crate::addressed::Addressed;
use crate::farm::{Process, Ran};
use crate::nix::Nix;

/// Nix 2.26 hashes `tmp` in the build's directory in the place of the output (its own mistake), so each builder puts the same there.
const SET: &str = r#"
rec {
  git = name: script: more: derivation ({
    inherit name; system = "x86_64-linux"; builder = "${boot}/busybox"; outputHashMode = "git"; outputHashAlgo = "sha1";
    args = [ "sh" "-c" "${script}; ${boot}/busybox cp -a $out tmp" ];
  } // more);
  floating = git "floating" "m=${boot}/busybox; $m mkdir -p $out/a $out/a.b $out/empty; echo f > $out/a/f; echo g > $out/a.b/g; echo h > $out/a0; echo > $out/run; $m chmod +x $out/run; $m ln -s a/f $out/l" { __contentAddressed = true; };
  above = derivation { name = "above"; system = "x86_64-linux"; builder = "${boot}/busybox"; args = [ "sh" "-c" "echo ${floating} > $out" ]; };
  file = git "file" "echo hi > $out" { outputHash = "45b983be36b73c0788dc9cbcb76cbb80fc7bb057"; };
  program = git "program" "echo hi > $out; ${boot}/busybox chmod +x $out" { outputHash = "45b983be36b73c0788dc9cbcb76cbb80fc7bb057"; };
  wrong = git "wrong" "echo other > $out" { outputHash = "45b983be36b73c0788dc9cbcb76cbb80fc7bb057"; };
  refers = git "refers" "echo ${boot} > $out" { __contentAddressed = true; };
  itself = git "itself" "echo $out > $out" { __contentAddressed = true; };
}
"#;

#[test]
fn outputs_that_are_hashed_as_git_does_are_where_nix_puts_them() {
    let addressed = Addressed::with(SET, Nix::Debian13);
    for attribute in ["floating", "above", "file", "program"] {
        let derivation = addressed.instantiate(attribute);
        let (ours, started) = addressed.farm(&derivation);
        assert!(started > 0, "{attribute} is built");
        let theirs = addressed.nix("nix-store", &["--realise", &derivation]).expect_success().out();
        assert_eq!(ours, theirs.lines().map(str::to_owned).collect::<Vec<_>>(), "{attribute}");
        let theirs = addressed.nix("nix", &["path-info", "--json", &ours[0]]).expect_success().json();
        let ours = addressed.place.run(&["path-info", "--json", &ours[0]]).expect_success().json();
        assert_eq!(ours[0]["ca"], theirs[ours[0]["path"].as_str().expect("a path")]["ca"], "{attribute}");
    }
    for (attribute, wanted) in [("wrong", "hash mismatch"), ("refers", "refer"), ("itself", "refer")] {
        let derivation = addressed.instantiate(attribute);
        let refused = addressed.place.run(&["build", &derivation]);
        assert!(refused.code() == 1 && refused.err().contains(wanted), "{attribute}: {}", refused.err());
        assert_ne!(addressed.nix("nix-store", &["--realise", &derivation]).code(), 0, "{attribute}: Nix refuses it too");
    }
}

#[test]
fn nix_adds_sources_that_are_hashed_as_git_does() {
    let addressed = Addressed::with(SET, Nix::Debian13);
    let place = &addressed.place;
    let (socket, to) = (place.path("socket"), place.path("root"));
    let mut daemon =
        Process::start(&mut place.kiln_aloud(&["daemon", "--socket", socket.to_str().expect("text"), "--to", to.to_str().expect("text")]));
    daemon.wait_for_line("serving Nix clients");
    let store = format!("unix://{}?real={}{}", socket.display(), to.display(), place.path("nix/store").display());
    std::fs::create_dir_all(place.path("source/inner")).expect("make directory");
    std::fs::write(place.path("source/inner/a"), "hello\n").expect("write");
    for source in ["source", "source/inner/a"] {
        let add = |more: &[&str]| {
            let args = [&["store", "add", "--mode", "git", "--hash-algo", "sha1", source], more].concat();
            Ran(addressed.command("nix", &args, "nix").output().expect("Nix runs")).expect_success().out()
        };
        let (theirs, ours) = (add(&[]), add(&["--store", &store]));
        assert_eq!(ours, theirs, "{source}");
        let info = place.run(&["path-info", "--json", ours.trim()]).expect_success().json();
        assert!(info[0]["ca"].as_str().is_some_and(|ca| ca.starts_with("fixed:git:sha1:")), "{info}");
        let hash = |args: &[&str]| Ran(addressed.command("nix", args, "nix").output().expect("Nix runs")).expect_success().out();
        let theirs = hash(&["hash", "path", "--mode", "git", "--algo", "sha1", "--format", "base16", source]);
        assert_eq!(place.run(&["nar", "hash", "--git", "--base16", source]).expect_success().out(), theirs, "{source}");
    }
}
