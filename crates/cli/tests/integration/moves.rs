//! Programs that check themselves move, and go on as if nothing had happened.

use whimbrel_testbed::programs;

use crate::clients::{echo, Load};
use crate::rig::{How, Rig, Side, NAME};

/// Ten moves in `make test`, or the long count in `make soak`.
fn count(soak: usize) -> usize {
    match std::env::var_os("WHIMBREL_SOAK") {
        Some(_) => soak,
        None => 10,
    }
}

/// Moves a program there and back by both strategies.
fn there_and_back(program: &str, arguments: &str) {
    let rig = Rig::new(&[programs::c(program).unwrap()]);
    rig.run(&format!("{program} {arguments}"));
    let mut side = Side::Alpha;
    for strategy in ["precopy", "precopy", "stopcopy", "stopcopy"] {
        rig.more_steps(side, 10);
        let record = rig.moved(side, &How::with(&format!("--strategy {strategy}")));
        assert_eq!(record["event"], "moved", "{record}");
        assert_eq!(record["strategy"], strategy, "{record}");
        rig.nothing_left(&[side]).unwrap();
        side = side.other();
    }
    rig.more_steps(side, 10);
    rig.finish(side);
}

#[test]
fn programs_run_are_listed_and_stopped_without_a_move() {
    let rig = Rig::new(&[programs::c("machinery").unwrap(), programs::c("torture").unwrap()]);
    for program in ["machinery", "torture"] {
        rig.serve(program);
        rig.more_steps(Side::Alpha, 5);
        let listed = rig.whimbrel(Side::Alpha, "ps --json");
        assert!(
            listed.output.contains(program) && listed.output.contains("10.77.0.50"),
            "{listed:?}"
        );
        rig.finish(Side::Alpha);
    }
}

#[test]
fn a_counter_keeps_its_memory_its_ids_and_its_clock() {
    there_and_back("counter", "64");
}

#[test]
fn threads_timers_signals_and_descriptors_go_on() {
    there_and_back("machinery", "");
}

#[test]
fn no_page_of_the_torture_is_wrong() {
    let rig = Rig::new(&[programs::c("torture").unwrap()]);
    rig.run("torture");
    let mut side = Side::Alpha;
    for _ in 0..count(1000) {
        rig.more_steps(side, 2);
        rig.moved(side, &How::default());
        side = side.other();
    }
    rig.more_steps(side, 10);
    rig.finish(side);
}

#[test]
fn connections_survive_many_moves_there_and_back() {
    let rig = Rig::new(&[programs::c("echo").unwrap()]);
    rig.serve("echo 7000");
    // One kind of client reaches it through a switch, the others over the bridge that it is attached to, or was.
    let hosts = [&rig.hosts.client, &rig.hosts.alpha, &rig.hosts.beta];
    let loads = hosts.map(|host| Load::start(host, 4, echo));
    let mut side = Side::Alpha;
    for _ in 0..count(100) {
        loads.iter().for_each(|load| load.more(100));
        rig.moved(side, &How::default());
        side = side.other();
    }
    loads.iter().for_each(|load| load.more(100));
    loads.into_iter().for_each(Load::finish);
    let later = Load::start(&rig.hosts.client, 2, echo);
    later.more(10);
    later.finish();
    rig.finish(side);
}

#[test]
fn a_workload_is_known_by_name_pid_and_in_the_list() {
    let rig = Rig::new(&[programs::c("counter").unwrap()]);
    rig.run("counter 8");
    let listed = rig.whimbrel(Side::Alpha, "ps");
    assert!(listed.success() && listed.output.contains(NAME), "{listed:?}");
    rig.moved(Side::Alpha, &How::default());
    assert!(!rig.whimbrel(Side::Alpha, "ps").output.contains("counter"));
    let listed = rig.whimbrel(Side::Beta, "ps");
    assert!(
        listed.output.contains(NAME) && listed.output.contains("counter"),
        "{listed:?}"
    );
    rig.finish(Side::Beta);
}
