//! What a `builtin:fetchurl` recipe asks for. Pure.

use kiln_nix::derivation::{AttributeError, Derivation};
use reqwest::Url;

/// A download.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Addresses to try in turn; at least one.
    pub urls: Vec<Url>,
    /// The file is a NAR (compressed if its address says so), to be unpacked.
    pub unpack: bool,
    /// The file is made executable.
    pub executable: bool,
}

/// A recipe that is no download. Always its own fault.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// An attribute has the wrong kind.
    #[error(transparent)]
    Attribute(#[from] AttributeError),
    /// There is nothing to download.
    #[error("builtin:fetchurl: the derivation has neither `url` nor `urls`")]
    NoUrl,
    /// An address cannot be read.
    #[error("builtin:fetchurl: read address `{text}`: {rule}")]
    Url {
        /// The address, cut.
        text: String,
        /// The rule it breaks.
        rule: String,
    },
    /// It makes something else than the one file whose hash it states.
    #[error("builtin:fetchurl: the derivation must have exactly one output, `out`, of known hash")]
    Outputs,
}

/// Addresses of one recipe: more would be abuse.
const URLS_MAX: usize = 64;

impl Request {
    /// Reads what `derivation` asks for.
    ///
    /// # Errors
    /// [`RequestError`] if it is no download.
    pub fn of(derivation: &Derivation) -> Result<Self, RequestError> {
        let only_out = derivation.outputs.len() == 1 && derivation.outputs.keys().all(|name| name.as_str() == "out");
        if !only_out || !derivation.is_fixed_output() {
            return Err(RequestError::Outputs);
        }
        let attributes = derivation.attributes()?;
        let texts = attributes.text("url")?.into_iter().chain(attributes.texts("urls")?.unwrap_or_default());
        let mut urls = Vec::new();
        for text in texts.filter(|text| !text.is_empty()).take(URLS_MAX) {
            let url = parse_url(&text)?;
            if !urls.contains(&url) {
                urls.push(url);
            }
        }
        if urls.is_empty() {
            return Err(RequestError::NoUrl);
        }
        Ok(Self { urls, unpack: attributes.flag("unpack", false)?, executable: attributes.flag("executable", false)? })
    }
}

fn parse_url(text: &str) -> Result<Url, RequestError> {
    let refuse = |rule: String| RequestError::Url { text: text.chars().take(200).collect(), rule };
    let url = Url::parse(text).map_err(|err| refuse(err.to_string()))?;
    match url.scheme() {
        "http" | "https" | "file" => Ok(url),
        scheme => Err(refuse(format!("`{scheme}` is not supported; use https, http or file"))),
    }
}
