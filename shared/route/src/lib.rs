//! The way to the leading coordinator, for workers and clients.
//!
//! [`Scouts`] keep a connection to every coordinator and hear from each who leads. So a worker needs no time-out to notice that its
//! leader is gone: the others tell it who the next one is, over connections that stand already. Does not open sessions and does not
//! repeat requests: its users know what may be asked twice.

mod board;
mod pause;
mod scouts;

pub use pause::Pause;
pub use scouts::{Found, Lost, Scouts};
