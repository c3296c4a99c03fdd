//! The shared data directory, for tests that read real derivations and graphs.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;

/// Returns the data directory: `KILN_SHARED/data`, else `../shared/data` beside the repository.
pub fn data_dir() -> PathBuf {
    let shared = std::env::var_os("KILN_SHARED").map(PathBuf::from);
    let shared = shared.unwrap_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared")));
    let data = shared.join("data");
    assert!(data.is_dir(), "`{}` is not there; set KILN_SHARED to the directory that holds `data`", data.display());
    data
}

/// Returns the files of a `.tar.zst` in the data directory, by their path in it.
#[allow(dead_code, reason = "each test program uses a part of this module")]
pub fn archive(name: &str) -> BTreeMap<String, Vec<u8>> {
    let path = data_dir().join(name);
    let file = File::open(&path).unwrap_or_else(|err| panic!("open `{}`: {err}", path.display()));
    let decoder = zstd::Decoder::new(file).expect("a zstd stream");
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(decoder).entries().expect("a tar archive") {
        let mut entry = entry.expect("a whole tar archive");
        if entry.header().entry_type().is_file() {
            let path = entry.path().expect("a path in a tar archive").to_string_lossy().into_owned();
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut bytes).expect("a whole file in a tar archive");
            files.insert(path, bytes);
        }
    }
    files
}
