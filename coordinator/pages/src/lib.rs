//! The pages of the dashboard: models in, HTML out.
//!
//! Pure: no clock, no file, no farm. Time comes in as `now`, and what a page shows comes in as a model of plain values, so that every page is
//! tested from a fixture. Does not decide who may see what; [`Viewer`] says what the reader may do, and the shell checks that again.
//! Invariant: whatever comes from a build, a log or a client passes through the template's escaping; the only markup that
//! is taken as such is what this crate makes. No page needs a script to be read, and none has an inline script or style.

pub mod ansi;
pub mod assets;
pub mod build;
pub mod cluster;
pub mod fleet;
mod frame;
mod gantt;
mod graph;
pub mod job;
pub mod login;
pub mod overview;
mod paint;
pub mod timeline;
pub mod verdict;
pub mod words;

pub use frame::{Document, Section, Shell, Viewer, absent, refused};
pub use paint::{JobState, Tone};
