//! Shares are set and taken back: `SetShare`.

use kiln_wire::limits::SHARES_MAX;
use kiln_wire::{Share, ShareKey};

use super::refuse;
use crate::effect::Refused;
use crate::farm::{Effects, Farm};

impl Farm {
    /// Sets a share, or takes back what was set. What plans were made of it stays as it is.
    pub(super) fn set_share(&mut self, key: ShareKey, share: Option<Share>, fx: &mut Effects) {
        let shares = &mut self.facts.ledger.shares;
        match share {
            None => {
                if shares.remove(&key).is_none() {
                    refuse(Refused::NoSuchShare(key), fx);
                }
            }
            Some(share) if share.objection().is_some() => refuse(Refused::WrongShare(key), fx),
            Some(_) if shares.len() >= SHARES_MAX && !shares.contains_key(&key) => refuse(Refused::TooManyShares(key), fx),
            Some(share) => {
                shares.insert(key, share);
            }
        }
    }
}
