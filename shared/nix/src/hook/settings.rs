//! The settings of a Nix that matter to its hook.

use std::collections::BTreeSet;

use kiln_wire::StoreDir;

/// Settings, as far as they matter. Unknown ones are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Settings {
    /// The store that Nix works on, as it names it (`store`).
    pub store: String,
    /// Platforms that Nix builds for itself (`system` and `extra-platforms`).
    pub systems: BTreeSet<String>,
    /// What the own machine has (`system-features`).
    pub features: BTreeSet<String>,
    /// Builds that Nix runs itself at a time (`max-jobs`).
    pub jobs_max: u64,
    /// Longest time of a build, in seconds (`timeout`).
    pub timeout_seconds: Option<u64>,
    /// Longest time in which a build writes no log, in seconds (`max-silent-time`).
    pub silent_seconds_max: Option<u64>,
}

impl Settings {
    /// Takes a setting into account.
    pub fn set(&mut self, name: &str, value: &str) {
        let words = || value.split_whitespace().map(str::to_owned);
        // 0 stands for no limit.
        let limit = || value.parse().ok().filter(|seconds| *seconds > 0);
        match name {
            "store" => self.store = value.to_owned(),
            "system" | "extra-platforms" => self.systems.extend(words()),
            "system-features" => self.features = words().collect(),
            "max-jobs" => self.jobs_max = value.parse().unwrap_or(0),
            "timeout" => self.timeout_seconds = limit(),
            "max-silent-time" => self.silent_seconds_max = limit(),
            _ => {}
        }
    }

    /// Returns whether Nix could build this itself, now or later.
    pub fn could_build(&self, system: &str, features: &BTreeSet<String>) -> bool {
        self.jobs_max > 0 && self.systems.contains(system) && self.features.is_superset(features)
    }

    /// Returns the directory on this machine in which the store's objects lie, whatever it stands for in their names. None for a store
    /// that is not on this machine.
    pub fn objects_dir(&self, store_dir: &StoreDir) -> Option<String> {
        let (store, query) = self.store.split_once('?').unwrap_or((&self.store, ""));
        let parameter = |wanted: &str| query.split('&').find_map(|pair| pair.strip_prefix(wanted)?.strip_prefix('=')).map(percent_decoded);
        let store = store.strip_prefix("local://").unwrap_or(store);
        let root = match store {
            "" | "auto" | "daemon" | "local" => parameter("root").filter(|root| !root.is_empty()),
            _ if store.starts_with("unix://") => parameter("root").filter(|root| !root.is_empty()),
            _ if store.starts_with('/') => Some(percent_decoded(store)),
            _ => return None,
        };
        let below = |root: String| format!("{}{}", root.trim_end_matches('/'), store_dir.as_str());
        Some(parameter("real").or_else(|| root.map(below)).unwrap_or_else(|| store_dir.as_str().to_owned()))
    }
}

/// Replaces `%20` and the like; what is no such thing stays.
fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let hex = after.get(..2).filter(|_| *first == b'%').and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_found_by_how_nix_names_it() {
        let table = [
            ("", Some("/nix/store")),
            ("auto", Some("/nix/store")),
            ("daemon", Some("/nix/store")),
            ("local", Some("/nix/store")),
            ("local?root=/tmp/x", Some("/tmp/x/nix/store")),
            ("local://?root=/tmp/x/", Some("/tmp/x/nix/store")),
            ("local?root=/tmp/a%20b&state=/s", Some("/tmp/a b/nix/store")),
            ("local?root=/tmp/x&real=/mnt/store", Some("/mnt/store")),
            ("local?root=", Some("/nix/store")),
            ("/tmp/x", Some("/tmp/x/nix/store")),
            ("unix:///run/nix.socket", Some("/nix/store")),
            ("unix:///run/nix.socket?root=/r", Some("/r/nix/store")),
            ("local?root=/100%", Some("/100%/nix/store")),
            ("ssh-ng://host", None),
            ("https://cache.example.org", None),
        ];
        for (store, wanted) in table {
            let settings = Settings { store: store.to_owned(), ..Settings::default() };
            assert_eq!(settings.objects_dir(&StoreDir::default()).as_deref(), wanted, "{store}");
        }
    }

    #[test]
    fn settings_are_heard_as_nix_says_them() {
        let mut settings = Settings::default();
        let told = [
            ("system", "x86_64-linux"),
            ("extra-platforms", "i686-linux  x86_64-v1-linux"),
            ("system-features", "kvm big-parallel"),
            ("max-jobs", "2"),
            ("timeout", "60"),
            ("max-silent-time", "0"),
            ("cores", "7"),
        ];
        told.iter().for_each(|(name, value)| settings.set(name, value));
        assert_eq!((settings.timeout_seconds, settings.silent_seconds_max), (Some(60), None));
        let features = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        for (system, needed, could) in [
            ("x86_64-linux", &[][..], true),
            ("i686-linux", &["kvm"], true),
            ("aarch64-linux", &[], false),
            ("x86_64-linux", &["nixos-test"], false),
        ] {
            assert_eq!(settings.could_build(system, &features(needed)), could, "{system} {needed:?}");
        }
        settings.set("max-jobs", "0");
        assert!(!settings.could_build("x86_64-linux", &BTreeSet::new()), "it builds nothing itself");
    }
}
