//! What `kiln-sim plan` can be told.

use std::path::PathBuf;

use super::draws::Draws;
use super::engine::Costs;
use super::fleet::Stragglers;
use super::list::Order;

/// How many workers a fleet has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Size {
    Workers(u32),
    /// So many times work over longest path, in slots.
    Knee(f64),
}

/// Which policy runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Chosen {
    /// The product's planner.
    Kiln,
    /// The same, and no job runs in two places.
    Single,
    List(Order),
}

impl Chosen {
    /// Every policy, by the word that names it.
    pub const TABLE: [(&'static str, Self); 8] = [
        ("kiln", Self::Kiln),
        ("single", Self::Single),
        ("rank", Self::List(Order::Rank)),
        ("estimated", Self::List(Order::EstimatedRank)),
        ("unit-rank", Self::List(Order::UnitRank)),
        ("hydra", Self::List(Order::Hydra)),
        ("longest", Self::List(Order::Longest)),
        ("fifo", Self::List(Order::Fifo)),
    ];

    /// Returns the word that names it.
    pub fn word(self) -> &'static str {
        Self::TABLE.iter().find(|(_, chosen)| *chosen == self).map_or("?", |(word, _)| word)
    }
}

/// One replay, or several that differ by their policy.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Options {
    /// A file, or a name in `$KILN_SHARED/data/graphs`.
    pub graph: PathBuf,
    pub copies: u32,
    pub size: Size,
    pub slots: u32,
    pub cores: u32,
    pub memory_mib: u64,
    pub policies: Vec<Chosen>,
    pub draws: Draws,
    pub costs: Costs,
    pub locality: bool,
    pub stragglers: Stragglers,
    pub gantt: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            graph: PathBuf::from("nixos-closure"),
            copies: 1,
            size: Size::Knee(1.0),
            slots: 1,
            cores: 8,
            memory_mib: 65_536,
            policies: Chosen::TABLE.iter().map(|(_, chosen)| *chosen).collect(),
            draws: Draws::EXACT,
            costs: Costs::default(),
            locality: true,
            stragglers: Stragglers::default(),
            gantt: None,
        }
    }
}

/// What each option says.
pub(crate) const HELP: &str = "\
kiln-sim plan: replays a real graph on a simulated fleet, with the farm's own planner and with rivals

  kiln-sim plan [OPTION]…              one replay for each policy: makespan, bounds, bytes moved, fairness
  kiln-sim plan prove [TOPIC] [--full] claims, each with its figure and goal; TOPIC is knee, copies, locality, fairness, gap, chain or straggle

  --graph NAME         a file, or a graph of $KILN_SHARED/data/graphs (nixos-closure)
  --copies N           so many builds of it that share nothing (1)
  --workers N|knee*X   the fleet; knee is work over longest path (knee*1)
  --slots N            jobs at once on a worker (1)
  --cores N            cores of a worker (8)
  --memory MIB         memory of a worker; jobs then need memory, too
  --policy NAME,…      kiln, single (kiln, and no job runs in two places), rank (exact durations), estimated (what is known), unit-rank, hydra, longest, fifo (all of them)
  --seed N             what everything is drawn from (1)
  --sigma X            estimates are wrong by a log-normal factor of this deviation (0)
  --unknown X          share of names, from 0 to 1, of which nothing is known (0)
  --guess SECONDS      what `estimated` takes builds to last of which nothing is known (7200)
  --bandwidth MB/S     at which workers fetch inputs (at once)
  --hop MS             from a placement to the start of its builder (0)
  --stragglers PCT,N   such a share of the workers takes N times as long, each from a moment on, and does not say so (0,1)
  --no-locality        place without a look at which worker has the inputs
  --gantt FILE.svg     draws the first policy's replay

Exit 0, or 1 if a claim falls short. 2: usage.";

/// Reads the options of a replay.
///
/// # Errors
/// Says which option is wrong.
pub(crate) fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options::default();
    while let Some(name) = arguments.next() {
        if name == "--no-locality" {
            options.locality = false;
            continue;
        }
        let value = arguments.next().ok_or_else(|| format!("{name} wants a value, or is no option"))?;
        set(&mut options, &name, &value).ok_or_else(|| format!("`{name} {value}` is no option, or not such a value"))?;
    }
    Ok(options)
}

fn set(options: &mut Options, name: &str, value: &str) -> Option<()> {
    match name {
        "--graph" => options.graph = PathBuf::from(value),
        "--copies" => options.copies = value.parse().ok().filter(|copies| (1..=1000).contains(copies))?,
        "--workers" => options.size = size(value)?,
        "--slots" => options.slots = value.parse().ok().filter(|slots| *slots > 0)?,
        "--cores" => options.cores = value.parse().ok().filter(|cores| *cores > 0)?,
        "--memory" => (options.memory_mib, options.draws.memory) = (value.parse().ok()?, true),
        "--policy" => options.policies = value.split(',').map(policy).collect::<Option<_>>()?,
        "--seed" => options.draws.seed = value.parse().ok()?,
        "--sigma" => options.draws.error_sigma = value.parse().ok().filter(|sigma| (0.0..=5.0).contains(sigma))?,
        "--unknown" => options.draws.unknown = value.parse().ok().filter(|share| (0.0..=1.0).contains(share))?,
        "--guess" => options.draws.guess_ms = value.parse::<u64>().ok()?.checked_mul(1000)?,
        "--bandwidth" => options.costs.bandwidth_bytes_s = Some(value.parse::<u64>().ok().filter(|mb| *mb > 0)?.checked_mul(1_000_000)?),
        "--stragglers" => options.stragglers = stragglers(value)?,
        "--hop" => options.costs.hop_ms = value.parse().ok()?,
        "--gantt" => options.gantt = Some(PathBuf::from(value)),
        _ => return None,
    }
    Some(())
}

fn stragglers(value: &str) -> Option<Stragglers> {
    let (percent, factor) = value.split_once(',')?;
    let (percent, factor) = (percent.parse().ok()?, factor.parse().ok()?);
    ((0..=100).contains(&percent) && (1..=1000).contains(&factor)).then_some(Stragglers { percent, factor })
}

fn size(value: &str) -> Option<Size> {
    match value.strip_prefix("knee") {
        Some("") => Some(Size::Knee(1.0)),
        Some(times) => times.strip_prefix('*')?.parse().ok().filter(|times| (0.001..=1000.0).contains(times)).map(Size::Knee),
        None => value.parse().ok().filter(|workers| (1..=100_000).contains(workers)).map(Size::Workers),
    }
}

fn policy(word: &str) -> Option<Chosen> {
    Chosen::TABLE.iter().find(|(known, _)| *known == word).map(|(_, chosen)| *chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_or_refused_by_name() {
        let parse = |line: &str| parse(line.split_whitespace().map(str::to_owned));
        let options = parse("--workers knee*0.25 --policy kiln,fifo --sigma 1 --bandwidth 125 --no-locality").expect("they are good");
        assert_eq!(options.size, Size::Knee(0.25));
        assert_eq!(options.policies, [Chosen::Kiln, Chosen::List(Order::Fifo)]);
        assert_eq!(options.costs.bandwidth_bytes_s, Some(125_000_000));
        assert!(!options.locality);
        for line in ["--workers 0", "--workers knee2", "--policy best", "--unknown 2", "--seed", "--fleet 3"] {
            let refused = parse(line).expect_err(line);
            assert!(refused.contains(line.split(' ').next().expect("an option")), "{refused}");
        }
    }
}
