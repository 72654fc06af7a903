//! `plan` measures without moving, and `auto` moves by what it measures.

use serde_json::Value;
use whimbrel_testbed::programs;

use crate::machines::Machines;
use crate::rig::{How, Rig, Side, NAME};
use crate::tomcat;
use whimbrel_testbed::vm::VmOptions;

const STRATEGIES: [&str; 4] = ["precopy", "stopcopy", "hybrid", "postcopy"];

/// The likely value of a prediction.
fn likely(plan: &Value, strategy: &str, what: &str) -> f64 {
    let rows = plan["strategies"].as_array().unwrap();
    let row = rows.iter().find(|row| row["strategy"] == strategy).unwrap();
    let [likely, low, high] = [0, 1, 2].map(|index| row[what][index].as_f64().unwrap());
    assert!(low <= likely && likely <= high, "{plan}");
    likely
}

/// A plan that makes sense.
fn assert_sound(plan: &Value) {
    let memory = plan["memory_bytes"].as_f64().unwrap();
    assert!(memory > 0.0, "{plan}");
    assert!(plan["link_bytes_per_s"].as_f64().unwrap() > 1e6, "{plan}");
    for strategy in STRATEGIES {
        assert!(likely(plan, strategy, "total_s") > 0.0, "{plan}");
        assert!(likely(plan, strategy, "bytes") < memory * 4.0, "{plan}");
    }
    // All of it travels while it is frozen, or nothing of it.
    assert!(
        likely(plan, "stopcopy", "downtime_s") > likely(plan, "postcopy", "downtime_s"),
        "{plan}"
    );
    assert!(STRATEGIES.contains(&plan["choice"].as_str().unwrap()), "{plan}");
}

/// The record of a move by `auto` says what was expected.
fn assert_foreseen(record: &Value) {
    assert_eq!(record["strategy"], "auto", "{record}");
    let predicted = &record["predicted"];
    assert!(!predicted["choice"].as_str().unwrap().is_empty(), "{record}");
    for what in ["total_us", "downtime_us", "bytes"] {
        assert!(predicted[what].as_u64().unwrap() > 0, "{record}");
    }
}

#[test]
fn a_jvm_is_planned_and_moves_by_itself_under_load() {
    let rig = Rig::new(&[]);
    tomcat::start(&rig, "-Xms256m -Xmx256m");
    let plan = rig.plan(Side::Alpha, NAME, "--for 1s");
    assert_sound(&plan);
    assert_foreseen(&rig.moved(Side::Alpha, &How::with("--strategy auto")));
    assert_foreseen(&rig.moved(Side::Beta, &How::with("--strategy auto --min bytes")));
    rig.finish(Side::Alpha);
}

#[test]
fn a_machine_is_planned_and_moves_by_itself() {
    let mut machines = Machines::boot(VmOptions::new(crate::machines::VM));
    let workload = format!("qemu:/run/{}.qmp", crate::machines::VM);
    assert_sound(&machines.rig.plan(machines.side, &workload, "--for 1s"));
    machines.moves("--strategy auto");
}

#[test]
fn what_writes_faster_than_the_link_carries_moves_all_the_same() {
    let rig = Rig::new(&[programs::c("paging").unwrap()]);
    // Some 200 MB/s or more, all over 256 MB: rounds would never end, and all of it would be written again in each.
    rig.run("paging 256 writer 2 40000");
    rig.more_steps(Side::Alpha, 3);
    let plan = rig.plan(Side::Alpha, NAME, "--for 1s");
    assert_sound(&plan);
    assert!(
        ["hybrid", "postcopy"].contains(&plan["choice"].as_str().unwrap()),
        "{plan}"
    );
    let mut side = Side::Alpha;
    for arguments in ["", "--min bytes", "--min downtime"] {
        let record = rig.moved(side, &How::with(&format!("--strategy auto {arguments}")));
        side = side.other();
        assert_foreseen(&record);
        assert!(record["residual"]["pages"].as_u64().unwrap() > 0, "{record}");
        rig.more_steps(side, 3);
    }
    rig.finish(side);
}

#[test]
fn a_calm_program_needs_only_one_machine_at_any_time() {
    let rig = Rig::new(&[programs::c("counter").unwrap()]);
    rig.run("counter 64");
    rig.more_steps(Side::Alpha, 5);
    let text = rig.plan_text(Side::Alpha, NAME, "--for 500ms");
    println!("{text}");
    for line in [
        "memory ",
        "writes ",
        "link ",
        "precopy ",
        "stopcopy ",
        "hybrid ",
        "postcopy ",
        "precopy: ",
    ] {
        assert!(
            text.lines().any(|found| found.starts_with(line)),
            "{line}: {text}"
        );
    }
    let record = rig.moved(Side::Alpha, &How::with("--strategy auto"));
    assert_foreseen(&record);
    assert!(record["residual"].is_null(), "{record}");
    assert_eq!(record["predicted"]["course"], "precopy", "{record}");
    rig.more_steps(Side::Beta, 5);
    rig.finish(Side::Beta);
}

#[test]
fn a_plan_that_is_killed_leaves_nothing_behind() {
    let rig = Rig::new(&[programs::c("torture").unwrap()]);
    rig.run("torture");
    rig.more_steps(Side::Alpha, 2);
    for phase in ["prepare", "track"] {
        let (mut receive, key) = rig.receive(Side::Beta, &How::default());
        let words = ["whimbrel", "plan", NAME, "10.77.0.2:7440"];
        let command = rig.host(Side::Alpha).command(words);
        let command = command.env("WHIMBREL_KEY", key).env("WHIMBREL_PAUSE_AT", phase);
        let mut plan = command.spawn().unwrap();
        plan.wait_stopped(crate::rig::LONG).unwrap();
        plan.kill().unwrap();
        rig.nothing_left(&[Side::Beta]).unwrap_or_else(|_| {
            // Only `receive` is there still, as it was before.
            receive.interrupt().unwrap();
            receive.wait(crate::rig::LONG).unwrap();
            rig.nothing_left(&[Side::Beta]).unwrap();
        });
        rig.more_steps(Side::Alpha, 5);
    }
    rig.moved(Side::Alpha, &How::default());
    rig.more_steps(Side::Beta, 5);
    rig.finish(Side::Beta);
}

#[test]
fn a_plan_that_is_cancelled_leaves_the_key_good() {
    let rig = Rig::new(&[programs::c("counter").unwrap()]);
    rig.run("counter 64");
    rig.more_steps(Side::Alpha, 2);
    let (mut receive, key) = rig.receive(Side::Beta, &How::default());
    let words = ["whimbrel", "plan", NAME, "10.77.0.2:7440", "--for", "60s"];
    let command = rig.host(Side::Alpha).command(words);
    let mut plan = command.env("WHIMBREL_KEY", key.as_str()).spawn().unwrap();
    plan.line_with("track", crate::rig::LONG).unwrap();
    plan.interrupt().unwrap();
    let finished = plan.wait(crate::rig::LONG).unwrap();
    assert!(
        !finished.success() && finished.output.contains("cancelled"),
        "{finished:?}"
    );
    let words = ["whimbrel", "migrate", NAME, "10.77.0.2:7440"];
    let command = rig.host(Side::Alpha).command(words);
    let moved = command.env("WHIMBREL_KEY", key).finish(crate::rig::LONG).unwrap();
    assert!(
        moved.success() && moved.output.contains("chose "),
        "{moved:?}\n{}",
        receive.output()
    );
    receive.wait(crate::rig::LONG).unwrap();
    rig.more_steps(Side::Beta, 5);
    rig.finish(Side::Beta);
}
