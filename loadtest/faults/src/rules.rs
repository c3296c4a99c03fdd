//! What the switch between the hosts lets through, as rules for nftables. Pure.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::hosts::Host;

/// What is dropped on its way from one host to another, in per cent. Empty: nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drops(BTreeMap<(Host, Host), u8>);

impl Drops {
    /// Drops so many per cent from one host to another.
    pub fn one_way(mut self, from: Host, to: Host, percent: u8) -> Self {
        self.0.insert((from, to), percent);
        self
    }

    /// Drops everything that `host` sends to any of `others`.
    pub fn silence(self, host: Host, others: &[Host]) -> Self {
        others.iter().filter(|other| **other != host).fold(self, |drops, other| drops.one_way(host, *other, 100))
    }

    /// Drops everything that any of `others` sends to `host`.
    pub fn deafen(self, host: Host, others: &[Host]) -> Self {
        others.iter().filter(|other| **other != host).fold(self, |drops, other| drops.one_way(*other, host, 100))
    }

    /// Cuts `host` off from `others`.
    pub fn isolate(self, host: Host, others: &[Host]) -> Self {
        self.silence(host, others).deafen(host, others)
    }

    /// Drops so many per cent of everything among `hosts`.
    pub fn lossy(self, hosts: &[Host], percent: u8) -> Self {
        let pairs = hosts.iter().flat_map(|from| hosts.iter().map(move |to| (*from, *to))).filter(|(from, to)| from != to);
        pairs.fold(self, |drops, (from, to)| drops.one_way(from, to, percent))
    }

    /// Returns both together.
    pub fn and(mut self, other: Self) -> Self {
        for (pair, percent) in other.0 {
            let dropped = self.0.entry(pair).or_default();
            *dropped = percent.max(*dropped);
        }
        self
    }

    /// Returns an nftables script that replaces what was dropped before by this, in one step.
    pub fn script(&self) -> String {
        let mut rules = String::new();
        for ((from, to), percent) in &self.0 {
            let share = if *percent >= 100 { String::new() } else { format!("numgen random mod 100 < {percent} ") };
            // Writing to a string cannot fail.
            let _ = writeln!(rules, "    ip saddr {} ip daddr {} {share}drop", from.address(), to.address());
        }
        format!(
            "table bridge faults\ndelete table bridge faults\ntable bridge faults {{\n  chain between {{\n    type filter hook forward priority 0; \
             policy accept;\n{rules}  }}\n}}\n"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(drops: &Drops) -> Vec<String> {
        drops.script().lines().filter(|line| line.ends_with("drop")).map(|line| line.trim().to_owned()).collect()
    }

    #[test]
    fn a_partition_has_directions() {
        let (one, two) = (Host::Coordinator(1), Host::Coordinator(2));
        let hosts = [one, two];
        assert_eq!(rules(&Drops::default()), Vec::<String>::new());
        assert_eq!(rules(&Drops::default().silence(one, &hosts)), ["ip saddr 10.77.0.11 ip daddr 10.77.0.12 drop"]);
        assert_eq!(rules(&Drops::default().deafen(one, &hosts)), ["ip saddr 10.77.0.12 ip daddr 10.77.0.11 drop"]);
        assert_eq!(rules(&Drops::default().isolate(one, &hosts)).len(), 2);
    }

    #[test]
    fn of_two_faults_on_one_way_the_worse_counts() {
        let (one, two) = (Host::Coordinator(1), Host::Worker(1));
        let drops = Drops::default().lossy(&[one, two], 20).and(Drops::default().one_way(one, two, 100));
        assert_eq!(
            rules(&drops),
            ["ip saddr 10.77.0.11 ip daddr 10.77.0.101 drop", "ip saddr 10.77.0.101 ip daddr 10.77.0.11 numgen random mod 100 < 20 drop"]
        );
    }
}
