//! A running server.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use s3s_fs::FileSystem;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::faults::{Faults, Served};
use crate::service::Service;

/// What a server needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen; port 0: any.
    pub listen: SocketAddr,
    /// Where objects lie; made if absent. One server at a time.
    pub dir: PathBuf,
    /// The access key that requests are signed with.
    pub access_key: String,
    /// Its secret.
    pub secret_key: String,
    /// Buckets that exist from the start. Clients may make more.
    pub buckets: Vec<String>,
}

/// A server that cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A directory cannot be made.
    #[error("make `{}`", path.display())]
    Dir {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        err: io::Error,
    },
    /// The directory cannot be served.
    #[error("serve `{}`: {reason}", path.display())]
    Files {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The address cannot be used.
    #[error("listen on {addr}")]
    Listen {
        /// Which.
        addr: SocketAddr,
        /// Why.
        #[source]
        err: io::Error,
    },
}

/// A running server. It ends when this is dropped.
pub struct S3Server {
    addr: SocketAddr,
    service: Arc<Service>,
    acceptor: JoinHandle<()>,
}

impl S3Server {
    /// Starts a server.
    ///
    /// # Errors
    /// [`ServerError`] names what cannot be used.
    pub async fn start(config: Config) -> Result<Self, ServerError> {
        for dir in std::iter::once(config.dir.clone()).chain(config.buckets.iter().map(|bucket| config.dir.join(bucket))) {
            std::fs::create_dir_all(&dir).map_err(|err| ServerError::Dir { path: dir, err })?;
        }
        let files = FileSystem::new(&config.dir).map_err(|err| ServerError::Files { path: config.dir, reason: format!("{err:?}") })?;
        let mut s3 = S3ServiceBuilder::new(files);
        s3.set_auth(SimpleAuth::from_single(config.access_key, config.secret_key));
        let service = Arc::new(Service::new(s3.build()));
        let failed = |err| ServerError::Listen { addr: config.listen, err };
        let listener = TcpListener::bind(config.listen).await.map_err(failed)?;
        let addr = listener.local_addr().map_err(failed)?;
        let acceptor = tokio::spawn(accept(listener, Arc::clone(&service)));
        Ok(Self { addr, service, acceptor })
    }

    /// Returns where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Returns its address as clients write it.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Changes what goes wrong from the next request on.
    pub fn set_faults(&self, faults: Faults) {
        self.service.faults.set(faults);
    }

    /// Returns what it has done.
    pub fn served(&self) -> Served {
        self.service.faults.served()
    }

    /// Stops, cutting off every connection. Another server can then start on the same directory and address.
    pub async fn stop(mut self) {
        self.acceptor.abort();
        // Its end is what was asked for, whichever way it comes.
        let _cancelled = (&mut self.acceptor).await;
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.acceptor.abort();
    }
}

async fn accept(listener: TcpListener, service: Arc<Service>) {
    // Dropped with this task, which ends the connections too.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(serve(stream, Arc::clone(&service)));
                }
                // Out of descriptors, say: those who wait are taken when there are some again.
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(stream: TcpStream, service: Arc<Service>) {
    let answer = service_fn(move |request| {
        let service = Arc::clone(&service);
        async move { service.answer(request).await }
    });
    // A connection that breaks is the client's affair, or what was asked for.
    let _broken = http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), answer).await;
}
