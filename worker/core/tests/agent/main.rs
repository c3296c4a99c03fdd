//! The agent from outside: a table of messages and actions, and agents together with a farm over a bad network.

mod facts;
mod network;
mod table;
