//! Caches that the farm takes from what need not be built: made by a real Nix, in every compression, and served over HTTP.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use crate::farm::{Place, Process, Ran};

/// A chain, each of which refers to the one below it; `above` is what upstream never has.
const SET: &str = r#"
rec {
  leaf = drv "leaf" "echo leaf > $out" [ ];
  mid = drv "mid" "echo ${leaf} > $out" [ leaf ];
  top = drv "top" "echo ${mid} > $out" [ mid ];
  tool = drv "tool" "echo tool > $out" [ ];
  above = drv "above" "echo ${top} > $out; cat $deps >> $out" [ top tool ];
}
"#;

/// A directory served over HTTP, one request a connection.
struct Files {
    url: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Files {
    /// Serves the files below `dir`; those whose name `is_ill` answers with a failure.
    fn serve(dir: PathBuf, is_ill: impl Fn(&str) -> bool + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let noted = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().filter_map(Result::ok) {
                if let Some(name) = requested(&stream) {
                    // A client that goes away is no failure of the server's.
                    let _sent = answer(stream, &dir, &name, is_ill(&name));
                    noted.lock().unwrap_or_else(PoisonError::into_inner).push(name);
                }
            }
        });
        Self { url, asked }
    }

    /// How often names with this ending were asked for.
    fn asked(&self, ending: &str) -> usize {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).iter().filter(|name| name.ends_with(ending)).count()
    }
}

fn requested(stream: &TcpStream) -> Option<String> {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let name = lines.next()?.split(' ').nth(1)?.trim_start_matches('/').to_owned();
    lines.find(String::is_empty)?;
    Some(name)
}

fn answer(mut stream: TcpStream, dir: &Path, name: &str, is_ill: bool) -> std::io::Result<()> {
    let (status, body) = match std::fs::File::open(dir.join(name)) {
        _ if is_ill => ("500 Ill", Vec::new()),
        Err(_) => ("404 Absent", Vec::new()),
        Ok(mut file) => {
            let mut body = Vec::new();
            file.read_to_end(&mut body)?;
            ("200 Here", body)
        }
    };
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len())?;
    stream.write_all(&body)
}

/// A farm that has built the set, and what Nix copied of it.
pub struct Origin {
    /// Where it lives.
    pub place: Place,
    _farm: Process,
    /// The key that signed the copies.
    pub key: String,
}

impl Origin {
    /// Builds the set, and has Nix copy it to `cache`.
    pub fn new() -> Self {
        let place = Place::new(SET);
        let farm = place.up();
        std::fs::create_dir(place.path("conf")).expect("make directory");
        let trusted = place.beacon()["public_key"].as_str().expect("a key").to_owned();
        let conf = format!("experimental-features = nix-command\nsubstituters =\ntrusted-public-keys = {trusted}\n");
        std::fs::write(place.path("conf/nix.conf"), conf).expect("write");
        let made = nix(&place, "nix-store", &["--generate-binary-cache-key", "upstream-1", "secret", "public"]);
        made.expect_success();
        let key = std::fs::read_to_string(place.path("public")).expect("a key");
        // `above` is built elsewhere.
        for (attribute, compression) in [("leaf", "bzip2"), ("mid", "none"), ("tool", "xz"), ("top", "zstd")] {
            let path = place.run(&["build", "-f", "set.nix", "-A", attribute]).expect_success().out().trim().to_owned();
            let from = place.beacon()["cache"].as_str().expect("an address").to_owned();
            let to = format!("file://{}?compression={compression}&secret-key={}", at(&place, "cache"), at(&place, "secret"));
            nix(&place, "nix", &["copy", "--from", &from, "--to", &to, &path]).expect_success();
        }
        Self { place, _farm: farm, key }
    }

    fn serve(&self, is_ill: impl Fn(&str) -> bool + Send + 'static) -> Files {
        Files::serve(self.place.path("cache"), is_ill)
    }

    fn substituter(&self, files: &Files) -> String {
        format!("{} {}", files.url, self.key.trim())
    }
}

/// Returns a path below the directory of a place, as text.
pub fn at(place: &Place, below: &str) -> String {
    place.path(below).to_str().expect("text").to_owned()
}

/// Runs a command of a real Nix, with the configuration below `conf`.
pub fn nix(place: &Place, program: &str, args: &[&str]) -> Ran {
    let mut command = Command::new(program);
    command.args(args).current_dir(place.path("")).stdin(Stdio::null()).env("NIX_CONF_DIR", place.path("conf")).env("HOME", place.path(""));
    command.env("NIX_REMOTE", format!("local?root={}", at(place, "own"))).env_remove("NIX_PATH");
    Ran(command.output().expect("nix-bin is installed"))
}

fn build(place: &Place, attribute: &str) -> (usize, Ran) {
    let built = place.run(&["build", "-f", "set.nix", "-A", attribute, "--json"]).expect_success();
    (built.events("started"), built)
}

#[test]
fn what_upstream_caches_have_is_not_built_and_is_signed_twice() {
    let origin = Origin::new();
    let files = origin.serve(|_| false);
    let place = Place::new(SET);
    let _farm = place.up_with(&["--substituter", &origin.substituter(&files)]);
    let (started, built) = build(&place, "above");
    assert_eq!(started, 1, "only what upstream does not have: {}", built.out());
    // The builder's binary is an input source, which the client brought; the rest came in four compressions.
    let fetched: Vec<usize> = [".nar.bz2", ".nar", ".nar.xz", ".nar.zst"].iter().map(|ending| files.asked(ending)).collect();
    assert_eq!(fetched, [1, 1, 1, 1], "{:?}", files.asked);
    let asked = files.asked(".narinfo");
    let (started, _) = build(&place, "top");
    assert_eq!((started, files.asked(".narinfo")), (0, asked), "what is here is asked of nobody");
    let path = place.run(&["build", "-f", "set.nix", "-A", "top"]).expect_success().out().trim().to_owned();
    let infos = place.run(&["path-info", "--json", "-r", &path]).expect_success().json();
    assert_eq!(infos.as_array().expect("a list").len(), 3, "{infos}");
    // Either key is enough for a Nix that takes it from here.
    let cache = place.beacon()["cache"].as_str().expect("an address").to_owned();
    for (name, key) in [("by-upstream", origin.key.trim()), ("by-farm", place.beacon()["public_key"].as_str().expect("a key"))] {
        let to = format!("local?root={}", at(&origin.place, name));
        let args = ["copy", "--option", "trusted-public-keys", key, "--from", &cache, "--to", &to, &path];
        nix(&origin.place, "nix", &args).expect_success();
    }
}

#[test]
fn nix_is_told_what_would_be_taken_from_upstream() {
    let origin = Origin::new();
    let files = origin.serve(|_| false);
    let place = Place::new(SET);
    let _farm = place.up_with(&["--substituter", &origin.substituter(&files)]);
    let (socket, to) = (at(&place, "socket"), at(&place, "root"));
    let mut daemon = Process::start(&mut place.kiln_aloud(&["daemon", "--socket", &socket, "--to", &to]));
    daemon.wait_for_line("serving Nix clients");
    std::fs::create_dir(place.path("conf")).expect("make directory");
    std::fs::write(place.path("conf/nix.conf"), "experimental-features = nix-command\nsubstituters =\n").expect("write");
    let store = format!("unix://{socket}?root={to}");
    let told = nix(&place, "nix-build", &["--store", &store, "set.nix", "-A", "above", "--no-out-link"]).expect_success();
    for wanted in ["this derivation will be built", "these 2 paths will be fetched", "-top", "-tool"] {
        assert!(told.err().contains(wanted), "`{wanted}` is missing in:\n{}", told.err());
    }
    assert!(!told.err().contains("-leaf.drv"), "what only those needed is not looked at: {}", told.err());
}

#[test]
fn what_an_upstream_cache_does_not_give_is_built() {
    let origin = Origin::new();
    // The archive of `mid` is the only one that is not compressed.
    let files = origin.serve(|name| name.ends_with(".nar"));
    let place = Place::new(SET);
    let _farm = place.up_with(&["--substituter", &origin.substituter(&files)]);
    let (started, built) = build(&place, "above");
    assert_eq!(started, 3, "`mid`, `top`, which needs it, and `above`: {}", built.out());
    assert_eq!((files.asked(".nar.bz2"), files.asked(".nar.xz")), (1, 1));
    assert_eq!(files.asked(".nar"), 4, "a server that fails is asked again");
}

#[test]
fn nothing_is_taken_that_a_stranger_signed_and_a_cache_that_is_away_holds_up_nobody() {
    let origin = Origin::new();
    let files = origin.serve(|_| false);
    let place = Place::new(SET);
    let stranger = place.run(&["keys", "generate", "--name", "upstream-1", "other.key"]).expect_success().out();
    let stranger = stranger.lines().find_map(|line| line.split_whitespace().find(|word| word.starts_with("upstream-1:"))).expect("a key");
    let strange = format!("{} {stranger}", files.url);
    let away = format!("http://127.0.0.1:1 {}", origin.key.trim());
    let _farm = place.up_with(&["--substituter", &strange, "--substituter", &away]);
    let (started, built) = build(&place, "above");
    assert_eq!(started, 5, "{}", built.out());
    assert_eq!(files.asked(".nar.xz"), 0);
}
