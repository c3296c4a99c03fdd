//! Explanations: each walks over what a job needs and what needs it. One at a time, few wait, and who asks within a second has the same.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kiln_core::Sight;
use kiln_wire::limits::{API_EXPLANATIONS_REMEMBERED_MAX, API_EXPLANATIONS_WAITING_MAX};
use kiln_wire::{DrvPath, Explanation};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::{Api, Refused, reads};
use crate::heavy::heavy;

/// Explanations as somebody sees them, with when they were made.
type Known = BTreeMap<(DrvPath, Sight), (Instant, Option<Arc<Explanation>>)>;

/// What was explained a moment ago, and whose turn it is.
pub(super) struct Explained {
    known: Mutex<Known>,
    turn: Semaphore,
    waiting: Semaphore,
}

impl Default for Explained {
    fn default() -> Self {
        Self { known: Mutex::default(), turn: Semaphore::new(1), waiting: Semaphore::new(API_EXPLANATIONS_WAITING_MAX) }
    }
}

impl Explained {
    fn known(&self, asked: &(DrvPath, Sight)) -> Option<Option<Arc<Explanation>>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(asked).filter(|(at, _)| at.elapsed() < AGE_MAX).map(|(_, explained)| explained.clone())
    }

    fn remember(&self, asked: (DrvPath, Sight), explained: Option<Arc<Explanation>>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, (at, _)| at.elapsed() < AGE_MAX);
        if known.len() >= API_EXPLANATIONS_REMEMBERED_MAX {
            known.clear();
        }
        known.insert(asked, (Instant::now(), explained));
    }
}

impl Api {
    /// Returns why a job is where it is, as somebody sees it; none if there is no such job, or it is another's.
    ///
    /// # Errors
    /// [`Refused`] if too many ask.
    pub(crate) async fn explanation(&self, derivation: &DrvPath, sight: &Sight) -> Result<Option<Arc<Explanation>>, Refused> {
        let (parts, explained) = (self.parts(), &self.0.explained);
        if parts.farm(|farm| farm.sees_job(derivation, sight)) != Some(true) {
            return Ok(None);
        }
        let asked = (derivation.clone(), sight.clone());
        if let Some(known) = explained.known(&asked) {
            return Ok(known);
        }
        let _waits = explained.waiting.try_acquire().map_err(|_| Refused::busy("explanations"))?;
        let _turn = explained.turn.acquire().await.expect("never closed");
        if let Some(known) = explained.known(&asked) {
            return Ok(known);
        }
        let now = parts.clock.now();
        let made = heavy(|| parts.farm(|farm| farm.explanation_seen(derivation, now, &reads::away(parts, farm), sight))).map(Arc::new);
        explained.remember(asked, made.clone());
        Ok(made)
    }
}

/// How old what is told may be.
const AGE_MAX: Duration = Duration::from_secs(1);
