//! What the host says of a process, and what a coordinator says of itself.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What a process has used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Processor time of all its threads, those that ended too.
    pub cpu: Duration,
    /// Its resident memory.
    pub resident_bytes: u64,
    /// The most that was resident at any moment.
    pub peak_bytes: u64,
}

/// Returns what a process has used.
///
/// # Errors
/// If it has ended.
pub fn usage(pid: u32) -> anyhow::Result<Usage> {
    let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).with_context(|| format!("look at process {pid}"));
    parse(&read("stat")?, &read("status")?).with_context(|| format!("read what process {pid} uses"))
}

fn parse(stat: &str, status: &str) -> Option<Usage> {
    // The name before may hold anything, spaces and brackets too.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let ticks = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    let bytes = |name: &str| -> Option<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
    };
    let cpu = Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND);
    Some(Usage { cpu, resident_bytes: bytes("VmRSS:")?, peak_bytes: bytes("VmHWM:")? })
}

/// Linux's `USER_HZ`, part of the interface of every platform that Kiln runs on.
const TICKS_PER_SECOND: u64 = 100;

/// Samples of a coordinator's `/metrics`, by their name with labels.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics(BTreeMap<String, f64>);

/// Asks a coordinator for its metrics.
///
/// # Errors
/// If it does not answer.
pub async fn metrics(addr: SocketAddr) -> anyhow::Result<Metrics> {
    let asked = format!("ask `{addr}` for its metrics");
    let mut stream = TcpStream::connect(addr).await.context(asked.clone())?;
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.context(asked.clone())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.context(asked)?;
    Ok(Metrics::read(&answer))
}

impl Metrics {
    fn read(text: &str) -> Self {
        let sample = |line: &str| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.trim().parse().ok()?))
        };
        Self(text.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect())
    }

    /// Returns by how much a sample grew since `earlier`.
    pub fn since(&self, earlier: &Self, name: &str) -> f64 {
        let of = |metrics: &Self| metrics.0.get(name).copied().unwrap_or_default();
        of(self) - of(earlier)
    }

    /// Returns the mean in milliseconds of what a summary or histogram of seconds counted since `earlier`, and how many that were.
    pub fn mean_ms_since(&self, earlier: &Self, family: &str) -> (f64, f64) {
        let count = self.since(earlier, &format!("{family}_count"));
        (self.since(earlier, &format!("{family}_sum")) * 1000.0 / count.max(1.0), count)
    }

    /// Returns the bound in milliseconds below which a share of what a histogram of seconds counted since `earlier` lies.
    pub fn bound_ms_since(&self, earlier: &Self, family: &str, share: f64) -> Option<f64> {
        let wanted = self.since(earlier, &format!("{family}_count")) * share;
        let prefix = format!("{family}_bucket{{le=\"");
        let bound = |name: &str| name.strip_prefix(&prefix)?.strip_suffix("\"}")?.parse::<f64>().ok();
        let bounds = self.0.keys().filter_map(|name| Some((bound(name)?, self.since(earlier, name))));
        bounds.filter(|(_, count)| *count >= wanted).map(|(bound, _)| bound * 1000.0).min_by(f64::total_cmp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_an_odd_name_is_read() {
        let stat = "7 (a b) c) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 9 0 100 1 1";
        let usage = parse(stat, "Name:\tx\nVmHWM:\t     3072 kB\nVmRSS:\t     2048 kB\n").expect("read");
        assert_eq!(usage, Usage { cpu: Duration::from_secs(3), resident_bytes: 2 << 20, peak_bytes: 3 << 20 });
        assert!(super::usage(std::process::id()).expect("we live").resident_bytes > 0);
    }

    #[test]
    fn figures_are_those_of_the_time_between() {
        let page = |count: u32, below: u32, sum: f64| {
            Metrics::read(&format!(
                "HTTP/1.1 200 OK\r\n\r\n# TYPE t histogram\nt_bucket{{le=\"0.001\"}} {below}\nt_bucket{{le=\"0.01\"}} {count}\nt_bucket{{le=\"+Inf\"}} {count}\nt_sum {sum}\nt_count {count}\n"
            ))
        };
        let (earlier, later) = (page(10, 10, 1.0), page(30, 20, 1.1));
        let (mean, count) = later.mean_ms_since(&earlier, "t");
        assert!((mean - 5.0).abs() < 1e-6 && (count - 20.0).abs() < 1e-6, "{mean} {count}");
        assert_eq!(later.bound_ms_since(&earlier, "t", 0.5), Some(1.0));
        assert_eq!(later.bound_ms_since(&earlier, "t", 0.99), Some(10.0));
    }
}
