//! `kiln token`: tokens with which clients may upload over HTTP. The token is printed once; the farm is given its hash.

use std::fs::File;
use std::io::{self, Read, Write};
use std::process::ExitCode;

use anyhow::Context;
use kiln_coordinator::TokenHash;
use kiln_nix::hash::nix32;

use crate::words;

/// What to do with tokens.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Make a token, and print it with the lines by which `coordinator.toml` knows it
    Create(CreateArgs),
}

/// The token to make.
#[derive(clap::Args)]
pub struct CreateArgs {
    /// Whose it is, for the coordinators' logs
    #[arg(long)]
    name: String,
    /// What it is good for
    #[arg(long, value_enum, default_value_t = Scope::Upload)]
    scope: Scope,
}

/// As in the coordinators' configuration.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Scope {
    /// Upload what its content, or a key of `trusted_upload_keys`, vouches for
    Upload,
    /// Upload anything: the farm signs it on the holder's word
    Trusted,
}

/// Runs the command.
///
/// # Errors
/// A name that is none exits with 2.
pub fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Create(args) => create(&args, &mut io::stdout().lock()),
    }
}

fn create(args: &CreateArgs, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    if args.name.is_empty() || args.name.contains(|character: char| character.is_control() || "'\"\\".contains(character)) {
        return Err(words::bad_input(format!(
            "make token `{}`: its name must not be empty or have quotes or control characters",
            args.name
        )));
    }
    let mut secret = [0; 32];
    File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut secret)).context("read random bytes for a token")?;
    let token = nix32(&secret);
    let scope = match args.scope {
        Scope::Upload => "upload",
        Scope::Trusted => "trusted",
    };
    write!(
        out,
        "{token}\n\n# Lines for every coordinator's configuration. The token above is shown this once: put it into the client's netrc file as\n\
         # `machine HOST login kiln password TOKEN`\n[[tokens]]\nname = \"{}\"\nhash = \"{}\"\nscope = \"{scope}\"\n",
        args.name,
        TokenHash::of(&token)
    )
    .context("print the token")?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(name: &str, scope: Scope) -> anyhow::Result<String> {
        let mut out = Vec::new();
        create(&CreateArgs { name: name.to_owned(), scope }, &mut out)?;
        Ok(String::from_utf8(out).expect("text"))
    }

    #[test]
    fn a_token_is_printed_with_the_lines_that_know_it_and_is_never_the_same() {
        let (first, second) = (made("ci", Scope::Upload).expect("makes"), made("ci", Scope::Trusted).expect("makes"));
        for (text, scope) in [(&first, "scope = \"upload\""), (&second, "scope = \"trusted\"")] {
            let token = text.lines().next().expect("a line");
            assert_eq!(token.len(), 52);
            assert!(text.contains(&format!("hash = \"{}\"", TokenHash::of(token))) && text.contains(scope), "{text}");
            assert_eq!(text.matches(token).count(), 1, "the configuration has the hash only");
        }
        assert_ne!(first.lines().next(), second.lines().next());
        for name in ["", "a\"b", "a\nb"] {
            assert!(made(name, Scope::Upload).is_err(), "{name:?}");
        }
    }
}
