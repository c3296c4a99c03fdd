//! A simulation's place to plant a bug: how a coordinator applies an entry. The product has no such place.

use std::cell::Cell;

use kiln_core::{Command, Effect, Farm};
use kiln_wire::{LogIndex, NodeId};

/// Applies a command at a coordinator.
pub type Apply = fn(NodeId, &mut Farm, LogIndex, Command) -> Vec<Effect>;

thread_local! {
    static APPLY: Cell<Apply> = const { Cell::new(|_, farm, index, command| farm.apply(index, command)) };
}

/// Has every coordinator of this thread apply entries so.
pub fn plant(apply: Apply) {
    APPLY.set(apply);
}

/// Applies a command as is planted.
pub(super) fn apply(node: NodeId, farm: &mut Farm, index: LogIndex, command: Command) -> Vec<Effect> {
    APPLY.get()(node, farm, index, command)
}
