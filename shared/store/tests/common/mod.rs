//! What the tests of the store share: stores of every kind, and trees to put into them.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use kiln_nix::scan::Candidates;
use kiln_nix::{Keyring, SecretKey};
use kiln_s3::{Config, S3Server};
use kiln_store::{BlobReceiver, Location, Packed, Packer, Provenance, S3, S3Credentials, Store, StoreConfig, StoreError};
use kiln_wire::{PathInfo, StoreDir, StorePath};
use tempfile::TempDir;

pub const HASHES: [&str; 3] = ["0hm2f1psjpcwg8fijsmr4wwxrx59s092", "1bxagw21mzw0pr7y9jcyjfyrlya5fnxz", "zc842j0rz61mjsp3h3wp5ly71ak6qgdn"];

/// A store with a directory of its own.
pub struct Place {
    pub store: Store,
    pub dir: TempDir,
    pub keys: Keyring,
    /// What serves the bucket of a store that is in one.
    pub server: Option<S3Server>,
    pub bucket_dir: Option<TempDir>,
}

impl Place {
    pub async fn on_disk() -> Self {
        Self::open(|dir| Location::Local { dir: dir.join("store"), durable: true }, None).await
    }

    pub async fn in_memory() -> Self {
        Self::open(|_| Location::Memory, None).await
    }

    pub async fn in_bucket() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let server = serve(&dir, "127.0.0.1:0").await;
        let location = bucket(&server);
        let place = Self::open(|_| location.clone(), Some(server)).await;
        // The bucket's directory lives as long as the place does.
        Self { bucket_dir: Some(dir), ..place }
    }

    /// One of each kind: whatever holds for one must hold for the others.
    pub async fn each() -> [Self; 3] {
        [Self::on_disk().await, Self::in_memory().await, Self::in_bucket().await]
    }

    /// Another store over the same bucket, as another coordinator has it.
    pub async fn beside(&self) -> Self {
        let location = bucket(self.server());
        Self::open(|_| location.clone(), None).await
    }

    pub fn server(&self) -> &S3Server {
        self.server.as_ref().expect("a store in a bucket")
    }

    async fn open(location: impl Fn(&Path) -> Location, server: Option<S3Server>) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let config = StoreConfig {
            location: location(dir.path()),
            store_dir: StoreDir::default(),
            spool_dir: dir.path().join("spool"),
            cached_paths_max: 100,
        };
        let keys = Keyring::of(SecretKey::from_seed("farm-1", [7; 32]).expect("a good name"));
        Self { store: Store::open(config).await.expect("opens"), dir, keys, server, bucket_dir: None }
    }

    pub fn packer(&self) -> Packer {
        Packer { level: 1, spool_dir: self.dir.path().to_owned() }
    }

    /// The file of an object of a store on disk.
    pub fn object(&self, key: &str) -> PathBuf {
        self.dir.path().join("store").join(key)
    }

    /// Makes a tree with some of everything that a NAR can hold.
    pub fn tree(&self, name: &str, text: &str, filler_bytes: usize) -> PathBuf {
        let root = self.dir.path().join(name);
        fs::create_dir_all(root.join("bin/empty")).expect("makes a directory");
        fs::write(root.join("bin/run"), text).expect("writes");
        fs::set_permissions(root.join("bin/run"), fs::Permissions::from_mode(0o755)).expect("chmod");
        fs::write(root.join("filler"), noise(filler_bytes)).expect("writes");
        symlink("bin/run", root.join("link")).expect("links");
        root
    }

    pub fn upload(&self, info: &PathInfo, provenance: Provenance, blob: &[u8]) -> Result<BlobReceiver, StoreError> {
        let mut receiver = self.store.receive(info.clone(), provenance)?;
        for piece in blob.chunks(10_000) {
            receiver.write(piece)?;
        }
        Ok(receiver)
    }
}

/// Serves the bucket `kiln` from a directory.
pub async fn serve(dir: &TempDir, listen: &str) -> S3Server {
    let config = Config {
        listen: listen.parse().expect("an address"),
        dir: dir.path().join("s3"),
        access_key: "key".to_owned(),
        secret_key: "secret".to_owned(),
        buckets: vec!["kiln".to_owned()],
    };
    S3Server::start(config).await.expect("starts")
}

/// Where the bucket of a server is.
pub fn bucket(server: &S3Server) -> Location {
    Location::S3(S3 {
        bucket: "kiln".to_owned(),
        prefix: "farms/one".to_owned(),
        endpoint: Some(server.endpoint()),
        region: Some("us-east-1".to_owned()),
        allow_http: true,
        credentials: S3Credentials::Key { access_key_id: "key".to_owned(), secret_access_key: "secret".to_owned() },
    })
}

/// Bytes that compress to about half.
pub fn noise(count: usize) -> Vec<u8> {
    let mut state = 1u32;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 28) as u8
    };
    (0..count).map(next).collect()
}

pub fn path(hash: &str, name: &str) -> StorePath {
    StorePath::parse(&format!("{hash}-{name}")).expect("a store path")
}

pub fn built(candidates: impl IntoIterator<Item = StorePath>) -> Provenance {
    Provenance::Built { candidates: candidates.into_iter().collect() }
}

pub fn look_for(paths: &[StorePath]) -> Candidates {
    Candidates::new(paths.iter().cloned())
}

pub fn blob_bytes(packed: &Packed) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(packed.blob.size_bytes).expect("fits memory")];
    let mut have = 0;
    while have < bytes.len() {
        match packed.spool.read_at(&mut bytes[have..], have as u64).expect("reads") {
            0 => panic!("the spool ends early"),
            count => have += count,
        }
    }
    bytes
}

/// Everything that is wrong, on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// The names, modes and contents of a tree.
pub fn listing(root: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(path) = waiting.pop() {
        let meta = fs::symlink_metadata(&path).expect("exists");
        let name = path.strip_prefix(root).expect("below the root").display().to_string();
        let what = if meta.is_dir() {
            waiting.extend(fs::read_dir(&path).expect("lists").map(|entry| entry.expect("an entry").path()));
            "directory".to_owned()
        } else if meta.is_symlink() {
            format!("link to {}", fs::read_link(&path).expect("reads").display())
        } else {
            let content = blake3_hex(&fs::read(&path).expect("reads"));
            format!("file {} {content}", meta.permissions().mode() & 0o111 != 0)
        };
        found.insert(format!("{name}: {what}"));
    }
    found
}

fn blake3_hex(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}
