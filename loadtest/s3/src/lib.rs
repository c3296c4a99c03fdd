//! An S3-compatible server for tests: signatures checked, objects as files, faults on request.
//!
//! What S3 itself does is done by `s3s` and `s3s-fs`; this crate adds what tests of a store need of it: buckets made at the start,
//! conditional writes that exclude each other, and [`Faults`]. Not for production: nothing is synced, listing walks the whole bucket.
//!
//! `/-/faults` (no bucket can have this name, no signature is asked for) shows and changes the faults of a server that runs:
//! `curl -X PUT 'http://ADDR/-/faults?errors_percent=30&delay_ms=50'`; what is not named is 0.

mod body;
mod faults;
mod server;
mod service;

pub use faults::{Faults, FaultsError, Served};
pub use server::{Config, S3Server, ServerError};
