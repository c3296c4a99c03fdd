//! Where the store of a farm with several coordinators is: the `[store]` section of the configuration, and its credentials.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kiln_nix::Keyring;
use kiln_store::{Location, S3, S3Credentials, Store, StoreError};
use serde::Deserialize;

use crate::driver::Chain;

/// A store that all coordinators of a farm use.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharedStore {
    /// `s3://BUCKET` or `s3://BUCKET/PREFIX`. The bucket must exist; bucket and prefix belong to one farm.
    pub url: String,
    /// The S3-compatible service, such as `https://s3.example.org`. Default: Amazon's of the region.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// The region that requests are signed for. Default: what `AWS_REGION` says, else `us-east-1`.
    #[serde(default)]
    pub region: Option<String>,
    /// Whether the endpoint may be without TLS. Requests are signed all the same, but whoever is between can read what is built.
    /// Default false.
    #[serde(default)]
    pub allow_http: bool,
    /// TOML file, readable by its owner only, with `access_key_id` and `secret_access_key`. Default: `AWS_ACCESS_KEY_ID` and
    /// `AWS_SECRET_ACCESS_KEY` of the environment, else the machine's own role.
    #[serde(default)]
    pub credentials: Option<PathBuf>,
}

/// A store that the configuration does not describe well.
#[derive(Debug, thiserror::Error)]
pub enum SharedStoreError {
    /// The address is none.
    #[error("use store `{0}`: its address must be `s3://BUCKET` or `s3://BUCKET/PREFIX`")]
    Url(String),
    /// The endpoint is neither HTTPS nor HTTP.
    #[error("use store at `{0}`: an endpoint starts with `https://` or `http://`")]
    Endpoint(String),
    /// The endpoint has no TLS, and that was not allowed.
    #[error("use store at `{0}`: it has no TLS; set `allow_http = true` below `[store]` if the network between is trusted")]
    Http(String),
    /// The file with the credentials cannot be read.
    #[error("read credentials `{}`", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Others than its owner may read it.
    #[error("read credentials `{}`: others may read them (mode {mode:o}); run `chmod 600` on the file", path.display())]
    Exposed {
        /// Which file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// It does not hold what it must. What it holds is not told: it is secret.
    #[error("read credentials `{}`: it must have `access_key_id = \"…\"` and `secret_access_key = \"…\"`, and nothing else", path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Key {
    access_key_id: String,
    secret_access_key: String,
}

impl SharedStore {
    /// Returns the store's place, with the credentials read.
    ///
    /// # Errors
    /// [`SharedStoreError`] names what is wrong and what to do.
    pub fn location(&self) -> Result<Location, SharedStoreError> {
        let (bucket, prefix) = self.bucket().ok_or_else(|| SharedStoreError::Url(self.url.clone()))?;
        match &self.endpoint {
            Some(endpoint) if endpoint.starts_with("http://") && !self.allow_http => return Err(SharedStoreError::Http(endpoint.clone())),
            Some(endpoint) if !endpoint.starts_with("http://") && !endpoint.starts_with("https://") => {
                return Err(SharedStoreError::Endpoint(endpoint.clone()));
            }
            Some(_) | None => {}
        }
        Ok(Location::S3(S3 {
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
            endpoint: self.endpoint.clone(),
            region: self.region.clone(),
            allow_http: self.allow_http,
            credentials: self.credentials.as_deref().map_or(Ok(S3Credentials::Environment), credentials)?,
        }))
    }

    fn bucket(&self) -> Option<(&str, &str)> {
        let place = self.url.strip_prefix("s3://")?;
        let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
        let prefix = prefix.trim_end_matches('/');
        let is_well_formed = !bucket.is_empty() && (prefix.is_empty() || prefix.split('/').all(|part| !part.is_empty() && part != ".."));
        is_well_formed.then_some((bucket, prefix))
    }
}

/// Makes sure that a shared store is this farm's. A store that is away now is asked again until it answers: a coordinator must be
/// able to start and to vote without it.
///
/// # Errors
/// [`StoreError`] if the store answers that it is another farm's.
pub(crate) async fn claim(store: &Store, farm: &str, keys: &Keyring) -> Result<(), StoreError> {
    match tokio::time::timeout(FIRST_CLAIM, store.belong_to(farm, keys)).await {
        Ok(Err(error)) if error.is_passing() => tracing::warn!(error = %Chain(&error), "the shared store is away"),
        Ok(answered) => return answered,
        Err(_) => tracing::warn!("the shared store has not answered for {FIRST_CLAIM:?}"),
    }
    let (store, farm, keys) = (store.clone(), farm.to_owned(), keys.clone());
    tokio::spawn(async move {
        while let Err(error) = store.belong_to(&farm, &keys).await {
            tracing::error!(error = %Chain(&error), "the shared store cannot be used; tried again in {CLAIM_AGAIN:?}");
            tokio::time::sleep(CLAIM_AGAIN).await;
        }
        tracing::info!("the shared store is there");
    });
    Ok(())
}

/// How long a start waits for the store.
const FIRST_CLAIM: Duration = Duration::from_secs(5);
/// The pause between questions after that.
const CLAIM_AGAIN: Duration = Duration::from_secs(10);

fn credentials(path: &Path) -> Result<S3Credentials, SharedStoreError> {
    let failed = |source| SharedStoreError::Read { path: path.to_owned(), source };
    let mode = std::fs::metadata(path).map_err(failed)?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(SharedStoreError::Exposed { path: path.to_owned(), mode });
    }
    let text = std::fs::read_to_string(path).map_err(failed)?;
    let key: Key = toml::from_str(&text).map_err(|_| SharedStoreError::Malformed { path: path.to_owned() })?;
    Ok(S3Credentials::Key { access_key_id: key.access_key_id, secret_access_key: key.secret_access_key })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(text: &str) -> SharedStore {
        toml::from_str(text).expect("a section")
    }

    #[test]
    fn a_bucket_with_or_without_a_prefix_is_a_place_and_what_else_is_named() {
        for (url, expected) in [("s3://kiln", ("kiln", "")), ("s3://kiln/", ("kiln", "")), ("s3://kiln/farms/one/", ("kiln", "farms/one"))]
        {
            let location = store(&format!("url = '{url}'")).location().expect(url);
            let Location::S3(S3 { bucket, prefix, credentials, .. }) = location else { panic!("{url}") };
            assert_eq!((bucket.as_str(), prefix.as_str(), credentials), (expected.0, expected.1, S3Credentials::Environment));
        }
        let table = [
            ("url = 'kiln'", "`s3://BUCKET`"),
            ("url = 's3:///x'", "`s3://BUCKET`"),
            ("url = 's3://kiln/a//b'", "`s3://BUCKET`"),
            ("url = 's3://kiln/../b'", "`s3://BUCKET`"),
            ("url = 's3://kiln'\nendpoint = 'http://s3'", "allow_http = true"),
            ("url = 's3://kiln'\nendpoint = 's3.example.org'", "https://"),
            ("url = 's3://kiln'\ncredentials = '/does/not/exist'", "/does/not/exist"),
        ];
        for (text, expected) in table {
            let error = store(text).location().expect_err(text).to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn credentials_are_read_from_a_file_of_ones_own_and_never_told() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("s3.toml");
        let store = store(&format!("url = 's3://kiln'\ncredentials = '{}'", path.display()));
        std::fs::write(&path, "access_key_id = 'key'\nsecret_access_key = 'hidden'\n").expect("writes");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).expect("chmod");
        assert!(store.location().expect_err("exposed").to_string().contains("chmod 600"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("chmod");
        let location = store.location().expect("reads");
        assert!(!format!("{location:?}").contains("hidden"), "{location:?}");
        let Location::S3(S3 { credentials, .. }) = location else { panic!("a bucket") };
        let expected = S3Credentials::Key { access_key_id: "key".to_owned(), secret_access_key: "hidden".to_owned() };
        assert_eq!(credentials, expected);
        std::fs::write(&path, "secret_access_key = 'hidden'\n").expect("writes");
        let error = store.location().expect_err("half of it");
        assert!(!format!("{error:?} {error}").contains("hidden"), "{error:?}");
    }
}
