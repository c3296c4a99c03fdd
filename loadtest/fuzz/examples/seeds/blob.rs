//! Blobs: an archive as zstd makes a frame of it in each way, and frames that are broken, doubled, followed, or hold more than is said.

use std::io::Write;

use zstd::stream::write::Encoder;
use zstd::zstd_safe::CParameter;

/// Returns the seeds by name. `archives` are NARs.
pub(crate) fn seeds(archives: &[(String, Vec<u8>)]) -> Vec<(String, Vec<u8>)> {
    let nar = &archives.iter().find(|(name, _)| name == "directory").expect("it is among the archives").1;
    let frame = frame(nar, 1, &[]);
    let stated = nar.len();
    let long = [nar.clone(), vec![0; 300_000]].concat();
    let skippable = [&0x184D_2A50_u32.to_le_bytes()[..], &[4, 0, 0, 0, 1, 2, 3, 4]].concat();
    let mut flipped = frame.clone();
    flipped[20] ^= 0x10;
    let table = [
        ("plain", blob(stated, &frame)),
        ("best", blob(stated, &self::frame(nar, 19, &[]))),
        ("checksum", blob(stated, &self::frame(nar, 3, &[CParameter::ChecksumFlag(true)]))),
        ("no-content-size", blob(stated, &self::frame(nar, 3, &[CParameter::ContentSizeFlag(false)]))),
        ("largest-window", blob(stated, &self::frame(nar, 3, &[CParameter::ContentSizeFlag(false), CParameter::WindowLog(27)]))),
        ("stated-less", blob(stated - 1, &frame)),
        ("stated-more", blob(stated + 1, &frame)),
        ("no-archive", blob(5, &self::frame(b"hello", 3, &[]))),
        ("holds-more", blob(stated, &self::frame(&long, 3, &[]))),
        ("two-frames", blob(stated, &[&frame[..], &frame].concat())),
        ("skippable-before", blob(stated, &[&skippable[..], &frame].concat())),
        ("skippable-after", blob(stated, &[&frame[..], &skippable].concat())),
        ("followed", blob(stated, &[&frame[..], b"x"].concat())),
        ("cut", blob(stated, &frame[..frame.len() - 1])),
        ("flipped", blob(stated, &flipped)),
        ("nothing", blob(0, &[])),
    ];
    let mut seeds: Vec<_> = table.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect();
    let each = archives.iter().filter(|(name, _)| !name.contains("long"));
    seeds.extend(each.map(|(name, nar)| (format!("of-{name}"), blob(nar.len(), &self::frame(nar, 1, &[])))));
    seeds
}

fn blob(stated_bytes: usize, frame: &[u8]) -> Vec<u8> {
    [&stated_bytes.to_le_bytes()[..3], frame].concat()
}

fn frame(content: &[u8], level: i32, parameters: &[CParameter]) -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::new(), level).expect("zstd makes an encoder");
    for parameter in parameters {
        encoder.set_parameter(*parameter).expect("zstd knows the parameter");
    }
    encoder.write_all(content).expect("memory takes it");
    encoder.finish().expect("memory takes it")
}
