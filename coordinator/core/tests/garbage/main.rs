//! What the collection of garbage must never do, and what it must: tables, random graphs beside a simple model, and random interleavings
//! with whoever relies on the store meanwhile.

mod facts;
mod interleaved;
mod marked;
mod retained;
