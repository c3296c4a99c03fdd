//! The process that keeps for hooks what they share: it serves one hook after another, and that it dies or hangs harms none.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::farm::wait_for;
use crate::hook::Hooked;

const SET: &str = r#"
rec {
  first = drv "first" "echo first > $out" [ ];
  chain = builtins.foldl' (below: i: drv "link-${i}" "echo ${below} > $out" [ below ]) first (range 8);
  slow = drv "slow" "echo begun; ${boot}/busybox sleep 4; echo done > $out" [ ];
  endless = drv "endless" "echo begun; while :; do ${boot}/busybox sleep 1; done" [ ];
  # More than all pipes between the builder and who reads hold together.
  chatty = drv "chatty" "i=0; while [ $i -lt 30000 ]; do echo line $i of what nobody reads for a while; i=$((i+1)); done; echo > $out" [ ];
}
"#;

impl Hooked {
    /// Writes a program that stands for `nix-daemon`, and notes in a file what it was started with.
    fn noting_daemon(&self) -> (String, PathBuf) {
        let (script, notes) = (self.place.path("noting"), self.place.path("notes"));
        let text = format!(
            "#!/bin/sh\n( exec >> {}; echo start $NIX_HELD_LOCKS; for fd in /proc/$$/fd/*; do echo fd ${{fd##*/}} $(readlink $fd); done )\nexec nix-daemon \"$@\"\n",
            notes.display()
        );
        std::fs::write(&script, text).expect("write");
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("make it executable");
        (format!("--nix-daemon {}", script.display()), notes)
    }

    fn built_with(&self, hook: &str, attribute: &str) -> String {
        let args = ["set.nix", "--no-out-link", "-j0", "--option", "build-hook", hook, "-A", attribute];
        self.run("nix", "nix-build", &args).expect_success().out().trim().to_owned()
    }

    /// Returns the hook processes that Nix has started, without agents.
    fn hooks(&self) -> Vec<u32> {
        let locks = self.place.path("locks");
        let is_hook = |id: &u32| {
            let command = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
            let words: Vec<_> = command.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
            // Not the shell that became it.
            words.first().is_some_and(|program| program.ends_with("/kiln")) && words.iter().any(|word| Path::new(&**word) == locks)
        };
        let listed = std::fs::read_dir("/proc").expect("there is /proc").flatten();
        listed.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_hook).collect()
    }
}

fn signal(name: &str, process: u32) {
    let sent = Command::new("sh").args(["-c", &format!("kill -{name} {process}")]).status().expect("there is a shell");
    assert!(sent.success(), "send {name} to {process}");
}

fn lines_of(file: &PathBuf, beginning: &str) -> Vec<String> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().filter(|line| line.starts_with(beginning)).map(str::to_owned).collect()
}

#[test]
fn one_agent_serves_hooks_and_keeps_a_nix_that_takes_their_outputs() {
    let hooked = Hooked::new(SET);
    let (daemon, notes) = hooked.noting_daemon();
    let hook = hooked.hook(&daemon);
    // Nix knows the whole chain, and so the agent what comes after its first link.
    hooked.run("nix", "nix-instantiate", &["set.nix", "-A", "chain"]).expect_success();
    hooked.built_with(&hook, "first");
    let agents = hooked.agents();
    assert_eq!(agents.len(), 1, "{agents:?}");
    let foretold = || lines_of(&notes, "start").into_iter().find(|line| line.contains("-link-0") && line.contains("-link-7"));
    wait_for("a Nix that is told of the chain", foretold);
    let built = hooked.built_with(&hook, "chain");
    assert!(hooked.read("nix", &built).contains("-link-6"));
    assert_eq!(hooked.agents(), agents, "the same serves all");
    // It may not have been ready for the first link.
    let started = lines_of(&notes, "start").len();
    assert!(started <= 4, "{started} were started for nine derivations");
    hooked.run("nix", "nix-store", &["--verify", "--check-contents"]).expect_success();
    assert!(hooked.place.attempts("farm/logs").iter().all(|(_, count)| *count == 1));
}

#[test]
fn nothing_that_a_hook_starts_has_the_pipes_of_nix() {
    let hooked = Hooked::new(SET);
    let (daemon, notes) = hooked.noting_daemon();
    for (linger, attribute) in [("--linger 0", "first"), ("--linger 10", "chain")] {
        hooked.built_with(&hooked.hook(&format!("{linger} {daemon}")), attribute);
        assert_eq!(hooked.agents().is_empty(), linger == "--linger 0", "0 is none");
    }
    let own = std::fs::read_dir("/proc/self/fd").expect("there is /proc").flatten();
    let inherited: BTreeSet<String> = own.filter_map(|entry| Some(std::fs::read_link(entry.path()).ok()?.display().to_string())).collect();
    let open = lines_of(&notes, "fd ");
    assert!(!open.is_empty());
    for line in &open {
        let mut words = line.split_whitespace().skip(1);
        let (number, leads_to) = (words.next().expect("a number"), words.next().unwrap_or_default());
        // Three of its own; and what this process has open for its children, which is not Nix's.
        let is_own = matches!(number, "0" | "1" | "2") || !leads_to.starts_with("pipe:") || inherited.contains(leads_to);
        assert!(is_own, "{line}");
    }
    let agent = hooked.agents()[0];
    for entry in std::fs::read_dir(format!("/proc/{agent}/fd")).expect("it runs").flatten() {
        let Ok(number) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let leads_to = std::fs::read_link(entry.path()).unwrap_or_default().display().to_string();
        match number {
            0 => assert!(leads_to.starts_with("socket:"), "{leads_to}"),
            1 | 2 => assert_eq!(leads_to, "/dev/null"),
            _ => {}
        }
    }
    let session = |process: String| {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).expect("it runs");
        stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(3)).map(str::to_owned)
    };
    assert_eq!(session(agent.to_string()), Some(agent.to_string()), "Nix kills the group of a hook");
}

#[test]
fn a_hook_whose_agent_is_killed_goes_on_by_itself() {
    let hooked = Hooked::new(SET);
    let mut nix = hooked.start("nix", &["-A", "slow"]);
    nix.wait_for_line("begun");
    let agents = hooked.agents();
    signal("KILL", agents[0]);
    let (code, said) = nix.finish();
    assert_eq!(code, 0, "{said}");
    // The next hook finds a socket at which nobody listens.
    hooked.built_with(&hooked.hook(""), "first");
    let after = hooked.agents();
    assert!(after.len() == 1 && after != agents, "another agent: {after:?}");
    assert_eq!(hooked.place.attempts("farm/logs").iter().map(|(_, count)| *count).max(), Some(1), "nothing was built twice");
}

#[test]
fn a_killed_hook_has_its_build_cancelled() {
    let hooked = Hooked::new(SET);
    let mut nix = hooked.start("nix", &["-A", "endless"]);
    nix.wait_for_line("begun");
    let hooks = hooked.hooks();
    let agents = hooked.agents();
    let hook = hooks.iter().find(|hook| !agents.contains(hook)).expect("a hook runs");
    signal("KILL", *hook);
    hooked.wait_until_idle();
    assert_ne!(nix.finish().0, 0);
    assert_eq!(hooked.agents(), agents, "the agent is there for the next");
}

#[test]
fn a_log_that_is_read_late_is_whole() {
    let hooked = Hooked::new(SET);
    let hook = hooked.hook("");
    let args = ["set.nix", "--no-out-link", "-j0", "--option", "build-hook", &hook, "-A", "chatty"];
    let mut nix = hooked.command("nix", &["timeout", "--signal=KILL", "120", "nix-build"], &args);
    let running = nix.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("nix-bin is installed");
    // The farm has built it, and Nix has not been able to tell all of it.
    wait_for("it is built", || hooked.place.attempts("farm/logs").first().cloned());
    hooked.wait_until_idle();
    let output = running.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}", said.lines().last().unwrap_or_default());
    let lines = said.lines().filter(|line| line.contains("of what nobody reads for a while")).count();
    assert_eq!(lines, 30_000);
}

#[test]
fn an_agent_for_which_nothing_is_left_to_do_ends() {
    let hooked = Hooked::new(SET);
    hooked.built_with(&hooked.hook("--linger 1"), "first");
    let agents = hooked.agents();
    assert!(agents.len() <= 1, "{agents:?}");
    wait_for("it ends", || hooked.agents().is_empty().then_some(()));
    let left = || {
        let mut listed = std::fs::read_dir(hooked.place.path("locks")).expect("locks").flatten();
        listed.find(|entry| entry.file_name().to_string_lossy().starts_with("agent-"))
    };
    wait_for("its socket is gone", || left().is_none().then_some(()));
    let is_gone = |agent: &u32| !std::fs::read(format!("/proc/{agent}/cmdline")).is_ok_and(|command| !command.is_empty());
    wait_for("its process is gone", || agents.iter().all(is_gone).then_some(()));
}
