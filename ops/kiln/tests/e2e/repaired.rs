//! What becomes of a farm's store whose bytes have changed or are gone, when a real Nix asks for repair.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::farm::{Place, Process, Ran};
use crate::nix::{Nix, RULES};

const SET: &str = r#"
rec {
  bottom = drv "bottom" "echo bottom > $out" [ ];
  top = drv "top" "cat $deps > $out; echo $deps >> $out" [ bottom ];
  odd = drv "odd" "read id < /proc/sys/kernel/random/uuid; echo $id > $out" [ ];
  sourced = drv "sourced" "echo $deps > $out" [ (builtins.toFile "source" "text of a file\n") ];
}
"#;

/// A farm, its daemon, and a Nix that knows of no other store.
struct Repaired {
    _running: [Process; 2],
    place: Place,
}

impl Repaired {
    fn new() -> Self {
        let place = Place::new(SET);
        let farm = place.up();
        let (socket, to) = (place.path("socket"), place.path("root"));
        let text = |path: &Path| path.to_str().expect("text").to_owned();
        let mut daemon = Process::start(&mut place.kiln_aloud(&["daemon", "--socket", &text(&socket), "--to", &text(&to)]));
        daemon.wait_for_line("serving Nix clients");
        std::fs::create_dir(place.path("conf")).expect("make directory");
        std::fs::write(place.path("conf/nix.conf"), RULES).expect("write");
        Self { _running: [daemon, farm], place }
    }

    fn nix(&self, args: &[&str]) -> Ran {
        let store = format!("unix://{}?root={}", self.place.path("socket").display(), self.place.path("root").display());
        let mut command = Command::new("timeout");
        command.args(["--signal=KILL", "120"]).args(args).args(["--store", &store]).current_dir(self.place.path("")).stdin(Stdio::null());
        command.env("NIX_CONF_DIR", self.place.path("conf")).env("HOME", self.place.path(""));
        Nix::of(module_path!()).be_found(&mut command);
        command.env_remove("NIX_REMOTE").env_remove("NIX_PATH");
        Ran(command.output().expect("nix-bin is installed"))
    }

    fn build(&self, attribute: &str, more: &[&str]) -> Ran {
        self.nix(&[&["nix-build", "set.nix", "-A", attribute, "--no-out-link"][..], more].concat())
    }

    /// Returns where the farm keeps the archive of a path.
    fn blob(&self, path: &str) -> PathBuf {
        let store = self.place.path("farm/store");
        let part = &path.trim().rsplit('/').next().expect("a name")[..32];
        let narinfo = std::fs::read_to_string(store.join(format!("{part}.narinfo"))).expect("a narinfo");
        store.join(narinfo.lines().find_map(|line| line.strip_prefix("URL: ")).expect("a URL"))
    }
}

fn spoil(blob: &Path) {
    let mut bytes = std::fs::read(blob).expect("a blob");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x55;
    std::fs::write(blob, bytes).expect("write");
}

#[test]
fn what_is_damaged_is_built_again_and_put_back() {
    let repaired = Repaired::new();
    let (top, bottom) = (repaired.build("top", &[]).expect_success().out(), repaired.build("bottom", &[]).expect_success().out());
    let blobs = [repaired.blob(&top), repaired.blob(&bottom)];
    let before: Vec<Vec<u8>> = blobs.iter().map(|blob| std::fs::read(blob).expect("a blob")).collect();
    let verify = |more: &[&str]| repaired.nix(&[&["nix-store", "--verify", "--check-contents"][..], more].concat());
    verify(&[]).expect_success();
    for repair in [
        vec!["nix-build", "set.nix", "-A", "top", "--no-out-link", "--repair"],
        vec!["nix-store", "--verify", "--check-contents", "--repair"],
    ] {
        // What it is built from is damaged too, in another way.
        spoil(&blobs[0]);
        std::fs::remove_file(&blobs[1]).expect("remove");
        let found = verify(&[]);
        assert!(found.code() != 0 && found.err().contains(top.trim()) && found.err().contains(bottom.trim()), "{}", found.err());
        assert_ne!(repaired.nix(&["nix-store", "--verify"]).code(), 0, "one is not there at all");
        let mended = repaired.nix(&repair).expect_success();
        assert!(mended.err().contains("-bottom.drv") && mended.err().contains("-top.drv"), "{}", mended.err());
        let after: Vec<Vec<u8>> = blobs.iter().map(|blob| std::fs::read(blob).expect("a blob")).collect();
        assert_eq!(after, before);
        verify(&[]).expect_success();
    }
    // What is sound is not built.
    let again = repaired.build("top", &["--repair"]).expect_success();
    assert!(!again.err().contains("building"), "{}", again.err());
}

#[test]
fn what_does_not_come_out_the_same_or_is_made_by_nobody_is_told_of_and_stays() {
    let repaired = Repaired::new();
    let odd = repaired.build("odd", &[]).expect_success().out();
    let sourced = repaired.build("sourced", &[]).expect_success().out();
    let source = repaired.nix(&["nix-store", "-q", "--references", sourced.trim()]).expect_success().out();
    let narinfo =
        |path: &str| std::fs::read(repaired.place.path("farm/store").join(format!("{}.narinfo", &path[11..43]))).expect("a narinfo");
    for (attribute, path, wanted) in [("odd", odd.as_str(), "not deterministic"), ("sourced", source.as_str(), "add it again")] {
        let (blob, said) = (repaired.blob(path), narinfo(path));
        spoil(&blob);
        let spoilt = std::fs::read(&blob).expect("a blob");
        let refused = repaired.build(attribute, &["--repair"]);
        assert!(refused.code() != 0 && refused.err().contains(wanted), "{attribute}: {}", refused.err());
        assert_eq!((narinfo(path), std::fs::read(&blob).expect("a blob")), (said, spoilt), "{attribute}: nothing else was put there");
    }
}
