//! A farm on a machine where its user is not root.

use std::fs;
use std::os::unix::fs::chown;
use std::process::{Command, Stdio};

use crate::farm::{Place, wait_for};

/// A user that every machine knows, and that has nothing.
const NOBODY: u32 = 65_534;

const SET: &str = r#"
rec {
  one = drv "one" "${boot}/busybox id -u; ${boot}/busybox mkdir $out; echo one > $out/file" [ ];
  two = drv "two" "${boot}/busybox cat $deps/file > $out; ${boot}/busybox cat /proc/self/uid_map" [ one ];
}
"#;

/// Starts a farm as that user, builds on it, and returns what its workers promise, what the log of the last build holds, and the output.
/// `prepare` is a shell command that runs first, as root, in a mount namespace of its own.
fn build_as_nobody(prepare: &str) -> (serde_json::Value, String, String) {
    let place = Place::new(SET);
    let own = |path: &str| chown(place.path(path), Some(NOBODY), Some(NOBODY)).expect("chown");
    [".", "boot", "boot/busybox", "set.nix"].into_iter().for_each(own);
    // Where the checkout lies, the user may have no way to.
    fs::copy(env!("CARGO_BIN_EXE_kiln"), place.path("kiln")).expect("copy the binary");
    let script = format!(
        "{prepare}\nexec setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups sh -ec '
            ./kiln up --listen 127.0.0.1:0 --http 127.0.0.1:0 >up.log 2>&1 &
            farm=$!
            until [ -e farm/farm.json ]; do kill -0 $farm; sleep 0.05; done
            code=0
            ./kiln build -f set.nix -A two --to root >build.log 2>&1 && ./kiln workers --json >workers.json || code=$?
            kill -INT $farm
            wait $farm
            exit $code'"
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-ec", &script]).current_dir(place.path(".")).stdin(Stdio::null());
    command.env("HOME", place.path("")).env("KILN_DIR", place.path("farm")).env_remove("KILN_FARM").env_remove("KILN_IDENTITY");
    let mut child = command.spawn().expect("unshare is part of every Debian");
    let ended = wait_for("the user's farm", || child.try_wait().expect("it is our child"));
    let read = |path: &str| fs::read_to_string(place.path(path)).unwrap_or_default();
    assert!(ended.success(), "{}\n{}", read("build.log"), read("up.log"));
    let workers: serde_json::Value = serde_json::from_str(&read("workers.json")).expect("JSON");
    let logs = fs::read_dir(place.path("farm/logs")).expect("there are logs").filter_map(Result::ok);
    let two = logs.map(|entry| entry.path()).find(|path| path.to_string_lossy().ends_with("-two.drv")).expect("it was built");
    let log = fs::read_dir(two).expect("list").filter_map(Result::ok).map(|entry| fs::read_to_string(entry.path()).expect("a log"));
    let built = fs::read_dir(place.path("root/nix/store")).expect("it was fetched").filter_map(Result::ok).map(|entry| entry.path());
    let out = built.into_iter().find(|path| path.to_string_lossy().ends_with("-two")).expect("it was fetched");
    (workers[0]["guarantees"].clone(), log.collect(), fs::read_to_string(out).expect("a file"))
}

#[test]
fn a_user_without_subordinate_ids_builds_as_itself_and_is_told_so() {
    let (promised, log, output) = build_as_nobody("mount --bind /dev/null /etc/subuid || true");
    assert_eq!(output, "one\n");
    assert_eq!(log.split_whitespace().collect::<Vec<_>>(), ["1000", "0", "1"], "one user in the sandbox, the launcher's: {log}");
    assert!(promised["build users"].as_str().is_some_and(|words| words.starts_with("the worker's own")), "{promised}");
}

#[test]
fn a_user_with_subordinate_ids_builds_as_others() {
    let prepare = "echo nobody:3000000:100 >ids; touch /etc/subuid /etc/subgid; mount --bind ids /etc/subuid; mount --bind ids /etc/subgid";
    let (promised, log, output) = build_as_nobody(prepare);
    assert_eq!(output, "one\n");
    let map: Vec<&str> = log.split_whitespace().collect();
    assert!(matches!(map[..], ["1000", id, "1"] if id != "0"), "a user of its own: {log}");
    assert!(promised["build users"].as_str().is_some_and(|words| words.contains("subordinate")), "{promised}");
}
