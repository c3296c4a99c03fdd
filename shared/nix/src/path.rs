//! Store paths between `kiln-wire`'s type and that of the crate that computes them. Both hold to the same rules.

use kiln_wire::{StoreDir, StorePath};

/// Takes a path of theirs. Their rules for digest and name are Nix's, as ours are.
pub(crate) fn ours(path: &nix_derivation::StorePath) -> StorePath {
    StorePath::parse(&path.to_basename()).expect("both sides hold to Nix's rules for store paths")
}

/// Gives them a path of ours.
pub(crate) fn theirs(path: &StorePath) -> nix_derivation::StorePath {
    nix_derivation::StorePath::from_basename(path.as_str().as_bytes()).expect("both sides hold to Nix's rules for store paths")
}

/// Gives them a store directory of ours.
pub(crate) fn their_dir(store_dir: &StoreDir) -> nix_derivation::StoreDir {
    nix_derivation::StoreDir::new(store_dir.as_str()).expect("both sides hold to the same rules for store directories")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_agree_on_what_a_store_path_is() {
        let hash = "0hm2f1psjpcwg8fijsmr4wwxrx59s092";
        let long = "a".repeat(211);
        let too_long = "a".repeat(212);
        let names = ["a", "bar.drv", ".", "..", ".-a", "..-a", ".a", "...", "a b", "é", "", "a/b", "A+-._?=9", &long, &too_long];
        for name in names {
            let text = format!("{hash}-{name}");
            let here = StorePath::parse(&text).ok();
            let there = nix_derivation::StorePath::from_basename(text.as_bytes()).ok();
            assert_eq!(here.as_ref().map(theirs), there, "{name}");
            assert_eq!(here, there.as_ref().map(ours), "{name}");
        }
        // A digest has 160 bits and 32 characters have as many, so none is left over.
        assert!(nix_derivation::StorePath::from_basename(b"zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz-a").is_ok());
    }
}
