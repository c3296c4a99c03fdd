//! Builds that take all they can get (attacks A13 and A14), each with a harmless build beside it.

use std::time::Duration;

use kiln_worker::cgroup::MEMORY_BYTES_MIN;
use kiln_worker::sandbox::Ended;

use crate::program;
use crate::sandbox_support::{Bench, Ran};

/// Runs a bomb and, at the same time, a build that must not notice it.
fn beside_a_neighbour(bomb: &Bench) -> Ran {
    let neighbour = Bench::new("i=0; while [ $i -lt 50 ]; do (true); i=$((i+1)); done; echo all is well");
    std::thread::scope(|scope| {
        let neighbour = scope.spawn(|| neighbour.run());
        let ran = bomb.run();
        let beside = neighbour.join().expect("no panic");
        assert!(beside.ended.succeeded() && beside.log == "all is well\n", "{:?}: {}", beside.ended, beside.log);
        ran
    })
}

#[test]
fn a13_a_bomb_of_threads_or_processes_stays_within_its_group() {
    let many = "i=0; while [ $i -lt 200 ]; do sleep 20 & i=$((i+1)); done; echo all 200 run";
    let bombs = [program::bench(&["threads", "2000"]), Bench::new(many), Bench::new("f() { f | f & }; f; sleep 20; echo all run")];
    for mut bomb in bombs {
        bomb.spec.limits.wall = Duration::from_secs(3);
        let ran = beside_a_neighbour(&bomb);
        assert!(!ran.log.contains("all "), "{:?}: {}", ran.ended, ran.log);
    }
}

#[test]
fn a14_a_bomb_in_memory_is_killed_as_a_group_and_told_from_a_failure() {
    let bombs = [
        "$attack memory 300000000",
        "head -c 300000000 /dev/zero >/dev/shm/x",
        "exec 3>/dev/shm/x; rm /dev/shm/x; head -c 300000000 /dev/zero >&3",
        // The first process only waits; whoever is killed first, it must not live on.
        "for n in 1 2 3; do $attack memory 100000000 & done; wait",
    ];
    for script in bombs {
        let mut bomb = program::shell(&format!("{script}; echo survived"));
        bomb.spec.resources.memory_bytes_max = MEMORY_BYTES_MIN;
        let ran = beside_a_neighbour(&bomb);
        let Ended { out_of_memory, stopped, .. } = ran.ended;
        assert_eq!((out_of_memory, stopped), (true, None), "{script}: {:?}", ran.ended);
        assert!(!ran.ended.succeeded() && !ran.log.contains("survived"), "{script}: {}", ran.log);
    }
}
