//! `kiln cluster backup` and `kiln cluster restore`: the farm's replicated state in one file, and a farm from such a file.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use kiln_coordinator::{Config, RestoreError, check_backup};
use kiln_wire::client::{Request, Response};

use crate::args::FarmArgs;
use crate::client::{AskError, Client, Leading, unexpected};
use crate::daemons::runtime;
use crate::words::{self, bad_input};

/// Arguments of `backup`.
#[derive(clap::Args)]
pub struct BackupArgs {
    /// The file to make; what is there is replaced once the new one is whole
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    farm: FarmArgs,
}

/// Arguments of `restore`.
#[derive(clap::Args)]
pub struct RestoreArgs {
    /// What `kiln cluster backup` made
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Configuration of the coordinator that is to have the farm (TOML), with a number that the farm has not used
    #[arg(long, value_name = "F")]
    config: PathBuf,
}

/// Writes a backup of a running farm.
pub fn backup(args: &BackupArgs) -> anyhow::Result<ExitCode> {
    let bytes = runtime()?.block_on(async {
        let client = Client::open(&args.farm).await?;
        let mut tries = client.tries();
        loop {
            match fetch(&tries.leader().await?).await {
                Ok(bytes) => return anyhow::Ok(bytes),
                Err(error) => tries.failed(error).await?,
            }
        }
    })?;
    check_backup(&bytes).context("check what the farm sent")?;
    keep(&args.file, &bytes).with_context(|| format!("write `{}`", args.file.display()))?;
    eprintln!("{} bytes in `{}`; restore them with `kiln cluster restore`", bytes.len(), args.file.display());
    Ok(ExitCode::from(words::SUCCESS))
}

async fn fetch(leading: &Leading) -> Result<Vec<u8>, AskError> {
    let (_sender, mut answers) = leading.ask(&Request::Backup).await?;
    let mut bytes = Vec::new();
    loop {
        match answers.next().await? {
            Some(Response::Backup(piece)) if piece.is_empty() => return Ok(bytes),
            Some(Response::Backup(piece)) => bytes.extend(piece),
            Some(_) => return Err(unexpected("another kind")),
            None => return Err(AskError::Passing(anyhow::anyhow!("the backup ended in its midst"))),
        }
    }
}

/// Replaces a file by one that is whole and durable.
fn keep(file: &Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    let part = file.with_file_name(name);
    let mut opened = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part)?;
    opened.write_all(bytes)?;
    opened.sync_all()?;
    std::fs::rename(&part, file)?;
    let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::File::open(dir)?.sync_all()
}

/// Makes a coordinator's directory from a backup.
pub fn restore(args: &RestoreArgs) -> anyhow::Result<ExitCode> {
    let config = Config::read(&args.config).map_err(|error| bad_input(format!("{:#}", anyhow::Error::from(error))))?;
    let restored = runtime()?.block_on(kiln_coordinator::restore(&config, &args.file));
    let restored = restored.map_err(|error: RestoreError| bad_input(format!("{:#}", anyhow::Error::from(error))))?;
    println!("farm `{}` as of log entry {} is coordinator {}'s, alone", restored.farm, restored.entries, restored.node);
    if let Some(store) = restored.other_store {
        println!("its outputs were in `{store}`; they must be where the configuration says");
    }
    println!("start it with `kiln coordinator --config {}`, then add others with `kiln cluster add`", args.config.display());
    Ok(ExitCode::from(words::SUCCESS))
}
