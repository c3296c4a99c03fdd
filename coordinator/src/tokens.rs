//! Tokens: who may upload, look and steer over HTTP. The farm keeps their hashes only. Pure.
//!
//! A token is 256 random bits, so that its hash needs no salt and no time to be safe.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kiln_nix::hash::{Algorithm, Hasher};
use kiln_wire::TenantName;
use serde::{Deserialize, Deserializer};

/// A token that the farm knows: one `[[tokens]]` of the configuration, as `kiln token create` prints it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// Whose it is, for logs.
    pub name: String,
    /// `sha256:` and the hash of the token, in base 16.
    pub hash: TokenHash,
    /// What it is good for.
    pub scope: Scope,
    /// Whose builds a `reader` sees and a `submitter` steers: the name in the tenant's certificates.
    #[serde(default)]
    pub tenant: Option<TenantName>,
}

/// What the holder of a token may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Upload what its content or a key of `trusted_upload_keys` vouches for.
    Upload,
    /// Upload anything, on the holder's word: the farm signs it.
    Trusted,
    /// Look at a tenant's builds and jobs, and at the farm.
    Reader,
    /// As `Reader`, and steer the tenant's builds and jobs.
    Submitter,
    /// Look at everything, steer everything, and take workers out of use.
    Admin,
}

/// The hash of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenHash(String);

impl TokenHash {
    /// Returns the hash of a token.
    pub fn of(token: &str) -> Self {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(token.as_bytes());
        Self(hex(hasher.finish().digest()))
    }
}

impl std::fmt::Display for TokenHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "sha256:{}", self.0)
    }
}

impl<'de> Deserialize<'de> for TokenHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let hex = text.strip_prefix("sha256:").filter(|hex| hex.len() == 64 && hex.bytes().all(|byte| b"0123456789abcdef".contains(&byte)));
        let hash = hex.map(|hex| Self(hex.to_owned()));
        let want = "want `sha256:` and 64 digits of base 16, as `kiln token create` prints them";
        match hash.ok_or_else(|| serde::de::Error::custom(want))? {
            hash if hash == Self::of("") => {
                Err(serde::de::Error::custom("this is the hash of no token at all: make one with `kiln token create`"))
            }
            hash => Ok(hash),
        }
    }
}

/// Returns the token that an `Authorization` header shows, if the farm knows it: as a bearer, or as the password of anybody, which is
/// what Nix sends of a `netrc` file.
pub(crate) fn shown<'a>(tokens: &'a [Token], header: &str) -> Option<&'a Token> {
    known(tokens, &bare(header)?)
}

/// Returns the token in an `Authorization` header.
pub(crate) fn bare(header: &str) -> Option<String> {
    let (scheme, rest) = header.split_once(' ')?;
    match scheme.to_ascii_lowercase().as_str() {
        "bearer" => Some(rest.trim().to_owned()),
        "basic" => {
            let text = String::from_utf8(STANDARD.decode(rest.trim()).ok()?).ok()?;
            Some(text.split_once(':')?.1.to_owned())
        }
        _ => None,
    }
}

/// Returns what the farm knows of a token. Nothing is no token, whatever hash the farm was given.
pub(crate) fn known<'a>(tokens: &'a [Token], token: &str) -> Option<&'a Token> {
    // What is compared are hashes: how long it takes tells nothing of a token.
    let hash = TokenHash::of(token);
    tokens.iter().find(|known| known.hash == hash).filter(|_| !token.is_empty())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_known_by_its_hash_whichever_way_it_is_shown() {
        let tokens: Vec<Token> = [("ci", "secret-1", Scope::Upload), ("ops", "secret:2", Scope::Trusted), ("none", "", Scope::Admin)]
            .into_iter()
            .map(|(name, token, scope)| Token { name: name.to_owned(), hash: TokenHash::of(token), scope, tenant: None })
            .collect();
        let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));
        for (header, expected) in [
            ("Bearer secret-1".to_owned(), Some("ci")),
            ("bearer secret:2".to_owned(), Some("ops")),
            (basic("anybody:secret-1"), Some("ci")),
            (basic(":secret:2"), Some("ops")),
            (basic("secret-1"), None),
            (basic("secret-1:"), None),
            ("Bearer secret-".to_owned(), None),
            ("Bearer".to_owned(), None),
            ("Bearer ".to_owned(), None),
            (basic(":"), None),
            ("Basic !".to_owned(), None),
            ("Digest secret-1".to_owned(), None),
            (format!("Bearer {}", tokens[0].hash), None),
        ] {
            assert_eq!(shown(&tokens, &header).map(|token| token.name.as_str()), expected, "{header}");
        }
    }

    #[test]
    fn the_configuration_has_hashes_and_never_tokens() {
        let text = |hash: &str| format!("name = 'ci'\nhash = '{hash}'\nscope = 'upload'");
        let hash = TokenHash::of("secret").to_string();
        assert_eq!(toml::from_str::<Token>(&text(&hash)).expect("a token").hash, TokenHash::of("secret"));
        for hash in ["secret", "sha256:", &hash[..70], &hash.to_uppercase(), &TokenHash::of("").to_string()] {
            assert!(toml::from_str::<Token>(&text(hash)).is_err(), "{hash}");
        }
        assert!(toml::from_str::<Token>(&text(&hash).replace("upload", "root")).is_err());
    }
}
