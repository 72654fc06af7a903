//! The measurements: `make bench`, or one of them by name: `cargo bench --package whimbrel -- blackout`.
//!
//! Each makes its own hosts and compares within one run: absolute times depend on the machine, ratios less. Nothing is
//! asserted here; goals stand beside the results.
// What cannot be measured ends with a panic that says why.
#![allow(clippy::unwrap_used)]

mod blackout;
#[allow(dead_code)]
#[path = "../../tests/integration/clients.rs"]
mod clients;
mod growth;
mod link;
mod record;
#[allow(dead_code)]
#[path = "../../tests/integration/rig.rs"]
mod rig;
mod tracking;

/// A measurement and its name.
type Measurement = (&'static str, fn());

const MEASUREMENTS: [Measurement; 5] = [
    ("blackout", blackout::without_the_network),
    ("gap", blackout::seen_by_a_client),
    ("bulk", link::bulk),
    ("tracking", tracking::cost_to_the_application),
    ("growth", growth::with_idle_memory),
];

fn main() {
    // cargo passes options of its own, such as --bench.
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with('-'))
        .collect();
    for (name, measure) in MEASUREMENTS {
        if wanted.is_empty() || wanted.iter().any(|word| word == name) {
            println!("\n== {name} ==\n");
            measure();
        }
    }
}
