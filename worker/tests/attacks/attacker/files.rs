//! Files that are dangerous to whoever finds them: with set-id bits, or too deep for any path, or no files (attacks A8, A11 and A23).

use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;

use crate::{call, told};

/// Makes set-id files and directories in the new directory `dir`, in the ways that pass by the system call filter, and prints each mode.
pub fn set_id(dir: &str) {
    fs::create_dir(dir).expect("make the directory");
    // No umask helps against these bits.
    let open = fs::OpenOptions::new().write(true).create_new(true).mode(0o6755).open(format!("{dir}/opened"));
    told("open with 6755", open);
    told("make a directory with 2755", fs::DirBuilder::new().mode(0o2755).create(format!("{dir}/made")));
    let path = format!("{dir}/openat2\0");
    // struct open_how: O_CREAT | O_WRONLY, mode 4755.
    let how = [0o101_u64, 0o4755, 0];
    told("openat2 with 4755", call(437, [-100, path.as_ptr() as i64, how.as_ptr() as i64, 24, 0]));
    for name in ["opened", "made", "openat2"] {
        let mode = fs::metadata(format!("{dir}/{name}")).map_or(0, |meta| meta.mode());
        println!("{name} has a set-id bit: {}", mode & 0o6000 != 0);
    }
}

/// Makes directories one in the other.
pub fn deep(dir: &str, levels: usize) {
    fs::create_dir(dir).expect("make the directory");
    std::env::set_current_dir(dir).expect("enter the directory");
    for _ in 0..levels {
        fs::create_dir("a-directory-of-a-long-name").expect("make a directory");
        std::env::set_current_dir("a-directory-of-a-long-name").expect("enter a directory");
    }
    println!("deep");
}

/// Leaves a socket behind.
pub fn socket(path: &str) {
    told("bind", UnixListener::bind(path));
}
