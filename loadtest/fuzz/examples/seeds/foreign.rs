//! Files of archives in each compression, whole, cut, and claiming to need more than they do. `nars` is what archives are made of.

use std::io::Cursor;

use kiln_store::{Compression, recompress};

/// Returns the seeds by name.
pub(crate) fn seeds(nars: &[(String, Vec<u8>)]) -> Vec<(String, Vec<u8>)> {
    let mut seeds = Vec::new();
    for (name, nar) in
        nars.iter().filter(|(name, nar)| nar.len() <= 600 && ["file", "directory", "symlink", "kind-unknown"].contains(&name.as_str()))
    {
        let blob = zstd::encode_all(Cursor::new(nar), 1).expect("it is in memory");
        for (chosen, compression) in [Compression::None, Compression::Zstd, Compression::Xz, Compression::Bzip2].into_iter().enumerate() {
            let mut file = vec![u8::try_from(chosen).expect("of four")];
            recompress(Cursor::new(&blob), compression, &mut file).expect("it is in memory");
            seeds.push((format!("{name}-{}", compression.name()), file));
        }
    }
    for (chosen, compression) in [(1, Compression::Zstd), (2, Compression::Xz), (3, Compression::Bzip2)] {
        let mut file = vec![chosen];
        recompress(Cursor::new(&bomb()), compression, &mut file).expect("it is in memory");
        seeds.push((format!("bomb-{}", compression.name()), file));
    }
    for compression in ["zstd", "xz", "bzip2"] {
        let name = format!("file-{compression}");
        let (_, file) = seeds.iter().find(|(found, _)| *found == name).cloned().expect("it was made");
        seeds.push((format!("cut-{compression}"), file[..file.len() / 2].to_vec()));
        seeds.push((format!("twice-{compression}"), [&file[..], &file[1..]].concat()));
        seeds.push((format!("padded-{compression}"), [&file[..], &[0; 8]].concat()));
        let mut flipped = file;
        let at = flipped.len() - 6;
        flipped[at] ^= 1;
        seeds.push((format!("flipped-{compression}"), flipped));
    }
    seeds
}

/// The blob of an archive that is larger than what the target lets come out: a file of two million zeros.
fn bomb() -> Vec<u8> {
    let zeros = vec![0; 2 << 20];
    let nar = kiln_nix::nar::of_file(zeros.as_slice(), zeros.len() as u64);
    zstd::encode_all(nar, 1).expect("it is in memory")
}
