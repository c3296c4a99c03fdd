//! `kiln durations`: what the farm has learned that builds take, and what it is told of them.

use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use kiln_wire::client::{Request, Response};
use kiln_wire::limits::DURATIONS_PER_ENTRY_MAX;
use kiln_wire::{Measured, PackageView};

use crate::args::FarmArgs;
use crate::client::Client;
use crate::daemons::runtime;
use crate::words;

/// `kiln durations`.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Tell the farm what builds took elsewhere, as JSON lines; an administrator may
    ///
    /// A line: `{"pname", "version"?, "system", "wall_ms", "cpu_ms"?, "peak_memory_mib"?, "output_bytes"?, "fetch"?, "count"?, "derivation"?}`.
    Import {
        #[command(flatten)]
        farm: FarmArgs,
        /// The file, or `-` for standard input
        file: PathBuf,
    },
    /// Print what the farm learned of every package, as JSON lines that another farm can import
    Export {
        #[command(flatten)]
        farm: FarmArgs,
    },
    /// Say what is expected of a package
    Show {
        #[command(flatten)]
        farm: FarmArgs,
        /// Its name, without a version
        pname: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Runs it.
///
/// # Errors
/// Exit code 2 if a line cannot be read; what the farm refused.
pub fn run(command: Command) -> anyhow::Result<ExitCode> {
    runtime()?.block_on(async {
        match command {
            Command::Import { farm, file } => import(&Client::open(&farm).await?, &file).await,
            Command::Export { farm } => export(&packages(&Client::open(&farm).await?, None).await?),
            Command::Show { farm, pname, json } => show(&packages(&Client::open(&farm).await?, Some(pname)).await?, json),
        }
    })
}

async fn import(client: &Client, file: &Path) -> anyhow::Result<ExitCode> {
    let all = read(file)?;
    for some in all.chunks(DURATIONS_PER_ENTRY_MAX) {
        client.one(&Request::ImportDurations(some.to_vec())).await?;
    }
    println!("imported {}", words::count(u64::try_from(all.len()).unwrap_or(u64::MAX), "duration"));
    Ok(ExitCode::from(words::SUCCESS))
}

/// Reads the whole file before anything of it is sent: a line that makes no sense imports nothing.
fn read(file: &Path) -> anyhow::Result<Vec<Measured>> {
    let input: Box<dyn BufRead> = if file.as_os_str() == "-" {
        Box::new(io::stdin().lock())
    } else {
        let opened = std::fs::File::open(file).map_err(|error| words::bad_input(format!("read `{}`: {error}", file.display())))?;
        Box::new(io::BufReader::new(opened))
    };
    let mut all = Vec::new();
    for (number, line) in (1..).zip(input.lines()) {
        let line = line.with_context(|| format!("read `{}`", file.display()))?;
        if !line.trim().is_empty() {
            all.push(parse(&line).map_err(|error| words::bad_input(format!("read `{}`, line {number}: {error}", file.display())))?);
        }
    }
    Ok(all)
}

fn parse(line: &str) -> Result<Measured, String> {
    let measured: Measured = serde_json::from_str(line).map_err(|error| error.to_string())?;
    measured.objection().map_or(Ok(measured), |objection| Err(objection.to_owned()))
}

async fn packages(client: &Client, pname: Option<String>) -> anyhow::Result<Vec<PackageView>> {
    let take = |response| match response {
        Response::Packages(views) => Some(views),
        _ => None,
    };
    client.all(&Request::Packages(pname), take).await
}

fn export(views: &[PackageView]) -> anyhow::Result<ExitCode> {
    let mut out = io::stdout().lock();
    for view in views {
        serde_json::to_writer(&mut out, &view.measured)?;
        writeln!(out)?;
    }
    Ok(ExitCode::from(words::SUCCESS))
}

fn show(views: &[PackageView], json: bool) -> anyhow::Result<ExitCode> {
    if json {
        println!("{}", serde_json::to_string(views)?);
    } else {
        views.iter().for_each(|view| println!("{}", line(view)));
    }
    if views.is_empty() && !json {
        println!("nothing was measured of it");
    }
    Ok(ExitCode::from(words::SUCCESS))
}

fn line(view: &PackageView) -> String {
    let Measured { pname, system, fetch, count, peak_memory_mib, .. } = &view.measured;
    let what = if *fetch { "fetched" } else { "built" };
    let memory = peak_memory_mib.map(|peak| format!("; peak {peak} MiB, asks for {}", view.memory_mib)).unwrap_or_default();
    let times = words::count(u64::from(count.unwrap_or(0)), "measurement");
    format!("{pname} on {system}, {what}: {} ms expected after {times}{memory}", view.expected_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_whole_or_not_at_all() {
        let read = parse(r#"{"pname":"gcc","system":"x86_64-linux","wall_ms":90000,"peak_memory_mib":800}"#).expect("reads");
        assert_eq!((read.wall_ms, read.version, read.peak_memory_mib), (90_000, None, Some(800)));
        for (line, expect) in [
            ("{", "EOF"),
            (r#"{"pname":"gcc","wall_ms":1}"#, "system"),
            (r#"{"pname":"","system":"s","wall_ms":1}"#, "a package has a name"),
            (r#"{"pname":"a","system":"s","wall_ms":0}"#, "a millisecond at least"),
            (r#"{"pname":"a","system":"s","wall_ms":1,"derivation":"x"}"#, "store path"),
        ] {
            let error = parse(line).expect_err(line);
            assert!(error.contains(expect), "{line}: {error}");
        }
    }
}
