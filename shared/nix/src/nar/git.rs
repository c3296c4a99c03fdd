//! The hash that Git has of a file tree: of the blob that a file or symlink is, or of the tree that a directory is.
//!
//! As Nix's experimental feature `git-hashing` has it: empty directories are trees without entries (Git itself has none), and the mode of the
//! outermost object is not hashed, so that a file has one hash whether it may be executed or not. Says nothing of commits and of submodules.
//! Source: Nix's `git.cc`, Git's `Documentation/gitformat-pack.txt`; held against both.

use std::io::{self, BufWriter, Read};
use std::path::Path;

use kiln_wire::limits::GIT_TREES_BYTES_MAX;

use super::read::{BUFFER_BYTES, Object, visit};
use super::{NarError, dump};
use crate::hash::{Algorithm, Hash, Hasher};

/// Reads one archive to the end of `reader` and returns the hash of the Git object that its tree is. Git knows SHA-1 and SHA-256; any
/// algorithm is computed. Holds the trees that are open in memory, [`GIT_TREES_BYTES_MAX`] at most.
///
/// # Errors
/// [`NarError::LongTrees`], or the rule that the archive breaks.
pub fn git_hash(reader: impl Read, algorithm: Algorithm) -> Result<Hash, NarError> {
    let mut trees = Trees::new(algorithm, GIT_TREES_BYTES_MAX);
    visit(reader, |object| trees.take(object))?;
    trees.root.ok_or(NarError::Truncated)
}

/// Returns what [`git_hash`] returns of the archive of the tree at `path`, without keeping it. Takes a thread while it works.
///
/// # Errors
/// As [`super::dump`] and [`git_hash`].
pub fn git_hash_path(path: &Path, algorithm: Algorithm) -> Result<Hash, NarError> {
    let piped = |err| NarError::Dump { path: path.to_owned(), err };
    let (reader, writer) = io::pipe().map_err(piped)?;
    std::thread::scope(|scope| {
        let dumping = scope.spawn(move || dump(path, &mut BufWriter::with_capacity(BUFFER_BYTES, writer)));
        let hashed = git_hash(reader, algorithm);
        match (dumping.join().expect("packing does not panic"), hashed) {
            // The reader that refused closed the pipe.
            (Err(NarError::Dump { err, .. }), Err(refused)) if err.kind() == io::ErrorKind::BrokenPipe => Err(refused),
            (Err(err), _) => Err(err),
            (Ok(()), hashed) => hashed,
        }
    })
}

struct Trees {
    algorithm: Algorithm,
    /// Directories that the reader is in, outermost first.
    open: Vec<Tree>,
    held_bytes: usize,
    held_bytes_max: usize,
    root: Option<Hash>,
}

struct Tree {
    name: Option<Vec<u8>>,
    entries: Vec<Entry>,
}

struct Entry {
    /// Its name; of a directory with a slash, as Git orders entries.
    key: Vec<u8>,
    mode: &'static str,
    hash: Hash,
}

impl Trees {
    fn new(algorithm: Algorithm, held_bytes_max: usize) -> Self {
        Self { algorithm, open: Vec::new(), held_bytes: 0, held_bytes_max, root: None }
    }

    fn take(&mut self, object: Object<'_>) -> Result<(), NarError> {
        match object {
            Object::Enter(name) => self.open.push(Tree { name: name.map(<[u8]>::to_vec), entries: Vec::new() }),
            Object::Leave => {
                let tree = self.open.pop().expect("a directory ends after it starts");
                let hash = self.hash_tree(tree.entries);
                let key = tree.name.map(|name| [&name[..], b"/"].concat());
                return self.add(key, TREE, hash);
            }
            Object::File { name, executable, size_bytes, contents } => {
                let mut hasher = self.object("blob", size_bytes);
                io::copy(contents, &mut hasher).map_err(NarError::Read)?;
                let mode = if executable { EXECUTABLE } else { FILE };
                return self.add(name.map(<[u8]>::to_vec), mode, hasher.finish());
            }
            Object::Symlink { name, target } => {
                let mut hasher = self.object("blob", target.len() as u64);
                hasher.update(target);
                return self.add(name.map(<[u8]>::to_vec), SYMLINK, hasher.finish());
            }
        }
        Ok(())
    }

    fn add(&mut self, key: Option<Vec<u8>>, mode: &'static str, hash: Hash) -> Result<(), NarError> {
        match (self.open.last_mut(), key) {
            (Some(tree), Some(key)) => {
                self.held_bytes += entry_bytes(&key);
                if self.held_bytes > self.held_bytes_max {
                    return Err(NarError::LongTrees);
                }
                tree.entries.push(Entry { key, mode, hash });
            }
            (Some(_) | None, _) => self.root = Some(hash),
        }
        Ok(())
    }

    fn hash_tree(&mut self, mut entries: Vec<Entry>) -> Hash {
        entries.sort_by(|one, other| one.key.cmp(&other.key));
        let mut text = Vec::new();
        for Entry { key, mode, hash } in entries {
            self.held_bytes -= entry_bytes(&key);
            text.extend_from_slice(mode.as_bytes());
            text.push(b' ');
            text.extend_from_slice(key.strip_suffix(b"/").unwrap_or(&key));
            text.push(0);
            text.extend_from_slice(hash.digest());
        }
        let mut hasher = self.object("tree", text.len() as u64);
        hasher.update(&text);
        hasher.finish()
    }

    /// Starts an object of this kind and size.
    fn object(&self, kind: &str, size_bytes: u64) -> Hasher {
        let mut hasher = Hasher::new(self.algorithm);
        hasher.update(format!("{kind} {size_bytes}\0").as_bytes());
        hasher
    }
}

/// What an entry takes in memory, in about: two digests, since it is written into its tree's text too.
fn entry_bytes(key: &[u8]) -> usize {
    2 * key.len() + std::mem::size_of::<Entry>() + 128
}

const FILE: &str = "100644";
const EXECUTABLE: &str = "100755";
const SYMLINK: &str = "120000";
const TREE: &str = "40000";

#[cfg(test)]
mod tests {
    use super::*;

    fn git_of(path: &Path, algorithm: Algorithm) -> Result<String, NarError> {
        let mut archive = Vec::new();
        dump(path, &mut archive)?;
        let hash = git_hash(archive.as_slice(), algorithm)?;
        assert_eq!(git_hash_path(path, algorithm)?, hash);
        Ok(hash.to_base16())
    }

    /// What `git hash-object`, `git write-tree` and, where there is an empty directory or SHA-256, Nix 2.26 print.
    #[test]
    fn objects_have_the_hashes_that_git_and_nix_give_them() {
        use std::os::unix::fs::{PermissionsExt as _, symlink};
        let place = tempfile::tempdir().expect("a directory");
        let at = |name: &str| place.path().join("t").join(name);
        for name in ["", "a", "a.b", "empty"] {
            std::fs::create_dir(at(name)).expect("a directory");
        }
        for (name, text) in [("a/f", "hi\n"), ("a.b/g", "x\n"), ("a0", "y\n"), ("run", "#!/bin/sh\n")] {
            std::fs::write(at(name), text).expect("a file");
        }
        std::fs::set_permissions(at("run"), std::fs::Permissions::from_mode(0o755)).expect("sets");
        symlink("a/f", at("l")).expect("links");
        let table = [
            ("", "256a19995c714ca4bc3755b1f102ad493da98fc4", "e6f0317539422a07147f4545a4b091f7a05f7eb9df0485916b4d73ffec3ff6b0"),
            ("run", "1a2485251c33a70432394c93fb89330ef214bfc9", "1249034e3cf9007362d695b09b1fbdb4c578903bf10b665749b94743f8177ce1"),
            ("a0", "975fbec8256d3e8a3797e7a3611380f27c49f4ac", "44dc634218adec09e34f37839b3840bad8c6103693e9216626b32d00e093fa35"),
            ("l", "0089ec1b00bfe0e7044745f6ed5bcb7df2dcd7cf", "46d138ea5ca37b03b6d8fc5e6dea2e311b987320f6f59acec731be567255c39b"),
            ("empty", "4b825dc642cb6eb9a060e54bf8d69288fbee4904", "6ef19b41225c5369f1c104d45d8d85efa9b057b53b14b4b9b939dd74decc5321"),
        ];
        for (name, sha1, sha256) in table {
            // A path that ends in a slash would follow the root.
            let path = if name.is_empty() { place.path().join("t") } else { at(name) };
            assert_eq!(git_of(&path, Algorithm::Sha1).expect("hashes"), sha1, "{name}");
            assert_eq!(git_of(&path, Algorithm::Sha256).expect("hashes"), sha256, "{name}");
        }
        // Without the empty directory it is what `git add -A; git write-tree` makes: `a.b` before `a/` before `a0`.
        std::fs::remove_dir(at("empty")).expect("removes");
        assert_eq!(git_of(&place.path().join("t"), Algorithm::Sha1).expect("hashes"), "311bb40f601b846370c2c786832497c6cbb52202");
        // The root's mode is not hashed.
        std::fs::set_permissions(at("run"), std::fs::Permissions::from_mode(0o644)).expect("sets");
        assert_eq!(git_of(&at("run"), Algorithm::Sha1).expect("hashes"), table[1].1);
    }

    #[test]
    fn trees_beyond_the_limit_are_refused_and_memory_is_given_back_at_their_end() {
        let mut trees = Trees::new(Algorithm::Sha1, 64 << 10);
        let name = [b'x'; 255];
        let fits = trees.held_bytes_max / entry_bytes(&name);
        trees.take(Object::Enter(None)).expect("takes");
        for _ in 0..3 {
            trees.take(Object::Enter(Some(b"d"))).expect("takes");
            for _ in 0..fits / 2 {
                trees.take(Object::Symlink { name: Some(&name), target: b"t" }).expect("takes");
            }
            trees.take(Object::Leave).expect("takes");
        }
        let refused = (0..fits).find_map(|_| trees.take(Object::Symlink { name: Some(&name), target: b"t" }).err());
        assert!(matches!(refused, Some(NarError::LongTrees)));
    }
}
