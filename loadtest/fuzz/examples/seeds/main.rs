//! Writes the seeds that are made by hand into the corpora, each as `made-NAME`, in place of those that were there.
//!
//!     cargo run -p kiln-fuzz --example seeds

mod aterm;
mod blob;
mod daemon;
mod foreign;
mod frames;
mod hook;
mod json;
mod launcher;
mod nar;
mod narinfo;
mod words;

use std::fs;
use std::path::Path;

fn main() -> std::io::Result<()> {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let table = [
        ("aterm", aterm::seeds()),
        ("blob", blob::seeds(&nar::seeds())),
        ("daemon", daemon::seeds()),
        ("evaluated", json::evaluated()),
        ("foreign", foreign::seeds(&nar::seeds())),
        ("frames", frames::seeds()),
        ("hook", hook::seeds()),
        ("launcher", launcher::seeds()),
        ("nar", nar::seeds()),
        ("narinfo", narinfo::seeds()),
        ("realisation", json::realisation()),
        ("restore", nar::seeds()),
        ("shown", json::shown()),
        ("words", words::seeds()),
    ];
    for (target, seeds) in table {
        let corpus = corpora.join(target);
        fs::create_dir_all(&corpus)?;
        for entry in fs::read_dir(&corpus)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with("made-") {
                fs::remove_file(entry.path())?;
            }
        }
        for (name, bytes) in &seeds {
            fs::write(corpus.join(format!("made-{name}")), bytes)?;
        }
        println!("{target}: {} seeds", seeds.len());
    }
    Ok(())
}
