//! `kiln cancel`, `kiln bump`, `kiln restart`: what people do with builds and jobs that wait or run.

use std::process::ExitCode;

use kiln_wire::client::{Request, Response};
use kiln_wire::{BuildId, Order, Priority, Steering, Subject};

use crate::args::FarmArgs;
use crate::client::Client;
use crate::daemons::runtime;
use crate::operate::parse_job;
use crate::words;

/// Arguments of a command that steers.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    farm: FarmArgs,
    /// The build's number, as `kiln status` shows it, or the job: a derivation's path, or its base name
    #[arg(value_name = "BUILD|JOB")]
    subject: String,
}

/// Arguments of `kiln bump`.
#[derive(clap::Args)]
pub struct BumpArgs {
    #[command(flatten)]
    args: Args,
    /// How urgent it is from here on, from -100 to 100; what is submitted without a priority has 0
    #[arg(long, value_name = "POINTS", default_value_t = 100, allow_negative_numbers = true,
          value_parser = clap::value_parser!(i8).range(-100..=100))]
    priority: i8,
}

/// Stops wanting a build, or lets a job fail.
pub fn cancel(args: &Args) -> anyhow::Result<ExitCode> {
    let subject = parse(&args.subject)?;
    match &subject {
        // Every farm knows this one, whatever version it is at.
        Subject::Build(build) => ask(args, &Request::Cancel(*build))?,
        Subject::Job(_) => steer(args, subject.clone(), Order::Cancel)?,
    };
    match subject {
        Subject::Build(build) => println!("build {build} is cancelled; what it alone needed stops"),
        Subject::Job(derivation) => println!("`{derivation}` is cancelled, and with it what needs it"),
    }
    Ok(ExitCode::from(words::SUCCESS))
}

/// Moves a build or a job among those of its project.
pub fn bump(args: &BumpArgs) -> anyhow::Result<ExitCode> {
    let (subject, priority) = (parse(&args.args.subject)?, Priority::from(args.priority));
    steer(&args.args, subject.clone(), Order::Bump(priority))?;
    println!("{subject} has priority {priority}");
    Ok(ExitCode::from(words::SUCCESS))
}

/// Lets what failed wait again.
pub fn restart(args: &Args) -> anyhow::Result<ExitCode> {
    let subject = parse(&args.subject)?;
    match steer(args, subject.clone(), Order::Restart)? {
        Response::Submitted(build) => println!("{subject} had ended; what it was is build {build}"),
        _ => println!("what failed of {subject} waits again"),
    }
    Ok(ExitCode::from(words::SUCCESS))
}

fn parse(subject: &str) -> anyhow::Result<Subject> {
    match subject.parse() {
        Ok(build) => Ok(Subject::Build(BuildId(build))),
        Err(_) => Ok(Subject::Job(parse_job(subject)?)),
    }
}

fn steer(args: &Args, subject: Subject, order: Order) -> anyhow::Result<Response> {
    ask(args, &Request::Steer(Steering { subject, order }))
}

fn ask(args: &Args, request: &Request) -> anyhow::Result<Response> {
    runtime()?.block_on(async { Client::open(&args.farm).await?.one(request).await })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_a_build_and_anything_else_a_job() {
        assert_eq!(parse("17").expect("a build"), Subject::Build(BuildId(17)));
        let job = "0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar.drv";
        for text in [job.to_owned(), format!("/nix/store/{job}")] {
            assert!(matches!(parse(&text).expect("a job"), Subject::Job(derivation) if derivation.name() == "bar"), "{text}");
        }
        for text in ["", "-1", "18446744073709551616", "bar"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
