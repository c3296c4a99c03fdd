//! Builds that require `uid-range`: root of 65,536 ids, of their namespaces and of their control group, and of nothing else.

mod sandbox_support;

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::mpsc;
use std::thread;

use kiln_worker::cgroup::{Cgroups, Mode};
use kiln_worker::sandbox::{HostId, Network};
use sandbox_support::{Bench, INPUT, OUTPUT, Ran, chain};

/// A bench whose builder is root of a range, the one of the slot that it would have had else.
fn bench(script: &str) -> Bench {
    let mut bench = Bench::new(script);
    bench.spec.host_id = HostId::range_of_slot(bench.spec.host_id.uid - HostId::of_slot(0).uid);
    bench.spec.resources.pids_max = 256;
    bench
}

fn run(script: &str) -> Ran {
    let ran = bench(script).run();
    assert!(ran.ended.succeeded(), "{script}: {:?}\n{}", ran.ended, ran.log);
    ran
}

#[test]
fn it_sees_what_nix_shows() {
    let table = [
        ("ids", "id", "uid=0(root) gid=0(root)\n"),
        ("maps", "for map in uid gid; do awk '{ print $1, $3 }' /proc/self/${map}_map; done", "0 65536\n0 65536\n"),
        ("groups", "cat /proc/self/setgroups", "allow\n"),
        ("root", "cd /; echo *", "bin build dev etc nix proc sys tmp\n"),
        (
            "modes",
            "stat -c '%a %u:%g %n' / /etc /build /tmp /nix/store /bin",
            "755 0:0 /\n755 0:0 /etc\n700 0:0 /build\n1777 65534:65534 /tmp\n1775 65534:0 /nix/store\n755 65534:65534 /bin\n",
        ),
        ("a file made for it", "stat -c '%a %u:%g' note", "644 0:0\n"),
        (
            "passwd",
            "cat /etc/passwd",
            "root:x:0:0:Nix build user:/build:/noshell\nnixbld:x:0:0:Nix build user:/build:/noshell\nnobody:x:65534:65534:Nobody:/:/noshell\n",
        ),
        ("group", "cat /etc/group", "root:x:0:\nnixbld:!:0:\nnogroup:x:65534:\n"),
        ("system", "grep ' /sys ' /proc/mounts; ls /sys/class/net", "sysfs /sys sysfs rw,nosuid,nodev,noexec,relatime 0 0\nlo\n"),
        ("control group", "cut -d: -f3 /proc/self/cgroup | sort -u", "/\n"),
        ("privileges", "grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status", "NoNewPrivs:\t1\nSeccomp:\t2\n"),
        ("nested namespaces", "[ $(cat /proc/sys/user/max_user_namespaces) -gt 0 ] && unshare -Urm id -u", "0\n"),
    ];
    for (what, script, want) in table {
        assert_eq!(run(script).log, want, "{what}");
    }
}

#[test]
fn it_is_root_of_its_own_machine() {
    run("set -e
        for id in 1 1000 65535; do touch file-$id; chown $id:$id file-$id; [ $(stat -c %u:%g file-$id) = $id:$id ]; done
        chmod 711 /build; chmod 600 file-1; chown 65534:65534 file-1000
        [ $(su -s /bin/sh nobody -c 'id -u') = 65534 ]
        ! su -s /bin/sh nobody -c 'cat /build/file-1'
        mkdir /run && mount -t tmpfs none /run && echo x >/run/file
        echo machine >/etc/machine-id; rm /etc/hosts; echo 127.0.0.1 other >/etc/hosts
        hostname other; [ $(hostname) = other ]
        ip link add veth0 type dummy 2>/dev/null || ip addr add 10.9.8.7/32 dev lo
        unshare -pf --mount-proc sh -c '[ $$ = 1 ]'
        mount -t sysfs none /run && umount /run
        ! chown 65536 file-1");
}

/// Root of a namespace can undo what is mounted there; what lies below belongs to somebody else.
#[test]
fn it_reaches_nothing_of_the_hosts() {
    let mut bench = bench(&format!(
        "cd /nix/store/{INPUT}
        mount -o remount,rw,bind,suid,dev /nix/store/{INPUT} && mount -o remount,rw,bind /bin/sh && echo lifted
        echo x >>file; echo x >new; chmod 777 file; chown 0 file; touch -d @5 file; rm -f file; mv file other; ln file /nix/store/linked
        echo x >>/bin/sh; chown 0 /bin/sh; chmod 777 .
        mknod /build/device b 8 0; mknod /build/null c 1 3; mount -t ext4 /dev/vda /tmp
        : >/proc/sys/kernel/panic; : >/proc/sysrq-trigger; : >/sys/kernel/mm/transparent_hugepage/enabled
        echo 5000 >/proc/1/oom_score_adj; date -s @$(date +%s); renice -n -5 1; chroot /proc/1/root true
        chmod 4755 /build/note; umount -l /nix/store/{INPUT}; cd /; ls -A /nix/store/{INPUT}"
    ));
    let store = bench.host("store").join(INPUT);
    let facts = |path: &Path| {
        let meta = fs::symlink_metadata(path).expect("it is there");
        (meta.mode(), meta.uid(), meta.nlink(), meta.mtime(), meta.len())
    };
    bench.spec.shell = bench.host("busybox");
    fs::copy("/bin/busybox", &bench.spec.shell).expect("these tests need busybox-static");
    let watched = [store.clone(), store.join("file"), bench.spec.shell.clone(), "/etc/passwd".into()];
    let before: Vec<_> = watched.iter().map(|path| (facts(path), fs::read(path).ok())).collect();
    let ran = bench.run();
    let after: Vec<_> = watched.iter().map(|path| (facts(path), fs::read(path).ok())).collect();
    assert_eq!(
        before.iter().map(|(facts, _)| facts).collect::<Vec<_>>(),
        after.iter().map(|(facts, _)| facts).collect::<Vec<_>>(),
        "{}",
        ran.log
    );
    assert!(before == after, "a content changed: {}", ran.log);
    assert_eq!(fs::read_dir(&store).expect("list").count(), 1);
    // The mounts gave way, so that it was the owner that saved them.
    assert!(ran.log.contains("lifted"), "{}", ran.log);
    assert!(ran.log.matches("Operation not permitted").count() >= 5, "{}", ran.log);
    let note = fs::metadata(bench.host("root/build/note")).expect("it is there");
    assert_eq!(note.mode() & 0o7777, 0o644, "{}", ran.log);
    for device in ["device", "null"] {
        assert!(fs::symlink_metadata(bench.host("root/build").join(device)).is_err(), "{}", ran.log);
    }
}

#[test]
fn its_files_belong_to_its_range() {
    let bench = bench(
        "mkdir $out; echo x >$out/own; echo x >$out/others; chown 1234:4321 $out/others; ln -s x $out/link; chown -h 65535 $out/link",
    );
    assert!(bench.run().ended.succeeded());
    let out = bench.spec.outputs_dir().join(OUTPUT);
    let first = bench.spec.host_id.uid;
    for (name, uid, gid) in [(".", 0, 0), ("own", 0, 0), ("others", 1234, 4321), ("link", 65535, 0)] {
        let meta = fs::symlink_metadata(out.join(name)).expect(name);
        assert_eq!((meta.uid(), meta.gid()), (first + uid, first + gid), "{name}");
        assert!(bench.spec.host_id.uids().contains(&meta.uid()), "{name}");
    }
}

#[test]
fn two_at_the_same_time_have_no_id_in_common() {
    // Each is heard before any may end.
    let script = "mkfifo go; awk '{ print $2, $3 }' /proc/self/uid_map; cat go";
    let benches = [bench(script), bench(script)];
    let mut maps: Vec<(u32, u32)> = thread::scope(|scope| {
        let (said, heard) = mpsc::channel();
        for (index, bench) in benches.iter().enumerate() {
            let said = said.clone();
            scope.spawn(move || {
                let mut log = String::new();
                let ended = bench.try_run(&mut |bytes| {
                    log.push_str(&String::from_utf8_lossy(bytes));
                    if let Some(line) = log.strip_suffix('\n') {
                        said.send((index, line.to_owned())).expect("the test listens");
                    }
                });
                assert!(ended.expect("the sandbox stands").succeeded(), "{log}");
            });
        }
        let maps: Vec<_> = benches.iter().map(|_| heard.recv().expect("both speak")).collect();
        for bench in &benches {
            let mut go = fs::File::options().write(true).open(bench.host("root/build/go")).expect("it waits there");
            go.write_all(b"go").expect("it reads");
        }
        maps.iter()
            .map(|(_, line)| line.split_once(' ').expect("two numbers"))
            .map(|(a, b)| (a.parse().unwrap(), b.parse().unwrap()))
            .collect()
    });
    maps.sort_unstable();
    assert!(maps[0].0 + maps[0].1 <= maps[1].0 && maps.iter().all(|(_, count)| *count == 65_536), "{maps:?}");
}

#[test]
fn its_control_group_is_its_own_and_the_limits_of_that_are_not() {
    let bench = bench(
        "set -e
        mount -t cgroup2 none /sys/fs/cgroup; cd /sys/fs/cgroup
        grep -q 1 cgroup.procs; stat -c '%u:%g %n' . cgroup.procs cgroup.threads cgroup.subtree_control cgroup.max.depth cgroup.kill
        mkdir part; echo 0 >part/cgroup.procs; grep '^0:' /proc/self/cgroup
        for file in memory.max pids.max cpu.weight cgroup.max.descendants cgroup.kill; do
            if [ -e $file ] && (echo 7 >$file) 2>/dev/null; then echo wrote $file; fi
        done
        if grep -q pids cgroup.controllers; then
            echo '+pids +memory' >cgroup.subtree_control; echo 100 >part/pids.max; cat part/pids.max
        fi
        i=0; while mkdir part/$i 2>/dev/null; do i=$((i+1)); done; echo $i groups
        mkdir /v1; for kind in memory pids devices; do
            if mount -t cgroup -o $kind none /v1 2>/dev/null; then
                for file in memory.limit_in_bytes pids.max tasks cgroup.procs release_agent devices.allow notify_on_release; do
                    if [ -e /v1/$file ] && (echo 7 >/v1/$file) 2>/dev/null; then echo wrote $file; fi
                done
                mkdir /v1/part 2>/dev/null && echo made a part
                umount /v1
            fi
        done
        ls -d /sys/fs/cgroup/kiln* 2>/dev/null || true",
    );
    let ran = bench.run();
    assert!(ran.ended.succeeded(), "{:?}\n{}", ran.ended, ran.log);
    let owners =
        "0:0 .\n0:0 cgroup.procs\n0:0 cgroup.threads\n0:0 cgroup.subtree_control\n65534:65534 cgroup.max.depth\n65534:65534 cgroup.kill\n";
    let limited = if bench.cgroups.mode() == Mode::V2 { "100\n" } else { "" };
    assert_eq!(ran.log, format!("{owners}0::/part\n{limited}1023 groups\n"));
}

/// Its root may limit a part of it, and have that killed.
#[test]
fn a_part_that_is_out_of_memory_or_processes_is_not_the_build() {
    let eat = "dd if=/dev/zero of=/dev/shm/x bs=1M count=400 2>/dev/null";
    let ran = bench(eat).run();
    assert!(ran.ended.out_of_memory, "{:?}", ran.ended);
    let bench = bench(&format!(
        "set -e
        mount -t cgroup2 none /sys/fs/cgroup; cd /sys/fs/cgroup; mkdir rest part
        echo 0 >rest/cgroup.procs; echo +memory >cgroup.subtree_control; echo 20M >part/memory.max; [ ! -e part/memory.swap.max ] || echo 0 >part/memory.swap.max
        ! sh -c 'echo 0 >part/cgroup.procs; {eat}'
        grep '^oom_kill ' part/memory.events
        echo +pids >cgroup.subtree_control; mkdir few; echo 2 >few/pids.max
        ! sh -c 'echo 0 >few/cgroup.procs; sleep 9 | sleep 9 | sleep 9'; grep max few/pids.events; echo survived"
    ));
    if bench.cgroups.mode() != Mode::V2 {
        // Memory cannot be delegated here.
        assert!(!bench.run().ended.succeeded());
        return;
    }
    let ran = bench.run();
    assert!(ran.ended.succeeded() && ran.log.contains("oom_kill 1") && ran.log.ends_with("survived\n"), "{:?}\n{}", ran.ended, ran.log);
}

#[test]
fn nothing_of_it_is_left_whoever_it_became() {
    let bench = bench(
        "mount -t cgroup2 none /sys/fs/cgroup; mkdir -p /sys/fs/cgroup/a/b; echo 0 >/sys/fs/cgroup/a/b/cgroup.procs
        su -s /bin/sh nobody -c 'setsid unshare -Ur sleep 1000 &'; setsid unshare -pf sleep 1000 & mkdir -m 0 /build/closed; echo started",
    );
    let ran = bench.run();
    assert!(ran.ended.succeeded() && ran.log == "started\n", "{:?}\n{}", ran.ended, ran.log);
    let uids = bench.spec.host_id.uids();
    let alive = fs::read_dir("/proc").expect("list").filter_map(Result::ok).filter(|entry| {
        let numeric = entry.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit());
        numeric && entry.metadata().is_ok_and(|meta| uids.contains(&meta.uid()))
    });
    assert_eq!(alive.count(), 0);
    // Its groups are gone too, or the bench says so when it ends.
    drop(bench);
}

#[test]
fn where_it_could_harm_others_it_is_not_had() {
    let mut outside = bench("true");
    outside.spec.network = Network::Host;
    let mut unlimited = bench("true");
    let detected = std::mem::replace(&mut unlimited.cgroups, Cgroups::none());
    let table = [(&outside, "network `outside`: must be its own"), (&unlimited, "must limit processes")];
    for (bench, words) in table {
        let text = chain(&*bench.try_run(&mut |_| {}).expect_err(words));
        assert!(text.contains(words), "{text}");
    }
    unlimited.cgroups = detected;
}
