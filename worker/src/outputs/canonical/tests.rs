//! Hostile trees on the real file system. These tests run as root, which worker machines are.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, XattrFlags, fsetxattr, mkdirat, mknodat};

use super::*;
use crate::launcher::Owner;
use crate::trash::c_name;

const UID: u32 = 872_415_232;

struct Tree {
    root: tempfile::TempDir,
}

impl Tree {
    /// An output `out` that is a directory of the build's.
    fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "these tests change owners and make devices: run them as root");
        let tree = Self { root: tempfile::tempdir().expect("temporary directory") };
        fs::create_dir(tree.out()).expect("mkdir");
        tree.own(&tree.out());
        tree
    }

    fn out(&self) -> PathBuf {
        self.root.path().join("out")
    }

    fn own(&self, path: &Path) {
        std::os::unix::fs::lchown(path, Some(UID), Some(UID)).expect("chown");
    }

    fn file(&self, name: &str, mode: u32) -> PathBuf {
        let path = self.out().join(name);
        fs::write(&path, name).expect("write");
        self.own(&path);
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
        path
    }

    fn canonicalise(&self) -> Result<(), CanonicalError> {
        let dir = open_dir(CWD, &c_name(self.root.path()).expect("no NUL")).expect("open");
        Canonical::new(UID..=UID, Owner::own(), 1 << 20).output(dir.as_fd(), c"out", &OutputName::parse("out").expect("a name"))
    }
}

#[test]
fn modes_times_owners_and_attributes_become_canonical() {
    let tree = Tree::new();
    let table = [("plain", 0o644, 0o444), ("tool", 0o755, 0o555), ("setuid", 0o6755, 0o555), ("open", 0o666, 0o444), ("closed", 0, 0o444)];
    for (name, mode, _) in table {
        let path = tree.file(name, mode);
        let file = fs::File::open(&path).expect("open");
        fsetxattr(&file, "user.note", b"x", XattrFlags::empty()).expect("the test's file system takes attributes");
        fsetxattr(&file, "trusted.note", b"x", XattrFlags::empty()).expect("root may set these");
    }
    fs::create_dir(tree.out().join("sub")).expect("mkdir");
    tree.own(&tree.out().join("sub"));
    fs::set_permissions(tree.out().join("sub"), fs::Permissions::from_mode(0o2777)).expect("chmod");
    symlink("/etc/shadow", tree.out().join("link")).expect("symlink");
    tree.own(&tree.out().join("link"));
    let shadow_before = fs::metadata("/etc/shadow").expect("stat");

    tree.canonicalise().expect("canonical");
    for (name, _, mode) in table.into_iter().chain([("sub", 0, 0o555), ("", 0, 0o555)]) {
        let path = tree.out().join(name);
        let meta = fs::symlink_metadata(&path).expect("stat");
        assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid(), meta.mtime()), (mode, 0, 0, 1), "{name}");
        let size = flistxattr(fs::File::open(&path).expect("open"), &mut [0u8; 256]).expect("list");
        assert_eq!(size, 0, "{name} keeps attributes");
    }
    let link = fs::symlink_metadata(tree.out().join("link")).expect("stat");
    assert_eq!((link.uid(), link.mtime()), (0, 1));
    let shadow = fs::metadata("/etc/shadow").expect("stat");
    assert_eq!((shadow.mode(), shadow.mtime()), (shadow_before.mode(), shadow_before.mtime()), "the link was followed");
}

#[test]
fn hard_links_inside_the_output_are_allowed() {
    let tree = Tree::new();
    let first = tree.file("first", 0o644);
    fs::hard_link(&first, tree.out().join("second")).expect("link");
    tree.canonicalise().expect("canonical");
}

#[test]
fn trees_that_are_not_taken_are_refused_with_their_rule() {
    type Plant = fn(&Tree);
    let table: [(&str, Plant, &str); 10] = [
        ("missing", |t| fs::remove_dir(t.out()).expect("rmdir"), "failed to produce output `out`"),
        ("fifo", |t| plant_node(t, FileType::Fifo), "unsupported type `fifo`"),
        ("device", |t| plant_node(t, FileType::CharacterDevice), "unsupported type `character device`"),
        ("socket", |t| plant_node(t, FileType::Socket), "unsupported type `socket`"),
        ("link to an input", plant_foreign_link, "invalid ownership of `out/input`"),
        ("foreign file", |t| fs::write(t.out().join("foreign"), "x").expect("write"), "invalid ownership of `out/foreign`"),
        ("open root", |t| chmod_root(t, 0o757), "suspicious ownership or permission on output `out`"),
        ("group root", |t| chmod_root(t, 0o775), "mode 0775"),
        ("depth", plant_depth, "more than 64 directories deep"),
        ("sparse", plant_sparse, "output size limit"),
    ];
    for (name, plant, rule) in table {
        let tree = Tree::new();
        plant(&tree);
        let error = tree.canonicalise().expect_err(name).to_string();
        assert!(error.contains(rule), "{name}: {error}");
    }
}

#[test]
fn a_root_that_is_a_link_or_foreign_touches_nothing_outside() {
    let tree = Tree::new();
    fs::remove_dir(tree.out()).expect("rmdir");
    symlink("/etc", tree.out()).expect("symlink");
    let before = fs::metadata("/etc").expect("stat");
    assert!(matches!(tree.canonicalise(), Err(CanonicalError::Suspicious { uid: 0, .. })));
    tree.own(&tree.out());
    tree.canonicalise().expect("a link of the build's own is an output");
    let after = fs::metadata("/etc").expect("stat");
    assert_eq!((before.mode(), before.mtime(), before.uid()), (after.mode(), after.mtime(), after.uid()));
}

fn plant_node(tree: &Tree, kind: FileType) {
    let path = tree.out().join("node");
    mknodat(CWD, &path, kind, Mode::RUSR, rustix::fs::makedev(1, 3)).expect("mknod");
    tree.own(&path);
}

fn plant_foreign_link(tree: &Tree) {
    let input = tree.root.path().join("input");
    fs::write(&input, "an input").expect("write");
    fs::hard_link(&input, tree.out().join("input")).expect("link");
}

fn chmod_root(tree: &Tree, mode: u32) {
    fs::set_permissions(tree.out(), fs::Permissions::from_mode(mode)).expect("chmod");
}

fn plant_sparse(tree: &Tree) {
    let path = tree.file("sparse", 0o644);
    fs::OpenOptions::new().write(true).open(path).expect("open").set_len(1 << 40).expect("sparse");
}

fn plant_depth(tree: &Tree) {
    let mut dir = open_dir(CWD, &c_name(&tree.out()).expect("no NUL")).expect("open");
    for _ in 0..70 {
        mkdirat(&dir, c"d", Mode::RWXU).expect("mkdir");
        chownat(&dir, c"d", Some(Uid::from_raw(UID)), None, AtFlags::SYMLINK_NOFOLLOW).expect("chown");
        dir = open_dir(&dir, c"d").expect("open");
    }
}
