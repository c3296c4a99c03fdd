//! What the farm serves: whole or not at all, right after a crash too; and what a worker does with an input that is damaged.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Stdio;

use kiln_nix::{NarInfo, PublicKey};
use kiln_store::NarReader;
use kiln_wire::StoreDir;

use crate::crashes::{flip, nar_of};
use crate::farm::{Place, Process};

/// Outputs of a megabyte, so that a kill has something to cut. Each round has a seed of its own.
const HEAVY: &str = r#"{ seed }:
let heavy = i: deps: drv "heavy-${seed}-${i}" "${boot}/busybox seq ${i}000000 ${i}150000 > $out; ${boot}/busybox usleep 200000" deps;
in { rows = map (i: heavy i [ (heavy "${i}1" [ ]) ]) [ "1" "2" "3" "4" ]; }
"#;

#[test]
fn every_narinfo_that_is_served_after_a_crash_has_a_nar_that_is_what_it_says() {
    let place = Place::new(HEAVY);
    let mut served = Vec::new();
    let rounds = [("a", 1), ("b", 2), ("c", 3)];
    for (seed, committed) in rounds {
        let farm = place.up();
        let mut build =
            Process::start(place.kiln(&["build", "-f", "set.nix", "-A", "rows", "--argstr", "seed", seed, "--json"]).stderr(Stdio::null()));
        (0..committed).for_each(|_| drop(build.wait_for_line("\"event\":\"built\"")));
        farm.kill_9();
        build.kill_9();
        let farm = place.up();
        served.push(check_cache(&place));
        farm.kill_9();
    }
    let _farm = place.up();
    for (seed, _) in rounds {
        place.run(&["build", "-f", "set.nix", "-A", "rows", "--argstr", "seed", seed]).expect_success();
    }
    served.push(check_cache(&place));
    assert!(served.is_sorted(), "nothing that was served disappears: {served:?}");
    assert_eq!(served.last(), Some(&25), "eight outputs a round, and the builder");
}

/// Fetches over HTTP every narinfo that the store holds, with its NAR, checks them, and returns how many there are.
fn check_cache(place: &Place) -> usize {
    let beacon = place.beacon();
    let text = |name: &str| beacon[name].as_str().expect("text").to_owned();
    let key = PublicKey::parse(&text("public_key")).expect("a key");
    let (cache, store_dir) = (text("cache"), StoreDir::default());
    let names = std::fs::read_dir(place.path("farm/store")).expect("a store").map(|entry| entry.expect("readable").file_name());
    let narinfos: Vec<String> = names.map(|name| name.to_string_lossy().into_owned()).filter(|name| name.ends_with(".narinfo")).collect();
    for name in &narinfos {
        let info = NarInfo::parse(&store_dir, &get(&cache, name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(info.is_signed_by(&store_dir, std::slice::from_ref(&key)), "{name} is signed");
        let blob = get(&cache, &info.url);
        assert_eq!(Some(blob.len() as u64), info.file_size_bytes, "{name}");
        let mut nar = NarReader::new(&blob[..], info.nar_size_bytes).expect("a decoder");
        std::io::copy(&mut nar, &mut std::io::sink()).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(nar.finish().expect("a whole frame"), (info.nar_hash, info.nar_size_bytes), "{name}");
        for reference in info.references.iter().filter(|path| **path != info.path) {
            get(&cache, &format!("{}.narinfo", &reference.as_str()[..32]));
        }
    }
    narinfos.len()
}

/// Returns the body of what the cache answers, which must be a success.
fn get(cache: &str, name: &str) -> Vec<u8> {
    let host = cache.strip_prefix("http://").expect("plain HTTP");
    let mut stream = TcpStream::connect(host).expect("the cache listens");
    // Version 1.0 asks for a body that ends with the connection.
    write!(stream, "GET /{name} HTTP/1.0\r\nHost: {host}\r\n\r\n").expect("send");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("receive");
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").expect("a head");
    let status = String::from_utf8_lossy(&answer[..end]).lines().next().expect("a status").to_owned();
    assert!(status.contains(" 200 "), "{name}: {status}");
    answer.split_off(end + 4)
}

#[test]
fn a_worker_names_the_input_whose_bytes_changed_on_the_farms_disk() {
    let place = Place::new(r#"rec { one = drv "one" "echo one > $out" [ ]; two = drv "two" "cat $deps > $out" [ one ]; }"#);
    let farm = place.up();
    let path = place.run(&["build", "-f", "set.nix", "-A", "one"]).expect_success().out().trim().to_owned();
    farm.kill_9();
    // The worker that built it has it; a fresh one must fetch it.
    std::fs::remove_dir_all(place.path("farm/workers")).expect("a worker was here");
    let hash = path.trim_start_matches("/nix/store/")[..32].to_owned();
    flip(nar_of(&place.path("farm/store"), &path), 0.5);
    let _farm = place.up();
    let mut build = Process::start(&mut place.kiln(&["build", "-f", "set.nix", "-A", "two", "--json"]));
    let told = build.wait_for_line("\"class\":");
    assert!(told.contains("infrastructure") && told.contains(&hash), "class and path are named: {told}");
    build.interrupt();
    let (code, rest) = build.finish();
    assert_eq!(code, 1, "{rest}");
    assert!(!rest.contains("\"event\":\"built\""), "{rest}");
}
