//! Whole migrations, against numbers that were worked out by hand.

mod knowing;
mod limits;

use super::*;

fn scenario(text: &str) -> Scenario {
    Scenario::parse(text, "test.toml").unwrap()
}

/// 100 000 pages over 100 MB/s with 1 ms each way; hosts that need no time.
fn with(rest: &str) -> Scenario {
    scenario(&format!(
        "memory = {{ size = \"100000 pages\" }}
        link = {{ rate = \"100MB/s\", latency = \"1ms\" }}
        host = {{ scan = \"0s\", freeze = \"0s\", capture = \"0s\", restore = \"0s\", read = \"1000TB/s\" }}
        {rest}"
    ))
}

/// The outcome, after it was checked that every page has arrived in its last version.
fn checked(scenario: &Scenario) -> Outcome {
    let mut world = World::new(scenario).checked();
    world.run();
    assert_eq!(world.differences(), [0_u64; 0]);
    let outcome = world.outcome();
    assert!(outcome.is_finished, "{:?}", outcome.notes);
    outcome
}

fn near(value: f64, expected: f64) {
    assert!(
        (value - expected).abs() < expected * 1e-3 + 1e-6,
        "{value}, not {expected}"
    );
}

/// Seconds on the wire for so many pages in pieces of 256.
fn wire_s(pages: u64) -> f64 {
    (pages * 4096 + pages.div_ceil(256) * 24) as f64 / 100e6
}

const STATE_S: f64 = (512 << 10) as f64 / 100e6;

#[test]
fn an_idle_guest_takes_its_bytes_over_the_rate_and_some_round_trips() {
    let outcome = checked(&with(""));
    // A round trip at first, another behind the pages; state, latency, a round trip for the start, and the word of it back.
    near(outcome.preparation_s, 0.002 + wire_s(100_000) + 0.002);
    near(outcome.downtime_s, STATE_S + 0.003);
    near(
        outcome.total_s,
        outcome.preparation_s + outcome.downtime_s + 0.001,
    );
    assert_eq!(
        (outcome.pages_sent, outcome.network_faults, outcome.rounds.len()),
        (100_000, 0, 2)
    );
    near(outcome.slowdown, 0.0);
}

#[test]
fn stop_and_copy_is_all_downtime() {
    let outcome = checked(&with("migration = { strategy = \"stopcopy\" }"));
    near(outcome.preparation_s, 0.002);
    near(outcome.downtime_s, STATE_S + wire_s(100_000) + 0.003);
}

#[test]
fn zero_pages_do_not_travel() {
    let text = "memory = { size = \"100000 pages\", zero = 1.0 }\nlink = { rate = \"1MB/s\" }";
    let outcome = checked(&scenario(text));
    assert_eq!((outcome.pages_sent, outcome.pages_zero), (0, 100_000));
}

#[test]
fn a_sequential_writer_leaves_what_it_writes_in_a_round() {
    // 1000 pages a second, in order: the first round takes 4.1 s, the next ones a part of 4.096 / 100 of the one before.
    let text = "guest = { load = [{ model = \"sequential\", rate = \"1000/s\" }] }\nmigration = { downtime = \"0s\" }";
    let outcome = checked(&with(text));
    let rounds = &outcome.rounds;
    // What is written ahead of the round's front is left out of it: the writer is at page 1000 t, the front at 24414 t, so never.
    assert_eq!(rounds[0].pages_owed, 100_000);
    let second = rounds[1].pages_owed as f64;
    assert!(
        (second - 1000.0 * (wire_s(100_000) + 0.002)).abs() <= 2.0,
        "{second}"
    );
    let third = rounds[2].pages_owed as f64;
    assert!(
        (third - 1000.0 * (wire_s(rounds[1].pages_owed) + 0.002)).abs() <= 2.0,
        "{third}"
    );
}

#[test]
fn a_writer_faster_than_the_link_makes_no_progress() {
    let text = "guest = { load = [{ model = \"uniform\", rate = \"1GB/s\" }] }";
    let outcome = checked(&with(text));
    let reason = outcome.stop_reason.as_deref().unwrap();
    assert_eq!(reason, "the workload writes as fast as rounds can send");
    // Of 4.1 s worth of pages.
    assert!(outcome.downtime_s > 3.0, "{}", outcome.downtime_s);
    assert!(
        outcome.pages_sent < 250_000,
        "most pages were written again: {}",
        outcome.pages_sent
    );
}

#[test]
fn postcopy_sends_each_page_once_and_its_downtime_does_not_grow() {
    let text = "guest = { vcpus = 2, load = [{ model = \"uniform\", rate = \"1GB/s\" }] }
        migration = { strategy = \"postcopy\" }";
    let outcome = checked(&with(text));
    near(outcome.downtime_s, STATE_S + 0.003 + 24.0 / 100e6);
    assert_eq!(outcome.pages_sent, 100_000);
    assert!(
        outcome.network_faults > 100 && outcome.fault_wait_s > 0.1,
        "{}",
        outcome.network_faults
    );
    assert!(
        outcome.resume_s >= wire_s(100_000) && outcome.resume_s < 1.1 * wire_s(100_000),
        "{}",
        outcome.resume_s
    );
    assert!(outcome.slowdown > 0.0 && outcome.slowdown < 1.0);
}

#[test]
fn the_source_reads_and_packs_after_the_switch_over_as_before() {
    let run = |host: &str, link: &str, packing: bool| {
        checked(&scenario(&format!(
            "memory = {{ size = \"65536 pages\" }}
            link = {{ rate = \"{link}\", latency = \"100us\" }}
            host = {{ {host} }}
            migration = {{ strategy = \"postcopy\", packing = {packing} }}"
        )))
    };
    let bytes = 65536.0 * 4096.0;
    // A core that reads 50 MB/s is what limits it, not the link.
    let slow = run("read = \"50MB/s\"", "1GB/s", false);
    let read = slow.resume_s * 50e6 / bytes;
    // A piece is read when the window opens: it is not always open when the one before was.
    assert!((1.0..1.15).contains(&read), "{read}");
    assert!((slow.cpu_s * 50e6 / bytes - 1.0).abs() < 0.02, "{}", slow.cpu_s);
    // Over a slow link packed pages are less; over a fast one the packer would be what limits it, but for what it takes to find out.
    let packed = run("packed = 0.5", "50MB/s", true);
    assert!(
        (packed.bytes as f64 / (bytes * 0.5) - 1.0).abs() < 0.02,
        "{}",
        packed.bytes
    );
    let plain = run("packer = \"100MB/s\", packed = 0.5", "2GB/s", true);
    assert!(
        plain.bytes as f64 > bytes * 0.75 && plain.resume_s < bytes / 200e6,
        "{plain:?}"
    );
}

#[test]
fn pages_of_zeros_leave_the_link_to_the_others() {
    let text = "memory = { size = \"100000 pages\", zero = 0.1 }
        link = { rate = \"100MB/s\", latency = \"100us\" }
        migration = { strategy = \"postcopy\" }";
    let outcome = checked(&scenario(text));
    assert_eq!(outcome.pages_sent + outcome.pages_zero, 100_000);
    let least = (outcome.pages_sent * 4096) as f64 / 100e6;
    assert!(outcome.resume_s < 1.03 * least, "{} {least}", outcome.resume_s);
}

#[test]
fn demand_paging_alone_never_ends() {
    let text = "end = \"20s\"\nguest = { load = [{ model = \"uniform\", rate = \"1000/s\", size = \"1000 pages\" }] }
        migration = { strategy = \"postcopy\", prepaging = \"demand\" }";
    let outcome = simulate(&with(&format!("{text}\n")));
    assert!(
        !outcome.is_finished && outcome.notes.len() == 1,
        "{:?}",
        outcome.notes
    );
    assert!(outcome.pages_sent <= 1000 + 16, "{}", outcome.pages_sent);
    near(outcome.total_s, 20.0);
}

#[test]
fn hybrid_leaves_what_was_written_in_its_pass() {
    let text = "guest = { load = [{ model = \"hot-cold\", rate = \"20MB/s\" }] }\nmigration = { strategy = \"hybrid\" }";
    let outcome = checked(&with(text));
    assert_eq!(outcome.rounds.len(), 1);
    let residue = outcome.pages_sent - outcome.rounds[0].pages_sent;
    assert!(residue > 1000 && residue < 20_500, "{residue}");
}

#[test]
fn auto_says_what_it_chose_and_what_it_expected() {
    let auto = |rate: &str, min: &str| {
        checked(&with(&format!(
            "guest = {{ load = [{{ model = \"uniform\", rate = \"{rate}\" }}] }}
            migration = {{ strategy = \"auto\", min = \"{min}\" }}"
        )))
    };
    let calm = auto("1/s", "time");
    assert_eq!(calm.chosen.as_deref(), Some("precopy"));
    assert_eq!(calm.network_faults, 0);
    let wild = auto("1GB/s", "bytes");
    assert_eq!(wild.chosen.as_deref(), Some("postcopy"));
    assert!(wild.downtime_s <= 0.05, "{}", wild.downtime_s);
    for outcome in [calm, wild] {
        let predicted = outcome.predicted.unwrap();
        assert!(
            (predicted.total_s / outcome.total_s - 1.0).abs() < 0.1,
            "{predicted:?}"
        );
        assert!(
            (predicted.bytes / outcome.bytes as f64 - 1.0).abs() < 0.1,
            "{predicted:?}"
        );
    }
    let plain = checked(&with(""));
    assert_eq!((plain.chosen, plain.predicted), (None, None));
}

#[test]
fn every_model_and_strategy_brings_every_page() {
    for model in [
        "uniform",
        "sequential",
        "hot-cold",
        "moving-set",
        "lru",
        "heap",
        "page-cache",
    ] {
        for strategy in ["precopy", "postcopy", "hybrid", "stopcopy", "auto"] {
            let text = format!(
                "name = \"{model}\"\nseed = 7
                memory = {{ size = \"20000 pages\", zero = \"10%\", free = \"10%\" }}
                link = {{ rate = \"1Gbit/s\", latency = \"100us\", competing = [{{ rate = \"300Mbit/s\", from = \"100ms\" }}] }}
                migration = {{ strategy = \"{strategy}\", after = \"1s\" }}
                guest = {{ vcpus = 3, load = [{{ model = \"{model}\", rate = \"60MB/s\", writes = \"60%\" }}] }}"
            );
            let scenario = scenario(&text);
            let outcome = checked(&scenario);
            let mut again = simulate(&scenario);
            assert!(outcome.total_s > 0.3, "{model} {strategy}");
            again.name_as(&outcome);
            assert_eq!(outcome, again, "{model} {strategy}");
        }
    }
}

impl Outcome {
    fn name_as(&mut self, other: &Outcome) {
        self.scenario.clone_from(&other.scenario);
    }
}

#[test]
fn another_seed_is_another_run() {
    let run = |seed: u64| {
        simulate(&with(&format!(
            "seed = {seed}\nguest = {{ load = [{{ model = \"uniform\", rate = \"20MB/s\" }}] }}"
        )))
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1).pages_sent, run(2).pages_sent);
}

#[test]
fn a_limit_on_events_ends_it_and_says_so() {
    let outcome = simulate(&with("events-max = 20"));
    assert!(
        !outcome.is_finished && outcome.notes[0].contains("events-max"),
        "{:?}",
        outcome.notes
    );
}

/// A gigabyte of heap, half of it young, that allocates 200 MB/s.
fn heap(migration: &str, application: &str) -> Outcome {
    checked(&scenario(&format!(
        "memory = {{ size = \"2GiB\" }}
        link = {{ rate = \"1Gbit/s\", latency = \"100us\" }}
        guest = {{ vcpus = 4, load = [{{ name = \"jvm\", model = \"heap\", rate = \"200MB/s\", size = \"1GiB\", young = \"512MiB\" }}] }}
        migration = {{ after = \"5s\", {migration} }}
        {application}"
    )))
}

const ANSWERS: &str =
    "application = [{ name = \"jvm\", load = \"jvm\", after = \"5ms\", safepoint = \"10ms\" }]";

#[test]
fn an_application_that_answers_spares_its_young_generation() {
    let plain = heap("strategy = \"precopy\"", "");
    let assisted = heap("strategy = \"precopy\", assist = true", ANSWERS);
    // The young generation is written faster than the link can send; without it next to nothing is written.
    assert!(plain.downtime_s > 2.0, "{}", plain.downtime_s);
    assert!(assisted.downtime_s < 0.5, "{}", assisted.downtime_s);
    let young = 131_072;
    assert!(
        assisted.pages_sent <= 524_288 - young + young / 10,
        "{}",
        assisted.pages_sent
    );
    assert!(
        assisted.pages_skipped > young * 9 / 10,
        "{}",
        assisted.pages_skipped
    );
    assert_eq!(
        assisted
            .pauses
            .iter()
            .filter(|pause| pause.why == "safepoint")
            .count(),
        1
    );
}

#[test]
fn an_application_that_does_not_answer_is_ignored_and_its_pages_are_sent() {
    let silent = ANSWERS.replace("after", "answers = false, after");
    let outcome = heap("strategy = \"precopy\", assist = true", &silent);
    assert_eq!(
        (outcome.pages_skipped, outcome.notes.len()),
        (0, 1),
        "{:?}",
        outcome.notes
    );
    assert!(outcome.notes[0].contains("did not answer"));
}

#[test]
fn threads_that_are_held_are_lost_time_as_it_passes() {
    let safepoint = |time: &str| ANSWERS.replace("10ms", time);
    let outcome = heap("strategy = \"precopy\", assist = true", &safepoint("1s"));
    let still_s: f64 = outcome
        .series
        .iter()
        .map(|sample| 0.1 * (1.0 - sample.progress))
        .sum();
    // The way to the safepoint shows in all of its ten samples.
    let halted = outcome
        .series
        .iter()
        .filter(|sample| sample.progress < 0.01)
        .count();
    assert!(halted >= 9 && still_s >= 0.9, "{halted} {still_s}");
    // One that takes longer than it is waited for counts up to the freeze.
    let outcome = heap("strategy = \"precopy\", assist = true", &safepoint("100s"));
    let safepoint = outcome
        .pauses
        .iter()
        .find(|pause| pause.why == "safepoint")
        .unwrap();
    let held_s = outcome.preparation_s - safepoint.begun_s;
    assert!(held_s < 20.0, "{held_s}");
    near(outcome.slowdown, held_s / outcome.total_s);
}

#[test]
fn who_waits_for_a_disk_says_so() {
    for strategy in ["precopy", "postcopy"] {
        let text = format!(
            "guest = {{ load = [{{ model = \"lru\", rate = \"1000/s\", size = \"1000 pages\" }}] }}
            migration = {{ strategy = \"{strategy}\" }}"
        );
        let outcome = checked(&with(&text));
        assert!(outcome.pauses.iter().any(|pause| pause.why == "disk"));
        assert!(outcome.pauses.iter().all(|pause| pause.why != "collection"));
    }
}

#[test]
fn a_collection_has_to_pay_over_what_is_left_of_the_link() {
    // 20 MB/s of pages come faster over 1 GB/s than they are collected with 100 MB/s, but not over what others leave.
    let forced = |link: &str, migration: &str| {
        let outcome = checked(&scenario(&format!(
            "memory = {{ size = \"256MiB\" }}
            link = {{ rate = \"1GB/s\", {link} }}
            guest = {{ load = [{{ model = \"heap\", rate = \"20MB/s\", young = \"128MiB\", old-used = 0, survival = 0.5, collection-rate = \"100MB/s\" }}] }}
            migration = {{ after = \"3s\", collect = true, ride = \"0s\", snapshots = 1, {migration} }}"
        )));
        outcome
            .pauses
            .iter()
            .filter(|pause| pause.why == "collection")
            .count()
    };
    let others = ["{ rate = \"990MB/s\" }"; 16].join(", ");
    assert_eq!(forced("", ""), 0);
    assert_eq!(forced(&format!("competing = [{others}]"), ""), 1);
    assert_eq!(forced("", "bandwidth = \"50MB/s\""), 1);
}

#[test]
fn snapshots_after_collections_leave_the_garbage_out() {
    let plain = heap("strategy = \"precopy\"", "");
    let collected = heap("strategy = \"precopy\", collect = true", "");
    assert!(
        collected.bytes < plain.bytes && collected.downtime_s < plain.downtime_s / 2.0,
        "{collected:?}"
    );
    assert_eq!(collected.rounds.len(), 2);
    assert!(collected.pages_skipped > 100_000, "{}", collected.pages_skipped);
}

#[test]
fn a_snapshot_that_is_copied_at_once_holds_what_is_written_again() {
    let first = |migration: &str| heap(migration, "").rounds[0];
    assert!(first("").pages_rewritten > 0);
    assert_eq!(first("sends-rewritten = true").pages_rewritten, 0);
}

#[test]
fn a_collection_of_the_application_is_waited_for_as_long_as_told() {
    let begun_s = |ride: &str| heap(&format!("collect = true, ride = \"{ride}\""), "").rounds[0].begun_s;
    let (at_once, later) = (begun_s("0s"), begun_s("500ms"));
    assert!((later - at_once - 0.5).abs() < 0.1, "{at_once} {later}");
}

#[test]
fn rounds_without_progress_go_on_if_told_so() {
    let rounds = |more: &str| heap(&format!("rounds = 9{more}"), "").rounds.len();
    assert!(rounds("") < 10);
    assert_eq!(rounds(", to-the-limits = true"), 10);
}

#[test]
fn a_workload_that_is_slowed_down_converges_and_loses_time() {
    let run = |converge| {
        checked(&with(&format!(
            "guest = {{ load = [{{ model = \"uniform\", rate = \"120MB/s\" }}] }}
            migration = {{ converge = {converge} }}"
        )))
    };
    let (plain, slowed) = (run(false), run(true));
    assert_eq!(plain.slowdown, 0.0);
    assert!(
        slowed.slowdown > 0.0 && slowed.downtime_s <= plain.downtime_s,
        "{} {}",
        slowed.slowdown,
        slowed.downtime_s
    );
}
