//! Every real graph goes through the farm and comes out built. (`examples/drain.rs` plans after every single finish; this test plans
//! small ones so, and large ones after some finishes, to stay quick without optimisation.)

use kiln_core::Effect;
use kiln_wire::client::BuildState;

use crate::drain::{Drain, graph_files, load};

#[test]
fn every_real_graph_is_built_by_a_simulated_fleet() {
    for file in graph_files() {
        let graph = load(&file);
        let jobs = u64::try_from(graph.jobs.len()).expect("small");
        let mut drain = Drain::new(&graph, 20, 8);
        let build = drain.submit(&graph);
        // Quick enough without optimisation: the largest graphs are checked by the example, with optimisation.
        let checked = graph.jobs.len() < 10_000;
        assert!(!checked || drain.farm.check_invariants().is_ok(), "{}: invariants hold after the submission", graph.name);
        let finishes_per_plan = 1 + graph.jobs.len() / 500;
        let mut given = drain.plan();
        while (0..finishes_per_plan).filter(|_| drain.finish_next()).count() > 0 {
            given += drain.plan();
        }
        let view = drain.farm.build_view(build).expect("the build has not left the farm");
        assert_eq!((view.state, view.counts.built), (BuildState::Built, jobs), "{}", graph.name);
        assert_eq!(u64::try_from(given).expect("small"), jobs, "{}: each job is built once", graph.name);
        assert!(!checked || drain.farm.check_invariants().is_ok(), "{}: invariants hold at the end", graph.name);
        let owed = drain.farm.pending_effects();
        assert!(matches!(owed.as_slice(), [Effect::Archive(record)] if record.build == build), "{}", graph.name);
    }
}
