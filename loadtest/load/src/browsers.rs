//! What browsers ask of a coordinator: its pages, and the stream of events that keeps them current.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// A page as it came.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    /// From the request to the last byte.
    pub took: Duration,
    /// Bytes of its body.
    pub bytes: usize,
}

/// Asks a coordinator for a page.
///
/// # Errors
/// If it does not answer, or answers with anything but a page.
pub async fn page(addr: SocketAddr, path: &str) -> anyhow::Result<Page> {
    let asked = || format!("ask `{addr}` for `{path}`");
    let begin = Instant::now();
    let mut stream = TcpStream::connect(addr).await.with_context(asked)?;
    // Version 1.0 asks for a body that ends with the connection.
    let request = format!("GET {path} HTTP/1.0\r\nHost: {addr}\r\nAccept: text/html\r\n\r\n");
    stream.write_all(request.as_bytes()).await.with_context(asked)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.with_context(asked)?;
    let took = begin.elapsed();
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").with_context(asked)?;
    let status = String::from_utf8_lossy(&answer[..end]).lines().next().unwrap_or_default().to_owned();
    anyhow::ensure!(status.contains(" 200 "), "{}: {status}", asked());
    Ok(Page { took, bytes: answer.len() - end - 4 })
}

/// Browsers that look at one page. They are gone when this is dropped.
pub struct Browsers {
    _tasks: JoinSet<()>,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    bytes: AtomicU64,
    refreshes: AtomicU64,
    refused: AtomicU64,
    troubles: AtomicU64,
}

/// What browsers were told.
#[derive(Clone, Copy, Debug)]
pub struct Told {
    /// Bytes of the stream of events.
    pub bytes: u64,
    /// Pages that were asked for again.
    pub refreshes: u64,
    /// Those of them that were refused, or did not come.
    pub refused: u64,
    /// Streams that broke.
    pub troubles: u64,
}

impl Browsers {
    /// Opens so many streams of events. With `path`, each asks for the page again as the script of the pages does: one to two seconds after
    /// something happened.
    pub fn open(addr: SocketAddr, count: usize, path: Option<&str>) -> Self {
        let (mut tasks, counts) = (JoinSet::new(), Arc::new(Counts::default()));
        for number in 0..count {
            let (counts, path) = (counts.clone(), path.map(str::to_owned));
            let rest = REST + REST.mul_f64(number as f64 / count as f64);
            tasks.spawn(async move {
                if look(addr, path.as_deref(), rest, &counts).await.is_err() {
                    counts.troubles.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        Self { _tasks: tasks, counts }
    }

    /// Returns what they were told so far.
    pub fn told(&self) -> Told {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let Counts { bytes, refreshes, refused, troubles } = &*self.counts;
        Told { bytes: read(bytes), refreshes: read(refreshes), refused: read(refused), troubles: read(troubles) }
    }
}

async fn look(addr: SocketAddr, path: Option<&str>, rest: Duration, counts: &Counts) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(addr).await?;
    stream.write_all(format!("GET /api/v1/events HTTP/1.0\r\nHost: {addr}\r\n\r\n").as_bytes()).await?;
    let mut piece = vec![0; 64 << 10];
    let mut due: Option<tokio::time::Instant> = None;
    loop {
        let at = due;
        tokio::select! {
            read = stream.read(&mut piece) => {
                let count = read?;
                anyhow::ensure!(count > 0, "the stream ended");
                counts.bytes.fetch_add(count as u64, Ordering::Relaxed);
                due = due.or_else(|| path.map(|_| tokio::time::Instant::now() + rest));
            }
            () = async { tokio::time::sleep_until(at.unwrap_or_else(tokio::time::Instant::now)).await }, if at.is_some() => {
                due = None;
                // The script says that the page is not current, and asks again later.
                if page(addr, path.unwrap_or("/ui/")).await.is_err() {
                    counts.refused.fetch_add(1, Ordering::Relaxed);
                }
                counts.refreshes.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// As the script has it, at least; at most twice that.
const REST: Duration = Duration::from_secs(1);
