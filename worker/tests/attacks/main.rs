//! The attacks of `worker/ATTACKS.md` that concern a build, each tried in a real sandbox. A test's name begins with the attack's number.

#[path = "../farm/mod.rs"]
mod farm;
#[path = "../sandbox_support/mod.rs"]
mod sandbox_support;

mod bombs;
mod egress;
mod escape;
mod kernel;
mod log;
mod network;
mod outputs;
mod program;
