//! What was decided in a real migration is decided again.

use std::fs::{self, File};
use std::io::BufReader;

use whimbrel_policy::strategy::Named;
use whimbrel_policy::Passes;
use whimbrel_sim::replay::{replay, Replayed};

use whimbrel_testbed::vm::VmOptions;

use crate::clients::Lines;
use crate::machines::{Machines, VM};
use crate::rig::{How, Rig, Side, ADDRESS, LONG};
use crate::servers::{check_keys, write_keys, REDIS};

const TRACE: &str = "/tmp/trace.jsonl";

/// Moves the workload, replays the trace, and takes it away.
fn moved_and_replayed(rig: &Rig, from: Side, arguments: &str) -> Replayed {
    rig.moved(from, &How::with(&format!("{arguments} --trace {TRACE}")));
    replayed(rig, from)
}

fn replayed(rig: &Rig, from: Side) -> Replayed {
    let path = rig.host(from).path(TRACE);
    let trace = BufReader::new(File::open(&path).unwrap());
    let replayed = replay(trace).unwrap_or_else(|error| panic!("{error}"));
    fs::remove_file(&path).unwrap();
    assert!(replayed.is_complete, "{replayed}");
    println!("{replayed}");
    replayed
}

#[test]
fn redis_moves_and_every_decision_is_made_again() {
    let rig = Rig::new(&[]);
    rig.serve(&format!("{REDIS} --save \"\""));
    let mut redis = Lines::connect(&rig.hosts.client);
    write_keys(&mut redis);
    let line = format!(
        "redis-benchmark -h {} -p 7000 -c 20 -r 100000 -d 200 -t set,get,incr,lpush,lpop -l -q",
        ADDRESS.ip()
    );
    let mut load = rig.hosts.client.command(line.split(' ')).spawn().unwrap();
    load.line_with("SET", LONG).unwrap();

    let replayed = moved_and_replayed(&rig, Side::Alpha, "--strategy precopy");
    assert_eq!(replayed.strategy, Named::PreCopy);
    // Two rounds, the freeze and the last pages: each order has its answer.
    assert!(replayed.decisions > 7 && replayed.events > 6, "{replayed}");

    // So slow a push that the load has to ask for pages.
    let lazy = "--strategy hybrid --passes 1 --max-residual-bandwidth 20MB/s";
    let replayed = moved_and_replayed(&rig, Side::Beta, lazy);
    assert_eq!(replayed.strategy, Named::Hybrid(Passes::Exactly(1)));
    assert!(replayed.decisions > 50, "{replayed}");

    // What chooses while it sends was told of samples, too.
    let replayed = moved_and_replayed(&rig, Side::Alpha, "--strategy auto --min bytes");
    assert!(matches!(replayed.strategy, Named::Auto { .. }), "{replayed}");

    load.kill().unwrap();
    check_keys(&mut redis);
    drop(redis);
    rig.finish(Side::Beta);
}

#[test]
fn a_machine_moves_and_every_decision_is_made_again() {
    let mut machines = Machines::boot(VmOptions::new(VM));
    for strategy in ["precopy", "postcopy", "auto"] {
        let side = machines.side;
        machines.moves(&format!("--strategy {strategy} --trace {TRACE}"));
        let replayed = replayed(&machines.rig, side);
        assert!(replayed.decisions > 5, "{strategy}: {replayed}");
    }
}
