//! Real faults for a real farm: what a harness is made of that runs coordinators and workers as processes of the `kiln` program, each in
//! a network namespace of its own, and kills them, freezes them, cuts them off from each other and starves them of disk, by a plan that
//! a printed seed determines; and that checks what clients were answered and what every process said.
//!
//! Pure: [`hosts`], [`random`], [`plan`], [`rules`], [`lines`], [`facts`], [`linear`], [`models`]. The rest runs programs. Reads no state
//! of the farm but what its clients and its logs say.

pub mod disk;
pub mod facts;
pub mod farm;
pub mod graph;
pub mod history;
pub mod hosts;
pub mod kills;
pub mod linear;
pub mod lines;
pub mod load;
pub mod models;
pub mod net;
pub mod plan;
pub mod probe;
pub mod process;
pub mod random;
pub mod report;
pub mod rounds;
pub mod rules;
pub mod run;
pub mod sets;
pub mod snapshots;
pub mod transfers;
pub mod trouble;
pub mod upgrade;
