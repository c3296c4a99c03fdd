//! The farm from outside: transcripts, random commands, models, real graphs. Everything goes through the public interface.

mod copying;
mod drain;
mod explained;
mod facts;
mod fair;
mod figures;
mod golden;
mod graphs;
mod ledger;
mod limits;
mod mended;
mod model;
mod named;
mod outlook;
mod packing;
mod random;
mod script;
mod text;
