//! Charts as files of the results.

use std::fs;
use std::path::Path;

use whimbrel_sim::chart::Chart;

/// Where the charts go.
const RESULTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../bench/results");

/// Writes it to a file of the results.
pub fn save(file: &str, chart: &Chart) {
    fs::create_dir_all(RESULTS).unwrap();
    fs::write(Path::new(RESULTS).join(file), chart.svg()).unwrap();
    println!("graph: bench/results/{file}");
}
