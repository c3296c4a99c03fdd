//! State changes as they happen, for any number of browsers: made from applied entries, so that every coordinator tells the same under the
//! same ids, and whoever loses one goes on at another.
//!
//! Invariant: an event's id is the entry that it is of, and its place among what that entry did; ids only grow. What is applied within a
//! moment is told together: of a job the last thing alone, and of too many jobs their number. Each batch is written once for all who hear.

mod told;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kiln_core::Sight;
use kiln_wire::limits::{API_EVENTS_PER_BATCH_MAX, API_EVENTS_REMEMBERED_MAX};
use kiln_wire::{BuildId, DrvPath, LogIndex, TenantName};
use tokio::sync::broadcast;

pub(crate) use self::told::{Batch, EventId, Told, text};
use crate::parts::Parts;
use crate::raft::{Fact, Happened};

/// What everybody is told of.
#[derive(Debug)]
pub(crate) struct Live {
    kept: Mutex<Kept>,
    batches: broadcast::Sender<Arc<Batch>>,
}

/// What was told lately.
#[derive(Debug, Default)]
struct Kept {
    told: VecDeque<Arc<Told>>,
    /// Everything after this is in `told`.
    floor: EventId,
    /// The last that was told.
    last: EventId,
}

/// What somebody hears first, and where the rest comes from.
pub(crate) struct Hearing {
    /// What was missed; none if some of it is gone.
    pub(crate) missed: Option<VecDeque<Arc<Told>>>,
    /// The last event that is among what was missed, or came before.
    pub(crate) last: EventId,
    pub(crate) batches: broadcast::Receiver<Arc<Batch>>,
}

impl Default for Live {
    fn default() -> Self {
        Self { kept: Mutex::default(), batches: broadcast::Sender::new(BATCHES_MAX) }
    }
}

impl Live {
    /// Returns what came after an event, and what will come. `newest` is the last entry that this coordinator has: an event of a later one is
    /// of a farm that is no more, as after its state was restored from a backup.
    pub(crate) fn hear(&self, after: Option<EventId>, newest: LogIndex) -> Hearing {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let batches = self.batches.subscribe();
        let missed = match after {
            None => Some(VecDeque::new()),
            Some(after) if after < kept.floor || after.index > newest.max(kept.last.index) => None,
            Some(after) => Some(kept.told.iter().filter(|told| told.id > after).cloned().collect()),
        };
        // One that another coordinator told is not told again once it comes here.
        let last = after.filter(|_| missed.is_some()).map_or(kept.last, |after| after.max(kept.last));
        Hearing { missed, last, batches }
    }

    /// Returns the last event that was told.
    pub(crate) fn last(&self) -> EventId {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).last
    }

    /// Tells what happened.
    fn tell(&self, told: Vec<Told>, upto: EventId, gap: Option<EventId>) {
        let told: Vec<Arc<Told>> = told.into_iter().map(Arc::new).collect();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(gap) = gap {
            kept.told.clear();
            kept.floor = gap;
        }
        kept.last = kept.last.max(upto);
        kept.told.extend(told.iter().cloned());
        while kept.told.len() > API_EVENTS_REMEMBERED_MAX {
            if let Some(forgotten) = kept.told.pop_front() {
                kept.floor = forgotten.id;
            }
        }
        // Under the lock: who subscribes has an event by one of both ways.
        if self.batches.send(Arc::new(Batch::new(told, upto, gap.is_some()))).is_err() {
            tracing::trace!("nobody hears");
        }
    }
}

/// Tells what happens until consensus stops.
pub(crate) async fn run(parts: Arc<Parts>) {
    let Some(mut heard) = parts.consensus.heard() else { return };
    let mut owners = Owners::default();
    let mut some = Vec::new();
    while heard.recv_many(&mut some, TOGETHER_MAX).await > 0 {
        let told = batch(&parts, &mut owners, some.drain(..));
        parts.live.tell(told.told, told.upto, told.gap);
        // What happens meanwhile is told together.
        tokio::time::sleep(PACE).await;
    }
}

/// Whose builds are, as long as somebody may be told of them.
#[derive(Debug, Default)]
struct Owners(BTreeMap<BuildId, Option<TenantName>>);

impl Owners {
    /// Notes whose the build of a fact is, if that says so: the build may have left the farm before it is told of.
    fn note(&mut self, fact: &Fact) {
        let (build, owner) = match fact {
            Fact::Submitted(build, asked) => (build, asked.as_ref().map(|asked| &asked.account)),
            Fact::Ended(build, _, owner, _) => (build, owner.as_ref()),
            Fact::Job(..) | Fact::Registered(_) | Fact::Lost(_) | Fact::Judged(..) | Fact::Leads(_) => return,
        };
        if let Some(owner) = owner {
            self.insert(*build, owner.tenant.clone());
        }
    }

    fn insert(&mut self, build: BuildId, tenant: Option<TenantName>) {
        self.0.insert(build, tenant);
        if self.0.len() > OWNERS_MAX {
            self.0.pop_first();
        }
    }

    /// Returns whose a build is. One that was never seen here is taken for nobody's business but an administrator's.
    fn of(&mut self, parts: &Parts, build: BuildId) -> Owner {
        if let Some(tenant) = self.0.get(&build) {
            return Owner::Known(tenant.clone());
        }
        let Some(glance) = parts.farm(|farm| farm.build_glance(build)) else { return Owner::Unknown };
        self.insert(build, glance.account.tenant.clone());
        Owner::Known(glance.account.tenant)
    }
}

/// Whose a build is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// This tenant's, or nobody's.
    Known(Option<TenantName>),
    /// It left the farm before anybody looked.
    Unknown,
}

impl Owner {
    fn is_seen(&self, sight: &Sight) -> bool {
        match (sight, self) {
            (Sight::All, _) | (Sight::Of(_), Self::Known(None)) => true,
            (Sight::Of(own), Self::Known(Some(tenant))) => own == tenant,
            (Sight::Of(_), Self::Unknown) => false,
        }
    }
}

#[derive(Debug, Default)]
struct Making {
    told: Vec<Told>,
    upto: EventId,
    gap: Option<EventId>,
}

fn batch(parts: &Parts, owners: &mut Owners, happened: impl Iterator<Item = Happened>) -> Making {
    let mut making = Making::default();
    let mut last_of: BTreeMap<DrvPath, usize> = BTreeMap::new();
    let mut found: Vec<Option<(EventId, Fact)>> = Vec::new();
    for Happened { index, after_gap, facts, published: _ } in happened {
        if after_gap {
            found.clear();
            last_of.clear();
            making.gap = Some(EventId::before(index));
        }
        making.upto = making.upto.max(EventId::before(index));
        for (place, fact) in facts.into_iter().enumerate() {
            let id = EventId { index, place: u32::try_from(place).unwrap_or(u32::MAX) };
            making.upto = id;
            owners.note(&fact);
            if let Fact::Job(_, event) = &fact
                && let Some(earlier) = last_of.insert(event.derivation.clone(), found.len())
            {
                found[earlier] = None;
            }
            found.push(Some((id, fact)));
        }
    }
    let jobs = last_of.len();
    let too_many = jobs > API_EVENTS_PER_BATCH_MAX;
    for (id, fact) in found.into_iter().flatten() {
        if too_many && matches!(fact, Fact::Job(..)) {
            continue;
        }
        making.told.push(Told::of(id, &fact, &parts.store_dir, |build| owners.of(parts, build)));
    }
    if too_many {
        making.told.push(Told::many(making.upto, u64::try_from(jobs).unwrap_or(u64::MAX)));
    }
    making
}

/// Between two batches: a person sees no difference, and a farm that is busy tells five times a second.
const PACE: Duration = Duration::from_millis(200);
/// Entries that are looked at for one batch.
const TOGETHER_MAX: usize = 16_384;
/// Batches that a slow browser may lag behind before it is told that it has lost some: most of a minute.
const BATCHES_MAX: usize = 256;
/// Builds whose tenants are remembered.
const OWNERS_MAX: usize = 16_384;

#[cfg(test)]
mod tests {
    use kiln_wire::client::{BuildState, Event, EventKind};
    use kiln_wire::{Account, StoreDir, Timestamp};

    use super::*;
    use crate::raft::Asked;

    fn id(index: u64) -> EventId {
        EventId { index: LogIndex(index), place: 0 }
    }

    fn told(index: u64, build: u64, owner: Option<&str>) -> Told {
        let derivation = DrvPath::parse("0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar.drv").expect("a path");
        let event = Event { at: Timestamp(index), derivation, kind: EventKind::Ready };
        let owner = owner.map(|name| TenantName::parse(name).expect("a name"));
        let fact = Fact::Job(vec![BuildId(build)], event);
        Told::of(id(index), &fact, &StoreDir::default(), |_| Owner::Known(owner.clone()))
    }

    fn indexes(hearing: &Hearing) -> Option<Vec<u64>> {
        hearing.missed.as_ref().map(|missed| missed.iter().map(|told| told.id.index.0).collect())
    }

    #[test]
    fn who_comes_back_hears_what_it_missed_once_or_that_some_is_lost() {
        let live = Live::default();
        live.tell(Vec::new(), EventId::before(LogIndex(5)), Some(EventId::before(LogIndex(5))));
        live.tell(vec![told(6, 1, None), told(7, 1, None)], id(7), None);
        let hear = |after: u64| live.hear(Some(id(after)), LogIndex(7));
        assert_eq!(indexes(&live.hear(None, LogIndex(7))), Some(vec![]), "who is new asks for everything by itself");
        assert_eq!(indexes(&hear(6)), Some(vec![7]));
        assert_eq!(indexes(&hear(7)), Some(vec![]));
        assert_eq!(indexes(&hear(3)), None, "what came before a snapshot is not known");
        let ahead = live.hear(Some(id(9)), LogIndex(9));
        assert_eq!((indexes(&ahead), ahead.last), (Some(vec![]), id(9)), "another coordinator was further");
        let beyond = live.hear(Some(id(9)), LogIndex(8));
        assert_eq!((indexes(&beyond), beyond.last), (None, id(7)), "no coordinator of this farm has told that");
        for index in 8..8 + API_EVENTS_REMEMBERED_MAX as u64 {
            live.tell(vec![told(index, 1, None)], id(index), None);
        }
        assert_eq!(indexes(&hear(6)), None);
        assert_eq!(indexes(&hear(7)).map(|missed| missed.len()), Some(API_EVENTS_REMEMBERED_MAX));
    }

    #[test]
    fn a_tenant_hears_of_its_own_builds_and_nobodys() {
        let batch = Batch::new([told(6, 1, Some("a")), told(7, 2, Some("b")), told(8, 3, None)].map(Arc::new).into(), id(8), false);
        let heard = |sight: &Sight, build: Option<u64>| {
            let bytes = batch.bytes(sight, build.map(BuildId), id(0));
            let text = String::from_utf8(bytes.to_vec()).expect("text");
            text.lines().filter_map(|line| line.strip_prefix("id: ")).map(str::to_owned).collect::<Vec<_>>()
        };
        let of = |name: &str| Sight::Of(TenantName::parse(name).expect("a name"));
        assert_eq!(heard(&Sight::All, None), ["6.0", "7.0", "8.0"]);
        assert_eq!(heard(&of("a"), None), ["6.0", "8.0"]);
        assert_eq!(heard(&of("b"), None), ["7.0", "8.0"]);
        assert_eq!(heard(&of("c"), None), ["8.0"]);
        assert_eq!(heard(&Sight::All, Some(2)), ["7.0"]);
        assert_eq!(heard(&of("a"), Some(2)), [""; 0]);
    }

    #[test]
    fn a_build_that_has_left_the_farm_is_told_of_to_whose_it_was() {
        let account = |name: &str| Account { tenant: Some(TenantName::parse(name).expect("a name")), project: None };
        let mut owners = Owners::default();
        let asked = Asked { name: String::new(), account: account("a"), at: Timestamp(0), trace: None };
        owners.note(&Fact::Submitted(BuildId(1), Some(Box::new(asked))));
        owners.note(&Fact::Ended(BuildId(2), BuildState::Built, Some(account("b")), Timestamp(0)));
        owners.note(&Fact::Ended(BuildId(3), BuildState::Built, None, Timestamp(0)));
        let of = |build: u64| owners.0.get(&BuildId(build)).cloned();
        assert_eq!([of(1), of(2), of(3)], [Some(account("a").tenant), Some(account("b").tenant), None]);
    }
}
