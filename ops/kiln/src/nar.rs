//! `kiln nar`: archives, for people and tests. Streams; an archive of any size passes. Needs no farm and no store.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use kiln_nix::hash::{Algorithm, Hash, base16, sha256_nix32};
use kiln_nix::nar::{self, HashWriter, Listing, NarDigest, NarError, Node, Tee};

use crate::words;

/// What to do with archives. FILE may be `-` for standard input; compressed archives pass through `zstd -d` or `xz -d` first.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Write the archive of a file tree to standard output
    Pack {
        /// A file, directory or symlink
        path: PathBuf,
    },
    /// Unpack an archive to a path that does not exist
    Unpack {
        /// The archive
        file: PathBuf,
        /// Where to
        dest: PathBuf,
    },
    /// List what an archive holds
    Ls {
        /// The archive
        file: PathBuf,
        /// Print the `.ls` document of a binary cache
        #[arg(long)]
        json: bool,
    },
    /// Print the SHA-256 of an archive, or of the archive that a file tree would be
    Hash(HashArgs),
    /// Check an archive against every rule of the format
    Check {
        /// The archive
        file: PathBuf,
    },
}

/// What to hash, and how to print it.
#[derive(clap::Args)]
pub struct HashArgs {
    /// An archive, or a file tree
    path: PathBuf,
    /// Take it for a file tree, also if it is an archive
    #[arg(long)]
    tree: bool,
    /// Print base 16, as `nix-hash` does
    #[arg(long, conflicts_with_all = ["sri", "json"])]
    base16: bool,
    /// Print SRI, as `nix hash path` does
    #[arg(long, conflicts_with = "json")]
    sri: bool,
    /// Print hash and size as JSON
    #[arg(long)]
    json: bool,
    /// Print the hash of the Git object that it is instead, of the algorithm in `--algo`, as `nix hash path --mode git` finds it; empty
    /// directories count
    #[arg(long)]
    git: bool,
    /// By which algorithm Git hashes: sha1 or sha256
    #[arg(long, requires = "git", default_value = "sha1", value_parser = ["sha1", "sha256"])]
    algo: String,
}

/// Runs the command.
///
/// # Errors
/// Names the file and the rule that is broken; such errors exit with 2.
pub fn run(command: Command) -> anyhow::Result<ExitCode> {
    let mut out = BufWriter::with_capacity(64 << 10, io::stdout().lock());
    match command {
        Command::Pack { path } => pack(&path, &mut out)?,
        Command::Unpack { file, dest } => unpack(&file, &dest)?,
        Command::Ls { file, json } => ls(&file, json, &mut out)?,
        Command::Hash(args) => hash(&args, &mut out)?,
        Command::Check { file } => check(&file, &mut out)?,
    }
    out.flush().context("write to standard output")?;
    Ok(ExitCode::SUCCESS)
}

fn pack(path: &Path, out: &mut impl Write) -> anyhow::Result<()> {
    if io::stdout().is_terminal() {
        return Err(words::bad_input("pack: standard output is a terminal; redirect it to a file"));
    }
    nar::dump(path, out).map_err(refuse)
}

fn unpack(file: &Path, dest: &Path) -> anyhow::Result<()> {
    nar::restore(open(file)?, dest).map_err(|err| {
        let part = if matches!(err, NarError::Exists { .. }) { String::new() } else { format!("; a part may lie at `{}`", dest.display()) };
        words::bad_input(format!("unpack `{}`: {}{part}", file.display(), chain(&err)))
    })
}

fn ls(file: &Path, json: bool, out: &mut impl Write) -> anyhow::Result<()> {
    let listing = Listing::read(open(file)?).map_err(|err| words::bad_input(format!("list `{}`: {}", file.display(), chain(&err))))?;
    if json {
        return writeln!(out, "{}", listing.to_json()).context("print the listing");
    }
    for (path, node) in listing.paths() {
        let path = String::from_utf8_lossy(&path);
        let (mode, size_bytes, target) = match node {
            Node::Regular { size_bytes, executable: true, .. } => ("-r-xr-xr-x", *size_bytes, String::new()),
            Node::Regular { size_bytes, executable: false, .. } => ("-r--r--r--", *size_bytes, String::new()),
            Node::Directory(_) => ("dr-xr-xr-x", 0, String::new()),
            Node::Symlink(target) => ("lrwxrwxrwx", 0, format!(" -> {}", String::from_utf8_lossy(target))),
        };
        let slash = if path.is_empty() { "" } else { "/" };
        writeln!(out, "{mode} {size_bytes:>20} .{slash}{path}{target}").context("print the listing")?;
    }
    Ok(())
}

fn hash(args: &HashArgs, out: &mut impl Write) -> anyhow::Result<()> {
    let path = &args.path;
    let archive = !args.tree && (path.as_os_str() == "-" || starts_as_archive(path));
    if args.git {
        let algorithm = Algorithm::parse(&args.algo)?;
        let hash = match archive {
            true => nar::git_hash(open(path)?, algorithm).map_err(|err| refuse_of("hash", path, &err))?,
            false => nar::git_hash_path(path, algorithm).map_err(refuse)?,
        };
        let text = match (args.json, args.base16, args.sri) {
            (true, _, _) => serde_json::json!({ "gitHash": hash.to_nix32() }).to_string(),
            (_, true, _) => hash.to_base16(),
            (_, _, true) => hash.to_sri(),
            (false, false, false) => hash.to_nix32(),
        };
        return writeln!(out, "{text}").context("print the hash");
    }
    let digest = if archive { hash_archive(path)? } else { nar::hash_path(path).map_err(refuse)? };
    let text = if args.json {
        serde_json::json!({ "narHash": sha256_nix32(&digest.hash), "narSize": digest.size_bytes }).to_string()
    } else if args.base16 {
        base16(&digest.hash.0)
    } else if args.sri {
        Hash::from(digest.hash).to_sri()
    } else {
        sha256_nix32(&digest.hash)
    };
    writeln!(out, "{text}").context("print the hash")
}

fn hash_archive(file: &Path) -> anyhow::Result<NarDigest> {
    let mut tee = Tee::new(open(file)?, HashWriter::new(io::sink()));
    nar::check(&mut tee).map_err(|err| refuse_of("hash", file, &err))?;
    Ok(tee.into_parts().1.finish().0)
}

/// A directory cannot be read, so it never starts as an archive does.
fn starts_as_archive(path: &Path) -> bool {
    const MAGIC: &[u8] = b"\x0d\0\0\0\0\0\0\0nix-archive-1\0\0\0";
    let mut start = [0; MAGIC.len()];
    let regular = path.symlink_metadata().is_ok_and(|metadata| metadata.is_file());
    regular && File::open(path).and_then(|mut file| file.read_exact(&mut start)).is_ok() && start == *MAGIC
}

fn check(file: &Path, out: &mut impl Write) -> anyhow::Result<()> {
    let mut tee = Tee::new(open(file)?, HashWriter::new(io::sink()));
    let counts = nar::check(&mut tee).map_err(|err| words::bad_input(format!("check `{}`: {}", file.display(), chain(&err))))?;
    let digest = tee.into_parts().1.finish().0;
    writeln!(
        out,
        "ok: {} files, {} directories, {} symlinks; {} as an archive, {}",
        counts.files,
        counts.directories,
        counts.symlinks,
        words::size(digest.size_bytes),
        sha256_nix32(&digest.hash)
    )
    .context("print the result")
}

fn open(file: &Path) -> anyhow::Result<Box<dyn Read>> {
    if file.as_os_str() == "-" {
        return Ok(Box::new(io::stdin().lock()));
    }
    let opened = File::open(file).map_err(|err| words::bad_input(format!("open archive `{}`: {err}", file.display())))?;
    Ok(Box::new(opened))
}

fn refuse_of(what: &str, file: &Path, err: &NarError) -> anyhow::Error {
    words::bad_input(format!("{what} `{}`: {}", file.display(), chain(err)))
}

fn refuse(err: NarError) -> anyhow::Error {
    words::bad_input(chain(&err))
}

/// Joins an error with its sources, as the command line prints them.
fn chain(err: &NarError) -> String {
    let source = std::error::Error::source(err).map(|source| format!(": {source}"));
    format!("{err}{}", source.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(directory: &Path) -> PathBuf {
        let (tree, file) = (directory.join("tree"), directory.join("tree.nar"));
        std::fs::create_dir(&tree).expect("a directory");
        std::fs::write(tree.join("a"), "hello\n").expect("a file");
        std::os::unix::fs::symlink("a", tree.join("b")).expect("a symlink");
        let mut bytes = Vec::new();
        nar::dump(&tree, &mut bytes).expect("packs");
        std::fs::write(&file, bytes).expect("a file");
        file
    }

    fn text(act: impl FnOnce(&mut Vec<u8>) -> anyhow::Result<()>) -> String {
        let mut out = Vec::new();
        act(&mut out).expect("it goes well");
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn an_archive_is_listed_checked_hashed_and_unpacked() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = packed(directory.path());
        let want = "dr-xr-xr-x                    0 .\n-r--r--r--                    6 ./a\nlrwxrwxrwx                    0 ./b -> a\n";
        assert_eq!(text(|out| ls(&file, false, out)), want);
        assert!(text(|out| ls(&file, true, out)).starts_with("{\"version\":1,\"root\":{\"type\":\"directory\",\"entries\":{\"a\":"));
        assert!(text(|out| check(&file, out)).starts_with("ok: 1 files, 1 directories, 1 symlinks; "));
        let args = |path: &Path, tree| HashArgs {
            path: path.to_owned(),
            tree,
            base16: true,
            sri: false,
            json: false,
            git: false,
            algo: "sha1".into(),
        };
        let of_tree = text(|out| hash(&args(&directory.path().join("tree"), false), out));
        assert_eq!(text(|out| hash(&args(&file, false), out)), of_tree);
        assert_ne!(text(|out| hash(&args(&file, true), out)), of_tree);
        let git = |path: &Path, algo: &str| HashArgs { git: true, algo: algo.into(), ..args(path, false) };
        let tree = directory.path().join("tree");
        // `git add -A; git write-tree` there.
        assert_eq!(text(|out| hash(&git(&tree, "sha1"), out)), "c173e5932d679c7e010d2b35523bf9a2938493b6\n");
        assert_eq!(text(|out| hash(&git(&file, "sha1"), out)), "c173e5932d679c7e010d2b35523bf9a2938493b6\n");
        assert_ne!(text(|out| hash(&git(&file, "sha256"), out)), "c173e5932d679c7e010d2b35523bf9a2938493b6\n");
        unpack(&file, &directory.path().join("again")).expect("unpacks");
        assert_eq!(text(|out| hash(&args(&directory.path().join("again"), false), out)), of_tree);
    }

    #[test]
    fn what_cannot_be_done_names_the_file_and_exits_with_2() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (file, bad) = (packed(directory.path()), directory.path().join("bad"));
        std::fs::write(&bad, "no archive at all, and long enough").expect("a file");
        let table = [
            (unpack(&file, directory.path()), "exists already"),
            (unpack(&bad, &directory.path().join("x")), "bad"),
            (check(&bad, &mut Vec::new()), "bad"),
            (ls(&directory.path().join("gone"), false, &mut Vec::new()), "gone"),
        ];
        for (result, word) in table {
            let err = result.expect_err(word);
            assert!(err.to_string().contains(word), "{err}");
            assert_eq!(words::exit_code_of(&err), ExitCode::from(words::BAD_INPUT), "{err}");
        }
    }
}
