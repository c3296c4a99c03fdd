//! A real Nix with a store of its own, which has its derivations built on a farm by the build hook.

use std::process::{Command, Stdio};

use crate::farm::{Place, Process, Ran, wait_for};
use crate::nix::{Nix, RULES};

/// The version that these tests are compiled for.
fn nix() -> Nix {
    Nix::of(module_path!())
}

/// A farm, and stores of Nix beside it.
pub struct Hooked {
    pub farm: Process,
    /// Goes last: the farm lives in it.
    pub place: Place,
}

impl Drop for Hooked {
    /// Ends what hooks have left for the next.
    fn drop(&mut self) {
        for agent in self.agents() {
            // It may have ended by itself.
            let _ended = Command::new("sh").args(["-c", &format!("kill {agent}")]).stderr(Stdio::null()).status();
        }
    }
}

impl Hooked {
    pub fn new(set: &str) -> Self {
        let place = Place::new(set);
        let farm = place.up();
        std::fs::create_dir(place.path("conf")).expect("make directory");
        let rules = format!("{RULES}build-users-group =\nsandbox = false\n");
        std::fs::write(place.path("conf/nix.conf"), rules).expect("write");
        Self { farm, place }
    }

    pub fn store(&self, name: &str) -> String {
        format!("local?root={}", self.place.path(name).display())
    }

    /// Returns a command of Nix on one of the stores.
    pub fn command(&self, store: &str, program: &[&str], args: &[&str]) -> Command {
        let mut command = Command::new(program[0]);
        command.args(&program[1..]).args(["--store", &self.store(store)]).args(args);
        command.current_dir(self.place.path("")).stdin(Stdio::null());
        command.env("NIX_CONF_DIR", self.place.path("conf")).env("HOME", self.place.path("")).env("KILN_DIR", self.place.path("farm"));
        nix().be_found(&mut command);
        for name in ["NIX_REMOTE", "NIX_PATH", "KILN_FARM", "KILN_IDENTITY"] {
            command.env_remove(name);
        }
        command
    }

    pub fn run(&self, store: &str, program: &str, args: &[&str]) -> Ran {
        Ran(self.command(store, &["timeout", "--signal=KILL", "120", program], args).output().expect("nix-bin is installed"))
    }

    /// Returns the value of `build-hook`, with more arguments. Nix 2.8 takes the name of a program and nothing else there.
    pub fn hook(&self, more: &str) -> String {
        let (kiln, place) = (env!("CARGO_BIN_EXE_kiln"), self.place.path(""));
        let script = self.place.path(&format!("hook{}", more.replace([' ', '/'], "_")));
        let text = format!("#!/bin/sh\nexec {kiln} build-hook --config {0}/none --locks {0}/locks {more} \"$@\"\n", place.display());
        std::fs::write(&script, text).expect("write");
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("make it executable");
        script.to_str().expect("text").to_owned()
    }

    /// Returns the processes that keep what hooks share.
    pub fn agents(&self) -> Vec<u32> {
        let listed = std::fs::read_dir(self.place.path("locks")).into_iter().flatten().flatten();
        let files = listed.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|extension| extension == "pid"));
        files.filter_map(|path| std::fs::read_to_string(path).ok()?.trim().parse().ok()).collect()
    }

    /// Runs `nix-build` that has nothing built on its own.
    pub fn build(&self, store: &str, args: &[&str]) -> Ran {
        self.run(store, "nix-build", &self.arguments(args).iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn arguments(&self, args: &[&str]) -> Vec<String> {
        let hook = self.hook("");
        let fixed = ["set.nix", "--no-out-link", "-j0", "--option", "build-hook", &hook];
        fixed.iter().chain(args).map(|word| (*word).to_owned()).collect()
    }

    /// Starts `nix-build` with its standard error where it is listened to.
    pub fn start(&self, store: &str, args: &[&str]) -> Process {
        let script = r#"exec "$0" "$@" 2>&1"#;
        let args = self.arguments(args);
        Process::start(&mut self.command(store, &["sh", "-c", script, "nix-build"], &args.iter().map(String::as_str).collect::<Vec<_>>()))
    }

    pub fn read(&self, store: &str, path: &str) -> String {
        let path = format!("{}{path}", self.place.path(store).display());
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    pub fn jobs(&self) -> serde_json::Value {
        self.place.run(&["jobs", "--json"]).expect_success().json()
    }

    pub fn wait_until_idle(&self) {
        wait_for("the job ends", || (self.jobs() == serde_json::json!([])).then_some(()));
    }
}

const SET: &str = r#"
rec {
  wide = map (i: drv "wide-${i}" "echo making ${i}; cat $deps > $out; echo ${i} >> $out" [ (builtins.toFile "source" "text of a file\n") ]) (range 6);
  deep = builtins.foldl' (below: i: drv "deep-${i}" "echo on ${i}; cat $deps > $out; echo ${i} >> $out; echo ${below} >> $out" [ below ]) (drv "bottom" "echo bottom > $out" [ ]) (range 3);
  pair = derivation { name = "pair"; system = "x86_64-linux"; builder = "${boot}/busybox"; outputs = [ "out" "doc" ];
    args = [ "sh" "-c" "echo $doc > $out; echo text > $doc" ]; };
  above = drv "above" "cat $deps > $out" [ pair ];
  fixed = derivation { name = "fixed"; system = "x86_64-linux"; builder = "${boot}/busybox"; args = [ "sh" "-c" "echo -n hello > $out" ];
    outputHashAlgo = "sha256"; outputHashMode = "flat"; outputHash = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"; };
  bad = drv "bad" "echo line one; echo line two >&2; exit 3" [ ];
  beside = drv "beside" "echo beside > $out" [ ];
  endless = drv "endless" "echo begun; while :; do ${boot}/busybox sleep 1; done" [ ];
  chatty = drv "chatty" "echo begun; while :; do ${boot}/busybox sleep 1; echo on; done" [ ];
  foreign = derivation { name = "foreign"; system = "vax-netbsd"; builder = "x"; };
}
"#;

#[test]
fn nix_has_its_derivations_built_on_the_farm_and_the_outputs_in_its_own_store() {
    let hooked = Hooked::new(SET);
    let built = hooked.build("nix", &["-A", "deep", "-A", "above", "-A", "fixed"]).expect_success();
    let paths: Vec<String> = built.out().lines().map(str::to_owned).collect();
    assert_eq!((paths.len(), hooked.read("nix", &paths[1]).trim().ends_with("-pair-doc")), (3, true), "{}", built.out());
    assert!(hooked.read("nix", &paths[0]).starts_with("bottom\n0\n"), "{}", built.err());
    for wanted in ["on 0\n", "on 2\n", "-deep-2.drv' on '"] {
        assert!(built.err().contains(wanted), "`{wanted}` is missing in:\n{}", built.err());
    }
    hooked.run("nix", "nix-store", &["--verify", "--check-contents"]).expect_success();
    let key = hooked.place.beacon()["public_key"].as_str().expect("a key").to_owned();
    hooked.run("nix", "nix", &["store", "verify", "--sigs-needed", "1", "--trusted-public-keys", &key, "-r", &paths[0]]).expect_success();
    let deriver = hooked.run("nix", "nix-store", &["-q", "--deriver", &paths[0]]).expect_success().out();
    assert!(deriver.trim().ends_with("-deep-2.drv"), "{deriver}");
    assert_eq!(hooked.run("nix", "nix-store", &["--read-log", &paths[0]]).expect_success().out(), "on 2\n");
    // Each was built once, and nothing that Nix had was given to the farm as built.
    assert!(hooked.place.attempts("farm/logs").iter().all(|(_, count)| *count == 1));
    let again = hooked.build("nix", &["-A", "deep"]).expect_success();
    assert!(!again.err().contains("building"), "{}", again.err());
}

#[test]
fn what_the_farm_lacks_of_the_inputs_it_builds_from_their_derivations() {
    let hooked = Hooked::new(SET);
    // Nix has the inputs already, from a build of its own that the farm knows nothing of.
    let own = ["set.nix", "--no-out-link", "-j1", "-A", "pair.all"];
    hooked.run("nix", "nix-build", &own).expect_success();
    let built = hooked.build("nix", &["-A", "above"]).expect_success();
    assert!(built.err().contains("the farm builds an input first"), "{}", built.err());
    assert!(hooked.read("nix", built.out().trim()).contains("-pair-doc"));
}

#[test]
fn a_source_is_uploaded_once_however_many_hooks_run() {
    let hooked = Hooked::new(SET);
    let built = hooked.build("nix", &["-A", "wide"]).expect_success();
    assert_eq!(built.out().lines().count(), 6);
    // The busybox and the text are two; whichever hook comes first has both.
    assert_eq!(built.err().matches("copying 2 sources to the farm").count(), 1, "{}", built.err());
    assert_eq!(built.err().matches("to the farm").count(), 1, "{}", built.err());
}

#[test]
fn two_nix_that_want_the_same_have_it_built_once() {
    let hooked = Hooked::new(SET);
    let (mut first, mut second) = (hooked.start("one", &["-A", "endless"]), hooked.start("two", &["-A", "endless"]));
    first.wait_for_line("begun");
    second.wait_for_line("begun");
    let wanted_by = |count| (hooked.jobs()[0]["builds"].as_array().map(Vec::len) == Some(count)).then_some(());
    wanted_by(2).expect("one job of two builds");
    // A Nix that is killed kills no hook, and its hook must not stay.
    first.signal("KILL");
    wait_for("the first build is cancelled", || wanted_by(1));
    second.interrupt();
    hooked.wait_until_idle();
    assert_eq!(hooked.place.attempts("farm/logs").iter().map(|(_, count)| *count).collect::<Vec<_>>(), [1], "it was tried once");
}

#[test]
fn a_failure_on_the_farm_is_one_of_nix() {
    let hooked = Hooked::new(SET);
    let failed = hooked.build("nix", &["-A", "bad", "-A", "beside", "--keep-going"]);
    assert!(matches!(failed.code(), 1 | 100), "{}: {}", failed.code(), failed.err());
    for wanted in ["line one", "line two", "on the farm: build failure: builder for `/nix/store/", "-bad.drv` failed with exit code 3"] {
        assert!(failed.err().contains(wanted), "`{wanted}` is missing in:\n{}", failed.err());
    }
    let beside = hooked.build("nix", &["-A", "beside"]).expect_success();
    assert!(!beside.err().contains("building"), "it was built beside the failure: {}", beside.err());
}

#[test]
fn the_time_outs_of_nix_hold_on_the_farm() {
    let hooked = Hooked::new(SET);
    for (attribute, limit, wanted) in
        [("endless", "max-silent-time", "timed out after 2 seconds of silence"), ("chatty", "timeout", "timed out after 2 seconds")]
    {
        let failed = hooked.build("nix", &["-A", attribute, "--option", limit, "2"]);
        assert_eq!(failed.code(), 101, "a time-out has a code of its own: {}", failed.err());
        assert!(failed.err().contains(wanted), "{}", failed.err());
        hooked.wait_until_idle();
    }
}

#[test]
fn what_the_farm_does_not_take_nix_builds_or_refuses_itself() {
    let hooked = Hooked::new(SET);
    let foreign = hooked.build("nix", &["-A", "foreign"]);
    assert!(foreign.code() != 0 && foreign.err().contains("no worker builds for `vax-netbsd`"), "{}", foreign.err());
    // With one build at a time on the farm the others wait their turn, and are built there all the same.
    let hook = hooked.hook("--builds-max 1");
    let args = ["set.nix", "--no-out-link", "-j0", "--option", "build-poll-interval", "1", "--option", "build-hook", &hook, "-A", "wide"];
    let built = hooked.run("nix", "nix-build", &args).expect_success();
    assert_eq!(built.out().lines().count(), 6);
    let path = hooked.build("nix", &["-A", "beside"]).expect_success().out().trim().to_owned();
    let checked = hooked.build("nix", &["-A", "beside", "--check"]);
    assert!(checked.code() != 0 && checked.err().contains("--check"), "what is not compared is not said to be equal: {}", checked.err());
    let hook = hooked.hook("");
    let checked =
        hooked.run("nix", "nix-build", &["set.nix", "--no-out-link", "-j1", "--option", "build-hook", &hook, "-A", "beside", "--check"]);
    assert_eq!(checked.expect_success().out().trim(), path, "Nix checks it by itself: the bytes are those that it makes");
    hooked.farm.interrupt();
    wait_for("the farm is gone", || (!hooked.place.path("farm/farm.json").exists()).then_some(()));
    let alone = hooked
        .run("other", "nix-build", &["set.nix", "--no-out-link", "-j1", "--option", "build-hook", &hook, "-A", "wide"])
        .expect_success();
    assert_eq!(alone.err().matches("Nix builds by itself").count(), 1, "it asks no further: {}", alone.err());
}
