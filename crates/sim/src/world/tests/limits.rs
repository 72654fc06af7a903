//! Small files that ask for very much: a limit of the simulation ends each.

use super::*;

const EVENTS_MAX: u64 = 200_000;
/// What may be simulated before the limit is looked at again.
const AT_ONCE: u64 = 10_000_000;

/// The outcome, and whether all that was simulated was counted.
fn bounded(text: &str) -> Outcome {
    let scenario = scenario(&format!("events-max = {EVENTS_MAX}\n{text}"));
    let mut world = World::new(&scenario);
    world.run();
    let uncounted = world.guest.take_work();
    let outcome = world.outcome();
    assert!(
        outcome.events + uncounted <= EVENTS_MAX + AT_ONCE,
        "{text}: {}",
        outcome.events
    );
    assert!(
        outcome.total_s <= scenario.end.0.as_secs_f64(),
        "{text}: {}",
        outcome.total_s
    );
    outcome
}

fn ends_early(text: &str) {
    let outcome = bounded(text);
    assert!(!outcome.is_finished, "{text}");
    let limits = ["events-max", "(end)"];
    let says_why = |note: &String| limits.iter().any(|limit| note.contains(limit));
    assert!(outcome.notes.iter().any(says_why), "{text}: {:?}", outcome.notes);
}

#[test]
fn the_end_bounds_what_one_order_takes() {
    let big = "memory = { size = \"1GiB\" }";
    let small = "memory = { size = \"64MiB\" }";
    let fast = "link = { rate = \"1GB/s\" }";
    for text in [
        format!("end = \"1s\"\n{big}\nlink = {{ rate = \"1B/s\" }}"),
        format!("end = \"1h\"\n{small}\nlink = {{ rate = \"1GB/s\", latency = \"1h\" }}"),
        format!("end = \"1h\"\n{small}\nlink = {{ rate = \"1GB/s\", latency = \"1h\" }}\nmigration = {{ strategy = \"postcopy\" }}"),
        format!("{small}\n{fast}\nhost = {{ scan = \"1h\" }}"),
        format!("{small}\n{fast}\nhost = {{ freeze = \"1h\" }}"),
        format!("{small}\n{fast}\nhost = {{ restore = \"1h\" }}\nmigration = {{ strategy = \"guide\" }}"),
        format!("{small}\n{fast}\nhost = {{ read = \"1B/s\" }}"),
        format!("{small}\nlink = {{ rate = \"1B/s\" }}\nguest = {{ state = \"1024TiB\" }}\nmigration = {{ strategy = \"postcopy\" }}"),
    ] {
        ends_early(&text);
    }
}

/// A load on a gigabyte over a slow link.
fn loaded(load: &str, rest: &str) -> String {
    format!(
        "memory = {{ size = \"1GiB\" }}\nlink = {{ rate = \"1Mbit/s\" }}\nguest = {{ vcpus = 2, load = [{{ rate = \"1000000000/s\", {load} }}] }}\n{rest}"
    )
}

#[test]
fn everything_that_a_workload_does_is_an_event() {
    for load in [
        "model = \"heap\", young = \"10 pages\", size = \"1MiB\"",
        "model = \"moving-set\", moves-every = \"1ns\"",
        "model = \"moving-set\", moves-every = \"1ns\", writes = 0",
        "model = \"uniform\"",
        "model = \"hot-cold\"",
        "model = \"sequential\"",
        "model = \"sequential\", writes = 0.5",
        "model = \"lru\"",
    ] {
        for rest in [
            "",
            "sample-every = \"1h\"",
            "migration = { after = \"720h\" }",
            "migration = { strategy = \"guide\" }",
        ] {
            // A key of the file stands in front of its sections.
            let (before, after) = if rest.starts_with("sample") {
                (rest, "")
            } else {
                ("", rest)
            };
            ends_early(&format!("{before}\n{}", loaded(load, after)));
        }
    }
}

#[test]
fn a_long_time_before_the_request_counts() {
    let text = "memory = { size = \"1MiB\" }\nlink = { rate = \"1GB/s\" }\nmigration = { after = \"720h\" }";
    ends_early(text);
}

#[test]
fn many_samples_come_further_apart_up_to_the_end() {
    let text = "events-max = 4000000\nend = \"10s\"\nsample-every = \"1us\"
        memory = { size = \"1GiB\" }\nlink = { rate = \"1Mbit/s\" }";
    let outcome = simulate(&scenario(text));
    // Of ten millions less than a hundred thousand stay, and none of the time is left out.
    near(outcome.total_s, 10.0);
    assert!(outcome.series.len() < 100_000 && outcome.series.len() >= 50_000);
    assert!(
        outcome.notes.iter().any(|note| note.contains("sample-every")),
        "{:?}",
        outcome.notes
    );
    let apart_s = 10.0 / outcome.series.len() as f64;
    assert!(outcome
        .series
        .windows(2)
        .all(|pair| pair[1].at_s - pair[0].at_s < 2.0 * apart_s));
    assert!(outcome.total_s - outcome.series.last().unwrap().at_s < 2.0 * apart_s);
}

#[test]
fn much_memory_is_bounded() {
    let large = "memory = { size = \"256GiB\" }\nlink = { rate = \"1MB/s\" }";
    ends_early(&format!(
        "{large}\nguest = {{ load = [{{ model = \"uniform\", rate = \"1000GB/s\" }}] }}"
    ));
}

#[test]
fn what_takes_longer_than_any_simulation_is_refused() {
    for (wrong, key) in [
        ("link = { rate = \"1GB/s\", latency = \"61min\" }", "link.latency"),
        ("link = { rate = \"1GB/s\" }\nhost = { scan = \"2h\" }", "host.scan"),
        (
            "link = { rate = \"1GB/s\" }\nguest = { load = [{ model = \"moving-set\", rate = \"1/s\", moves-every = \"0s\" }] }",
            "moves-every",
        ),
        ("link = { rate = \"1GB/s\" }\nguest = { load = [{ model = \"lru\", rate = \"1/s\" }] }", "size"),
    ] {
        let text = format!("memory = {{ size = \"17GiB\" }}\n{wrong}");
        let refused = Scenario::parse(&text, "test.toml").unwrap_err().to_string();
        assert!(refused.contains(key), "{refused}");
    }
}

#[test]
fn of_very_many_pauses_the_longer_ones_stay_and_a_note_says_so() {
    let scenario = scenario("log = true\nmemory = { size = \"1MiB\" }\nlink = { rate = \"1GB/s\" }");
    let mut book = Book::new(&scenario);
    for number in 0..250_000_u64 {
        let time = if number % 50_000 == 7 { 1000 } else { number % 3 };
        book.pause(
            Duration::from_micros(number),
            Duration::from_micros(time),
            "fault",
        );
        book.log(Duration::ZERO, || "a line".into());
    }
    let outcome = &book.outcome;
    assert!(outcome.pauses.len() < 100_000);
    assert_eq!(
        outcome
            .pauses
            .iter()
            .filter(|pause| pause.duration_s == 1e-3)
            .count(),
        5
    );
    assert!(outcome
        .pauses
        .windows(2)
        .all(|pair| pair[0].begun_s < pair[1].begun_s));
    assert_eq!(
        (outcome.log.len(), outcome.notes.len()),
        (100_000, 2),
        "{:?}",
        outcome.notes
    );
}
