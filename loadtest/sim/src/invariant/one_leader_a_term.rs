//! Of the log: no term has two leaders.

use std::collections::BTreeMap;

use kiln_wire::NodeId;

use super::{Invariant, Look};
use crate::fact::Fact;

#[derive(Default)]
pub(super) struct OneLeaderATerm(BTreeMap<u64, NodeId>);

impl Invariant for OneLeaderATerm {
    fn name(&self) -> &'static str {
        "a term has one leader"
    }

    fn see(&mut self, fact: &Fact<'_>, _look: &Look<'_>) -> Result<(), String> {
        let Fact::Elected { leader } = fact else { return Ok(()) };
        match self.0.insert(leader.term, leader.node) {
            Some(other) => Err(format!("term {} is led by nodes {other} and {}", leader.term, leader.node)),
            None => Ok(()),
        }
    }
}
