//! What a Nix says to its build hook, short: settings, questions, inputs, and what breaks off or is none of these. What real ones say lies
//! beside these.

use kiln_nix::daemon::Encoder;

const D: &str = "/nix/store/2hm2f1psjpcwg8fijsmr4wwxrx59s092-d.drv";
const A: &str = "/nix/store/0hm2f1psjpcwg8fijsmr4wwxrx59s092-a";

/// Returns the seeds by name.
pub(crate) fn seeds() -> Vec<(String, Vec<u8>)> {
    let settings = |to: &mut Encoder| {
        for (name, value) in [("store", "local?root=/tmp/a%20b&real=/x"), ("system", "x86_64-linux"), ("max-jobs", "2"), ("timeout", "60")]
        {
            to.number(1).text(name).text(value);
        }
        to.number(0);
    };
    let asks = |to: &mut Encoder, could_begin: bool, path: &str| {
        let features: &[&str] = if could_begin { &[] } else { &["kvm"] };
        to.text("try").truth(could_begin).text("x86_64-linux").text(path).list(features, |to, feature| to.text(feature));
    };
    let inputs = |to: &mut Encoder| {
        to.list([A], |to, path| to.text(path)).list(["out", "dev"], |to, name| to.text(name));
    };
    let whole = |to: &mut Encoder| {
        settings(to);
        asks(to, true, D);
        asks(to, false, D);
        inputs(to);
    };
    let mut cut = said(whole);
    cut.truncate(cut.len() - 8);
    let mut seeds = vec![
        ("nothing-to-build", said(settings)),
        ("two-questions", said(whole)),
        ("one-question", said(|to| asks(to.number(0), true, D))),
        ("no-derivation", said(|to| asks(to.number(0), false, A))),
        ("path-elsewhere", said(|to| asks(to.number(0), false, "/etc/passwd"))),
        ("another-verb", said(|to| _ = to.number(0).text("help"))),
        ("breaks-off", cut),
        (
            "value-no-text",
            [said(|to| _ = to.number(1).text("store")), 1_u64.to_le_bytes().to_vec(), vec![0xff, 0, 0, 0, 0, 0, 0, 0, 0]].concat(),
        ),
        ("length-claimed", said(|to| _ = to.number(1).number(u64::MAX))),
        ("count-claimed", said(|to| _ = to.number(0).text("try").number(1).text("").text(D).number(1 << 60))),
        ("nothing", vec![7]),
    ];
    seeds.push((
        "output-of-no-name",
        said(|to| {
            to.number(0);
            asks(to, false, D);
            to.list([A], |to, path| to.text(path)).list([""], |to, name| to.text(name));
        }),
    ));
    seeds.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect()
}

/// Pieces of 6 bytes.
fn said(words: impl Fn(&mut Encoder)) -> Vec<u8> {
    let mut to = Encoder::default();
    words(&mut to);
    [vec![5], to.into_bytes()].concat()
}
