//! Fairness: who has used how much of the farm, and whose turn is next.
//!
//! Keys are nested: a tenant has projects, a project has builds. Tenants share the farm, and projects what their tenant has of it, by
//! weight and by the resource of which each holds most (dominant resource fairness: Ghodsi et al. 2011). What counts is what live leases
//! hold, and, by a slot at most, what was used lately. A job that several builds want is charged to them in equal parts.
//!
//! Where to look: `amount` counts, `ledger` is what is replicated, `party` says to whom a ready job belongs, `turns` chooses between them
//! in a plan. Does not place anything. Integers only. Source: ADR 0039.

mod amount;
mod asker;
mod held;
mod ledger;
mod party;
mod turns;
mod view;

pub(crate) use amount::{Amount, Whole};
pub use asker::Asker;
pub(crate) use ledger::Ledger;
pub(crate) use party::Party;
pub(crate) use turns::Turns;
