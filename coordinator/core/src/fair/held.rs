//! What accounts hold of the fleet: derived from live leases, nowhere counted on its own.

use alloc::vec::Vec;

use kiln_wire::{Account, Timestamp};

use super::amount::Amount;
use crate::build::Build;
use crate::farm::{Facts, Farm};
use crate::index::Index;
use crate::job::{JobKey, Running};

impl Index {
    /// Enters what a live lease holds, for those builds that await its end.
    pub fn hold(&mut self, facts: &Facts, key: JobKey, running: &Running) {
        let (payers, amount) = self.payers(facts, key, running);
        // A light lease without memory holds nothing: no account is entered for it.
        for build in payers.into_iter().filter(|_| amount != Amount::default()) {
            let account = build.account();
            match self.held.get_mut(account) {
                Some(held) => *held = held.and(amount),
                None => {
                    self.held.insert(account.clone(), amount);
                }
            }
        }
    }

    /// Undoes [`Self::hold`].
    pub fn release(&mut self, facts: &Facts, key: JobKey, running: &Running) {
        let (payers, amount) = self.payers(facts, key, running);
        for build in payers {
            let account = build.account();
            if let Some(held) = self.held.get_mut(account) {
                *held = held.without(amount);
                if *held == Amount::default() {
                    self.held.remove(account);
                }
            }
        }
    }

    /// Returns the builds that pay for a live lease, and what each holds of it.
    fn payers<'f>(&self, facts: &'f Facts, key: JobKey, running: &Running) -> (Vec<&'f Build>, Amount) {
        let builds = self.links.get(&key).map(|links| links.builds.as_slice()).unwrap_or_default();
        let awaiting = builds.iter().filter_map(|id| facts.builds.get(id)).filter(|build| build.awaits(key));
        let payers: Vec<&Build> = awaiting.collect();
        let amount = Amount::of(running.granted, running.light, payers.len());
        (payers, amount)
    }
}

impl Farm {
    /// Charges a lease that ends by itself to the builds that awaited it, those that said who asks for them.
    pub(crate) fn charge(&mut self, key: JobKey, running: &Running, now: Timestamp) {
        let (payers, amount) = self.index.payers(&self.facts, key, running);
        let part = amount.dominant(self.index.fleet.whole);
        let accounts: Vec<Account> = payers.iter().filter_map(|build| build.asker.as_ref()).map(|asker| asker.account.clone()).collect();
        let length_ms = now.since_ms(running.started_at);
        for account in accounts {
            self.facts.ledger.charge(&account, part, length_ms, now);
        }
    }
}
