//! The network: a namespace for each host, one bridge in a namespace of its own between them, and what that drops.
//!
//! Nothing of it is in the machine's own namespace. Names carry our process id. All of it goes with [`Net`]; what a harness left that
//! was killed itself is removed by the next one ([`sweep`]).

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use nix::sched::{CloneFlags, setns};

use crate::hosts::Host;
use crate::rules::Drops;
use crate::run::run;

/// The namespaces of one farm.
#[derive(Debug)]
pub struct Net {
    hosts: Vec<Host>,
    names: Vec<String>,
}

impl Net {
    /// Makes the network of these hosts, where everybody reaches everybody.
    ///
    /// # Errors
    /// What `ip` or `nft` said.
    pub fn new(hosts: &[Host]) -> anyhow::Result<Self> {
        let mut net = Self { hosts: hosts.to_vec(), names: Vec::new() };
        let switch = name("switch");
        net.add(&switch)?;
        ip(&["-n", &switch, "link", "add", "bridge", "type", "bridge"])?;
        ip(&["-n", &switch, "link", "set", "bridge", "up"])?;
        for host in hosts {
            let (space, port) = (name(host), host.to_string());
            net.add(&space)?;
            ip(&["-n", &switch, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &space])?;
            ip(&["-n", &switch, "link", "set", &port, "master", "bridge", "up"])?;
            ip(&["-n", &space, "addr", "add", &format!("{}/24", host.address()), "dev", "eth0"])?;
            ip(&["-n", &space, "link", "set", "eth0", "up"])?;
            ip(&["-n", &space, "link", "set", "lo", "up"])?;
        }
        net.drop_packets(&Drops::default())?;
        Ok(net)
    }

    fn add(&mut self, name: &str) -> anyhow::Result<()> {
        ip(&["netns", "add", name])?;
        self.names.push(name.to_owned());
        Ok(())
    }

    /// Returns everybody.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// Drops this from here on, and nothing else.
    ///
    /// # Errors
    /// What `nft` said.
    pub fn drop_packets(&self, drops: &Drops) -> anyhow::Result<()> {
        let mut nft = Command::new("nsenter")
            .args([&format!("--net={}", place(&name("switch")).display()), "--", "nft", "-f", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("start nft")?;
        nft.stdin.take().context("nft has a standard input")?.write_all(drops.script().as_bytes()).context("write rules to nft")?;
        let done = nft.wait_with_output().context("wait for nft")?;
        if !done.status.success() {
            bail!("nft: {}: {}", done.status, String::from_utf8_lossy(&done.stderr).trim());
        }
        Ok(())
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for name in self.names.drain(..).rev() {
            if let Err(error) = ip(&["netns", "del", &name]) {
                eprintln!("warning: {error:#}");
            }
        }
    }
}

/// Returns the beginning of a command that runs another one on `host`. It becomes that program: the process id stays.
pub fn on(host: Host) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", place(&name(host)).display())).arg("--");
    command
}

/// Takes this thread, and the sockets that it will open, to `host`.
///
/// # Errors
/// If the namespace cannot be entered.
pub fn enter(host: Host) -> anyhow::Result<()> {
    let place = place(&name(host));
    let space = File::open(&place).with_context(|| format!("open `{}`", place.display()))?;
    setns(space, CloneFlags::CLONE_NEWNET).with_context(|| format!("enter `{}`", place.display()))
}

/// Removes what harnesses left that are gone: their namespaces, and the processes in them.
///
/// # Errors
/// If the namespaces cannot be listed.
pub fn sweep() -> anyhow::Result<()> {
    let Ok(spaces) = std::fs::read_dir(SPACES) else { return Ok(()) };
    for space in spaces {
        let space = space.context("list namespaces")?.file_name().to_string_lossy().into_owned();
        let owner = space.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-')).and_then(|(pid, _)| pid.parse::<u32>().ok());
        if owner.is_none_or(|pid| Path::new("/proc").join(pid.to_string()).exists()) {
            continue;
        }
        eprintln!("warning: removing what an earlier run left: {space}");
        for pid in ip(&["netns", "pids", &space])?.split_whitespace().filter_map(|pid| pid.parse().ok()) {
            // It may have ended by itself.
            let _ended = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
        ip(&["netns", "del", &space])?;
    }
    Ok(())
}

fn name(what: impl std::fmt::Display) -> String {
    format!("{PREFIX}{}-{what}", std::process::id())
}

fn place(name: &str) -> PathBuf {
    Path::new(SPACES).join(name)
}

fn ip(args: &[&str]) -> anyhow::Result<String> {
    run("ip", args)
}

/// Where `ip netns` keeps namespaces.
const SPACES: &str = "/run/netns";
/// What the names of ours begin with, before our process id.
const PREFIX: &str = "kiln-faults-";
