//! What is prepared ahead and used again: a build must see its own inputs and nothing that an earlier build, or an earlier input of the
//! same name, left behind. Needs root.

mod sandbox_support;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::PathBuf;

use kiln_wire::StorePath;
use sandbox_support::{Bench, Ran};

/// A bench whose builds run one after the other, each in a directory of its own beside the last.
struct Row {
    bench: Bench,
    builds: u32,
}

impl Row {
    fn new() -> Self {
        let mut bench = Bench::new("");
        bench.spec.inputs.clear();
        Self { bench, builds: 0 }
    }

    /// Makes the inputs, `a=1 b=2`: one letter each, with what a file in it says. One that says the same as before is left alone.
    fn inputs(&mut self, text: &str) {
        self.bench.spec.inputs.clear();
        for (letter, says) in text.split_whitespace().map(|word| word.split_once('=').expect("letter=word")) {
            let name = format!("{}-input", letter.repeat(32));
            let dir = self.bench.host("store").join(&name);
            if fs::read_to_string(dir.join("says")).ok().as_deref() != Some(says) {
                // As a store does: what goes is moved away first, what comes is complete.
                let (made, gone) = (self.bench.host("made"), self.bench.host("gone"));
                fs::create_dir(&made).and(fs::write(made.join("says"), says)).expect("make an input");
                if dir.exists() {
                    fs::rename(&dir, &gone).and(fs::remove_dir_all(&gone)).expect("remove an input");
                }
                fs::rename(&made, &dir).expect("keep an input");
            }
            self.bench.spec.inputs.push((StorePath::parse(&name).expect("a store path"), dir));
        }
    }

    fn build(&mut self, script: &str) -> Ran {
        self.builds += 1;
        self.bench.spec.root_dir = self.bench.host(&format!("root-{}", self.builds));
        fs::create_dir(&self.bench.spec.root_dir).expect("mkdir");
        self.bench.spec.args = vec![b"-c".to_vec(), script.as_bytes().to_vec()];
        self.bench.run()
    }

    /// What lies in the store of a build, `a=1 b=2`, in order.
    fn seen(&mut self) -> String {
        let ran = self.build("cd /nix/store; for i in $(ls -A); do echo ${i%%-*}=$(cat $i/says 2>&1); done");
        let words = ran.log.lines().map(|line| if line.len() > 32 { format!("{}{}", &line[..1], &line[32..]) } else { line.to_owned() });
        words.collect::<Vec<_>>().join(" ")
    }

    /// Which directory the store of a build is.
    fn store(&mut self) -> String {
        self.build("stat -c %i /nix/store").log
    }
}

#[test]
fn a_build_sees_exactly_its_inputs_whatever_the_one_before_it_had() {
    let mut row = Row::new();
    let sets = [
        "a=1 b=2 c=3 d=4 f=5 g=6 h=7 i=8",
        "a=1 b=2 c=3 d=4 f=5 g=6 h=7 i=8",
        "a=1 b=2 c=3 d=4 f=5 g=6 h=7",
        "a=1 b=2 c=3 d=4 f=5 g=6 h=7 j=9",
        // Collected and fetched again, with another content.
        "a=1 b=2 c=new d=4 f=5 g=6 h=7 j=9",
        "d=4",
        "",
        "a=1",
    ];
    for set in sets {
        row.inputs(set);
        assert_eq!(row.seen(), set);
    }
}

#[test]
fn a_store_is_used_again_and_holds_nothing_of_the_build_before() {
    let mut row = Row::new();
    row.inputs("a=1 b=2 c=3");
    let store = row.store();
    let names = ["out", ".hidden", "with space", "-r", "new\\012line", "\\377\\376", "dir"];
    let made = row.build(&format!(
        "cd /nix/store; for name in {}; do touch \"./$(printf \"$name\")\"; done; rm ./dir; mkdir dir; echo deep > dir/file; ln -s out link",
        names.map(|name| format!("'{name}'")).join(" ")
    ));
    assert!(made.ended.succeeded(), "{}", made.log);
    let outputs = row.bench.spec.outputs_dir();
    let found: Vec<PathBuf> = fs::read_dir(&outputs).expect("list").map(|entry| entry.expect("list").path()).collect();
    assert_eq!(found.len(), names.len() + 1, "{found:?}");
    assert_eq!(fs::read_to_string(outputs.join("dir/file")).expect("an output"), "deep\n");
    assert_eq!(row.seen(), "a=1 b=2 c=3");
    assert_eq!(row.store(), store, "it is another directory: nothing was used again, and this test shows nothing");
}

#[test]
fn a_build_cannot_touch_what_the_next_one_will_use() {
    let mut row = Row::new();
    row.inputs("a=1 b=2");
    let store = row.store();
    let deeds = [
        "rmdir aa*",
        "mv aa* moved",
        "mv bb* aa*/",
        "chmod 777 .",
        "chmod 777 aa*",
        "chown 1000 .",
        "touch aa*/new",
        "ln -s /build aa*",
        "mkdir -p swapped && mv -T swapped aa*",
    ];
    for deed in deeds {
        let ran = row.build(&format!("cd /nix/store && {deed} 2>/dev/null"));
        assert!(!ran.ended.succeeded(), "`{deed}` is possible");
        assert_eq!(row.seen(), "a=1 b=2", "after `{deed}`");
        assert_eq!(row.store(), store, "after `{deed}`");
    }
    let dir = fs::read_dir(row.bench.host(""))
        .expect("list")
        .map(|entry| entry.expect("list").path())
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".store-")))
        .expect("the store waits beside the builds");
    let found = fs::metadata(dir).expect("stat");
    assert_eq!((found.permissions().mode() & 0o7777, found.uid()), (0o1775, 0));
}

#[test]
fn a_store_with_very_many_names_is_not_used_again() {
    let mut row = Row::new();
    row.inputs("a=1 b=2");
    let store = row.store();
    let flood = row.build("cd /nix/store; n=0; while [ $n -le 1000 ]; do : > $n; n=$((n+1)); done");
    assert!(flood.ended.succeeded(), "{}", flood.log);
    assert!(row.bench.spec.outputs_dir().join("1000").exists());
    assert_eq!(row.seen(), "a=1 b=2");
    assert_ne!(row.store(), store);
}

#[test]
fn builds_at_one_time_have_stores_of_their_own() {
    let mut rows = [Row::new(), Row::new(), Row::new()];
    for row in &mut rows {
        row.inputs("a=1 b=2");
        row.store();
    }
    std::thread::scope(|scope| {
        let builds = rows.iter_mut().map(|row| {
            scope.spawn(move || {
                for _ in 0..10 {
                    let ran = row.build("cd /nix/store; : > mine; ls -A | wc -l");
                    assert_eq!(ran.log.trim(), "3");
                }
            })
        });
        builds.collect::<Vec<_>>().into_iter().for_each(|build| build.join().expect("each build sees its own"));
    });
}

/// Namespaces have no name that is never used again, but counters.
#[test]
fn every_build_has_a_network_that_nobody_used_and_that_it_cannot_change() {
    let own = fs::read_link("/proc/self/ns/net").expect("this process has a network").to_string_lossy().into_owned();
    let mut row = Row::new();
    for _ in 0..20 {
        let ran = row.build(
            "readlink /proc/self/ns/net; tail -n +3 /proc/net/dev | while read name bytes rest; do echo $name $bytes; done
            ip link set lo down 2>&1; nc -w 1 127.0.0.1 9 </dev/null 2>&1; grep -q 'lo: *0 ' /proc/net/dev || echo used",
        );
        let lines: Vec<&str> = ran.log.lines().collect();
        assert_ne!(lines[0], own);
        let refused = ["ip: SIOCSIFFLAGS: Operation not permitted", "nc: can't connect to remote host (127.0.0.1): Connection refused"];
        assert_eq!(lines[1..], ["lo: 0", refused[0], refused[1], "used"]);
    }
}
