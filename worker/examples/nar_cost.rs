//! Measures the way of an output's bytes: read as a NAR, scanned for references, hashed, compressed, spooled, each stage apart and all in one
//! pass as [`Packer`] does it. `ops/prove/sandbox-cost` runs it beside `sha256sum`.
//!
//! `nar_cost DIR CANDIDATES SPOOL_DIR`: packs the tree DIR, looking for that many store paths. Prints a JSON object: the NAR's bytes, and by stage
//! the gigabytes a second of CPU and of wall time.

use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use kiln_nix::nar::{self, HashWriter};
use kiln_nix::scan::Candidates;
use kiln_store::Packer;
use kiln_wire::StorePath;
use rustix::time::{ClockId, Timespec, clock_gettime};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [dir, count, spool_dir] = arguments.as_slice() else { return Err("usage: nar_cost DIR CANDIDATES SPOOL_DIR".into()) };
    let dir = Path::new(dir);
    let candidates = candidates(count.parse()?)?;
    let mut nar = Vec::new();
    nar::dump(dir, &mut nar)?;
    let pieces = || nar.chunks(PIECE_BYTES);
    let packer = |level| Packer { level, spool_dir: spool_dir.into() };
    let stages = [
        ("read as a NAR", stage(|| nar::dump(dir, &mut io::sink()).map_err(io::Error::other))?),
        (
            "SHA-256",
            stage(|| {
                let mut writer = HashWriter::new(io::sink());
                pieces().try_for_each(|piece| writer.write_all(piece))?;
                std::hint::black_box(writer.finish());
                Ok(())
            })?,
        ),
        (
            "scan for references",
            stage(|| {
                let mut scanner = candidates.scanner();
                pieces().for_each(|piece| scanner.update(piece));
                std::hint::black_box(scanner.finish());
                Ok(())
            })?,
        ),
        (
            "BLAKE3",
            stage(|| {
                let mut hasher = blake3::Hasher::new();
                for piece in pieces() {
                    hasher.update(piece);
                }
                std::hint::black_box(hasher.finalize());
                Ok(())
            })?,
        ),
        (
            "zstd level 1",
            stage(|| {
                let mut encoder = zstd::Encoder::new(io::sink(), 1)?;
                pieces().try_for_each(|piece| encoder.write_all(piece))?;
                encoder.finish().map(|_| ())
            })?,
        ),
        ("all in one pass", stage(|| packer(1).pack(dir, &candidates).map(|_| ()).map_err(io::Error::other))?),
    ];
    let rate = |taken: Duration| nar.len() as f64 / 1e9 / taken.as_secs_f64();
    let shown: Vec<String> = stages
        .iter()
        .map(|(name, cost)| format!(r#""{name}": {{"cpu": {:.3}, "wall": {:.3}}}"#, rate(cost.cpu), rate(cost.wall)))
        .collect();
    println!(r#"{{"nar_bytes": {}, "stages": {{{}}}}}"#, nar.len(), shown.join(", "));
    Ok(())
}

/// As large as the pieces that the packer works on.
const PIECE_BYTES: usize = 256 << 10;
/// The quickest of so many runs counts: what is slower was disturbed.
const RUNS: usize = 3;

struct Cost {
    cpu: Duration,
    wall: Duration,
}

fn stage(mut work: impl FnMut() -> io::Result<()>) -> io::Result<Cost> {
    let mut best = Cost { cpu: Duration::MAX, wall: Duration::MAX };
    for _ in 0..RUNS {
        let (cpu, wall) = (cpu_time(), Instant::now());
        work()?;
        best = Cost { cpu: best.cpu.min(cpu_time() - cpu), wall: best.wall.min(wall.elapsed()) };
    }
    Ok(best)
}

/// Of all threads.
fn cpu_time() -> Duration {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(tv_sec.unsigned_abs(), u32::try_from(tv_nsec).unwrap_or(0))
}

/// Paths that no file mentions, with hashes as different as real ones.
fn candidates(count: usize) -> Result<Candidates, Box<dyn std::error::Error>> {
    const DIGITS: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";
    let path = |number: usize| {
        let hash = blake3::hash(&number.to_le_bytes());
        let digits: String = hash.as_bytes().iter().map(|byte| char::from(DIGITS[usize::from(byte % 32)])).collect();
        StorePath::parse(&format!("{digits}-candidate-{number}"))
    };
    Ok(Candidates::new((0..count).map(path).collect::<Result<Vec<_>, _>>()?))
}
