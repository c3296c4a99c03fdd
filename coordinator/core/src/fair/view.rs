//! What is shown of shares, and what the shell asks before it lets somebody steer.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use kiln_wire::{Account, ShareKey, ShareView, Subject, TenantName, Timestamp};

use super::amount::{ALL, Amount};
use crate::effect::BuildRecord;
use crate::farm::Farm;

impl Farm {
    /// Returns every share that was set, and of whoever has builds that run or ran lately: tenants, each followed by its projects.
    pub fn share_views(&self, now: Timestamp) -> Vec<ShareView> {
        let (ledger, held) = (&self.facts.ledger, &self.index.held);
        let set =
            ledger.shares.keys().map(|ShareKey { tenant, project }| Account { tenant: Some(tenant.clone()), project: project.clone() });
        let used = ledger.used.keys().filter(|account| ppm(ledger.lately(account, now)) > 0).cloned();
        let live = self.facts.builds.values().filter(|build| build.record().is_none()).map(|build| build.account().clone());
        let mut projects: BTreeMap<Option<TenantName>, BTreeSet<Account>> = BTreeMap::new();
        for account in set.chain(used).chain(live).chain(held.keys().cloned()) {
            let projects = projects.entry(account.tenant.clone()).or_default();
            if account.project.is_some() {
                projects.insert(account);
            }
        }
        let mut views = Vec::new();
        for (tenant, projects) in projects {
            let whole = Account { tenant: tenant.clone(), project: None };
            let own = held.range(whole.clone()..).take_while(|(account, _)| account.tenant == tenant);
            let amount = own.fold(Amount::default(), |sum, (_, amount)| sum.and(*amount));
            views.push(self.share_view(&whole, amount, ledger.lately_of(tenant.as_ref(), now)));
            for account in projects {
                let amount = held.get(&account).copied().unwrap_or_default();
                views.push(self.share_view(&account, amount, ledger.lately(&account, now)));
            }
        }
        views
    }

    fn share_view(&self, account: &Account, held: Amount, lately: u64) -> ShareView {
        let ledger = &self.facts.ledger;
        let key = account.tenant.clone().map(|tenant| ShareKey { tenant, project: account.project.clone() });
        ShareView {
            tenant: account.tenant.clone(),
            project: account.project.clone(),
            share: ledger.share(account, account.project.is_some()),
            is_set: key.is_some_and(|key| ledger.shares.contains_key(&key)),
            held_ppm: ppm(held.dominant(self.index.fleet.whole)),
            lately_ppm: ppm(lately),
        }
    }

    /// Returns whether builds of a tenant may be of the security class.
    pub fn may_use_security(&self, tenant: &TenantName) -> bool {
        self.facts.ledger.share(&Account { tenant: Some(tenant.clone()), project: None }, false).may_use_security
    }

    /// Returns whose the live builds are that somebody would steer, each as often as there are builds; none if the farm has no such build or
    /// job.
    pub fn tenants_of(&self, subject: &Subject) -> Option<Vec<Option<TenantName>>> {
        match subject {
            Subject::Build(build) => {
                let build = self.facts.builds.get(build).filter(|build| build.record().is_none())?;
                Some([build.account().tenant.clone()].into())
            }
            Subject::Job(derivation) => {
                let key = self.key_of(derivation)?;
                Some(self.live_builds_of(key).map(|(_, build)| build.account().tenant.clone()).collect())
            }
        }
    }

    /// Returns the record of a build that has ended and not left the farm yet.
    pub fn record(&self, build: kiln_wire::BuildId) -> Option<&BuildRecord> {
        self.facts.builds.get(&build)?.record()
    }
}

fn ppm(part: u64) -> u64 {
    u64::try_from(u128::from(part) * 1_000_000 / u128::from(ALL)).unwrap_or(u64::MAX)
}
