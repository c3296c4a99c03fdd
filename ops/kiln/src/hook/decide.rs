//! Whether the farm takes a build. Pure.

use std::collections::BTreeSet;

use kiln_wire::client::WorkerView;

/// What becomes of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// The farm builds it, now or when it is its turn: the farm has the queue, with all of its clients in it.
    Accept,
    /// Nix builds it, for this reason.
    Decline(String),
    /// Whoever could build it may be back in a moment, and Nix itself cannot begin.
    Postpone,
}

/// Decides by what the workers have. `could_begin`: Nix itself could build it at this moment.
pub(super) fn decide(system: &str, features: &BTreeSet<String>, workers: &[WorkerView], could_begin: bool) -> Decision {
    // Every worker brings the builders that Nix has in itself.
    let has_system = |worker: &&WorkerView| system == "builtin" || worker.offer.systems.contains(system);
    let of_system: Vec<&WorkerView> = workers.iter().filter(has_system).collect();
    let able: Vec<&&WorkerView> = of_system.iter().filter(|worker| worker.offer.features.is_superset(features)).collect();
    if able.iter().any(|worker| worker.connected) {
        return Decision::Accept;
    }
    match (able.is_empty(), of_system.is_empty()) {
        (false, _) if could_begin => Decision::Decline("no worker that could build it is connected".to_owned()),
        (false, _) => Decision::Postpone,
        (true, true) => Decision::Decline(format!("no worker builds for `{system}`")),
        (true, false) => {
            let features: Vec<&str> = features.iter().map(String::as_str).collect();
            Decision::Decline(format!("no worker for `{system}` has all of the features {}", features.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use kiln_wire::worker::Offer;
    use kiln_wire::{Resources, WorkerId};

    use super::*;

    fn words(text: &str) -> BTreeSet<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    /// `+` or `-` for whether it is connected, its system, its features.
    fn workers(text: &str) -> Vec<WorkerView> {
        let worker = |(at, text): (usize, &str)| {
            let (connected, rest) = text.trim().split_at(1);
            let (system, features) = rest.split_once(' ').unwrap_or((rest, ""));
            WorkerView {
                worker: WorkerId::parse(&format!("w{at}")).expect("a name"),
                connected: connected == "+",
                offer: Offer {
                    systems: words(system),
                    features: words(features),
                    capacity: Resources { cores: 1, memory_mib: 1 },
                    slots: 1,
                    guarantees: Default::default(),
                    ..Offer::default()
                },
                used: Resources { cores: 0, memory_mib: 0 },
                running: Vec::new(),
                strain: None,
                ailing: None,
            }
        };
        text.split(';').filter(|text| !text.trim().is_empty()).enumerate().map(worker).collect()
    }

    #[test]
    fn the_farm_takes_what_a_worker_of_it_can_build() {
        let table = [
            ("+x86", "x86", "", true, "accept"),
            ("+x86; +arm", "arm", "", true, "accept"),
            ("+x86", "builtin", "", true, "accept"),
            ("+x86 kvm", "x86", "kvm", true, "accept"),
            ("+x86; -x86 kvm", "x86", "kvm", true, "no worker that could build it is connected"),
            ("+x86; -x86 kvm", "x86", "kvm", false, "postpone"),
            ("-x86", "x86", "", false, "postpone"),
            ("+x86 kvm; +arm big", "x86", "big kvm", false, "features big, kvm"),
            ("+x86", "arm", "", false, "no worker builds for `arm`"),
            ("", "x86", "", true, "no worker builds for `x86`"),
        ];
        for (fleet, system, features, could_begin, wanted) in table {
            let said = match decide(system, &words(features), &workers(fleet), could_begin) {
                Decision::Accept => "accept".to_owned(),
                Decision::Postpone => "postpone".to_owned(),
                Decision::Decline(why) => why,
            };
            assert!(said.contains(wanted), "{fleet} | {system} | {features}: {said}");
        }
    }
}
