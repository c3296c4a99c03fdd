//! The real binary, driven as people drive it: whole farms, daemons, crashes, and a real Nix that reads their cache.
//!
//! Needs root, Debian's `nix-bin` and `busybox-static`, which `ops/test` installs.

mod addressed;
mod attacks;
mod bad_input;
mod builds;
mod clients;
mod cluster;
mod crashes;
mod documented;
mod elsewhere;
mod farm;
mod first_use;
mod garbage;
mod once;
mod package_set;
mod parity;
mod restored;
mod roles;
mod rootless;
mod rotated;
mod served;
mod shared;
mod split;
mod stops;
mod submitted;
mod uploads;
mod upstream;
