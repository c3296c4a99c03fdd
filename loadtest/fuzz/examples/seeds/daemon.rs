//! What clients of a daemon say: each operation, facts, streams, and what claims to be longer than it is.

use kiln_nix::daemon::{Encoder, Operation};

const A: &str = "/nix/store/0hm2f1psjpcwg8fijsmr4wwxrx59s092-a";
const D: &str = "/nix/store/2hm2f1psjpcwg8fijsmr4wwxrx59s092-d.drv";
const HASH: &str = "0101010101010101010101010101010101010101010101010101010101010101";

/// Returns the seeds by name.
pub(crate) fn seeds() -> Vec<(String, Vec<u8>)> {
    let targets = |to: &mut Encoder| {
        to.list([A.to_owned(), format!("{D}!*"), format!("{D}!out,dev")], |to, text| to.text(text)).number(0);
    };
    let facts = |to: &mut Encoder| {
        to.text(A).text(D).text(HASH).list([A], |to, path| to.text(path)).number(7).number(120).truth(true);
        to.list(["key-1:sig"], |to, text| to.text(text)).text("fixed:r:sha256:x");
    };
    let recipe = |to: &mut Encoder| {
        to.text(D).list(["out"], |to, name| to.text(name).text(A).text("").text("")).list([A], |to, path| to.text(path));
        to.text("x86_64-linux")
            .text("/bin/sh")
            .list(["-c"], |to, text| to.text(text))
            .list(["k"], |to, name| to.text(name).text("v"))
            .number(0);
    };
    let options = |to: &mut Encoder| {
        for number in 0..12 {
            to.number(number);
        }
        to.list(["cores"], |to, name| to.text(name).text("2"));
    };
    let streamed: [u64; 4] = [3, 0x0061_6263, 0, 0];
    let mut seeds = vec![
        seed("is-valid-path", Some(Operation::IsValidPath), |to| _ = to.text(A), &[]),
        seed("build-paths", Some(Operation::BuildPaths), targets, &[]),
        seed("query-missing", Some(Operation::QueryMissing), |to| _ = to.list([A], |to, path| to.text(path)), &[]),
        seed("build-derivation", Some(Operation::BuildDerivation), recipe, &[]),
        seed("set-options", Some(Operation::SetOptions), options, &[]),
        seed("output-map", Some(Operation::QueryDerivationOutputMap), |to| _ = to.text(D), &[]),
        seed("find-roots", Some(Operation::FindRoots), |_| {}, &[]),
        seed("stated", None, facts, &streamed),
        seed("elsewhere", Some(Operation::IsValidPath), |to| _ = to.text("/elsewhere/x"), &[]),
        seed("not-whole", Some(Operation::IsValidPath), |to| _ = to.number(45), &[]),
        seed("length-claimed", Some(Operation::IsValidPath), |to| _ = to.number(u64::MAX), &[]),
        seed("count-claimed", Some(Operation::QueryValidPaths), |to| _ = to.number(1 << 40), &[]),
        seed("mode", Some(Operation::BuildPaths), |to| _ = to.number(0).number(9), &[]),
        seed("hash", None, |to| _ = to.text(A).text("").text("sha256:x").number(0).number(0).number(0).number(0).number(0).text(""), &[]),
    ];
    let add = |to: &mut Encoder| {
        to.text("n").text("fixed:r:sha256").list([A], |to, path| to.text(path)).truth(false);
    };
    seeds.push(seed("add-to-store", Some(Operation::AddToStore), add, &streamed));
    let add_nar = |to: &mut Encoder| {
        facts(to);
        to.truth(false).truth(true);
    };
    seeds.push(seed("add-to-store-nar", Some(Operation::AddToStoreNar), add_nar, &streamed));
    seeds
}

/// An operation, or with none a path's facts; pieces of 6 bytes; its arguments; what follows them.
fn seed(name: &str, operation: Option<Operation>, arguments: impl Fn(&mut Encoder), after: &[u64]) -> (String, Vec<u8>) {
    let chosen = operation.and_then(|wanted| Operation::ALL.iter().position(|operation| *operation == wanted));
    let mut to = Encoder::default();
    arguments(&mut to);
    let mut bytes = vec![chosen.and_then(|at| u8::try_from(at).ok()).unwrap_or(u8::MAX), 5];
    bytes.extend(to.into_bytes());
    bytes.extend(after.iter().flat_map(|word| word.to_le_bytes()));
    (name.to_owned(), bytes)
}
