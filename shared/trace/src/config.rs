//! Where spans go, if anywhere.

use std::fmt;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;

/// The table `[traces]` of a daemon's configuration.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// URL of who receives spans by OTLP over HTTP, below which `/v1/traces` is, with name and password if it wants them. Default: what `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` (whole) or
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
    /// Where they are to go is no URL of a receiver. The text itself is not said: it may hold a password, wherever that stands.
    #[error(
        "prepare to send traces: {setting} is no URL as `http://host:4318` or `https://user:password@host`; \
         what is special in a name or a password is written as `%40`"
    )]
    Url {
        /// Who says it.
        setting: &'static str,
    },
    /// The variables of the environment say something else that cannot be.
    #[error("prepare to send traces; see `[traces]` and the variables `OTEL_EXPORTER_OTLP_…`: {reason}")]
    Exporter {
        /// Why not.
        reason: String,
    },
}

impl fmt::Debug for Config {
    /// Whoever receives spans may want a password, which stands in the URL.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |url: &String| Endpoint::parse(url).map_or_else(|| "no URL".to_owned(), |endpoint| endpoint.host);
        f.debug_struct("Config").field("otlp_endpoint", &self.otlp_endpoint.as_ref().map(shown)).finish()
    }
}

impl Config {
    /// Returns where spans go, if anywhere.
    ///
    /// # Errors
    /// [`StartError::Url`] names who says what is no URL.
    pub(crate) fn endpoint(&self, variable: impl Fn(&str) -> Option<String>) -> Result<Option<Endpoint>, StartError> {
        let is_off = variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
        let is_none = variable("OTEL_TRACES_EXPORTER").is_some_and(|value| value == "none");
        if is_off || is_none {
            return Ok(None);
        }

        let said = [
            ("`otlp_endpoint` of `[traces]`", self.otlp_endpoint.clone(), true),
            ("`OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`", variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"), false),
            ("`OTEL_EXPORTER_OTLP_ENDPOINT`", variable("OTEL_EXPORTER_OTLP_ENDPOINT"), true),
        ];
        for (setting, url, is_base) in said {
            if let Some(url) = url.filter(|url| !url.is_empty()) {
                let endpoint = Endpoint::parse(&url).ok_or(StartError::Url { setting })?;
                return Ok(Some(if is_base { endpoint.below(TRACES) } else { endpoint }));
            }
        }
        Ok(None)
    }
}

/// Where spans go.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// Scheme, host and port: what may be said.
    host: String,
    path: String,
    query: String,
    /// Who sends, as the header `authorization` says it.
    pub(crate) authorization: Option<String>,
}

impl Endpoint {
    /// Reads a URL; nothing if it is none.
    fn parse(url: &str) -> Option<Self> {
        let (scheme, rest) = url.split_once("://").filter(|_| url.bytes().all(|byte| byte.is_ascii_graphic()))?;
        let rest = rest.split('#').next().unwrap_or_default();
        let (authority, rest) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let (path, query) = rest.split_at(rest.find('?').unwrap_or(rest.len()));
        let (user, host) = authority.rsplit_once('@').map_or((None, authority), |(user, host)| (Some(user), host));
        if !["http", "https"].contains(&scheme) || !is_host(host) {
            return None;
        }
        let authorization = match user {
            Some(user) => Some(basic(user)?),
            None => None,
        };
        Some(Self { host: format!("{scheme}://{host}"), path: path.to_owned(), query: query.to_owned(), authorization })
    }

    fn below(mut self, path: &str) -> Self {
        self.path = format!("{}{path}", self.path.trim_end_matches('/'));
        self
    }

    /// Returns the URL without who sends.
    pub(crate) fn url(&self) -> String {
        format!("{}{}{}", self.host, self.path, self.query)
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint").field("host", &self.host).finish_non_exhaustive()
    }
}

/// Returns whether this is a host as a name or an address, with a port or without.
fn is_host(text: &str) -> bool {
    let (name, port) = match text.strip_prefix('[').and_then(|text| text.split_once(']')) {
        Some((address, "")) => (address, None),
        Some((address, port)) => (address, Some(port.strip_prefix(':').unwrap_or("none"))),
        None => text.split_once(':').map_or((text, None), |(name, port)| (name, Some(port))),
    };
    let is_address = text.starts_with('[') && name.parse::<std::net::Ipv6Addr>().is_ok();
    let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    (is_address || is_name) && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

/// Returns `NAME:PASSWORD` of a URL as HTTP's basic authentication has it; nothing if it is not written as a URL has it.
fn basic(user: &str) -> Option<String> {
    let (name, password) = user.split_once(':').unwrap_or((user, ""));
    let plain = [decoded(name)?, decoded(password)?].join(&b':');
    Some(format!("Basic {}", BASE64_STANDARD.encode(plain)))
}

fn decoded(text: &str) -> Option<Vec<u8>> {
    let mut pieces = text.split('%');
    let mut bytes = pieces.next().unwrap_or_default().as_bytes().to_vec();
    for piece in pieces {
        let (code, rest) = piece.split_at_checked(2)?;
        let digit = |at: usize| code[at..=at].chars().next()?.to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        bytes.push(digit(0)? * 16 + digit(1)?);
        bytes.extend(rest.as_bytes());
    }
    Some(bytes)
}

/// What receivers of OTLP over HTTP call traces.
const TRACES: &str = "/v1/traces";

#[cfg(test)]
mod tests {
    use super::*;

    fn config(url: Option<&str>) -> Config {
        Config { otlp_endpoint: url.map(str::to_owned) }
    }

    /// Returns where the configured URL leads and with which header, or the error's words.
    fn check(url: &str) -> Result<(String, Option<String>), String> {
        let endpoint = config(Some(url)).endpoint(|_| None).map_err(|error| error.to_string())?.expect("it is configured");
        Ok((endpoint.url(), endpoint.authorization))
    }

    #[test]
    fn who_sends_is_said_in_a_header_and_not_in_the_url() {
        let with = |url: &str, header: Option<&str>| Ok((url.to_owned(), header.map(str::to_owned)));
        assert_eq!(check("http://me:secret@otel:4318"), with("http://otel:4318/v1/traces", Some("Basic bWU6c2VjcmV0")));
        assert_eq!(check("https://me@otel.example.org/a/"), with("https://otel.example.org/a/v1/traces", Some("Basic bWU6")));
        assert_eq!(check("http://a%40b:c%3ad@[::1]:1?x=1#y"), with("http://[::1]:1/v1/traces?x=1", Some("Basic YUBiOmM6ZA==")));
        assert_eq!(check("http://a@b:c@otel"), with("http://otel/v1/traces", Some("Basic YUBiOmM=")));
        assert_eq!(check("http://otel"), with("http://otel/v1/traces", None));
    }

    #[test]
    fn what_is_no_url_is_refused_without_saying_what_it_is() {
        for url in [
            "me:secret@otel:4318",
            "http:/me:secret@otel",
            "http://me:secret/1@otel",
            "http://me:secret?@otel",
            "http://me:secret#@otel",
            "http://me:secret%4@otel",
            "http://me:secret%+1@otel",
            "http://me:secret@otel:port",
            "http://me:secret@ otel",
            "http://me:secret@",
            "http://me:secret@[::1",
            "http://me:secret@[::1]secret",
            "grpc://me:secret@otel",
        ] {
            let said = check(url).expect_err(url);
            assert!(said.contains("`otlp_endpoint` of `[traces]`") && !said.contains("secret"), "{url}: {said}");
            let shown = format!("{:?}", config(Some(url)));
            assert!(!shown.contains("secret"), "{url}: {shown}");
        }
        let environment = |name: &str| (name == "OTEL_EXPORTER_OTLP_ENDPOINT").then(|| "me:secret@otel".to_owned());
        let said = config(None).endpoint(environment).expect_err("it is no URL").to_string();
        assert!(said.contains("`OTEL_EXPORTER_OTLP_ENDPOINT`") && !said.contains("secret"), "{said}");
    }

    #[test]
    fn debug_output_names_the_host_and_no_secret() {
        let url = "https://me:secret@otel.example.org:4318/v1/traces?token=secret";
        let endpoint = config(Some(url)).endpoint(|_| None);
        for shown in [format!("{:?}", config(Some(url))), format!("{endpoint:?}")] {
            assert!(shown.contains("https://otel.example.org:4318") && !shown.contains("secret"), "{shown}");
        }
    }

    #[test]
    fn nothing_is_sent_unless_somebody_says_where_to() {
        let check = |configured: Option<&str>, environment: &[(&str, &str)]| {
            let variable = |name: &str| environment.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
            config(configured).endpoint(variable).expect("they are URLs").map(|endpoint| endpoint.url())
        };
        let at = |url: &str| Some(url.to_owned());
        let (general, whole) = (("OTEL_EXPORTER_OTLP_ENDPOINT", "http://other:4318"), ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://t/x"));
        assert_eq!(check(None, &[]), None);
        assert_eq!(check(Some(""), &[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]), None);
        assert_eq!(check(Some("http://one:4318/"), &[general, whole]), at("http://one:4318/v1/traces"));
        assert_eq!(check(None, &[general]), at("http://other:4318/v1/traces"));
        assert_eq!(check(None, &[general, whole]), at("http://t/x"));
        assert_eq!(check(Some("http://one"), &[("OTEL_SDK_DISABLED", "true")]), None);
        assert_eq!(check(Some("http://one"), &[("OTEL_TRACES_EXPORTER", "none")]), None);
    }
}
