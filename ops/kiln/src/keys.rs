//! `kiln keys`: keys that sign a binary cache. A secret key is written once, to a file that only its owner may read, and read only for
//! its public half.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use kiln_nix::SecretKey;

use crate::words;

/// What to do with keys.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Make a key: the secret half goes to a file, the public half is printed for `trusted-public-keys`
    Generate(GenerateArgs),
    /// Print the public halves of keys, as `trusted-public-keys` has them
    Public(PublicArgs),
}

/// The keys to print.
#[derive(clap::Args)]
pub struct PublicArgs {
    /// The files with the secret halves
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

/// The key to make.
#[derive(clap::Args)]
pub struct GenerateArgs {
    /// The key's name, such as `cache.example.org-1`
    #[arg(long)]
    name: String,
    /// The file to make, or a directory in which to make `NAME.secret`
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Runs the command.
///
/// # Errors
/// Names the file and what is wrong with it; a bad name and a file that exists exit with 2.
pub fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Generate(args) => generate(&args, &mut io::stdout().lock()),
        Command::Public(args) => public(&args, &mut io::stdout().lock()),
    }
}

fn public(args: &PublicArgs, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    for file in &args.files {
        let key = kiln_store::keys::load(file).map_err(|err| words::bad_input(format!("{:#}", anyhow::Error::from(err))))?;
        writeln!(out, "{}", key.public()).context("print the public key")?;
    }
    Ok(ExitCode::SUCCESS)
}

fn generate(args: &GenerateArgs, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let key = SecretKey::generate(&args.name).map_err(|err| match err.kind() {
        io::ErrorKind::InvalidInput => words::bad_input(format!("make key `{}`: {err}", args.name)),
        _ => anyhow::Error::new(err).context("read random bytes for a key"),
    })?;
    let file = if args.file.is_dir() { args.file.join(format!("{}.secret", args.name.replace('/', "_"))) } else { args.file.clone() };
    let mut opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&file).map_err(|err| {
        // Whoever loses a key loses every signature it made, so nothing is overwritten.
        words::bad_input(format!("make key file `{}`: {err}; choose a path that does not exist, in a directory that does", file.display()))
    })?;
    opened.write_all(key.to_secret_text().as_bytes()).with_context(|| format!("write key file `{}`", file.display()))?;
    opened.sync_all().with_context(|| format!("write key file `{}`", file.display()))?;
    writeln!(out, "{}", key.public()).context("print the public key")?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use kiln_nix::PublicKey;

    use super::*;

    #[test]
    fn the_secret_half_is_the_owners_and_the_public_half_is_printed() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        for (file, made) in [("", "farm-1.secret"), ("key", "key")] {
            let mut out = Vec::new();
            let args = GenerateArgs { name: "farm-1".to_owned(), file: directory.path().join(file) };
            generate(&args, &mut out).expect("makes a key");
            let made = directory.path().join(made);
            let secret = SecretKey::parse(&std::fs::read_to_string(&made).expect("a key file")).expect("a key");
            assert_eq!(PublicKey::parse(&String::from_utf8(out).expect("text")), Ok(secret.public()));
            assert_eq!(std::fs::metadata(&made).expect("a file").permissions().mode() & 0o777, 0o600);
            let err = generate(&args, &mut Vec::new()).expect_err("it exists");
            assert_eq!(words::exit_code_of(&err), ExitCode::from(words::BAD_INPUT), "{err}");
            assert_eq!(SecretKey::parse(&std::fs::read_to_string(&made).expect("a key file")).expect("a key").public(), secret.public());
        }
    }

    #[test]
    fn the_public_half_is_printed_again_and_what_is_no_key_is_named() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (file, none) = (directory.path().join("key"), directory.path().join("none"));
        let (mut made, mut again) = (Vec::new(), Vec::new());
        generate(&GenerateArgs { name: "farm-1".to_owned(), file: file.clone() }, &mut made).expect("makes a key");
        public(&PublicArgs { files: vec![file.clone()] }, &mut again).expect("reads a key");
        assert_eq!(made, again);
        std::fs::write(&none, "farm-1:AAAA").expect("writes");
        std::fs::set_permissions(&none, std::fs::Permissions::from_mode(0o600)).expect("chmod");
        let err = public(&PublicArgs { files: vec![file, none] }, &mut Vec::new()).expect_err("no key");
        assert_eq!(words::exit_code_of(&err), ExitCode::from(words::BAD_INPUT), "{err}");
        assert!(err.to_string().contains("none"), "{err}");
    }

    #[test]
    fn a_name_that_nix_would_not_read_is_refused() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        for name in ["", "a:b", "a b"] {
            let args = GenerateArgs { name: name.to_owned(), file: directory.path().join("key") };
            let err = generate(&args, &mut Vec::new()).expect_err(name);
            assert_eq!(words::exit_code_of(&err), ExitCode::from(words::BAD_INPUT), "{err}");
            assert!(!directory.path().join("key").exists());
        }
    }
}
