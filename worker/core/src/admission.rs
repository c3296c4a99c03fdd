//! Whether a worker takes new attempts, by what its machine is short of. Pure: what was measured comes in.
//!
//! A full disk refuses everything. What is only slow (memory, disk throughput, processors) refuses more than is there already: a worker
//! that runs nothing takes what it is given until the next look, so that a machine which others keep busy is slow and not lost. Every bound has a second
//! one some way off that ends the strain, so that a worker on the edge does not change its mind with each look.

use alloc::format;
use alloc::string::String;

use kiln_wire::limits::STRAIN_MESSAGE_BYTES_MAX;
use kiln_wire::worker::{Lacking, Strain};

/// What one look at a machine found. What the kernel does not tell is none and never strains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vitals {
    /// Bytes free on the disk of the worker's directory.
    pub disk_free_bytes: Option<u64>,
    /// Memory that could be had without swapping, in MiB.
    pub memory_free_mib: Option<u64>,
    /// How long processes waited.
    pub pressure: Pressure,
    /// Runnable and blocked processes for each processor, of a thousand. Looked at only where there is no pressure.
    pub load_permille: Option<u32>,
}

/// Shares of the last minute, of a thousand, for which processes waited ([pressure stall information](https://docs.kernel.org/accounting/psi.html)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    /// Some process waited for a processor.
    pub cpu_some_permille: Option<u32>,
    /// Every process waited for memory. Of the last ten seconds: a machine that thrashes does not live for a minute.
    pub memory_full_permille: Option<u32>,
    /// Every process waited for a disk.
    pub io_full_permille: Option<u32>,
}

/// From where on a worker takes nothing new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes that stay free on the disk.
    pub disk_free_bytes_min: u64,
    /// Memory that stays free, in MiB; 0 for any.
    pub memory_free_mib_min: u64,
    /// Waiting for processors; none for any: a machine whose cores are all at work is not short of anything.
    pub cpu_permille_max: Option<u32>,
    /// Waiting for memory; none for any.
    pub memory_permille_max: Option<u32>,
    /// Waiting for disks; none for any.
    pub io_permille_max: Option<u32>,
    /// Load, where there is no pressure; none for any.
    pub load_permille_max: Option<u32>,
}

/// Judges look after look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admission {
    bounds: Bounds,
    strained: Option<Lacking>,
}

impl Admission {
    /// Begins without a strain.
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, strained: None }
    }

    /// Judges one look at a machine on which attempts run, or do not. Returns why nothing new is to be taken.
    pub fn look(&mut self, vitals: &Vitals, is_busy: bool) -> Option<Strain> {
        let found = self.disk(vitals).or_else(|| if is_busy { self.slow(vitals) } else { None });
        self.strained = found.as_ref().map(|strain| strain.lacks);
        found
    }

    /// Returns how many bytes the disk lacks until its strain ends; 0 if there is none.
    pub fn room_wanted(&self, vitals: &Vitals) -> u64 {
        let wanted = self.at_least(Lacking::Disk, self.bounds.disk_free_bytes_min);
        let free = vitals.disk_free_bytes.filter(|_| self.strained == Some(Lacking::Disk));
        free.map_or(0, |free| wanted.saturating_sub(free))
    }

    fn disk(&self, vitals: &Vitals) -> Option<Strain> {
        let min = self.bounds.disk_free_bytes_min;
        let free = vitals.disk_free_bytes.filter(|free| *free < self.at_least(Lacking::Disk, min))?;
        let (free, min) = (free >> 20, min >> 20);
        Some(strain(Lacking::Disk, format!("its disk has {free} MiB free and {min} must be (`disk_free_bytes_min`): make room there")))
    }

    /// Looks for what makes everything slower with each further attempt.
    fn slow(&self, vitals: &Vitals) -> Option<Strain> {
        let Bounds { memory_free_mib_min, memory_permille_max, io_permille_max, cpu_permille_max, load_permille_max, .. } = self.bounds;
        let free = vitals.memory_free_mib.filter(|free| *free < self.at_least(Lacking::Memory, memory_free_mib_min));
        let free = free.map(|free| format!("its memory has {free} MiB free and {memory_free_mib_min} must be"));
        let pressure = &vitals.pressure;
        let thrashing = self.passed(Lacking::Memory, pressure.memory_full_permille, memory_permille_max);
        let thrashing = thrashing.map(|share| format!("its processes waited for memory for {share} of the last 10 s"));
        let disk = self.passed(Lacking::Io, pressure.io_full_permille, io_permille_max);
        let disk = disk.map(|share| format!("its processes waited for disks for {share} of the last minute"));
        let cpu = self.passed(Lacking::Cpu, pressure.cpu_some_permille, cpu_permille_max);
        let cpu = cpu.map(|share| format!("processes waited for its processors for {share} of the last minute"));
        let load = vitals.load_permille.filter(|_| pressure.cpu_some_permille.is_none());
        let load =
            self.passed(Lacking::Cpu, load, load_permille_max).map(|load| format!("its load is {load} of what its processors can do"));
        let memory = free.or(thrashing).map(|words| strain(Lacking::Memory, words));
        memory.or_else(|| disk.map(|words| strain(Lacking::Io, words))).or_else(|| cpu.or(load).map(|words| strain(Lacking::Cpu, words)))
    }

    /// Returns what is to be free: a quarter more to end a strain than to begin it.
    fn at_least(&self, what: Lacking, min: u64) -> u64 {
        if self.strained == Some(what) { min.saturating_add(min / 4) } else { min }
    }

    /// Returns a share that is at its bound, or, of what strains already, above three quarters of it.
    fn passed(&self, what: Lacking, share: Option<u32>, max: Option<u32>) -> Option<String> {
        let max = max.map(|max| if self.strained == Some(what) { max - max / 4 } else { max })?;
        let share = share.filter(|share| *share >= max)?;
        Some(format!("{}.{} %", share / 10, share % 10))
    }
}

fn strain(lacks: Lacking, message: String) -> Strain {
    debug_assert!(message.len() <= STRAIN_MESSAGE_BYTES_MAX, "{message}");
    Strain { lacks, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds {
        disk_free_bytes_min: 1 << 30,
        memory_free_mib_min: 400,
        cpu_permille_max: Some(900),
        memory_permille_max: Some(200),
        io_permille_max: Some(800),
        load_permille_max: Some(4000),
    };

    fn with(change: impl FnOnce(&mut Vitals)) -> Vitals {
        let mut vitals = Vitals { disk_free_bytes: Some(9 << 30), memory_free_mib: Some(9_000), ..Vitals::default() };
        change(&mut vitals);
        vitals
    }

    #[test]
    fn each_bound_strains_at_its_value_and_ends_some_way_off() {
        type Set = fn(&mut Vitals, u64);
        let disk: Set = |vitals, mib| vitals.disk_free_bytes = Some(mib << 20);
        let memory: Set = |vitals, mib| vitals.memory_free_mib = Some(mib);
        let thrash: Set = |vitals, share| vitals.pressure.memory_full_permille = u32::try_from(share).ok();
        let io: Set = |vitals, share| vitals.pressure.io_full_permille = u32::try_from(share).ok();
        let cpu: Set = |vitals, share| vitals.pressure.cpu_some_permille = u32::try_from(share).ok();
        let load: Set = |vitals, share| vitals.load_permille = u32::try_from(share).ok();
        // What is fine, what strains, what goes on straining, what ends it.
        let table: [(&str, Set, Lacking, [u64; 4]); 6] = [
            ("disk", disk, Lacking::Disk, [1024, 1023, 1279, 1280]),
            ("memory", memory, Lacking::Memory, [400, 399, 499, 500]),
            ("thrashing", thrash, Lacking::Memory, [199, 200, 150, 149]),
            ("io", io, Lacking::Io, [799, 800, 600, 599]),
            ("cpu", cpu, Lacking::Cpu, [899, 900, 675, 674]),
            ("load", load, Lacking::Cpu, [3999, 4000, 3000, 2999]),
        ];
        for (name, set, lacks, values) in table {
            let mut admission = Admission::new(BOUNDS);
            for (value, strained) in values.into_iter().zip([false, true, true, false]) {
                let found = admission.look(&with(|vitals| set(vitals, value)), true);
                assert_eq!(found.map(|strain| strain.lacks), strained.then_some(lacks), "{name} at {value}");
            }
        }
    }

    #[test]
    fn an_idle_worker_refuses_for_a_full_disk_only() {
        let slow = with(|vitals| {
            vitals.memory_free_mib = Some(0);
            vitals.pressure = Pressure { cpu_some_permille: Some(1000), memory_full_permille: Some(1000), io_full_permille: Some(1000) };
        });
        assert_eq!(Admission::new(BOUNDS).look(&slow, false), None);
        let full = with(|vitals| vitals.disk_free_bytes = Some(0));
        let strain = Admission::new(BOUNDS).look(&full, false).expect("strained");
        assert_eq!(strain.lacks, Lacking::Disk);
        let (full, roomy) = (with(|vitals| vitals.disk_free_bytes = Some(100)), with(|_| {}));
        let mut admission = Admission::new(BOUNDS);
        assert_eq!(admission.room_wanted(&full), 0, "it was not looked at");
        admission.look(&full, false);
        assert_eq!((admission.room_wanted(&full), admission.room_wanted(&roomy)), ((5 << 28) - 100, 0));
        assert_eq!(strain.message, "its disk has 0 MiB free and 1024 must be (`disk_free_bytes_min`): make room there");
    }

    #[test]
    fn load_counts_only_where_there_is_no_pressure() {
        let both = with(|vitals| {
            vitals.load_permille = Some(90_000);
            vitals.pressure.cpu_some_permille = Some(10);
        });
        assert_eq!(Admission::new(BOUNDS).look(&both, true), None);
    }

    #[test]
    fn what_is_not_told_and_what_has_no_bound_never_strains() {
        assert_eq!(Admission::new(BOUNDS).look(&Vitals::default(), true), None);
        let none = Bounds {
            disk_free_bytes_min: 0,
            memory_free_mib_min: 0,
            cpu_permille_max: None,
            memory_permille_max: None,
            io_permille_max: None,
            load_permille_max: None,
        };
        let worst = Vitals {
            disk_free_bytes: Some(0),
            memory_free_mib: Some(0),
            pressure: Pressure { cpu_some_permille: Some(1000), memory_full_permille: Some(1000), io_full_permille: Some(1000) },
            load_permille: Some(u32::MAX),
        };
        assert_eq!(Admission::new(none).look(&worst, true), None);
    }
}
