//! What a builder sees: itself, its files, its devices, and nothing of the host.

mod sandbox_support;

use std::os::unix::fs::MetadataExt as _;

use kiln_wire::StoreDir;
use kiln_worker::sandbox::{Network, env_pairs};
use sandbox_support::{Bench, INPUT, OTHER, OUTPUT, chain, output};

#[test]
fn a_builder_sees_what_nix_shows() {
    let table = [
        ("ids", "id -u; id -g; id -G", "1000\n100\n100\n"),
        (
            "environment",
            "cat /proc/1/environ | tr '\\0' '\\n'",
            "out=/nix/store/2hm2f1psjpcwg8fijsmr4wwxrx59s092-output\nHOME=/homeless-shelter\n",
        ),
        ("working directory", "pwd", "/build\n"),
        ("first process", "echo $$", "1\n"),
        ("argv[0]", "echo $0", "sh\n"),
        ("umask", "umask", "0022\n"),
        ("host name", "hostname; cat /proc/sys/kernel/domainname", "localhost\n(none)\n"),
        ("root", "cd /; echo *", "bin build dev etc nix proc tmp\n"),
        ("devices", "cd /dev; echo *", "fd full null ptmx pts random shm stderr stdin stdout tty urandom zero\n"),
        ("etc", "cd /etc; echo *; stat -c %a .", "group hosts passwd\n555\n"),
        ("passwd", "grep 1000 /etc/passwd", "nixbld:x:1000:100:Nix build user:/build:/noshell\n"),
        ("hosts", "cat /etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
        ("modes", "stat -c '%a %u:%g' /build /tmp /nix/store", "700 1000:100\n1777 65534:65534\n1775 65534:100\n"),
        ("a file made for it", "cat note; stat -c ' %a %u:%g' note", "for the builder 644 1000:100\n"),
        ("the store", "ls /nix/store; cat /nix/store/*-input/file", "0hm2f1psjpcwg8fijsmr4wwxrx59s092-input\nof the input"),
        ("standard input", "cat; readlink /proc/self/fd/0", "/dev/null\n"),
        ("a terminal", "test -t 1 && test -t 2 && echo raw >/dev/stderr", "raw\n"),
        ("core files", "ulimit -c", "0\n"),
        ("control group", "cut -d: -f3 /proc/self/cgroup | grep -c kiln; true", "0\n"),
        (
            "privileges",
            "grep -E '^(CapEff|CapPrm|NoNewPrivs|Seccomp):' /proc/self/status",
            "CapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n",
        ),
        ("open files", "ls -1 /proc/self/fd", "0\n1\n2\n3\n"),
        ("shared memory", "echo x >/dev/shm/y && cat /dev/shm/y", "x\n"),
        // Busybox's shell itself ignores SIGQUIT; whatever the worker ignores is not passed on.
        ("signals", "grep -E '^Sig(Blk|Ign)' /proc/self/status", "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000004\n"),
        ("personality", "cat /proc/self/personality", "00040000\n"),
    ];
    for (what, script, want) in table {
        assert_eq!(output(script), want, "{what}");
    }
}

#[test]
fn a_32_bit_build_is_told_so() {
    let mut bench = Bench::new("uname -m");
    bench.spec.system = "i686-linux".to_owned();
    assert_eq!(bench.run().log, "i686\n");
}

#[test]
fn outputs_belong_to_the_slot_wherever_the_store_lies() {
    for store in ["/nix/store", "/store", "/a/b/c/store", "/tmp/store", "/tmp/a/b/store"] {
        let mut bench = Bench::new("cat $in/file; mkdir $out && echo made >$out/file; touch /tmp/mine; ls -1 /tmp");
        bench.spec.store_dir = StoreDir::parse(store).expect("a store directory");
        bench.spec.env = env_pairs([("out", &*format!("{store}/{OUTPUT}")), ("in", &format!("{store}/{INPUT}"))]);
        let ran = bench.run();
        assert!(ran.ended.succeeded(), "{store}: {:?}", ran.ended);
        let below_tmp = store.strip_prefix("/tmp/").map(|rest| format!("{}\n", rest.split('/').next().unwrap_or(rest)));
        let mut seen: Vec<_> = ["mine\n".to_owned()].into_iter().chain(below_tmp).collect();
        seen.sort();
        assert_eq!(ran.log, format!("of the input{}", seen.concat()), "{store}");
        let made = bench.spec.outputs_dir().join(OUTPUT);
        assert_eq!(std::fs::read_to_string(made.join("file")).expect("read the output"), "made\n");
        let found = made.metadata().expect("look at the output");
        assert_eq!((found.uid(), found.gid()), (bench.spec.host_id.uid, bench.spec.host_id.gid), "{store}");
    }
}

#[test]
fn a_store_directory_that_is_something_else_in_the_sandbox_is_refused() {
    for store in ["/tmp", "/build", "/build/store", "/dev/shm", "/etc/store", "/bin", "/proc/store"] {
        let mut bench = Bench::new("");
        bench.spec.store_dir = StoreDir::parse(store).expect("a store directory");
        let text = chain(&*bench.try_run(&mut |_| {}).expect_err(store));
        assert!(text.contains(&format!("store directory `{store}`: must not")), "{text}");
    }
}

#[test]
fn only_declared_inputs_are_there_and_none_can_be_written() {
    let refused = [
        "echo x >/nix/store/*-input/file",
        "touch /nix/store/*-input/new",
        "rmdir /nix/store/*-input",
        "mount -o remount,rw,bind /nix/store/*-input",
        "umount /nix/store/*-input",
        "umount /proc",
        "chmod 777 /nix/store",
        "touch /new",
        "touch /etc/new",
        "ln /bin/sh /nix/store/sh",
        &format!("ls /nix/store/{OTHER}"),
        "ls /sys",
        "ls /home",
        "ls /root",
        "cat /etc/shadow",
    ];
    let script = refused.map(|command| format!("if ({command}) 2>/dev/null; then echo 'did {command}'; fi\n")).concat();
    assert_eq!(output(&script), "");
}

#[test]
fn every_mount_is_nosuid_and_nodev_and_inputs_cannot_be_written() {
    let log = output("cut -d' ' -f2,4 /proc/mounts");
    let mut writable = Vec::new();
    for line in log.lines() {
        let (point, options) = line.split_once(' ').expect("a mount point and its options");
        let has = |option: &str| options.split(',').any(|found| found == option);
        let is_device = point.starts_with("/dev/") && point != "/dev/shm";
        assert!(has("nosuid") || (is_device && point != "/dev/pts"), "{line}");
        assert!(has("nodev") || is_device, "{line}");
        if has("rw") && !is_device {
            writable.push(point);
        }
    }
    writable.sort_unstable();
    // The root has nothing in it that a build may write, and neither has /proc.
    assert_eq!(writable, ["/", "/build", "/dev/shm", "/nix/store", "/proc", "/tmp"], "{log}");
}

#[test]
fn a_symbolic_link_among_the_inputs_is_copied() {
    let mut bench = Bench::new("readlink /nix/store/3*-link; cat /nix/store/3*-link");
    let link = bench.host("link");
    std::os::unix::fs::symlink("/nix/store/0hm2f1psjpcwg8fijsmr4wwxrx59s092-input/file", &link).expect("make a link");
    let name = kiln_wire::StorePath::parse("3hm2f1psjpcwg8fijsmr4wwxrx59s092-link").expect("a store path");
    bench.spec.inputs.push((name, link));
    assert_eq!(bench.run().log, "/nix/store/0hm2f1psjpcwg8fijsmr4wwxrx59s092-input/file\nof the input");
}

#[test]
fn there_is_no_network_but_loopback() {
    let script = "
        ip -o link 2>/dev/null | wc -l
        cat /proc/net/route | wc -l
        nc -l -p 5555 >got & until nc -w 1 127.0.0.1 5555 </build/note 2>/dev/null; do :; done; wait; cat got; echo
        nc -w 1 192.0.2.1 80 2>&1 | grep -c unreachable";
    assert_eq!(output(script), "1\n1\nfor the builder\n1\n");
}

#[test]
fn a_fixed_output_build_has_the_hosts_network_and_name_service() {
    let mut bench = Bench::new("readlink /proc/self/ns/net; cat /etc/nsswitch.conf");
    bench.spec.network = Network::Host;
    let host = std::fs::read_link("/proc/self/ns/net").expect("read our network namespace");
    assert_eq!(bench.run().log, format!("{}\nhosts: files dns\nservices: files\n", host.display()));
}
