//! The way out: a queue that never makes anybody wait, and a task that sends what is in it together.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use opentelemetry::{Key, KeyValue};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Span as SdkSpan, SpanData, SpanExporter, SpanProcessor};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::span::Span;

/// Takes spans that are over. Clones share the queue.
#[derive(Clone, Debug)]
pub struct Spans(Arc<Inlet>);

#[derive(Debug)]
struct Inlet {
    queue: mpsc::Sender<SpanData>,
    flushes: mpsc::Sender<oneshot::Sender<()>>,
    lost: Arc<Lost>,
}

/// Spans that nobody received.
#[derive(Debug, Default)]
struct Lost {
    /// The queue was full.
    dropped: AtomicU64,
    /// The receiver did not take them.
    failed: AtomicU64,
}

/// The other end of the queue.
#[derive(Debug)]
pub(crate) struct Outlet {
    queue: mpsc::Receiver<SpanData>,
    flushes: mpsc::Receiver<oneshot::Sender<()>>,
    lost: Arc<Lost>,
}

impl Spans {
    /// Makes a queue.
    pub(crate) fn queue() -> (Self, Outlet) {
        let (sender, queue) = mpsc::channel(WAITING_MAX);
        let (flush_sender, flushes) = mpsc::channel(1);
        let lost = Arc::new(Lost::default());
        (Self(Arc::new(Inlet { queue: sender, flushes: flush_sender, lost: lost.clone() })), Outlet { queue, flushes, lost })
    }

    /// Gives a span away; if there is no room it is counted and dropped.
    pub fn give(&self, span: Span) {
        self.send(span.into_data());
    }

    /// Counts spans that were lost before they could be given away.
    pub fn lose(&self, spans: u64) {
        self.0.lost.dropped.fetch_add(spans, Ordering::Relaxed);
    }

    /// Returns how many spans nobody received: those that found no room, and those that the receiver did not take.
    pub fn lost(&self) -> (u64, u64) {
        (self.0.lost.dropped.load(Ordering::Relaxed), self.0.lost.failed.load(Ordering::Relaxed))
    }

    /// Waits until everything that was given away before is sent, but not longer than `within`.
    pub(crate) async fn flush(&self, within: Duration) {
        let (done, told) = oneshot::channel();
        let flushed = async {
            if self.0.flushes.send(done).await.is_ok() {
                // An error says that the task has ended, and then there is nobody to wait for.
                let _ = told.await;
            }
        };
        if tokio::time::timeout(within, flushed).await.is_err() {
            tracing::warn!(within_s = within.as_secs(), "the receiver of traces takes too long: the last spans are not sent");
        }
    }

    fn send(&self, span: SpanData) {
        if self.0.queue.try_send(span).is_err() {
            self.lose(1);
        }
    }
}

impl SpanProcessor for Spans {
    fn on_start(&self, _: &mut SdkSpan, _: &opentelemetry::Context) {}

    fn on_end(&self, mut span: SpanData) {
        if span.span_context.is_sampled() {
            span.attributes.iter_mut().for_each(name_in_full);
            self.send(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// Log lines say `job`, receivers of everybody's spans read `kiln.job`.
fn name_in_full(attribute: &mut KeyValue) {
    if let Some((_, full)) = FULL_NAMES.iter().find(|(short, _)| *short == attribute.key.as_str()) {
        attribute.key = Key::from_static_str(full);
    }
}

impl Outlet {
    /// Sends what is in the queue, until nobody can put anything into it.
    pub(crate) async fn run(mut self, exporter: impl SpanExporter) {
        let mut telling = Telling::default();
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                taken = self.queue.recv_many(&mut batch, BATCH_MAX) => {
                    if taken == 0 {
                        return;
                    }
                    let flush = self.gather(&mut batch).await;
                    self.export(&exporter, std::mem::take(&mut batch), &mut telling).await;
                    if let Some(done) = flush {
                        self.drain(&exporter, &mut telling).await;
                        // Whoever asked may not wait any more.
                        let _ = done.send(());
                    }
                }
                Some(done) = self.flushes.recv() => {
                    self.drain(&exporter, &mut telling).await;
                    let _ = done.send(());
                }
            }
        }
    }

    /// Waits a moment for more that can go together. Returns who wants it to go at once.
    async fn gather(&mut self, batch: &mut Vec<SpanData>) -> Option<oneshot::Sender<()>> {
        let until = Instant::now() + GATHER;
        while batch.len() < BATCH_MAX {
            let room = BATCH_MAX - batch.len();
            tokio::select! {
                taken = self.queue.recv_many(batch, room) => if taken == 0 { return None },
                flush = self.flushes.recv() => if flush.is_some() { return flush },
                () = tokio::time::sleep_until(until) => return None,
            }
        }
        None
    }

    async fn drain(&mut self, exporter: &impl SpanExporter, telling: &mut Telling) {
        loop {
            let batch: Vec<SpanData> = std::iter::from_fn(|| self.queue.try_recv().ok()).take(BATCH_MAX).collect();
            if batch.is_empty() {
                return;
            }
            self.export(exporter, batch, telling).await;
        }
    }

    async fn export(&self, exporter: &impl SpanExporter, batch: Vec<SpanData>, telling: &mut Telling) {
        let count = u64::try_from(batch.len()).unwrap_or(u64::MAX);
        let failure = match tokio::time::timeout(EXPORT_MAX, exporter.export(batch)).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("no answer within {} s", EXPORT_MAX.as_secs())),
        };
        if failure.is_some() {
            self.lost.failed.fetch_add(count, Ordering::Relaxed);
        }
        telling.tell(&self.lost, failure);
    }
}

/// Says what was lost, at most once a minute.
#[derive(Debug, Default)]
struct Telling {
    told_at: Option<Instant>,
    told: u64,
}

impl Telling {
    /// Returns how many are lost that nobody was told of, if it is time to say so.
    fn due(&mut self, lost: &Lost) -> Option<u64> {
        let all = lost.dropped.load(Ordering::Relaxed).saturating_add(lost.failed.load(Ordering::Relaxed));
        let is_late = self.told_at.is_none_or(|at| at.elapsed() >= TELL_EVERY);
        (all > self.told && is_late).then(|| {
            self.told_at = Some(Instant::now());
            all - std::mem::replace(&mut self.told, all)
        })
    }

    fn tell(&mut self, lost: &Lost, failure: Option<String>) {
        if let Some(spans) = self.due(lost) {
            let error = failure.unwrap_or_else(|| "more came than could be sent".to_owned());
            tracing::warn!(spans, error, "spans of traces are lost; what is built is not touched by that");
        }
    }
}

/// Spans that wait, some hundred bytes each.
const WAITING_MAX: usize = 8_192;
/// Spans that are sent together.
const BATCH_MAX: usize = 512;
/// How long the first one waits for others.
const GATHER: Duration = Duration::from_secs(1);
/// How long the receiver may take.
const EXPORT_MAX: Duration = Duration::from_secs(10);
/// A receiver that is down is no news twice a minute.
const TELL_EVERY: Duration = Duration::from_secs(60);
/// What log lines call it, and what spans do.
const FULL_NAMES: [(&str, &str); 4] = [("job", "kiln.job"), ("attempt", "kiln.attempt"), ("worker", "kiln.worker"), ("term", "kiln.term")];

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::SystemTime;

    use kiln_wire::Traceparent;
    use opentelemetry_sdk::error::OTelSdkError;

    use super::*;

    /// Takes spans, or does not.
    #[derive(Clone, Debug, Default)]
    struct Receiver {
        batches: Arc<Mutex<Vec<usize>>>,
        is_broken: bool,
        hangs: bool,
    }

    impl SpanExporter for Receiver {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            if self.hangs {
                std::future::pending::<()>().await;
            }
            if self.is_broken {
                return Err(OTelSdkError::InternalFailure("it is broken".to_owned()));
            }
            self.batches.lock().expect("no panic").push(batch.len());
            Ok(())
        }
    }

    fn span() -> Span {
        let is = Traceparent { trace: [1; 16], span: [2; 8] };
        Span::new("x", is, None, SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH)
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_together_is_sent_together_and_a_flush_sends_the_rest() {
        let (spans, outlet) = Spans::queue();
        let receiver = Receiver::default();
        (0..BATCH_MAX + 3).for_each(|_| spans.give(span()));
        tokio::spawn(outlet.run(receiver.clone()));
        spans.flush(Duration::from_secs(5)).await;
        assert_eq!(*receiver.batches.lock().expect("no panic"), [BATCH_MAX, 3]);
        spans.give(span());
        spans.flush(Duration::from_secs(5)).await;
        assert_eq!((receiver.batches.lock().expect("no panic").len(), spans.lost()), (3, (0, 0)));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_a_full_queue_and_what_is_lost_is_counted() {
        let (spans, outlet) = Spans::queue();
        (0..WAITING_MAX + 5).for_each(|_| spans.give(span()));
        assert_eq!(spans.lost(), (5, 0));
        tokio::spawn(outlet.run(Receiver { is_broken: true, ..Receiver::default() }));
        spans.flush(Duration::from_secs(5)).await;
        assert_eq!(spans.lost(), (5, u64::try_from(WAITING_MAX).expect("few")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_receiver_that_hangs_holds_up_the_end_for_a_bounded_time() {
        let (spans, outlet) = Spans::queue();
        spans.give(span());
        tokio::spawn(outlet.run(Receiver { hangs: true, ..Receiver::default() }));
        let begin = Instant::now();
        spans.flush(Duration::from_secs(5)).await;
        assert_eq!(begin.elapsed().as_secs(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_lost_is_said_once_a_minute_with_all_that_was_lost_since() {
        let (mut telling, lost) = (Telling::default(), Lost::default());
        assert_eq!(telling.due(&lost), None);
        lost.failed.store(3, Ordering::Relaxed);
        assert_eq!(telling.due(&lost), Some(3));
        lost.dropped.store(4, Ordering::Relaxed);
        assert_eq!(telling.due(&lost), None);
        tokio::time::advance(TELL_EVERY).await;
        assert_eq!((telling.due(&lost), telling.due(&lost)), (Some(4), None));
    }

    #[test]
    fn receivers_read_full_names() {
        let mut attributes = [KeyValue::new("job", "a.drv"), KeyValue::new("other", "b")];
        attributes.iter_mut().for_each(name_in_full);
        assert_eq!(attributes.map(|attribute| attribute.key.to_string()), ["kiln.job", "other"]);
    }
}
