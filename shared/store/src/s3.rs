//! A bucket of an S3-compatible service: where it is, who asks, and how often a request is tried.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};

/// Where a store is in S3.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3 {
    /// The bucket. Must exist.
    pub bucket: String,
    /// What the keys of all objects start with, without slashes around it; empty: nothing.
    pub prefix: String,
    /// The service, as `https://s3.example.org`; none: Amazon's of the region.
    pub endpoint: Option<String>,
    /// The region that requests are signed for. Services other than Amazon's mostly take any.
    pub region: Option<String>,
    /// Whether an endpoint without TLS may be used. Requests are signed in either case; bytes can be read on their way without.
    pub allow_http: bool,
    /// Who asks.
    pub credentials: S3Credentials,
}

/// Who asks an S3 service.
#[derive(Clone, PartialEq, Eq)]
pub enum S3Credentials {
    /// What the environment says: `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`, a web identity, or the machine's own role.
    Environment,
    /// A key.
    Key {
        /// Its name.
        access_key_id: String,
        /// Its secret.
        secret_access_key: String,
    },
}

/// Tries of one request. A store that is away for longer is the caller's to wait for: what it holds is in memory or in a spool.
const RETRIES_MAX: usize = 6;
/// Time in which a request is tried again.
const RETRY_FOR: Duration = Duration::from_secs(20);
/// The first pause between tries; doubled each time, less a random share.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(3);
/// A service that takes longer to accept a connection is away.
const CONNECT: Duration = Duration::from_secs(3);
/// Without a byte for so long, a request is given up and tried again. A whole part may take longer on a slow link.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// The longest request: one part, at 140 kB/s.
const REQUEST: Duration = Duration::from_secs(60);

impl S3 {
    /// Returns the place as the configuration names it.
    pub fn url(&self) -> String {
        let endpoint = self.endpoint.as_ref().map(|endpoint| format!(" at {endpoint}")).unwrap_or_default();
        format!("s3://{}/{}{endpoint}", self.bucket, self.prefix)
    }

    pub(crate) fn open(&self) -> Result<Arc<dyn ObjectStore>, object_store::Error> {
        let backoff = BackoffConfig { init_backoff: PAUSE_FIRST, max_backoff: PAUSE_MAX, base: 2. };
        let client = ClientOptions::new()
            .with_allow_http(self.allow_http)
            .with_connect_timeout(CONNECT)
            .with_read_timeout(SILENCE_MAX)
            .with_timeout(REQUEST);
        let builder = match &self.credentials {
            S3Credentials::Environment => AmazonS3Builder::from_env(),
            S3Credentials::Key { access_key_id, secret_access_key } => {
                AmazonS3Builder::new().with_access_key_id(access_key_id).with_secret_access_key(secret_access_key)
            }
        };
        let mut builder = builder.with_bucket_name(&self.bucket).with_client_options(client).with_retry(RetryConfig {
            backoff,
            max_retries: RETRIES_MAX,
            retry_timeout: RETRY_FOR,
        });
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        if let Some(region) = &self.region {
            builder = builder.with_region(region);
        }
        let bucket = builder.build()?;
        Ok(match self.prefix.is_empty() {
            true => Arc::new(bucket),
            false => Arc::new(PrefixStore::new(bucket, Path::from(self.prefix.as_str()))),
        })
    }
}

impl fmt::Debug for S3Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Environment => f.write_str("Environment"),
            Self::Key { access_key_id, .. } => write!(f, "Key({access_key_id}, …)"),
        }
    }
}
