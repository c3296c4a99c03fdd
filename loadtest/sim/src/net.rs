//! Who reaches whom. Links between coordinators are cut by direction; a worker's link to a coordinator as a whole.

use std::collections::BTreeSet;

/// The links that are cut.
#[derive(Clone, Debug, Default)]
pub(crate) struct Net {
    nodes: BTreeSet<(usize, usize)>,
    hosts: BTreeSet<(usize, usize)>,
}

impl Net {
    /// Returns whether messages of one coordinator reach another.
    pub fn reaches(&self, from: usize, to: usize) -> bool {
        !self.nodes.contains(&(from, to))
    }

    /// Returns whether a worker and a coordinator reach each other.
    pub fn host_reaches(&self, host: usize, node: usize) -> bool {
        !self.hosts.contains(&(host, node))
    }

    /// Cuts the way from one coordinator to another.
    pub fn cut(&mut self, from: usize, to: usize) {
        self.nodes.insert((from, to));
    }

    /// Mends it.
    pub fn mend(&mut self, from: usize, to: usize) {
        self.nodes.remove(&(from, to));
    }

    /// Cuts a worker off from a coordinator.
    pub fn cut_host(&mut self, host: usize, node: usize) {
        self.hosts.insert((host, node));
    }

    /// Mends it.
    pub fn mend_host(&mut self, host: usize, node: usize) {
        self.hosts.remove(&(host, node));
    }

    /// Mends everything.
    pub fn mend_all(&mut self) {
        *self = Self::default();
    }
}
