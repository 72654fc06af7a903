//! How fast it simulates: `cargo run --release -p whimbrel-sim --example speed`.

#![allow(clippy::unwrap_used)]

use std::time::Instant;

use whimbrel_sim::{simulate, Scenario};

const LOADS: [(&str, &str); 5] = [
    ("idle", ""),
    (
        "uniform, 20 MB/s",
        "[[guest.load]]\nmodel = \"uniform\"\nrate = \"20MB/s\"",
    ),
    (
        "uniform, 200 MB/s",
        "[[guest.load]]\nmodel = \"uniform\"\nrate = \"200MB/s\"",
    ),
    (
        "hot-cold, 60 MB/s",
        "[[guest.load]]\nmodel = \"hot-cold\"\nrate = \"60MB/s\"",
    ),
    (
        "heap, 300 MB/s",
        "[[guest.load]]\nmodel = \"heap\"\nrate = \"300MB/s\"\nsize = \"4GiB\"",
    ),
];

fn main() {
    for (strategy, size) in [("precopy", "16GiB"), ("postcopy", "4GiB"), ("hybrid", "4GiB")] {
        for (name, load) in LOADS {
            let text = format!(
                "[memory]\nsize = \"{size}\"\n[link]\nrate = \"1Gbit/s\"\nlatency = \"100us\"\n[guest]\nvcpus = 4\n{load}\n\
                 [migration]\nstrategy = \"{strategy}\"\n"
            );
            let scenario = Scenario::parse(&text, "speed.toml").unwrap();
            let begun = Instant::now();
            let outcome = simulate(&scenario);
            let took = begun.elapsed().as_secs_f64();
            println!(
                "{strategy:<9} {size:>6} {name:<18} {took:>7.3} s for {:>6.1} s, {:>9} events, {:>9.0} a second",
                outcome.total_s,
                outcome.events,
                outcome.events as f64 / took
            );
        }
    }
}
