//! The attacks of `worker/ATTACKS.md` that concern a build, each tried in a real sandbox. A test's name begins with the attack's number.

#[path = "../sandbox_support/mod.rs"]
mod sandbox_support;

mod egress;
mod kernel;
