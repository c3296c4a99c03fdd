//! What is replicated of fairness: shares that were set, and what was used lately.

use alloc::collections::BTreeMap;

use kiln_wire::limits::ACCOUNTS_REMEMBERED_MAX;
use kiln_wire::{Account, Share, ShareKey, TenantName, Timestamp};
use serde::{Deserialize, Serialize};

use super::amount::{COUNTED_MS_MAX, counted_ms, decayed};

/// Shares and use. Only what a farm at version 5 is told gets here, so that an older program's log gives the same.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ledger {
    /// What was set.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub shares: BTreeMap<ShareKey, Share>,
    /// What was used, by whom. At most `ACCOUNTS_REMEMBERED_MAX`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub used: BTreeMap<Account, Used>,
}

/// What an account used lately.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Used {
    /// Milliseconds of the whole fleet times [`super::amount::ALL`], decayed to `at`.
    pub amount: u64,
    /// When something was charged last.
    pub at: Timestamp,
}

impl Ledger {
    /// Returns whether it says nothing.
    pub fn is_empty(&self) -> bool {
        self.shares.is_empty() && self.used.is_empty()
    }

    /// Charges an account for a part of the fleet, of [`super::amount::ALL`], that it held until now for so long.
    pub fn charge(&mut self, account: &Account, part: u64, length_ms: u64, now: Timestamp) {
        let amount = part.saturating_mul(counted_ms(length_ms));
        let used = match self.used.get_mut(account) {
            Some(used) => used,
            None => self.used.entry(account.clone()).or_default(),
        };
        used.amount = decayed(used.amount, now.since_ms(used.at)).saturating_add(amount);
        used.at = used.at.max(now);
        if self.used.len() > ACCOUNTS_REMEMBERED_MAX {
            let oldest = self.used.iter().min_by_key(|(account, used)| (used.at, *account)).map(|(account, _)| account.clone());
            oldest.map(|account| self.used.remove(&account));
        }
    }

    /// Returns what an account held lately in the mean, of [`super::amount::ALL`].
    pub fn lately(&self, account: &Account, now: Timestamp) -> u64 {
        self.used.get(account).map_or(0, |used| mean(*used, now))
    }

    /// Returns what all projects of a tenant held lately in the mean.
    pub fn lately_of(&self, tenant: Option<&TenantName>, now: Timestamp) -> u64 {
        let first = Account { tenant: tenant.cloned(), project: None };
        let of = self.used.range(first..).take_while(|(account, _)| account.tenant.as_ref() == tenant);
        of.fold(0, |sum, (_, used)| sum.saturating_add(mean(*used, now)))
    }

    /// Returns what was set for a tenant or a project, or what everybody has.
    pub fn share(&self, account: &Account, of_project: bool) -> Share {
        let Some(tenant) = account.tenant.clone() else { return Share::default() };
        let project = if of_project { account.project.clone() } else { None };
        if of_project && project.is_none() {
            // What belongs to no project is counted like one of which nothing is set.
            return Share::default();
        }
        self.shares.get(&ShareKey { tenant, project }).copied().unwrap_or_default()
    }
}

fn mean(used: Used, now: Timestamp) -> u64 {
    decayed(used.amount, now.since_ms(used.at)) / COUNTED_MS_MAX
}
