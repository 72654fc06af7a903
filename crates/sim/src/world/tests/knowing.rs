//! Migrations with the storage network, the balloon, and a forward context.

use super::super::*;
use super::{checked, near, scenario, wire_s};

/// 60 000 of 100 000 pages are page cache, all scattered, and few are written; both networks carry 100 MB/s, and a read of the storage that
/// follows no other takes so long beside.
fn cache(teleport: &str, seek: &str, writes: &str) -> Outcome {
    checked(&scenario(&format!(
        "memory = {{ size = \"100000 pages\" }}
        link = {{ rate = \"100MB/s\" }}
        storage = {{ rate = \"100MB/s\", seek = \"{seek}\" }}
        host = {{ scan = \"0s\", freeze = \"0s\", capture = \"0s\", restore = \"0s\", read = \"1000TB/s\" }}
        migration = {{ teleport = {teleport} }}
        guest = {{ load = [
            {{ model = \"page-cache\", rate = \"2000/s\", writes = {writes}, size = \"60000 pages\", scattered = 1.0 }},
            {{ model = \"uniform\", rate = \"200/s\" }},
        ] }}"
    )))
}

#[test]
fn both_networks_together_are_faster_and_every_page_arrives_in_its_last_version() {
    for (teleport, by_storage) in [("0.3", 18_000), ("1.0", 60_000), ("\"auto\"", 50_000)] {
        let outcome = cache(teleport, "0s", "0.05");
        let brought = outcome.pages_from_storage;
        // But for what was written before it came: some hundred pages a second in four seconds.
        assert!(
            brought <= by_storage && brought + 1500 >= by_storage || teleport == "\"auto\"",
            "{teleport}: {brought}"
        );
        assert!(outcome.storage_bytes >= brought * 4096);
        assert!(
            outcome.total_s < wire_s(100_000),
            "{teleport}: {}",
            outcome.total_s
        );
    }
}

#[test]
fn both_networks_end_together_if_they_divide_it_by_themselves() {
    let outcome = cache("\"auto\"", "0s", "0.0");
    // Two of 100 MB/s: half of the time, and the map of 60 000 runs, and the last piece of the network (a half of what is left each time).
    let least = wire_s(50_000);
    assert!(outcome.total_s < 1.15 * least, "{} {least}", outcome.total_s);
    let brought = outcome.pages_from_storage;
    assert!((45_000..=55_000).contains(&brought), "{brought}");
}

#[test]
fn nothing_from_storage_is_as_without_it_and_too_much_is_worse() {
    let without = cache("false", "100us", "0.0");
    let none = cache("0.0", "100us", "0.0");
    let map_s = 60_000.0 * 24.0 / 100e6;
    assert_eq!((none.pages_from_storage, none.storage_bytes), (0, 0));
    assert!(none.pages_sent.abs_diff(without.pages_sent) < 20);
    near(none.total_s, without.total_s + map_s);
    // 140.96 us for each page.
    let all = cache("1.0", "100us", "0.0");
    assert!(all.total_s > 60_000.0 * 140.96e-6 && all.total_s > 2.0 * without.total_s);
}

#[test]
fn what_was_written_before_the_request_is_no_cache() {
    let text =
        "memory = { size = \"10000 pages\" }\nlink = { rate = \"10MB/s\" }\nstorage = { rate = \"10MB/s\" }
        migration = { teleport = 1.0, after = \"10s\" }
        guest = { load = [{ model = \"page-cache\", rate = \"100/s\", writes = 1.0 }] }";
    let outcome = checked(&scenario(text));
    // Of 10 000 pages 1000 draws leave e^-0.1.
    assert!(
        (8500..=9100).contains(&outcome.pages_from_storage),
        "{}",
        outcome.pages_from_storage
    );
}

/// Half of a guest of 100 000 pages is free.
fn balloon(balloon: &str, strategy: &str) -> Outcome {
    checked(&scenario(&format!(
        "memory = {{ size = \"100000 pages\", free = 0.5 }}
        link = {{ rate = \"40MB/s\" }}
        guest = {{ load = [{{ model = \"uniform\", rate = \"1MB/s\" }}] }}
        migration = {{ strategy = \"{strategy}\" }}
        {balloon}"
    )))
}

#[test]
fn what_the_balloon_has_does_not_travel() {
    for strategy in ["precopy", "postcopy", "hybrid", "stopcopy"] {
        let plain = balloon("", strategy);
        let outcome = balloon("balloon = { inflated = 0.9, reserve = \"5000 pages\" }", strategy);
        assert_eq!(outcome.pages_skipped, 45_000, "{strategy}");
        assert!(outcome.pages_sent + 44_000 < plain.pages_sent, "{strategy}");
        assert!(outcome.pauses.iter().all(|pause| pause.why != "balloon"));
    }
}

#[test]
fn it_grows_during_a_migration_and_the_guest_keeps_its_reserve() {
    // The used half takes 5.1 s; at 5 s everything but the reserve of 1000 pages is taken.
    let outcome = balloon("balloon = { reserve = \"1000 pages\" }", "precopy");
    assert_eq!(outcome.pages_skipped, 49_000);
    assert!(outcome.pages_sent < 53_000, "{}", outcome.pages_sent);
}

#[test]
fn memory_that_was_taken_too_soon_is_given_back_and_costs_time() {
    // 2500 pages a second: the 5000 that are free are gone after two seconds, and the 45 000 that the balloon has are given back.
    let outcome = balloon(
        "balloon = { inflated = 0.9, demand = \"10240000B/s\", give-back = \"10us\" }",
        "precopy",
    );
    assert_eq!(outcome.pages_skipped, 0);
    let given: Vec<_> = outcome
        .pauses
        .iter()
        .filter(|pause| pause.why == "balloon")
        .collect();
    assert_eq!(given.len(), 1);
    near(given[0].duration_s, 0.45);
    assert!((1.9..2.2).contains(&given[0].begun_s), "{}", given[0].begun_s);
    near(outcome.slowdown * outcome.total_s, 0.45);
}

fn guided(text: &str) -> Outcome {
    checked(&scenario(&format!(
        "memory = {{ size = \"50000 pages\" }}
        link = {{ rate = \"1Gbit/s\", latency = \"100us\" }}
        guest = {{ vcpus = 2, load = [{{ model = \"hot-cold\", rate = \"20000/s\", writes = 0.5 }}] }}
        migration = {{ {text} }}"
    )))
}

#[test]
fn a_guide_brings_pages_before_they_are_asked_for() {
    let push = guided("strategy = \"postcopy\", prepaging = \"push\"");
    let guide = guided("strategy = \"guide\"");
    assert_eq!((guide.strategy.as_str(), guide.pages_sent), ("guide", 50_000));
    assert!(
        guide.network_faults * 2 < push.network_faults && guide.network_faults > 0,
        "{} {}",
        guide.network_faults,
        push.network_faults
    );
    assert!(guide.fault_wait_s < push.fault_wait_s / 2.0);
}

#[test]
fn a_silent_background_holds_no_guided_page_back() {
    let loud = guided("strategy = \"guide\"");
    let silent = guided("strategy = \"guide\", bandwidth = \"20MB/s\"");
    assert!(silent.total_s > 3.0 * loud.total_s, "{}", silent.total_s);
    let push = guided("strategy = \"postcopy\", prepaging = \"push\", bandwidth = \"20MB/s\"");
    assert!(silent.network_faults * 2 < push.network_faults);
}

#[test]
fn a_guide_leads_every_kind_of_load_and_each_page_comes_once() {
    for model in ["uniform", "sequential", "moving-set", "lru", "heap"] {
        let text = format!(
            "memory = {{ size = \"20000 pages\" }}\nlink = {{ rate = \"1Gbit/s\", latency = \"100us\" }}
            guest = {{ vcpus = 3, load = [{{ model = \"{model}\", rate = \"60MB/s\", writes = \"60%\" }}] }}
            migration = {{ strategy = \"guide\", after = \"1s\" }}"
        );
        let outcome = checked(&scenario(&text));
        assert_eq!(outcome.pages_sent, 20_000, "{model}");
    }
}

#[test]
fn a_copy_from_the_network_wins_over_one_from_storage_that_comes_later() {
    // A thousand pages are two seconds under way, and are written meanwhile, while rounds of the network come by.
    let outcome = checked(&scenario(
        "memory = { size = \"30000 pages\" }
        link = { rate = \"50MB/s\" }
        storage = { rate = \"100MB/s\", seek = \"2ms\" }
        migration = { teleport = \"auto\" }
        guest = { load = [{ model = \"page-cache\", rate = \"3000/s\", size = \"29000 pages\", scattered = 1.0 }] }",
    ));
    let read = outcome.storage_bytes / 4096;
    assert!(
        outcome.pages_from_storage + 50 < read,
        "{} of {read}",
        outcome.pages_from_storage
    );
}

#[test]
fn all_who_know_something_can_be_asked_together() {
    for strategy in ["precopy", "hybrid", "postcopy", "stopcopy", "guide"] {
        let outcome = checked(&scenario(&format!(
            "memory = {{ size = \"60000 pages\", zero = 0.1, free = 0.2 }}
            link = {{ rate = \"1Gbit/s\", latency = \"100us\" }}
            storage = {{ rate = \"500Mbit/s\", latency = \"1ms\", seek = \"50us\" }}
            balloon = {{ every = \"300ms\", reserve = \"1000 pages\", inflated = 0.3, demand = \"8MB/s\" }}
            application = [{{ load = \"jvm\", after = \"20ms\", safepoint = \"5ms\" }}]
            migration = {{ strategy = \"{strategy}\", after = \"2s\", assist = true, teleport = \"auto\" }}
            guest = {{ vcpus = 2, load = [
                {{ name = \"jvm\", model = \"heap\", rate = \"50MB/s\", size = \"12000 pages\" }},
                {{ model = \"page-cache\", rate = \"2000/s\", writes = 0.2, size = \"30000 pages\", scattered = 0.5 }},
            ] }}"
        )));
        let has_rounds = matches!(strategy, "precopy" | "hybrid");
        assert_eq!(outcome.pages_from_storage > 0, has_rounds, "{strategy}");
        assert_eq!(
            outcome.notes.is_empty(),
            has_rounds,
            "{strategy}: {:?}",
            outcome.notes
        );
        assert!(
            outcome.pages_skipped > 1000,
            "{strategy}: {}",
            outcome.pages_skipped
        );
    }
}
