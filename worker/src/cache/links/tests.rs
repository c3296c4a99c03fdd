//! Sharing on the real file system.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::CWD;

use super::*;
use crate::trash::c_name;

/// A directory of shared files, and a place for trees.
struct Place {
    dir: tempfile::TempDir,
    links: Links,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        fs::create_dir(dir.path().join("links")).expect("mkdir");
        let links = reopened(dir.path()).0;
        Self { dir, links }
    }

    /// Writes a canonical tree: `name=letter`, a file of 5,000 times the letter; `name=letter!` is executable, `name=.letter` is short.
    fn tree(&self, name: &str, files: &[&str]) -> PathBuf {
        let root = self.dir.path().join(name);
        fs::create_dir(&root).expect("mkdir");
        for file in files {
            let (name, what) = file.split_once('=').expect("a name and a letter");
            let (letter, executable) = what.strip_suffix('!').map_or((what, false), |letter| (letter, true));
            let text = letter.strip_prefix('.').map_or_else(|| letter.repeat(5000), |letter| letter.repeat(4000));
            let path = root.join(name);
            fs::create_dir_all(path.parent().expect("has one")).expect("mkdir");
            fs::write(&path, text).expect("write");
            fs::set_permissions(&path, fs::Permissions::from_mode(if executable { 0o555 } else { 0o444 })).expect("chmod");
        }
        seal(&root);
        root
    }

    fn share(&self, name: &str) -> Shared {
        let dir = open_dir(CWD, &c_name(self.dir.path()).expect("no NUL")).expect("opens");
        self.links.share(dir.as_fd(), &CString::new(name).expect("no NUL"))
    }

    fn link_names(&self) -> Vec<String> {
        let names = fs::read_dir(self.dir.path().join("links")).expect("lists");
        names.map(|name| name.expect("an entry").file_name().into_string().expect("text")).collect()
    }
}

fn reopened(dir: &Path) -> (Links, Swept) {
    let fd = open_dir(CWD, &c_name(&dir.join("links")).expect("no NUL")).expect("opens");
    Links::open(fd).expect("lists")
}

/// Gives everything the time of store objects, and directories their mode.
fn seal(root: &Path) {
    for entry in fs::read_dir(root).expect("lists") {
        let path = entry.expect("an entry").path();
        let meta = fs::symlink_metadata(&path).expect("stat");
        if meta.is_dir() {
            seal(&path);
        } else if meta.is_file() {
            set_time(&path);
        }
    }
    fs::set_permissions(root, fs::Permissions::from_mode(0o555)).expect("chmod");
    set_time(root);
}

fn set_time(path: &Path) {
    futimens(fs::File::open(path).expect("opens"), &MTIME).expect("sets");
}

fn inode(path: &Path) -> u64 {
    fs::metadata(path).expect("stat").ino()
}

#[test]
fn equal_files_become_one_and_the_trees_stay_as_they_were() {
    let place = Place::new();
    let one = place.tree("one", &["a=a", "d/e/again=a", "b=b", "tool=a!", "small=.a"]);
    let two = place.tree("two", &["new-0=a", "x/b=b", "x/own=c", "tool=a!", "small=.a"]);
    assert_eq!(place.share("one"), Shared { bytes: 20_000, new_bytes: 15_000 });
    assert_eq!(place.share("two"), Shared { bytes: 20_000, new_bytes: 5_000 });
    assert_eq!(place.share("two"), Shared { bytes: 20_000, new_bytes: 0 }, "once more changes nothing");
    let same = [("a", "d/e/again"), ("a", "../two/new-0"), ("b", "../two/x/b"), ("tool", "../two/tool")];
    same.iter().for_each(|(here, there)| assert_eq!(inode(&one.join(here)), inode(&one.join(there)), "{here} {there}"));
    for (here, there) in [("a", "tool"), ("small", "../two/small"), ("b", "../two/x/own")] {
        assert_ne!(inode(&one.join(here)), inode(&one.join(there)), "{here} {there}");
    }
    for (path, mode) in [("one/d/e", 0o555), ("two", 0o555), ("two/x", 0o555), ("two/x/b", 0o444), ("two/tool", 0o555)] {
        let meta = fs::metadata(place.dir.path().join(path)).expect("stat");
        assert_eq!((meta.permissions().mode() & 0o7777, meta.mtime(), meta.mtime_nsec()), (mode, 1, 0), "{path}");
    }
    assert_eq!(fs::read_to_string(two.join("new-0")).expect("reads"), "a".repeat(5000));
    assert_eq!(place.link_names().len(), 4);
}

#[test]
fn what_a_link_in_a_tree_leads_to_is_not_shared() {
    let place = Place::new();
    let stranger = place.dir.path().join("stranger");
    fs::write(&stranger, "a".repeat(5000)).expect("write");
    fs::create_dir(place.dir.path().join("tree")).expect("mkdir");
    symlink(&stranger, place.dir.path().join("tree/link")).expect("symlink");
    symlink(place.dir.path(), place.dir.path().join("tree/up")).expect("symlink");
    assert_eq!(place.share("tree"), Shared::default());
    assert_eq!(fs::metadata(&stranger).expect("stat").nlink(), 1);
}

/// What happens to a file in place.
type Damage = fn(&Path);

#[test]
fn a_damaged_file_spreads_to_no_other_tree_and_loses_its_name() {
    let damages: [(&str, Damage); 4] = [
        ("flipped", |file| overwrite(file, &[&"a".repeat(4999), "b"].concat())),
        ("cut", |file| overwrite(file, "")),
        ("longer", |file| overwrite(file, &"a".repeat(5001))),
        ("writable", |file| fs::set_permissions(file, fs::Permissions::from_mode(0o644)).expect("chmod")),
    ];
    for (damage, apply) in damages {
        let place = Place::new();
        let [one, two, three] = ["one", "two", "three"].map(|name| place.tree(name, &["f=a"]).join("f"));
        place.share("one");
        apply(&one);
        assert_eq!(place.share("two"), Shared { bytes: 5000, new_bytes: 5000 }, "{damage}");
        assert_ne!(inode(&one), inode(&two), "{damage}");
        place.share("three");
        assert_eq!(inode(&two), inode(&three), "{damage}");
        assert_eq!(fs::read_to_string(&three).expect("reads"), "a".repeat(5000), "{damage}");
    }
}

/// As a disk or a power loss may: the file's facts stay, and its bytes do not.
fn overwrite(file: &Path, text: &str) {
    fs::write(file, text).expect("these tests run as root");
    set_time(file);
}

#[test]
fn what_no_tree_has_is_swept_and_what_was_half_done_at_the_start() {
    let place = Place::new();
    place.tree("one", &["a=a", "b=b"]);
    place.tree("two", &["b=b"]);
    place.share("one");
    place.share("two");
    assert_eq!(place.links.sweep().expect("lists"), Swept { kept_bytes: 10_000, freed_bytes: 0 });
    fs::remove_dir_all(place.dir.path().join("one")).expect("removes");
    fs::write(place.dir.path().join("links/new-7"), "half").expect("write");
    assert_eq!(place.links.sweep().expect("lists"), Swept { kept_bytes: 5000, freed_bytes: 5000 });
    assert_eq!(place.link_names().len(), 2, "another thread may be about to use it");
    assert_eq!(reopened(place.dir.path()).1, Swept { kept_bytes: 5000, freed_bytes: 0 });
    assert_eq!(place.link_names().len(), 1);
}

#[test]
fn a_file_that_may_have_no_more_names_is_left_alone() {
    let place = Place::new();
    let one = place.tree("one", &["f=a"]).join("f");
    let two = place.tree("two", &["f=a"]).join("f");
    place.share("one");
    let side = place.dir.path().join("side");
    fs::create_dir(&side).expect("mkdir");
    // ext4 takes 65,000; a file system without a bound shares on.
    let full = (0..66_000).any(|number| fs::hard_link(&one, side.join(number.to_string())).is_err());
    assert_eq!(place.share("two"), Shared { bytes: if full { 0 } else { 5000 }, new_bytes: 0 });
    assert_eq!(inode(&one) != inode(&two), full);
    assert_eq!(fs::read_to_string(&two).expect("reads"), "a".repeat(5000));
}
