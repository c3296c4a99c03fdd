//! What workers and clients of earlier releases say and hear stays readable: a file of messages for each, never written again.

use std::fmt::Debug;

use kiln_wire::client::{Request, Response};
use kiln_wire::frame;
use kiln_wire::worker::{FromWorker, ToWorker};
use serde::de::DeserializeOwned;

/// Reads a message and returns the name of its variant.
fn variant<T: DeserializeOwned + Debug>(bytes: &[u8]) -> String {
    let message: T = frame::from_bytes(bytes).unwrap_or_else(|err| panic!("{err:?}"));
    format!("{message:?}").split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_owned()
}

fn check(file: &str, count: usize) {
    assert_eq!(file.lines().count(), count);
    for line in file.lines() {
        let [kind, name, hex] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("`{line}`") };
        let bytes: Vec<u8> = (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal")).collect();
        let read = match kind {
            "request" => variant::<Request>(&bytes),
            "response" => variant::<Response>(&bytes),
            "from-worker" => variant::<FromWorker>(&bytes),
            "to-worker" => variant::<ToWorker>(&bytes),
            _ => panic!("`{kind}`"),
        };
        assert_eq!(read, name, "{line}");
    }
}

#[test]
fn every_message_of_release_0_1_stays_readable() {
    check(include_str!("release-0.1.hex"), 45);
}
