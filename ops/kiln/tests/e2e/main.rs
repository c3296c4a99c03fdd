//! The real binary, driven as people drive it: whole farms, daemons, crashes, and a real Nix that reads their cache.
//!
//! Needs root, Debian's `nix-bin` and `busybox-static`, which `ops/test` installs, and the Nix of Debian 13, which `ops/lib/debian-13-nix` fetches.

mod addressed;
mod agents;
mod asked;
#[path = "asked.rs"]
#[allow(clippy::duplicate_mod, reason = "the same for another version of Nix, see nix.rs")]
mod asked_debian_13;
mod attacks;
mod bad_input;
mod builds;
mod clients;
#[path = "clients.rs"]
#[allow(clippy::duplicate_mod, reason = "the same for another version of Nix, see nix.rs")]
mod clients_debian_13;
mod cluster;
mod compared;
mod copied;
mod crashes;
mod described;
mod documented;
mod dynamic;
mod elsewhere;
mod external;
mod faces;
mod failures;
mod farm;
mod first_use;
mod garbage;
mod git_hashed;
mod hook;
#[path = "hook.rs"]
#[allow(clippy::duplicate_mod, reason = "the same for another version of Nix, see nix.rs")]
mod hook_debian_13;
mod live;
mod logged;
mod nix;
mod notified;
mod once;
mod package_set;
mod parity;
mod prometheus;
mod quarantined;
mod receiver;
mod repaired;
#[path = "repaired.rs"]
#[allow(clippy::duplicate_mod, reason = "the same for another version of Nix, see nix.rs")]
mod repaired_debian_13;
mod restored;
mod roles;
mod rootless;
mod rotated;
mod served;
mod shared;
mod split;
mod ssh;
#[path = "ssh.rs"]
#[allow(clippy::duplicate_mod, reason = "the same for another version of Nix, see nix.rs")]
mod ssh_debian_13;
mod steered;
mod stops;
mod strained;
mod submitted;
mod told;
mod traced;
mod uploads;
mod upstream;
mod watched;
