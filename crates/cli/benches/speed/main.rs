//! The measurements: `make bench`, or one of them by name: `cargo bench --package whimbrel -- blackout`.
//!
//! `machines` takes minutes for the most important part; with `FULL=1` it measures all of it, which takes more than an hour.
//!
//! Each makes its own hosts and compares within one run: absolute times depend on the machine, ratios less. Nothing is
//! asserted here; goals stand beside the results.
// What cannot be measured ends with a panic that says why.
#![allow(clippy::unwrap_used)]

mod blackout;
mod chart;
#[allow(dead_code)]
#[path = "../../tests/integration/clients.rs"]
mod clients;
mod faults;
mod growth;
mod hybrid;
mod link;
mod machines;
mod paper;
mod predict;
mod record;
#[allow(dead_code)]
#[path = "../../tests/integration/rig.rs"]
mod rig;
mod servers;
mod simulator;
// Not all of what the tests need of it is needed here.
#[allow(dead_code)]
#[path = "../../tests/integration/tomcat.rs"]
mod tomcat;
mod tracking;

/// A measurement and its name.
type Measurement = (&'static str, fn());

const MEASUREMENTS: [Measurement; 13] = [
    ("blackout", blackout::without_the_network),
    ("gap", blackout::seen_by_a_client),
    ("bulk", link::bulk),
    ("tracking", tracking::cost_to_the_application),
    ("growth", growth::with_idle_memory),
    ("faults", faults::by_pattern),
    ("access", faults::link_while_memory_is_used),
    ("paper", paper::by_memory_size),
    ("hybrid", hybrid::java_by_strategy),
    ("servers", servers::by_strategy),
    ("machines", machines::against_qemu),
    ("predict", predict::against_the_truth),
    ("simulator", simulator::speed),
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
