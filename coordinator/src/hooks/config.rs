//! `[[webhooks]]` of the configuration: who is told what happens, and the secrets that messages are signed with.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use kiln_wire::limits::{RECEIVER_NAME_BYTES_MAX, RECEIVERS_MAX};
use reqwest::Url;
use serde::Deserialize;

use super::sign::{Secret, SecretError};

/// A receiver of webhooks. Every coordinator of a farm needs the same.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Webhook {
    /// `https://` or `http://`, and where messages are posted to.
    pub(crate) url: UrlText,
    /// What logs, metrics and people call it; under this name the farm remembers what it was told. Default: the host of the URL.
    #[serde(default)]
    pub(crate) name: Option<String>,
    /// What it is told: `build.finished`, `build.newly-failing`, `worker.quarantined`, `farm.no-leader`. Default: all of them.
    #[serde(default = "Kind::all")]
    pub(crate) events: BTreeSet<Kind>,
    /// A file with the secret that signs, `whsec_` and base64 of 24 to 64 bytes; with a second line with a second secret, both sign, so that a
    /// receiver can go over from one to the other.
    pub(crate) secret_file: PathBuf,
    /// Seconds without a leader after which that is told, from 1 to 86,400. Default 30: elections take less than one.
    #[serde(default = "no_leader_default")]
    pub(crate) no_leader_seconds: u64,
}

/// What a receiver can be told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(crate) enum Kind {
    /// A build ended.
    #[serde(rename = "build.finished")]
    Finished,
    /// A build failed where the one of its name before did not.
    #[serde(rename = "build.newly-failing")]
    NewlyFailing,
    /// A worker gets no more jobs.
    #[serde(rename = "worker.quarantined")]
    Quarantined,
    /// Nobody leads.
    #[serde(rename = "farm.no-leader")]
    NoLeader,
}

/// A URL as it was written. It is judged by [`Webhook::objection`]: what the reader of the file says of a value shows the line, and a secret with it.
#[derive(Clone, Deserialize)]
#[serde(transparent)]
pub(crate) struct UrlText(String);

/// Where messages are posted to.
#[derive(Clone)]
pub(crate) struct HookUrl(pub(crate) Url);

/// A receiver whose secrets are read.
#[derive(Clone, Debug)]
pub(crate) struct Receiver {
    pub(crate) name: String,
    pub(crate) url: HookUrl,
    pub(crate) events: BTreeSet<Kind>,
    pub(crate) secrets: Vec<Secret>,
    pub(crate) no_leader_seconds: u64,
}

/// Receivers that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    /// Its URL is none.
    #[error("webhook `{name}`: {rule}")]
    Url {
        /// Whose.
        name: String,
        /// What is wrong, without the URL.
        rule: String,
    },
    /// A secret cannot be read.
    #[error("read the secret of webhook `{name}` from `{}`", path.display())]
    Read {
        /// Whose.
        name: String,
        /// Which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A secret is none.
    #[error("read the secret of webhook `{name}` from `{}`", path.display())]
    Secret {
        /// Whose.
        name: String,
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: SecretError,
    },
    /// TLS cannot be prepared.
    #[error("prepare to send webhooks")]
    Client(#[source] reqwest::Error),
}

impl Kind {
    fn all() -> BTreeSet<Self> {
        [Self::Finished, Self::NewlyFailing, Self::Quarantined, Self::NoLeader].into()
    }

    /// Returns what messages of it say that they are.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Finished => "build.finished",
            Self::NewlyFailing => "build.newly-failing",
            Self::Quarantined => "worker.quarantined",
            Self::NoLeader => "farm.no-leader",
        }
    }
}

impl HookUrl {
    fn parse(text: &str) -> Result<Self, String> {
        // The URL may hold a secret, so that no message repeats it.
        let url = Url::parse(text).map_err(|err| format!("`url` of webhook is no URL: {err}"))?;
        let is_plain = url.fragment().is_none() && url.username().is_empty() && url.password().is_none();
        match matches!(url.scheme(), "http" | "https") && url.has_host() && is_plain {
            true => Ok(Self(url)),
            false => Err("`url` of webhook: want `https://HOST/…` or `http://HOST/…` without a password".to_owned()),
        }
    }

    /// Returns the host, with the port if it is a special one: what may be shown.
    pub(crate) fn host(&self) -> String {
        let host = self.0.host_str().unwrap_or_default();
        self.0.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
    }
}

impl std::fmt::Debug for HookUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}://{}/…", self.0.scheme(), self.host())
    }
}

impl std::fmt::Debug for UrlText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("…")
    }
}

impl Webhook {
    fn name(&self) -> String {
        let host = || HookUrl::parse(&self.url.0).map(|url| url.host()).unwrap_or_default();
        self.name.clone().unwrap_or_else(host)
    }

    /// Returns the rule that some receivers break, if they do.
    pub(crate) fn objection(webhooks: &[Self]) -> Option<String> {
        if webhooks.len() > RECEIVERS_MAX {
            return Some(format!("{} `[[webhooks]]` are over the limit of {RECEIVERS_MAX}", webhooks.len()));
        }
        let mut names = BTreeSet::new();
        for (place, webhook) in webhooks.iter().enumerate() {
            if let Err(rule) = HookUrl::parse(&webhook.url.0) {
                return Some(format!("{rule} (`[[webhooks]]` number {})", place + 1));
            }
            let name = webhook.name();
            if name.is_empty() || name.len() > RECEIVER_NAME_BYTES_MAX {
                return Some(format!("`name` of a webhook has {} bytes: from 1 to {RECEIVER_NAME_BYTES_MAX}", name.len()));
            }
            if !(1..=86_400).contains(&webhook.no_leader_seconds) {
                return Some(format!("`no_leader_seconds` of webhook `{name}` is {}: from 1 to 86400", webhook.no_leader_seconds));
            }
            if webhook.events.is_empty() {
                return Some(format!("`events` of webhook `{name}` is empty: leave it out for all of them"));
            }
            if names.contains(&name) {
                return Some(format!("two webhooks are called `{name}`: give each a `name` of its own"));
            }
            names.insert(name);
        }
        None
    }

    /// Reads the secrets of a receiver.
    pub(super) fn open(&self) -> Result<Receiver, WebhookError> {
        let (name, path) = (self.name(), self.secret_file.clone());
        let secrets = match read(&path) {
            Ok(text) => Secret::parse_all(&text).map_err(|source| WebhookError::Secret { name: name.clone(), path, source })?,
            Err(source) => return Err(WebhookError::Read { name, path, source }),
        };
        let url = HookUrl::parse(&self.url.0).map_err(|rule| WebhookError::Url { name: name.clone(), rule })?;
        let (events, no_leader_seconds) = (self.events.clone(), self.no_leader_seconds);
        Ok(Receiver { name, url, events, secrets, no_leader_seconds })
    }
}

fn read(path: &Path) -> std::io::Result<String> {
    std::fs::read_to_string(path)
}

fn no_leader_default() -> u64 {
    30
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hooks(text: &str) -> Result<Vec<Webhook>, String> {
        #[derive(Deserialize)]
        struct File {
            webhooks: Vec<Webhook>,
        }
        toml::from_str::<File>(text).map(|file| file.webhooks).map_err(|error| error.to_string())
    }

    #[test]
    fn a_small_entry_is_enough_and_hears_of_everything() {
        let read = hooks("[[webhooks]]\nurl = 'https://chat.example.org/hook/T0K3N?x=1'\nsecret_file = '/s'").expect("reads");
        assert_eq!((read[0].name(), read[0].events.len(), read[0].no_leader_seconds), ("chat.example.org".to_owned(), 4, 30));
        assert!(Webhook::objection(&read).is_none());
        assert!(!format!("{read:?}").contains("T0K3N"), "what a URL holds may be a secret");
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let one = |more: &str| format!("[[webhooks]]\nurl = 'http://a:1/'\nsecret_file = '/s'\n{more}\n");
        for (text, named) in [
            (one("events = ['build.finnished']"), "build.finnished"),
            (one("evnts = []"), "evnts"),
            ("[[webhooks]]\nurl = 'ftp://a'\nsecret_file = '/s'".to_owned(), "https://HOST"),
            ("[[webhooks]]\nurl = 'https://u:SECRET@a'\nsecret_file = '/s'".to_owned(), "without a password"),
            ("[[webhooks]]\nurl = 'https//a/SECRET'\nsecret_file = '/s'".to_owned(), "no URL"),
            ("[[webhooks]]\nurl = 'https://a'".to_owned(), "secret_file"),
            (one("") + &one(""), "`a:1`"),
            (one("name = ''"), "`name`"),
            (one("events = []"), "`events`"),
            (one("no_leader_seconds = 0"), "`no_leader_seconds`"),
        ] {
            let found = hooks(&text).map(|read| Webhook::objection(&read).unwrap_or_default()).unwrap_or_else(|error| error);
            assert!(!found.contains("SECRET"), "{found}");
            assert!(found.contains(named), "{text}: {found}");
        }
        let many: Vec<String> = (0..=RECEIVERS_MAX).map(|number| one(&format!("name = 'n{number}'"))).collect();
        assert!(Webhook::objection(&hooks(&many.concat()).expect("reads")).is_some_and(|rule| rule.contains("limit")));
    }
}
