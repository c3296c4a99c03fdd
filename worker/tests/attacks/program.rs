//! The attacker's program (`attacker/`): compiled once, put into sandboxes as an input.

use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use kiln_worker::sandbox::Spec;

use crate::sandbox_support::{Bench, INPUT};

/// Makes a bench whose builder is the attacker's program with these arguments.
pub fn bench(arguments: &[&str]) -> Bench {
    let mut bench = Bench::new("");
    fs::copy(compiled(), bench.host("store").join(INPUT).join("attacker")).expect("copy the attacker's program");
    bench.spec.builder = format!("/nix/store/{INPUT}/attacker").into_bytes();
    bench.spec.args = arguments.iter().map(|argument| argument.as_bytes().to_vec()).collect();
    bench
}

/// Makes a bench whose builder is a shell that runs `script`, where `$attack` is the attacker's program.
pub fn shell(script: &str) -> Bench {
    let mut bench = bench(&[]);
    let Spec { builder, args, .. } = Bench::new(&format!("attack=/nix/store/{INPUT}/attacker; {script}")).spec.clone();
    (bench.spec.builder, bench.spec.args) = (builder, args);
    bench
}

/// Checks what the program printed: these attempts, each with one of these errors.
pub fn check(log: &str, want: &[(&str, &[i32])]) {
    let tried: Vec<_> = log.lines().filter_map(|line| line.rsplit_once(": ")).collect();
    assert_eq!(tried.len(), want.len(), "{log}");
    for ((what, errno), (named, allowed)) in tried.into_iter().zip(want) {
        assert!(what == *named && allowed.iter().any(|one| one.to_string() == errno), "{what}: {errno}");
    }
}

/// Returns the program's file, compiled so that it needs nothing of the host at run time. Kept with the test programs: a compiler is not
/// everywhere where they run.
pub fn compiled() -> &'static Path {
    static FILE: OnceLock<PathBuf> = OnceLock::new();
    FILE.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/attacks/attacker");
        let mut hasher = DefaultHasher::new();
        let mut files: Vec<_> = fs::read_dir(&source).expect("list the sources").map(|entry| entry.expect("an entry").path()).collect();
        files.sort();
        files.iter().for_each(|file| fs::read(file).expect("read a source").hash(&mut hasher));
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("attacker-{:016x}", hasher.finish()));
        if !file.exists() {
            let part = file.with_extension(format!("{}", std::process::id()));
            compile(&source.join("main.rs"), &part);
            fs::rename(&part, &file).expect("keep the compiled program");
        }
        file
    })
}

fn compile(source: &Path, to: &Path) {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut command = Command::new(rustc);
    command.args(["--edition", "2024", "-C", "target-feature=+crt-static", "-C", "panic=abort", "-O", "-o"]).arg(to).arg(source);
    let compiled = command.output().unwrap_or_else(|err| panic!("run rustc: {err}"));
    assert!(compiled.status.success(), "compile {}: {}", source.display(), String::from_utf8_lossy(&compiled.stderr));
}

#[test]
fn it_needs_nothing_of_the_host() {
    let elf = fs::read(compiled()).expect("read the program");
    let number = |at: usize, bytes: usize| elf[at..at + bytes].iter().rev().fold(0_usize, |number, byte| number << 8 | usize::from(*byte));
    let (headers, size, count) = (number(0x20, 8), number(0x36, 2), number(0x38, 2));
    assert!(count > 0 && (0..count).all(|index| number(headers + index * size, 4) != 3), "it asks for a dynamic linker");
}
