//! Where spans go, if anywhere.

use std::fmt;

use serde::Deserialize;

/// The table `[traces]` of a daemon's configuration.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// URL of who receives spans by OTLP over HTTP, below which `/v1/traces` is. Default: what `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` (whole) or
    /// `OTEL_EXPORTER_OTLP_ENDPOINT` (as here) says; without either nothing is traced.
    #[serde(default)]
    pub otlp_endpoint: Option<String>,
}

/// Who sends spans.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// What it is, unless `OTEL_SERVICE_NAME` calls it otherwise.
    pub name: &'static str,
    /// Which of its kind it is.
    pub instance: String,
}

/// Traces that cannot be sent as they are configured.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The endpoint is no URL, or the environment says something that cannot be.
    #[error("prepare to send traces to `{endpoint}`; see `[traces]` and the variables `OTEL_EXPORTER_OTLP_…`: {reason}")]
    Exporter {
        /// Where to, without what is secret of it.
        endpoint: String,
        /// Why not.
        reason: String,
    },
}

impl fmt::Debug for Config {
    /// Whoever receives spans may want a password, which stands in the URL.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config").field("otlp_endpoint", &self.otlp_endpoint.as_deref().map(host_of)).finish()
    }
}

impl Config {
    /// Returns where spans go, as the exporter takes it; nothing in the exporter's own words where the environment says it.
    pub(crate) fn endpoint(&self, variable: impl Fn(&str) -> Option<String>) -> Option<Endpoint> {
        let is_off = variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
        let is_none = variable("OTEL_TRACES_EXPORTER").is_some_and(|value| value == "none");
        if is_off || is_none {
            return None;
        }
        if let Some(endpoint) = self.otlp_endpoint.as_deref().filter(|endpoint| !endpoint.is_empty()) {
            return Some(Endpoint::Configured(format!("{}/v1/traces", endpoint.trim_end_matches('/'))));
        }
        let names = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
        names.iter().any(|name| variable(name).is_some_and(|value| !value.is_empty())).then_some(Endpoint::Environment)
    }
}

/// Returns a URL without names, passwords and queries.
pub(crate) fn host_of(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let host = rest.split(['/', '?']).next().unwrap_or_default();
    format!("{scheme}://{}", host.rsplit('@').next().unwrap_or_default())
}

/// Where spans go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// To this URL.
    Configured(String),
    /// Where the environment says.
    Environment,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_and_debug_output_name_the_host_and_no_secret() {
        let url = "https://me:secret@otel.example.org:4318/v1/traces?token=secret";
        assert_eq!(host_of(url), "https://otel.example.org:4318");
        assert_eq!(host_of("nonsense"), "://nonsense");
        let shown = format!("{:?}", Config { otlp_endpoint: Some(url.to_owned()) });
        assert!(shown.contains("otel.example.org") && !shown.contains("secret"), "{shown}");
    }

    #[test]
    fn nothing_is_sent_unless_somebody_says_where_to() {
        let check = |configured: Option<&str>, environment: &[(&str, &str)]| {
            let config = Config { otlp_endpoint: configured.map(str::to_owned) };
            config.endpoint(|name| environment.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()))
        };
        let at = |url: &str| Some(Endpoint::Configured(url.to_owned()));
        let general = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://other:4318");
        assert_eq!(check(None, &[]), None);
        assert_eq!(check(Some(""), &[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]), None);
        assert_eq!(check(Some("http://one:4318/"), &[general]), at("http://one:4318/v1/traces"));
        assert_eq!(check(None, &[general]), Some(Endpoint::Environment));
        assert_eq!(check(None, &[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://t/x")]), Some(Endpoint::Environment));
        assert_eq!(check(Some("http://one"), &[("OTEL_SDK_DISABLED", "true")]), None);
        assert_eq!(check(Some("http://one"), &[("OTEL_TRACES_EXPORTER", "none")]), None);
    }
}
