//! What the coordinators say about who leads. Pure: whoever has a connection is known by its number only.
//!
//! Invariant: of two coordinators that say they lead, the one of the later (term, node) is believed. A coordinator that was
//! cut off says so for a while longer; it can commit nothing, and its word loses against the next leader's.

use std::collections::{BTreeMap, BTreeSet};

use kiln_wire::{Leader, WhoLeads};

/// Addresses of coordinators that were learnt from others, beside those of the configuration. A farm has three or five.
const LEARNT_MAX: usize = 16;

/// The board that scouts write to.
#[derive(Clone, Debug)]
pub(crate) struct Board<Link> {
    configured: BTreeSet<String>,
    learnt: BTreeSet<String>,
    words: BTreeMap<String, Word<Link>>,
}

/// The last that a scout had to say.
#[derive(Clone, Debug)]
enum Word<Link> {
    /// The coordinator's word, over a connection that stood then.
    Said { who: WhoLeads, link: Link },
    /// Why the coordinator cannot be asked.
    Away(String),
}

impl<Link> Board<Link> {
    pub(crate) fn new(configured: impl IntoIterator<Item = String>) -> Self {
        Self { configured: configured.into_iter().collect(), learnt: BTreeSet::new(), words: BTreeMap::new() }
    }

    /// Returns where scouts are to be.
    pub(crate) fn addresses(&self) -> BTreeSet<String> {
        self.configured.union(&self.learnt).cloned().collect()
    }

    /// Takes a coordinator's word. A leader's list of coordinators replaces what was learnt before.
    pub(crate) fn said(&mut self, address: &str, who: WhoLeads, link: Link) {
        if who.is_self && who.leader >= self.leader().map(|(leader, _)| leader) {
            self.learnt = who.coordinators.iter().take(LEARNT_MAX).cloned().collect();
            let wanted = self.addresses();
            self.words.retain(|known, _| wanted.contains(known) || known == address);
        }
        self.words.insert(address.to_owned(), Word::Said { who, link });
    }

    /// Notes that a coordinator cannot be asked.
    pub(crate) fn away(&mut self, address: &str, why: String) {
        self.words.insert(address.to_owned(), Word::Away(why));
    }

    /// Returns the latest leader of those that say they lead, with the way to it.
    pub(crate) fn leader(&self) -> Option<(Leader, &Link)> {
        let leading = self.words.values().filter_map(|word| match word {
            Word::Said { who: WhoLeads { is_self: true, leader: Some(leader), .. }, link } => Some((*leader, link)),
            Word::Said { .. } | Word::Away(_) => None,
        });
        leading.max_by_key(|(leader, _)| *leader)
    }

    /// Returns whether every coordinator was tried and none can be asked.
    pub(crate) fn is_hopeless(&self) -> bool {
        self.addresses().iter().all(|address| matches!(self.words.get(address), Some(Word::Away(_))))
    }

    /// Tells in words why there is no leader.
    pub(crate) fn troubles(&self) -> String {
        let trouble = |address: &String| match self.words.get(address) {
            None => format!("{address}: no answer yet"),
            Some(Word::Away(why)) => format!("{address}: {why}"),
            Some(Word::Said { who: WhoLeads { leader: Some(leader), .. }, .. }) => {
                format!("{address}: answers, and says that coordinator {} leads", leader.node)
            }
            Some(Word::Said { who: WhoLeads { leader: None, .. }, .. }) => format!("{address}: answers, and knows of no leader"),
        };
        self.addresses().iter().map(trouble).collect::<Vec<_>>().join("; ")
    }
}

#[cfg(test)]
mod tests {
    use kiln_wire::NodeId;

    use super::*;

    /// `a` says that it leads in term 3 as `a+3`, that it knows of no leader as `a?`, that node 2 leads in term 3 as `a:3.2`, and that it
    /// cannot be asked as `a!`. Its number is that of the letter; the numbers after `=` are the coordinators that it lists.
    fn board(words: &str) -> Board<&str> {
        let mut board = Board::new(["a".to_owned(), "b".to_owned()]);
        for word in words.split_whitespace() {
            let (word, listed) = word.split_once('=').unwrap_or((word, ""));
            let coordinators = listed.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
            let (address, rest) = word.split_at(1);
            let node = NodeId(u64::from(address.as_bytes()[0] - b'a' + 1));
            let term = || rest[1..].split('.').next().expect("a term").parse().expect("a number");
            match rest.as_bytes()[0] {
                b'+' => board.said(address, WhoLeads { is_self: true, leader: Some(Leader { term: term(), node }), coordinators }, address),
                b':' => {
                    let node = NodeId(rest.split('.').nth(1).expect("a node").parse().expect("a number"));
                    board.said(address, WhoLeads { is_self: false, leader: Some(Leader { term: term(), node }), coordinators }, address);
                }
                b'?' => board.said(address, WhoLeads { is_self: false, leader: None, coordinators }, address),
                _ => board.away(address, "away".to_owned()),
            }
        }
        board
    }

    #[test]
    fn the_latest_of_those_that_say_they_lead_is_followed() {
        for (words, leads) in [
            ("", None),
            ("a?", None),
            ("a:3.2", None),
            ("a+3", Some("a")),
            ("a+3 b+4", Some("b")),
            ("b+4 a+3", Some("b")),
            ("a+3 b+4 b!", Some("a")),
            ("a+3 b+3", Some("b")),
            ("a+3 b:3.1", Some("a")),
            ("a+3 a:4.2", None),
            ("a+3 a!", None),
        ] {
            assert_eq!(board(words).leader().map(|(_, link)| *link), leads, "{words}");
        }
    }

    #[test]
    fn coordinators_are_learnt_from_the_latest_leader_only() {
        for (words, addresses) in
            [("", "a b"), ("a+3=a,b,c", "a b c"), ("a+3=a,b,c a+5=a,d", "a b d"), ("a+3=a,b,c b+2=e", "a b c"), ("a:3.2=x", "a b")]
        {
            assert_eq!(board(words).addresses().into_iter().collect::<Vec<_>>().join(" "), addresses, "{words}");
        }
    }

    #[test]
    fn a_search_is_hopeless_only_when_every_coordinator_was_tried() {
        for (words, hopeless) in
            [("", false), ("a!", false), ("a! b!", true), ("a! b?", false), ("a! b! b?", false), ("a+1=c a! b!", false)]
        {
            assert_eq!(board(words).is_hopeless(), hopeless, "{words}");
        }
    }

    #[test]
    fn no_more_coordinators_are_learnt_than_a_farm_has() {
        let listed = (0..100).map(|n| format!("x{n}")).collect::<Vec<_>>().join(",");
        assert_eq!(board(&format!("a+1={listed}")).addresses().len(), 2 + LEARNT_MAX);
    }

    #[test]
    fn troubles_are_told_for_each_coordinator() {
        assert_eq!(board("b:3.7").troubles(), "a: no answer yet; b: answers, and says that coordinator 7 leads");
        assert_eq!(board("a! b?").troubles(), "a: away; b: answers, and knows of no leader");
    }
}
