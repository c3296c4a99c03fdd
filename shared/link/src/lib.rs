//! QUIC endpoints, mutual TLS identities and verified byte streams: the only module that names quinn, rustls, rcgen and x509.
//!
//! Goals
//! - Every connection is mutually authenticated TLS 1.3 with ALPN `kiln/1`, or `kiln-raft/1` among coordinators; who the peer is follows from its certificate alone
//!   ([`Peer`]): one URI `spiffe://<farm>/<role>/<name>`.
//! - Messages are frames of `kiln_wire::frame` on bidirectional streams; a stream that ends without saying so is an error, so a
//!   peer that died is never mistaken for one that had no more to say.
//! - Blobs flow as BLAKE3 trees: no byte reaches the receiver's sink before it is verified against the root.
//! - Nothing a peer claims makes us allocate, wait for ever, or panic; every limit is in [`config`].
//!
//! Non-goals: deciding what a role may do, requests and their answers, reconnecting. Sessions above do these.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! # use kiln_link::{Authority, Dialer, Identity, Listener, Role};
//! # let day = std::time::Duration::from_secs(86_400);
//! let authority = Authority::ephemeral(&"demo".parse()?)?;
//! let coordinator = Identity::from_credentials(&authority.issue(&"coordinator/1".parse::<Role>()?, day)?)?;
//! let worker = Identity::from_credentials(&authority.issue(&"worker/w1".parse::<Role>()?, day)?)?;
//! let listener = Listener::bind("127.0.0.1:0".parse()?, &coordinator, None)?;
//! let connection = Dialer::new(&worker)?.connect(listener.local_addr()).await?;
//! let (mut sender, mut receiver) = connection.open().await?;
//! sender.send(&"ping").await?;
//! let answer: Option<String> = receiver.recv().await?;
//! # Ok(())
//! # }
//! ```

mod blob;
mod ca;
pub mod config;
mod connection;
mod dialer;
mod error;
mod identity;
mod keys;
mod leaf;
mod listener;
mod name;
mod protocol;
mod socket;
mod stream;
mod tls;
mod tree;
mod verifier;

pub use blob::{BlobSource, GROUP_BYTES, blob_root};
pub use ca::{Authority, AuthorityError, Credentials};
pub use connection::Connection;
pub use dialer::Dialer;
pub use error::{BlobError, Closed, LinkError};
pub use identity::{Identity, IdentityError};
pub use leaf::CertificateRefusal;
pub use listener::Listener;
pub use name::{FarmName, MemberName, NameError, Peer, Role};
pub use protocol::Protocol;
pub use stream::{Receiver, Sender};
