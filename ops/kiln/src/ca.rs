//! `kiln ca`: the farm's certificate authority and the certificates of its members.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use kiln_link::{Authority, AuthorityError, FarmName, Role};

use crate::words;

/// Days that a member's certificate is valid unless said otherwise: it is renewed by a daily or weekly job, and a stolen one dies soon.
const DAYS: u64 = 30;

/// What to do with certificates.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Make an authority for a new farm
    Init(InitArgs),
    /// Make a key and a certificate for a member of the farm
    Issue(IssueArgs),
}

/// The authority to make.
#[derive(clap::Args)]
pub struct InitArgs {
    /// Where to keep the authority; its private key never needs to leave this directory
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// The farm's name: `a-z 0-9 . - _`
    #[arg(long, value_name = "NAME")]
    farm: String,
}

/// The certificate to make.
#[derive(clap::Args)]
pub struct IssueArgs {
    /// Where the authority is kept
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Who the holder is: `worker/NAME`, `coordinator/N`, `client/NAME` or `admin/NAME`
    #[arg(long, value_name = "ROLE/NAME")]
    role: String,
    /// Where to write cert.pem, key.pem and ca.pem; files of these names are replaced
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// How many days it is valid
    #[arg(long, default_value_t = DAYS, value_parser = clap::value_parser!(u64).range(1..=825))]
    days: u64,
}

/// Runs the command.
///
/// # Errors
/// Names what is wrong with the input (which exits with 2), or the file that cannot be written.
pub fn run(command: Command) -> anyhow::Result<ExitCode> {
    let mut out = io::stdout().lock();
    match command {
        Command::Init(args) => init(&args, &mut out),
        Command::Issue(args) => issue(&args, &mut out),
    }
}

fn init(args: &InitArgs, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let farm: FarmName = args.farm.parse().map_err(words::bad_input)?;
    Authority::create(&args.dir, &farm).map_err(|err| explain("make an authority", err))?;
    let dir = args.dir.display();
    writeln!(out, "made the authority of farm {farm} in {dir}").context("print the outcome")?;
    writeln!(out, "keep {dir}/ca.key secret; next: kiln ca issue --dir {dir} --role coordinator/1 --out coordinator-1")
        .context("print the outcome")?;
    Ok(ExitCode::SUCCESS)
}

fn issue(args: &IssueArgs, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let role: Role = args.role.parse().map_err(words::bad_input)?;
    let authority = Authority::open(&args.dir).map_err(|err| explain("open the authority", err))?;
    let lifetime = Duration::from_secs(args.days.saturating_mul(86_400));
    let credentials = authority.issue(&role, lifetime).map_err(|err| explain("issue the certificate", err))?;
    credentials.write(&args.out).map_err(|err| explain("keep the certificate", err))?;
    let (farm, days) = (authority.farm(), args.days);
    writeln!(out, "issued {role} of farm {farm} for {days} days in {}", args.out.display()).context("print the outcome")?;
    Ok(ExitCode::SUCCESS)
}

/// Tells bad input (a wrong directory, role or lifetime) from the machine's failures.
fn explain(operation: &'static str, err: AuthorityError) -> anyhow::Error {
    let bad_input = match &err {
        AuthorityError::Exists { .. }
        | AuthorityError::Root(_)
        | AuthorityError::FarmName(_)
        | AuthorityError::Lifetime { .. }
        | AuthorityError::Role(_)
        | AuthorityError::RootExpired => true,
        AuthorityError::File { err, .. } => {
            matches!(err.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::InvalidData)
        }
        AuthorityError::Crypto { .. } => false,
    };
    let err = anyhow::Error::new(err).context(operation);
    if bad_input { words::bad_input(format!("{err:#}")) } else { err }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use kiln_link::Identity;

    use super::*;

    fn issue_args(dir: &std::path::Path, role: &str) -> IssueArgs {
        IssueArgs { dir: dir.join("ca"), role: role.to_owned(), out: dir.join("out"), days: 1 }
    }

    #[test]
    fn an_authority_issues_certificates_that_their_holders_can_use() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let init_args = InitArgs { dir: dir.path().join("ca"), farm: "demo".to_owned() };
        init(&init_args, &mut Vec::new()).expect("makes an authority");
        for role in ["coordinator/1", "worker/w1", "client/ann", "admin/ops"] {
            let mut out = Vec::new();
            issue(&issue_args(dir.path(), role), &mut out).expect(role);
            assert!(String::from_utf8(out).expect("text").starts_with(&format!("issued {role} of farm demo for 1 days")));
            let identity = Identity::load(&dir.path().join("out")).expect("loads");
            assert_eq!(identity.peer().role.to_string(), role);
        }
        for file in ["ca/ca.key", "out/key.pem"] {
            assert_eq!(std::fs::metadata(dir.path().join(file)).expect(file).permissions().mode() & 0o777, 0o600, "{file}");
        }
        let err = init(&init_args, &mut Vec::new()).expect_err("there is one");
        assert_eq!(words::exit_code_of(&err), ExitCode::from(words::BAD_INPUT), "{err}");
    }

    #[test]
    fn bad_input_exits_with_2_and_says_what_is_wrong() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let missing = issue(&issue_args(dir.path(), "worker/w1"), &mut Vec::new()).expect_err("no authority");
        let farm = init(&InitArgs { dir: dir.path().join("ca"), farm: "Big Farm".to_owned() }, &mut Vec::new()).expect_err("bad name");
        let role = issue(&issue_args(dir.path(), "builder/w1"), &mut Vec::new()).expect_err("bad role");
        for (err, says) in [(missing, "ca.pem"), (farm, "Big Farm"), (role, "builder/w1")] {
            assert_eq!(words::exit_code_of(&err), ExitCode::from(words::BAD_INPUT), "{err}");
            assert!(err.to_string().contains(says), "{err}");
        }
    }
}
