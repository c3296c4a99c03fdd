//! Whole attempts of `builtin:buildenv` and `builtin:unpack-channel` against a scripted coordinator.
//!
//! The NAR hashes are those that Nix 2.8 computed for the same recipes and inputs, in its sandbox.

mod farm;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use farm::{Farm, Job, store_path};
use kiln_nix::derivation::{Derivation, Output};
use kiln_nix::hash::Hash;
use kiln_wire::{BuiltOutput, FailureClass, JobLimits, Outcome, OutputName, PathInfo, StoreDir, StorePath};

/// A recipe of the builtin `builder`, named after what it shows.
fn recipe(builder: &str, name: &str, env: &[(&str, &str)], inputs: &[PathInfo]) -> Job {
    let out = store_path(name);
    let mut env: BTreeMap<String, Vec<u8>> = env.iter().map(|(name, value)| ((*name).into(), value.as_bytes().to_vec())).collect();
    env.insert("out".into(), StoreDir::default().join(&out).into_bytes());
    Job::new(Derivation {
        name: name.into(),
        outputs: [(OutputName::parse("out").expect("a name"), Output::InputAddressed(out))].into(),
        inputs: BTreeMap::new(),
        sources: inputs.iter().map(|info| info.path.clone()).collect(),
        system: "builtin".into(),
        builder: builder.into(),
        args: Vec::new(),
        env,
    })
}

/// Dispatches and returns what the attempt made and logged, or how it failed.
async fn attempt(farm: &Farm, job: &Job, number: u64, inputs: &[PathInfo]) -> Result<(BuiltOutput, String), (FailureClass, String)> {
    let mut assignment = farm.assignment(job, number, inputs.to_vec());
    assignment.limits = JobLimits { output_bytes_max: 1 << 20, ..assignment.limits };
    farm.dispatch(&assignment);
    let (log, outcome) = farm.finished(&assignment.lease).await;
    farm.acknowledge(&assignment.lease);
    match outcome {
        Outcome::Built { mut outputs, .. } => Ok((outputs.pop().expect("one output"), log)),
        Outcome::Failed { failure, .. } => Err((failure.class, failure.message)),
    }
}

fn nar(output: &BuiltOutput) -> (Vec<u8>, u64) {
    (output.info.nar_hash.0.to_vec(), output.info.nar_size_bytes)
}

/// The bytes of a hash as Nix prints it.
fn digest(sri: &str) -> Vec<u8> {
    Hash::parse(sri).expect("a hash").digest().to_vec()
}

/// Writes a tree: `name=text`, `name→target`.
fn tree(dir: &Path, entries: &[&str]) {
    for entry in entries {
        let (name, link, text) = match entry.split_once('→') {
            Some((name, target)) => (name, true, target),
            None => entry.split_once('=').map(|(name, text)| (name, false, text)).expect("a text or a target"),
        };
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().expect("has one")).expect("mkdir");
        match link {
            true => std::os::unix::fs::symlink(text, path).expect("symlink"),
            false => std::fs::write(path, text).expect("write"),
        }
    }
}

/// Packages with about everything that an environment treats specially, under the names that Nix gave them.
fn packages(farm: &Farm) -> [PathInfo; 4] {
    let three = "/nix/store/4arrkdzhk09k4czjbr4x6bshxsywialq-three";
    let propagated = format!("nix-support/propagated-user-env-packages={three}\n");
    let (man, doc) = (format!("share/man→{three}/share/man"), format!("share/doc→{three}"));
    let all: [(&str, &[&str]); 4] = [
        (
            "pwv94aq6n7z3isw6dsz89ig0612pcws5-one",
            &[
                "bin/tool=tool",
                "bin/both=1",
                "share/doc/readme=r",
                "share/doc/sub/s=s",
                "lib/libx.so.1=so",
                "lib/libx.so→libx.so.1",
                ".hidden=h",
                "share/dangling→/nowhere",
                &propagated,
                "null→/dev/null",
                "shadow→/etc/shadow",
                "passwd→/etc/passwd",
                "tmp→/tmp",
                "root→/",
                "sh→/bin/sh",
                "manifest.json={}",
                "manifest.nix=n",
                "log/l=l",
                "lib/perllocal.pod=p",
                "share/info/dir=d",
                "share/info/i=i",
            ],
        ),
        ("fw1f83b7ki7s2vsqv7sn5vblssc133vq-two", &["bin/both=2", "share/doc/other=o", &man, "lib→lib64", "lib64/liby.so=y"]),
        ("4arrkdzhk09k4czjbr4x6bshxsywialq-three", &["share/man/man1/x.1=x", "bin/both=three", "gone→/nix/store/absent"]),
        ("73gznxlspd25xb7w778dq2gvsvwqrsjf-four", &[&doc, "tool=four"]),
    ];
    all.map(|(name, entries)| {
        let dir = farm.dir.path().join(name);
        tree(&dir, entries);
        farm.add(&StorePath::parse(name).expect("a store path"), &dir)
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_environment_has_the_bytes_that_nix_gives_it() {
    let farm = Farm::start().await;
    let worker = farm.worker();
    farm.hello().await;
    let inputs = packages(&farm);
    let [one, two, three, four] = inputs.each_ref().map(|info| info.path.clone());
    let full = |path: &StorePath| StoreDir::default().join(path);
    let table = [
        (
            format!("true 5 1 {} true 4 1 {}", full(&one), full(&two)),
            ("sha256-09oiTCgmgPHbkqzMKZu4pYpatKDNFuXp06fFvKPmTMQ=", 5232),
            BTreeSet::from([one.clone(), two.clone(), three.clone()]),
        ),
        (
            format!("true 3 2 {} {} false 3 1 {}", full(&one), full(&four), full(&two)),
            ("sha256-lygf6S7Lz5hUCUoZT0DsSqBa0MFchtx+rDLu3DfQiyY=", 4440),
            BTreeSet::from([one.clone(), three.clone(), four]),
        ),
    ];
    for (number, (derivations, expect, references)) in (100..).zip(table) {
        let env = [("derivations", derivations.as_str()), ("manifest", "/manifest")];
        let job = recipe("builtin:buildenv", &format!("environment-{number}"), &env, &inputs);
        let (output, log) = attempt(&farm, &job, number, &inputs).await.expect("it is made");
        assert_eq!(nar(&output), (digest(expect.0), expect.1), "{derivations}");
        assert_eq!(output.info.references, references);
        assert_eq!(farm.uploaded(&output.info.path).as_ref(), Some(&output.info));
        for name in ["share/dangling", "shadow"] {
            assert!(log.contains(&format!("warning: skipping dangling symlink `{}/{name}`", full(&one))), "{log}");
        }
    }
    let conflict = format!("true 5 1 {} true 5 1 {}", full(&one), full(&two));
    let job = recipe("builtin:buildenv", "conflict", &[("derivations", &conflict), ("manifest", "/manifest")], &inputs);
    let (class, message) = attempt(&farm, &job, 200, &inputs).await.expect_err("a conflict");
    let words = format!("files `{}/bin/both` and `{}/bin/both` have the same priority 5", full(&two), full(&one));
    assert!(class == FailureClass::BuildFailure && message.contains(&words), "{class:?} {message}");
    worker.stop().await;
}

/// A member of a tarball: its name, type, mode, and what it holds or leads to.
type Member<'a> = (&'a str, tar::EntryType, u32, &'a str);

fn tarball(members: &[Member<'_>]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, kind, mode, text) in members {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(*mode);
        header.set_uid(1234);
        header.set_mtime(12345);
        header.set_size(0);
        let done = match kind {
            tar::EntryType::Symlink | tar::EntryType::Link => builder.append_link(&mut header, name, text),
            _ => {
                header.set_size(text.len() as u64);
                builder.append_data(&mut header, name, text.as_bytes())
            }
        };
        done.expect("an archive");
    }
    builder.into_inner().expect("an archive")
}

async fn unpack(farm: &Arc<Farm>, number: u64, bytes: &[u8]) -> Result<(BuiltOutput, String), (FailureClass, String)> {
    let name = format!("channel-{number}");
    let file = farm.dir.path().join(&name);
    std::fs::write(&file, bytes).expect("write");
    let inputs = [farm.add(&store_path(&format!("{name}.tar")), &file)];
    let src = StoreDir::default().join(&inputs[0].path);
    let job = recipe("builtin:unpack-channel", &name, &[("src", &src), ("channelName", "nixos")], &inputs);
    attempt(farm, &job, number, &inputs).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_has_the_bytes_that_nix_gives_it() {
    use tar::EntryType::{Directory, Link, Regular, Symlink};
    let farm = Farm::start().await;
    let worker = farm.worker();
    farm.hello().await;
    let implied = format!("top/implied/{}/x", "n".repeat(120));
    let full = tarball(&[
        ("top", Directory, 0o2755, ""),
        ("top/default.nix", Regular, 0o644, "{ }"),
        ("top/build", Regular, 0o755, "#!"),
        ("top/su", Regular, 0o6755, "su"),
        ("top/group-only", Regular, 0o654, "g"),
        ("top/secret", Regular, 0o400, "s"),
        ("top/none", Regular, 0, "n"),
        ("top/link", Symlink, 0o777, "../../etc/shadow"),
        ("top/same", Link, 0o644, "top/default.nix"),
        (&implied, Regular, 0o644, "x"),
        ("top/empty", Directory, 0o500, ""),
        ("top/default.nix", Regular, 0o644, "{ later = 1; }"),
    ]);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, &full).expect("compresses");
    let hash = ("sha256-pw1zQYz/AKHzJavPP+dZDXiVxIDoXvXIAfsi2fl4ZcA=", 2704);
    let table = [
        (full.clone(), hash),
        (gzip.finish().expect("compresses"), hash),
        (zstd::encode_all(full.as_slice(), 1).expect("compresses"), hash),
        (tarball(&[("file", Regular, 0o644, "1")]), ("sha256-1dRZZ1GkTlgW6UD5PervXCTo0jKRjf0/+awYK3izlWo=", 288)),
        (
            tarball(&[("./", Directory, 0o755, ""), ("./top/", Directory, 0o755, ""), ("./top/x", Regular, 0o644, "1")]),
            ("sha256-jaXMpgrsGZyOZP0TxtX8+wHdyS1H9ctYvxrN4g+57bc=", 456),
        ),
        (
            tarball(&[("top/l", Symlink, 0o777, "."), ("top/l", Directory, 0o755, ""), ("top/l/x", Regular, 0o644, "1")]),
            ("sha256-YzKhHZy1R2L9UZaV1LBQPxM29Y06N/+CL7uzsmmod8k=", 624),
        ),
        (
            tarball(&[("top/f", Regular, 0o777, "x"), ("top/f", Directory, 0o755, "")]),
            ("sha256-CocAbuwWupD4rIWCKL4La8AHnVrwK/kQvBS/yR5Vd8U=", 432),
        ),
        (
            tarball(&[("top/s", Symlink, 0o777, "abc"), ("top/x", Link, 0o777, "top/s")]),
            ("sha256-ZNqFAjEecMO8R17Lb48+E7IMCszWdvkVy60YIjARt2I=", 648),
        ),
    ];
    for (number, (bytes, expect)) in (100..).zip(table) {
        let (output, _) = unpack(&farm, number, &bytes).await.expect("it is unpacked");
        assert_eq!(nar(&output), (digest(expect.0), expect.1), "attempt {number}");
        assert_eq!(farm.uploaded(&output.info.path).as_ref(), Some(&output.info));
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a34_a_hostile_tarball_fails_its_own_build_and_no_other() {
    use tar::EntryType::{Regular, Symlink};
    let farm = Farm::start().await;
    let worker = farm.worker();
    farm.hello().await;
    let canary = farm.dir.path().join("canary");
    std::fs::write(&canary, "alive").expect("write");
    let away = farm.dir.path().to_str().expect("text").to_owned();
    let large = "x".repeat(2 << 20);
    let table = [
        (
            tarball(&[("top/l", Symlink, 0o777, &away), ("top/l/canary", Regular, 0o644, "dead")]),
            FailureClass::BuildFailure,
            "refuse `top/l/canary`: `l` in its way is a link or a file, not a directory",
        ),
        (tarball(&[("top/x", Regular, 0o644, &large)]), FailureClass::LimitExceeded, "it holds more than 1048576 bytes"),
        (b"BZh91AY&SY".to_vec(), FailureClass::BuildFailure, "bzip2 is not supported"),
    ];
    for (number, (bytes, class, words)) in (100..).zip(table) {
        let (found, message) = unpack(&farm, number, &bytes).await.expect_err(words);
        assert!(found == class && message.contains(words), "{found:?} {message}");
    }
    unpack(&farm, 200, &tarball(&[("top/x", Regular, 0o644, "1")])).await.expect("the worker works on");
    assert_eq!(std::fs::read_to_string(&canary).expect("is there"), "alive");
    worker.stop().await;
    for dir in ["build", "incoming"] {
        let left = std::fs::read_dir(farm.dir.path().join("worker").join(dir)).expect("lists").count();
        assert_eq!(left, 0, "{dir}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_builder_that_no_worker_brings_is_refused_by_its_name() {
    let farm = Farm::start().await;
    let worker = farm.worker();
    farm.hello().await;
    let job = recipe("builtin:mirror", "mirror", &[], &[]);
    let (class, message) = attempt(&farm, &job, 100, &[]).await.expect_err("unknown");
    assert_eq!(class, FailureClass::BuildFailure);
    assert!(message.starts_with("there is no builder `builtin:mirror`; this worker brings `builtin:buildenv`"), "{message}");
    worker.stop().await;
}
