//! Builders that the worker itself brings.

pub mod fetchurl;
