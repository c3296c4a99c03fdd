//! `kiln share`: who has which share of the farm, and who may be urgent.

use std::process::ExitCode;

use kiln_wire::client::{Request, Response};
use kiln_wire::{Priority, Share, ShareKey, ShareRequest, ShareView, TenantName};

use crate::args::FarmArgs;
use crate::client::Client;
use crate::daemons::runtime;
use crate::json;
use crate::tables;
use crate::words::{self, bad_input};

/// `kiln share`.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Say what part of the farm somebody has beside others that have work; an administrator may
    ///
    /// What is not said is as for everybody: weight 1, priority 0, no security class.
    Set {
        #[command(flatten)]
        farm: FarmArgs,
        /// The tenant, which is the name in its clients' certificates, or one of its projects
        #[arg(value_name = "TENANT[/PROJECT]")]
        key: String,
        /// Its part beside the parts of others of its level, from 1 to 1000
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
        weight: u32,
        /// Ten points count as twice the weight, from -100 to 100
        #[arg(long, value_name = "POINTS", default_value_t = 0, allow_negative_numbers = true,
              value_parser = clap::value_parser!(i8).range(-100..=100))]
        priority: i8,
        /// Its builds may be of the security class
        #[arg(long)]
        may_use_security: bool,
    },
    /// Take back what was set; an administrator may
    Remove {
        #[command(flatten)]
        farm: FarmArgs,
        /// Whose
        #[arg(value_name = "TENANT[/PROJECT]")]
        key: String,
    },
    /// List what was set, and what is used of the farm
    List {
        #[command(flatten)]
        farm: FarmArgs,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Runs it.
///
/// # Errors
/// Exit code 2 if a name breaks the rules; what the farm refused.
pub fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Set { farm, key, weight, priority, may_use_security } => {
            let share = Share { weight, priority: Priority::from(priority), may_use_security };
            set(&farm, &key, Some(share))
        }
        Command::Remove { farm, key } => set(&farm, &key, None),
        Command::List { farm, json } => list(&farm, json),
    }
}

fn set(farm: &FarmArgs, key: &str, share: Option<Share>) -> anyhow::Result<ExitCode> {
    let key = ShareKey::parse(key).map_err(bad_input)?;
    let request = Request::Shares(ShareRequest::Set { key, share });
    runtime()?.block_on(async { Client::open(farm).await?.one(&request).await })?;
    Ok(ExitCode::from(words::SUCCESS))
}

fn list(farm: &FarmArgs, as_json: bool) -> anyhow::Result<ExitCode> {
    let take = |response| if let Response::Shares(views) = response { Some(views) } else { None };
    let views = runtime()?.block_on(async { Client::open(farm).await?.all(&Request::Shares(ShareRequest::List), take).await })?;
    if as_json {
        println!("{}", serde_json::Value::from(views.iter().map(json::share).collect::<Vec<_>>()));
    } else {
        tables::print(&["WHO", "WEIGHT", "PRIORITY", "SECURITY", "NOW", "LATELY"], &views.iter().map(row).collect::<Vec<_>>());
    }
    Ok(ExitCode::from(words::SUCCESS))
}

fn row(view: &ShareView) -> Vec<String> {
    let tenant = view.tenant.as_ref().map_or("-", TenantName::as_str);
    let who = view.project.as_ref().map_or_else(|| tenant.to_owned(), |project| format!("{tenant}/{project}"));
    let Share { weight, priority, may_use_security } = view.share;
    let weight = if view.is_set { weight.to_string() } else { format!("{weight} (not set)") };
    let security = if may_use_security { "yes" } else { "no" };
    let percent = |ppm: u64| format!("{}.{} %", ppm / 10_000, ppm / 1_000 % 10);
    vec![who, weight, priority.to_string(), security.to_owned(), percent(view.held_ppm), percent(view.lately_ppm)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_who_has_what() {
        let tenant = TenantName::parse("ann").ok();
        let share = Share { weight: 3, priority: Priority::from(-10), may_use_security: true };
        let view = ShareView { tenant, project: None, share, is_set: true, held_ppm: 256_789, lately_ppm: 1_000_000 };
        assert_eq!(row(&view), ["ann", "3", "-10", "yes", "25.6 %", "100.0 %"]);
        let unset = ShareView { tenant: None, is_set: false, share: Share::default(), ..view };
        assert_eq!(row(&unset), ["-", "1 (not set)", "0", "no", "25.6 %", "100.0 %"]);
    }
}
