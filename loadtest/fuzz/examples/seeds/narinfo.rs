//! narinfos: a farm's own, those of other caches, and some that break a rule.

use kiln_nix::{SecretKey, narinfo};
use kiln_wire::{Blake3Hash, Blob, DrvPath, PathInfo, Sha256Hash, StoreDir, StorePath};

/// Returns the seeds by name.
pub(crate) fn seeds() -> Vec<(String, Vec<u8>)> {
    let foreign = "StorePath: /nix/store/0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar\nURL: nar/x.nar.xz\nCompression: xz\n\
                   FileHash: sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73\nFileSize: 5\n\
                   NarHash: sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73\nNarSize: 9\nReferences: \n\
                   Deriver: unknown-deriver\nSig: broken\nCA: fixed:r:sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73\n";
    let changed = |from: &str, to: &str| foreign.replace(from, to);
    let letters = ["a", "b", "c", "d", "f", "g", "h", "i", "j", "k", "l", "m"];
    let references = letters.map(|letter| format!("{}-{letter}", letter.repeat(32))).join(" ");
    let table = [
        ("own", own(None)),
        ("own-fixed", own(Some("fixed:sha1:0000000000000000000000000000000000000000"))),
        ("own-text", own(Some("text:sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73"))),
        ("own-git", own(Some("fixed:git:sha1:0000000000000000000000000000000000000000"))),
        ("foreign", foreign.to_owned()),
        ("foreign-twelve-references", changed("References: ", &format!("References: {references}"))),
        ("foreign-bzip2", changed("xz", "bzip2")),
        ("foreign-no-compression", changed("Compression: xz\n", "")),
        ("foreign-base16", changed("sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73", &format!("sha256:{}", "0a".repeat(32)))),
        ("foreign-unknown-line", format!("{foreign}System: x86_64-linux\nTest: a: b\n")),
        ("foreign-two-signatures", format!("{foreign}Sig: a:{0}\nSig: b:{0}\n", format_args!("{}==", "A".repeat(86)))),
        ("line-twice", format!("{foreign}NarSize: 9\n")),
        ("no-size", changed("NarSize: 9\n", "")),
        ("size-zero", changed("NarSize: 9", "NarSize: 0")),
        ("size-too-large", changed("NarSize: 9", "NarSize: 18446744073709551616")),
        ("hash-sha1", changed("NarHash: sha256", "NarHash: sha1")),
        ("path-outside", changed("/nix/store/", "/tmp/")),
        ("no-newline", foreign.trim_end().to_owned()),
        ("carriage-returns", foreign.replace('\n', "\r\n")),
    ];
    table.into_iter().map(|(name, text)| (name.to_owned(), text.into_bytes())).collect()
}

fn own(content_address: Option<&str>) -> String {
    let path = |text: &str| StorePath::parse(text).expect("a store path");
    let info = PathInfo {
        path: path("0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar"),
        nar_hash: Sha256Hash([1; 32]),
        nar_size_bytes: 120,
        references: [path("1bxagw21mzw0pr7y9jcyjfyrlya5fnxz-dep"), path("0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar")].into(),
        deriver: Some(DrvPath::parse("zc842j0rz61mjsp3h3wp5ly71ak6qgdn-bar.drv").expect("a derivation's path")),
        content_address: content_address.map(str::to_owned),
        blob: Blob { size_bytes: 60, blake3: Blake3Hash([2; 32]), sha256: Sha256Hash([3; 32]) },
    };
    let store_dir = StoreDir::default();
    let signature = narinfo::sign(&store_dir, &info, &SecretKey::from_seed("farm-1", [7; 32]).expect("a key"));
    narinfo::write(&store_dir, &info, &[signature]).expect("it can be written")
}
