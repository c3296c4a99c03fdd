//! A farm with another store directory than Nix's: Guix has `/gnu/store`. Its derivations are of the same kind, and a Nix that was told of
//! that directory makes real ones.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::crashes::Daemons;
use crate::farm::{Process, Ran};

const STORE_DIR: &str = "/gnu/store";

const SET: &str = r#"
rec {
  base = derivation { name = "base"; system = "x86_64-linux"; builder = "${boot}/busybox"; outputs = [ "out" "lib" ];
    args = [ "sh" "-c" "echo $NIX_STORE > $out; echo text > $lib" ]; };
  top = drv "top" "cat $deps > $out; echo $deps $out >> $out" [ base base.lib (builtins.toFile "source" "source\n") ];
}
"#;

#[test]
fn a_farm_serves_the_store_directory_that_it_is_told_to() {
    let daemons = Daemons::with(SET);
    let place = &daemons.place;
    let mut config = std::fs::OpenOptions::new().append(true).open(place.path("coordinator.toml")).expect("it was written");
    writeln!(config, "store_dir = '{STORE_DIR}'").expect("write");
    let (_coordinator, _worker) = (daemons.start("coordinator"), daemons.start("worker"));
    daemons.wait_until_up();
    let kiln = |args: &[&str]| place.run(&[args, &daemons.farm()].concat());
    let built = kiln(&["build", "-f", "set.nix", "-A", "top", "--to", "root"]).expect_success();
    let path = built.out().trim().to_owned();
    assert!(path.starts_with("/gnu/store/") && path.ends_with("-top"), "{path}");
    let text = std::fs::read_to_string(place.path("root").join(path.trim_start_matches('/'))).expect("it was brought");
    assert!(text.starts_with("/gnu/store\ntext\nsource\n") && text.ends_with(&format!("{path}\n")), "{text}");
    let infos = kiln(&["path-info", "--json", "-r", &path]).expect_success().json();
    assert_eq!(infos.as_array().expect("a list").len(), 4, "itself, two outputs and a source: {infos}");

    // A Nix with the same directory has the farm for its store, and one with its own does not take the farm's for it.
    let (socket, root) = (place.path("socket"), place.path("daemon"));
    let words = ["--socket", socket.to_str().expect("text"), "--to", root.to_str().expect("text")];
    let mut daemon = Process::start(&mut place.kiln_aloud(&[&["daemon"], &words[..], &daemons.farm()].concat()));
    daemon.wait_for_line("serving Nix clients");
    std::fs::create_dir(place.path("conf")).expect("make directory");
    std::fs::write(place.path("conf/nix.conf"), "experimental-features = nix-command\nsubstituters =\n").expect("write");
    let nix = |program: &str, args: &[&str], store_dir: &str| {
        let store = format!("unix://{}?root={}&real={}{STORE_DIR}", socket.display(), root.display(), root.display());
        let mut command = Command::new(program);
        command.args(args).args(["--store", &store]).current_dir(place.path("")).stdin(Stdio::null());
        command
            .env("NIX_CONF_DIR", place.path("conf"))
            .env("HOME", place.path(""))
            .env("NIX_STORE_DIR", store_dir)
            .env_remove("NIX_REMOTE");
        Ran(command.output().expect("nix-bin is installed"))
    };
    let again = nix("nix-build", &["set.nix", "-A", "top", "--no-out-link"], STORE_DIR).expect_success();
    assert_eq!(again.out().trim(), path);
    let verified = nix("nix", &["store", "verify", "--no-trust", &path], STORE_DIR).expect_success();
    assert!(!verified.err().contains("modified"), "{}", verified.err());
    let foreign = nix("nix-store", &["-q", "--references", "/nix/store/0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar"], "/nix/store");
    assert_ne!(foreign.code(), 0, "{}", foreign.out());
}
