//! `kiln token`: tokens with which clients may upload, look and steer over HTTP. The token is printed once; the farm is given its hash.

use std::fs::File;
use std::io::{self, Read, Write};
use std::process::ExitCode;

use anyhow::Context;
use kiln_coordinator::TokenHash;
use kiln_nix::hash::nix32;
use kiln_wire::TenantName;

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
    /// Whose builds a reader sees and a submitter steers: the name in the tenant's certificates
    #[arg(long, required_if_eq_any([("scope", "reader"), ("scope", "submitter")]))]
    tenant: Option<String>,
}

/// As in the coordinators' configuration.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Scope {
    /// Upload what its content, or a key of `trusted_upload_keys`, vouches for
    Upload,
    /// Upload anything: the farm signs it on the holder's word
    Trusted,
    /// Look at a tenant's builds and jobs, and at the farm
    Reader,
    /// As a reader, and steer the tenant's builds and jobs
    Submitter,
    /// Look at everything, steer everything, and take workers out of use
    Admin,
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
    let tenant = args.tenant.as_deref().map(TenantName::parse).transpose().map_err(words::bad_input)?;
    let token = draw()?;
    let (scope, is_for_uploads) = match args.scope {
        Scope::Upload => ("upload", true),
        Scope::Trusted => ("trusted", true),
        Scope::Reader => ("reader", false),
        Scope::Submitter => ("submitter", false),
        Scope::Admin => ("admin", false),
    };
    if is_for_uploads && tenant.is_some() {
        return Err(words::bad_input(format!("make token `{}`: what is uploaded is no tenant's; leave --tenant out", args.name)));
    }
    let tenant = tenant.map(|tenant| format!("tenant = \"{tenant}\"\n")).unwrap_or_default();
    let place = match is_for_uploads {
        true => "put it into the client's netrc file as\n# `machine HOST login kiln password TOKEN`",
        false => "clients of the HTTP API\n# send it as `Authorization: Bearer TOKEN`",
    };
    write!(
        out,
        "{token}\n\n# Lines for every coordinator's configuration. The token above is shown this once: {place}\n\
         [[tokens]]\nname = \"{}\"\nhash = \"{}\"\nscope = \"{scope}\"\n{tenant}",
        args.name,
        TokenHash::of(&token)
    )
    .context("print the token")?;
    Ok(ExitCode::SUCCESS)
}

/// Draws a token.
///
/// # Errors
/// If the system has no random bytes.
pub fn draw() -> anyhow::Result<String> {
    let mut secret = [0; 32];
    File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut secret)).context("read random bytes for a token")?;
    Ok(nix32(&secret))
}

/// Characters of a token: 256 bits in base 32.
pub const TOKEN_BYTES: usize = 52;

#[cfg(test)]
mod tests {
    use super::*;

    fn made(name: &str, scope: Scope) -> anyhow::Result<String> {
        let mut out = Vec::new();
        let tenant = matches!(scope, Scope::Reader | Scope::Submitter).then(|| "a".to_owned());
        create(&CreateArgs { name: name.to_owned(), scope, tenant }, &mut out)?;
        Ok(String::from_utf8(out).expect("text"))
    }

    #[test]
    fn a_token_is_printed_with_the_lines_that_know_it_and_is_never_the_same() {
        let (first, second) = (made("ci", Scope::Upload).expect("makes"), made("ci", Scope::Trusted).expect("makes"));
        for (text, scope) in [(&first, "scope = \"upload\""), (&second, "scope = \"trusted\"")] {
            let token = text.lines().next().expect("a line");
            assert_eq!(token.len(), TOKEN_BYTES);
            assert!(text.contains(&format!("hash = \"{}\"", TokenHash::of(token))) && text.contains(scope), "{text}");
            assert_eq!(text.matches(token).count(), 1, "the configuration has the hash only");
        }
        assert_ne!(first.lines().next(), second.lines().next());
        for (scope, lines) in [
            (Scope::Reader, "scope = \"reader\"\ntenant = \"a\"\n"),
            (Scope::Submitter, "scope = \"submitter\"\ntenant = \"a\"\n"),
            (Scope::Admin, "scope = \"admin\"\n"),
        ] {
            assert!(made("ci", scope).expect("makes").ends_with(lines), "{scope:?}");
        }
        for name in ["", "a\"b", "a\nb"] {
            assert!(made(name, Scope::Upload).is_err(), "{name:?}");
        }
    }
}
