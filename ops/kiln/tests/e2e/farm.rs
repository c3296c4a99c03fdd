//! Farms as processes of the real binary, each in a directory of its own, ended by their own ids.

use std::io::{BufRead, BufReader};
use std::net::{TcpListener, UdpSocket};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// A directory for one test: farm state, expressions, results.
pub struct Place {
    dir: TempDir,
}

impl Place {
    /// Makes the directory, with `set.nix` in it and a busybox for its builders.
    pub fn new(set: &str) -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        // A worker gives up root and must still get to its directory.
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("open the directory");
        std::fs::create_dir(dir.path().join("boot")).expect("make directory");
        let busybox =
            ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists()).expect("busybox-static is installed");
        std::fs::copy(busybox, dir.path().join("boot/busybox")).expect("copy busybox");
        std::fs::write(dir.path().join("set.nix"), format!("{PRELUDE}{set}")).expect("write expression");
        Self { dir }
    }

    /// Returns a path below the directory.
    pub fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }

    /// Returns a command of the binary that finds this place's farm.
    pub fn kiln(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
        command
            .args(args)
            .env("KILN_DIR", self.path("farm"))
            .env("HOME", self.dir.path())
            .env_remove("KILN_FARM")
            .env_remove("KILN_IDENTITY");
        command.current_dir(self.dir.path()).stdin(Stdio::null());
        command
    }

    /// Returns the same command with standard error in standard output, where a process is listened to.
    pub fn kiln_aloud(&self, args: &[&str]) -> Command {
        self.kiln_under(&["sh", "-c", r#"exec "$0" "$@" 2>&1"#], args)
    }

    /// Returns the same command with a terminal for its standard output, whatever the test has.
    pub fn on_a_terminal(&self, args: &[&str]) -> Command {
        let quoted = r#"words=$0; for word; do words="$words '$word'"; done; exec script -qec "$words" /dev/null"#;
        self.kiln_under(&["sh", "-c", quoted], args)
    }

    /// Runs a command to its end; one that hangs is killed, so that the test fails and not the whole run.
    pub fn run(&self, args: &[&str]) -> Ran {
        let seconds = DEADLINE.as_secs().to_string();
        Ran(self.kiln_under(&["timeout", "--signal=KILL", &seconds], args).output().expect("the binary runs"))
    }

    /// Returns a command of the binary that another program starts.
    fn kiln_under(&self, program: &[&str], args: &[&str]) -> Command {
        let kiln = self.kiln(args);
        let mut command = Command::new(program[0]);
        command.args(&program[1..]).arg(kiln.get_program()).args(kiln.get_args());
        command.current_dir(self.dir.path()).stdin(Stdio::null());
        for (name, value) in kiln.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
    }

    /// Starts `kiln up`.
    pub fn up(&self) -> Process {
        self.up_with(&[])
    }

    /// Starts `kiln up` with more arguments.
    pub fn up_with(&self, more: &[&str]) -> Process {
        let mut command = self.kiln(&["up", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
        command.args(more);
        let mut process = Process::start(&mut command);
        process.wait_for_line("Build with");
        process
    }

    /// Returns what the running farm says of itself.
    pub fn beacon(&self) -> serde_json::Value {
        let text = std::fs::read(self.path("farm/farm.json")).expect("the farm runs");
        serde_json::from_slice(&text).expect("the beacon is JSON")
    }

    /// Returns how many attempts have left a log, by derivation.
    pub fn attempts(&self, logs: &str) -> Vec<(String, usize)> {
        let name = |dir: &Path| dir.file_name().expect("has a name").to_string_lossy().into_owned();
        let dirs = std::fs::read_dir(self.path(logs)).expect("there are logs").map(|entry| entry.expect("readable").path());
        dirs.map(|dir| (name(&dir), std::fs::read_dir(&dir).expect("readable").count())).collect()
    }
}

/// What a command said.
pub struct Ran(pub Output);

impl Ran {
    /// Returns the exit code.
    pub fn code(&self) -> i32 {
        self.0.status.code().unwrap_or(-1)
    }

    /// Returns standard output.
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.0.stdout).into_owned()
    }

    /// Returns standard error.
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.0.stderr).into_owned()
    }

    /// Fails the test unless the command did what it was asked to.
    pub fn expect_success(self) -> Self {
        assert_eq!(self.code(), 0, "{}\n{}", self.out(), self.err());
        self
    }

    /// Reads standard output as one JSON value.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out()).unwrap_or_else(|error| panic!("{error}: {}", self.out()))
    }

    /// Counts the events of this kind in `--json` output.
    pub fn events(&self, kind: &str) -> usize {
        self.out().lines().filter(|line| line.contains(&format!("\"event\":\"{kind}\""))).count()
    }
}

/// A process that ends with the test.
pub struct Process {
    child: Child,
    lines: Receiver<String>,
}

impl Process {
    /// Starts a command and takes its standard output.
    pub fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the binary runs");
        let stdout = child.stdout.take().expect("it is a pipe");
        // Read by a thread, so that waiting for a line has a deadline. It ends with the pipe.
        let (sender, lines) = channel();
        std::thread::spawn(move || BufReader::new(stdout).lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { child, lines }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Interrupts it, as Ctrl-C does.
    pub fn interrupt(&self) {
        self.signal("INT");
    }

    /// Sends it a signal, by its name without `SIG`.
    pub fn signal(&self, name: &str) {
        // The shell's own `kill`: a bare system has no program of that name.
        let sent = Command::new("sh").args(["-c", &format!("kill -{name} {}", self.child.id())]).status().expect("there is a shell");
        assert!(sent.success(), "send {name} to process {}", self.child.id());
    }

    /// Reads until a line holds `wanted`.
    pub fn wait_for_line(&mut self, wanted: &str) -> String {
        let deadline = Instant::now() + DEADLINE;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if line.contains(wanted) => return line,
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => panic!("the process ended without saying `{wanted}`: {:?}", self.child.wait()),
                Err(RecvTimeoutError::Timeout) => panic!("the process did not say `{wanted}` within {DEADLINE:?}"),
            }
        }
    }

    /// Ends the process as a power cut would, and waits until it is gone.
    pub fn kill_9(mut self) {
        self.end();
    }

    /// Waits for the process to end by itself and returns its exit code and the rest of its output.
    pub fn finish(mut self) -> (i32, String) {
        let deadline = Instant::now() + DEADLINE;
        let mut rest = Vec::new();
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => rest.push(line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("the process did not end within {DEADLINE:?}; it said {rest:?}"),
            }
        }
        let code = self.child.wait().expect("it is our child").code().unwrap_or(-1);
        (code, rest.join("\n"))
    }

    fn end(&mut self) {
        // Both fail only if it has ended already.
        let _killed = self.child.kill();
        let _reaped = self.child.wait();
    }
}

impl Drop for Process {
    /// Stops the process in order, so that it takes its control groups with it; one that does not stop is killed.
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _told = Command::new("sh").args(["-c", &format!("kill -INT {}", self.child.id())]).status();
            let deadline = Instant::now() + PATIENCE;
            while self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())).is_ok() {}
        }
        self.end();
    }
}

/// Asks until there is an answer. What is asked takes a moment by itself, so this does not spin.
pub fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "{what}: not within {DEADLINE:?}");
    }
}

/// Longer than anything here takes on a machine that does other work too: passing it is a failure, never a measurement.
const DEADLINE: Duration = Duration::from_secs(120);

/// How long a process that was told to stop may take before it is killed.
const PATIENCE: Duration = Duration::from_secs(20);

/// Returns a port that is free for UDP and TCP, and stays so until it is used: none that the kernel gives to whoever asks for any, as every
/// client does, and none that another test of this process was given.
pub fn free_port() -> u16 {
    static TRIED: AtomicU32 = AtomicU32::new(0);
    let count = u32::from(PORTS.end - PORTS.start);
    let mut candidates = (0..count).map(|_| {
        // Processes begin at places of their own.
        let at = (std::process::id().wrapping_mul(61) + TRIED.fetch_add(1, Ordering::Relaxed)) % count;
        PORTS.start + u16::try_from(at).expect("there are fewer ports than a u16 counts")
    });
    let free = |port: &u16| UdpSocket::bind(("127.0.0.1", *port)).is_ok() && TcpListener::bind(("127.0.0.1", *port)).is_ok();
    candidates.find(free).expect("loopback has free ports")
}

/// Below the ports that Linux gives to those that ask for any.
const PORTS: Range<u16> = 12_000..32_000;

/// Makes derivations with busybox as builder; `deps` are inputs.
const PRELUDE: &str = r#"
let
  boot = builtins.path { path = ./boot; name = "boot"; };
  drv = name: script: deps: derivation {
    inherit name deps;
    system = "x86_64-linux";
    builder = "${boot}/busybox";
    args = [ "sh" "-c" script ];
  };
  range = n: builtins.genList (i: toString i) n;
in
"#;
