//! What messages say: JSON with `type`, `timestamp` and `data`, bounded. Pure, but for reading what the farm keeps of builds.

use kiln_core::{Attributes, BuildRecord, Failures, unbuilt_between, unevaluated_between};
use kiln_wire::client::JobView;
use kiln_wire::limits::{WEBHOOK_BODY_BYTES_MAX, WEBHOOK_JOBS_MAX};
use kiln_wire::{DrvPath, FailureClass, Leader, NodeId, StoreDir, Timestamp, WorkerId};
use serde_json::{Value, json};

use super::config::Kind;

/// What every message of a farm says.
#[derive(Clone, Debug)]
pub(crate) struct Sender {
    /// The farm's name.
    pub(crate) farm: String,
    pub(crate) store_dir: StoreDir,
    /// Where the dashboard is, if people can reach it.
    pub(crate) dashboard: Option<String>,
}

/// A message, whoever gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    /// The same however often it is sent, and by whom.
    pub(crate) id: String,
    pub(crate) body: Vec<u8>,
}

impl Sender {
    fn message(&self, kind: Kind, id: String, at: Timestamp, data: &Value) -> Message {
        let body = json!({ "type": kind.word(), "timestamp": moment(at), "data": data }).to_string().into_bytes();
        if body.len() <= WEBHOOK_BODY_BYTES_MAX {
            return Message { id, body };
        }
        // What is long are lists; what they count stays.
        let mut short = data.clone();
        for value in short.as_object_mut().into_iter().flat_map(|data| data.values_mut()) {
            if value.is_array() {
                *value = Value::Array(Vec::new());
            }
        }
        let body = json!({ "type": kind.word(), "timestamp": moment(at), "data": short, "cut": true });
        Message { id, body: body.to_string().into_bytes() }
    }

    fn link(&self, path: &str) -> Option<String> {
        self.dashboard.as_ref().map(|base| format!("{base}/ui/{path}"))
    }

    /// A farm that goes back to a backup gives numbers again, at other moments.
    fn id(&self, number: u64, at: Timestamp) -> String {
        format!("{}-{number}-{}", self.farm_word(), at.0)
    }

    /// Returns the farm's name as ids have it: a dot would end the id in what is signed.
    fn farm_word(&self) -> String {
        self.farm.replace('.', "-")
    }

    /// Says that a build ended.
    pub(crate) fn finished(&self, number: u64, at: Timestamp, record: &BuildRecord) -> Message {
        self.message(Kind::Finished, self.id(number, at), at, &self.build(record))
    }

    /// Says what a build broke that the one of its name before did not have broken; none if that is nothing.
    pub(crate) fn newly_failing(&self, number: u64, at: Timestamp, before: &BuildRecord, record: &BuildRecord) -> Option<Message> {
        let Failures { newly, still, fixed } = Failures::between(failed(before), failed(record));
        let (then, now) = (before.evaluated(), record.evaluated());
        let (unbuilt, unevaluated) = (unbuilt_between(&then, &now), unevaluated_between(&then, &now));
        if newly.is_empty() && unbuilt.newly.is_empty() && unevaluated.newly.is_empty() {
            return None;
        }
        let mut data = self.build(record);
        let job = |job: &DrvPath| {
            let reason = record.failures.iter().find(|view| view.derivation == *job).map(|view| cut(&view.reason));
            json!({
                "derivation": self.store_dir.join(job.as_path()),
                "name": job.name(),
                "attributes": record.names(job),
                "reason": reason,
                "url": self.link(&format!("jobs/{job}")),
            })
        };
        let names = |of: &[String]| of.iter().take(WEBHOOK_JOBS_MAX).cloned().collect::<Vec<_>>();
        let Attributes { newly: attributes, .. } = unbuilt;
        let more = [
            ("before", json!({ "build": before.build, "url": self.link(&format!("builds/{}", before.build)) })),
            ("newlyFailing", newly.iter().take(WEBHOOK_JOBS_MAX).map(job).collect()),
            ("newlyFailingCount", json!(newly.len())),
            ("stillFailingCount", json!(still.len())),
            ("failingNoMoreCount", json!(fixed.len())),
            ("newlyUnbuiltAttributes", json!(names(&attributes))),
            ("newlyUnbuiltAttributesCount", json!(attributes.len())),
            ("newlyUnevaluatedAttributes", json!(names(&unevaluated.newly))),
            ("newlyUnevaluatedAttributesCount", json!(unevaluated.newly.len())),
        ];
        if let Some(data) = data.as_object_mut() {
            data.extend(more.map(|(name, value)| (name.to_owned(), value)));
        }
        Some(self.message(Kind::NewlyFailing, self.id(number, at), at, &data))
    }

    /// Says that a worker gets no more jobs.
    pub(crate) fn quarantined(&self, number: u64, at: Timestamp, worker: &WorkerId, message: &str) -> Message {
        let link = self.link(&format!("fleet#w-{worker}"));
        let data = json!({ "farm": self.farm, "worker": worker, "message": cut(message), "url": link });
        self.message(Kind::Quarantined, self.id(number, at), at, &data)
    }

    /// Says that nobody leads, as one coordinator sees it. Whoever missed the same leader in the same minute gives it the same id: the same leader
    /// may be missed again later, and one that was never known has no term.
    pub(crate) fn no_leader(&self, seen_by: NodeId, since: Timestamp, last: Leader) -> Message {
        let id = format!("{}-no-leader-{}-{}", self.farm_word(), last.term, since.0 / 60_000);
        let data = json!({
            "farm": self.farm,
            "seenBy": seen_by,
            "since": moment(since),
            "lastLeader": last.node,
            "term": last.term,
            "url": self.link("cluster"),
        });
        self.message(Kind::NoLeader, id, since, &data)
    }

    fn build(&self, record: &BuildRecord) -> Value {
        let account = record.account.clone().unwrap_or_default();
        let counts = record.counts;
        json!({
            "farm": self.farm,
            "build": record.build,
            "name": record.name,
            "tenant": account.tenant,
            "project": account.project,
            "state": kiln_api::BuildState::from(record.state).word(),
            "submittedAt": moment(record.submitted_at),
            "endedAt": moment(record.ended_at),
            "durationMs": record.ended_at.since_ms(record.submitted_at),
            "jobs": { "built": counts.built, "failed": counts.failed, "others": counts.blocked + counts.ready + counts.running },
            "unevaluatedAttributesCount": record.evaluation.as_ref().map_or(0, |evaluation| evaluation.errors_count()),
            "url": self.link(&format!("builds/{}", record.build)),
        })
    }
}

/// Returns the jobs of a build that failed by themselves, and were not ended by somebody.
fn failed(record: &BuildRecord) -> Vec<DrvPath> {
    let has_failed = |view: &&JobView| {
        let class = view.attempts.last().and_then(|attempt| attempt.failure.as_ref()).map(|(class, _)| *class);
        view.state == "failed" && class != Some(FailureClass::Cancelled)
    };
    record.failures.iter().filter(has_failed).map(|view| view.derivation.clone()).collect()
}

/// Returns the beginning of a text, in whole characters.
fn cut(text: &str) -> String {
    text.chars().take(TEXT_CHARS_MAX).collect()
}

/// Returns a moment as ISO 8601 has it.
fn moment(at: Timestamp) -> String {
    let words = kiln_pages::words::moment(at);
    format!("{}.{:03}Z", words.replace(' ', "T"), at.0 % 1000)
}

/// Characters of a reason in a message.
const TEXT_CHARS_MAX: usize = 300;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use kiln_wire::client::{BuildState, JobCounts};
    use kiln_wire::{BuildId, Evaluation, RequestId, Root};

    use super::*;

    fn sender(dashboard: Option<&str>) -> Sender {
        Sender { farm: "acme".to_owned(), store_dir: StoreDir::default(), dashboard: dashboard.map(str::to_owned) }
    }

    fn drv(name: &str) -> DrvPath {
        DrvPath::parse(&format!("0hm2f1psjpcwg8fijsmr4wwxrx59s092-{name}.drv")).expect("a path")
    }

    fn worker() -> WorkerId {
        WorkerId::parse("w1").expect("a name")
    }

    fn record(build: u64, failed: &[&str], attributes: &[(&str, &str)], errors: &[&str]) -> BuildRecord {
        let view = |name: &&str| JobView {
            derivation: drv(name),
            state: "failed".to_owned(),
            reason: "build failure: exit 1".to_owned(),
            builds: Vec::new(),
            attempts: Vec::new(),
            upward_rank_ms: 0,
            attributes: Vec::new(),
        };
        let mut roots: Vec<Root> = attributes.iter().map(|(_, name)| Root { derivation: drv(name), outputs: Default::default() }).collect();
        let named: Vec<(&str, DrvPath)> = attributes.iter().map(|(attribute, name)| (*attribute, drv(name))).collect();
        let named = named.iter().map(|(attribute, derivation)| (*attribute, derivation));
        let evaluation = Evaluation::gather(&mut roots, named, errors.iter().map(|name| (*name, "no")));
        BuildRecord {
            build: BuildId(build),
            request: RequestId(build),
            name: "nightly".to_owned(),
            roots,
            submitted_at: Timestamp(1_000),
            ended_at: Timestamp(61_000),
            state: if failed.is_empty() { BuildState::Built } else { BuildState::Failed },
            counts: JobCounts { built: 3, failed: u64::try_from(failed.len()).expect("few"), ..JobCounts::default() },
            outputs: BTreeMap::new(),
            failures: failed.iter().map(view).collect(),
            account: None,
            evaluation: Some(Box::new(evaluation)),
        }
    }

    fn read(message: &Message) -> Value {
        serde_json::from_slice(&message.body).expect("JSON")
    }

    #[test]
    fn a_finished_build_is_told_with_what_people_ask_for_first() {
        let message = sender(Some("http://kiln.example.org:7480")).finished(7, Timestamp(61_500), &record(4, &["curl-8"], &[], &["bad"]));
        assert_eq!(message.id, "acme-7-61500");
        let told = read(&message);
        assert_eq!(
            told,
            json!({ "type": "build.finished", "timestamp": "1970-01-01T00:01:01.500Z", "data": {
                "farm": "acme", "build": 4, "name": "nightly", "tenant": null, "project": null, "state": "failed",
                "submittedAt": "1970-01-01T00:00:01.000Z", "endedAt": "1970-01-01T00:01:01.000Z", "durationMs": 60_000,
                "jobs": { "built": 3, "failed": 1, "others": 0 }, "unevaluatedAttributesCount": 1,
                "url": "http://kiln.example.org:7480/ui/builds/4",
            } })
        );
    }

    #[test]
    fn what_fails_newly_is_named_with_its_attributes_and_nothing_is_told_of_what_failed_before() {
        let before = record(4, &["curl-8"], &[("curl", "curl-8"), ("zlib", "zlib-1")], &["old"]);
        let after = record(5, &["curl-9", "zlib-2"], &[("curl", "curl-9"), ("zlib", "zlib-2")], &["old", "new"]);
        let message = sender(None).newly_failing(8, Timestamp(2), &before, &after).expect("zlib is new");
        let data = read(&message)["data"].clone();
        assert_eq!((&data["newlyFailingCount"], &data["stillFailingCount"], &data["before"]["build"]), (&json!(1), &json!(1), &json!(4)));
        assert_eq!((&data["newlyFailing"][0]["attributes"], &data["newlyFailing"][0]["name"]), (&json!(["zlib"]), &json!("zlib-2")));
        assert_eq!((&data["newlyUnevaluatedAttributes"], &data["url"]), (&json!(["new"]), &Value::Null));
        assert_eq!(sender(None).newly_failing(9, Timestamp(2), &after, &after), None);
    }

    #[test]
    fn a_body_is_bounded_whatever_fails() {
        let names: Vec<String> = (0..4_000).map(|number| format!("p{number:04}-{}", "x".repeat(150))).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let message = sender(None).newly_failing(8, Timestamp(2), &record(4, &[], &[], &[]), &record(5, &names, &[], &names)).expect("all");
        let told = read(&message);
        assert!(message.body.len() <= WEBHOOK_BODY_BYTES_MAX, "{}", message.body.len());
        assert_eq!((&told["data"]["newlyFailingCount"], told["data"]["newlyFailing"].as_array().map(Vec::len)), (&json!(4_000), Some(100)));
    }

    #[test]
    fn whoever_misses_the_same_leader_gives_it_the_same_id() {
        let last = Leader { term: 9, node: NodeId(2) };
        let [one, other] = [1, 3].map(|node| sender(None).no_leader(NodeId(node), Timestamp(node), last));
        assert_eq!(one.id, other.id);
        let again = sender(None).no_leader(NodeId(1), Timestamp(600_000), last);
        assert_ne!(one.id, again.id, "a second time under the same term is another thing to hear of");
        let dotted = Sender { farm: "farm.acme.example".to_owned(), ..sender(None) };
        let ids = [dotted.no_leader(NodeId(1), Timestamp(1), last).id, dotted.quarantined(7, Timestamp(2), &worker(), "no").id];
        assert!(ids.iter().all(|id| !id.contains('.')), "{ids:?}");
        assert_eq!((read(&one)["data"]["seenBy"].clone(), read(&other)["data"]["seenBy"].clone()), (json!(1), json!(3)));
    }
}
