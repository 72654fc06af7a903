//! Figure 9: crypto with more cores and more bandwidth, by the equations and simulated.

use whimbrel_policy::collect::{downtime_of_two, CollectionSet};

use super::programs::{named, Program};
use super::{g1, G1, OUTSIDE_MB};
use crate::chart::{Across, Chart, Scale, Series};
use crate::papers::run::{mb_per_s, outcome, setting};
use crate::papers::{Finding, Told};

/// Of the machine on which table 1 was made.
const CORES: f64 = 4.0;
const CORES_TRIED: [f64; 3] = [2.0, 4.0, 8.0];
const GBIT_TRIED: [f64; 4] = [1.0, 2.0, 4.0, 8.0];
const BYTES_PER_S_PER_GBIT: f64 = 125e6;

const SATURATED: &str = "(7) dirties without an end, and only while the first snapshot travels. Here a page that is written twice is sent once, and crypto's live data is only 10.7 MB; it is written, too, during the 0.2 s in which pages are looked through, whatever the bandwidth; and what the collection copied is sent again.";

/// One way to know the downtime with so many cores and so many Gbit/s.
type Downtime = fn(&Program, f64, f64) -> f64;

/// (8): the initial snapshot is what (1) leaves of the heap, and what lies outside; what is not garbage is dirtied at AR - GR.
fn by_equation(program: &Program, cores: f64, gbit: f64) -> f64 {
    let bandwidth = (gbit * BYTES_PER_S_PER_GBIT) as u64;
    let heap = program.regions();
    let set = CollectionSet::choose(&heap, bandwidth);
    let size_bytes = set.data_bytes(&heap) + (OUTSIDE_MB * 1e6) as u64;
    let dirty_rate = program.live_mb_per_s() * 1e6 * cores / CORES;
    downtime_of_two(size_bytes, bandwidth, dirty_rate as u64).as_secs_f64()
}

/// Without what stays the same at any size.
fn simulated(program: &Program, cores: f64, gbit: f64) -> f64 {
    let share = cores / CORES;
    let mut settings = g1(program);
    settings.push(setting(
        "guest.load.0.rate",
        mb_per_s(program.garbage_mb_per_s * share),
    ));
    settings.push(setting(
        "guest.load.0.old-writes",
        mb_per_s(program.live_mb_per_s() * share),
    ));
    settings.push(setting("link.rate", mb_per_s(gbit * BYTES_PER_S_PER_GBIT / 1e6)));
    // Of a wait for the application's own collection the equations say nothing.
    settings.push(setting("migration.ride", "0s"));
    let outcome = outcome(G1, "crypto", &settings);
    outcome.rounds.last().map_or(0.0, |last| last.duration_s)
}

/// The figure, and the laws that the paper reads from it.
pub(super) fn simulate() -> (Vec<Chart>, Vec<Finding>) {
    let Some(crypto) = named("crypto") else {
        return (Vec::new(), Vec::new());
    };
    (vec![chart(crypto)], laws(crypto))
}

/// By the simulation only: (8) would be compared with itself.
fn laws(crypto: &Program) -> Vec<Finding> {
    let law = |what: &str, paper, downtime_s: f64| Finding {
        what: format!("figure 9: downtime with {what}, simulated"),
        unit: "",
        paper: Told::Value(paper),
        simulated: downtime_s / simulated(crypto, CORES, 1.0),
        note: SATURATED,
    };
    vec![
        law("twice the cores", 2.0, simulated(crypto, 2.0 * CORES, 1.0)),
        law("twice the bandwidth", 0.25, simulated(crypto, CORES, 2.0)),
    ]
}

fn chart(crypto: &Program) -> Chart {
    let line = |how: &str, of: Downtime, cores: f64| {
        let points = GBIT_TRIED.map(|gbit| (gbit, of(crypto, cores, gbit) * 1e3));
        Series::new(format!("{cores} cores, {how}"), points.to_vec())
    };
    let lines = |cores| [line("(8)", by_equation, cores), line("sim", simulated, cores)];
    Chart {
        title: "Figure 9: crypto with more cores and more bandwidth".to_owned(),
        left: "time for the last snapshot, ms".to_owned(),
        bottom: "Gbit/s".to_owned(),
        across: Across::Numbers(GBIT_TRIED[0], GBIT_TRIED[3]),
        series: CORES_TRIED.into_iter().flat_map(lines).collect(),
        scale: Scale::Logarithmic,
        ..Chart::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the paper says of the figure: twice the cores, twice the downtime; twice the bandwidth, a quarter.
    #[test]
    fn the_equation_has_the_laws_of_the_figure() {
        let crypto = named("crypto").unwrap();
        let downtime_s = |cores, gbit| by_equation(crypto, cores, gbit) / by_equation(crypto, CORES, 1.0);
        assert!((downtime_s(2.0 * CORES, 1.0) - 2.0).abs() < 1e-3);
        assert!((downtime_s(CORES, 2.0) - 0.25).abs() < 1e-3);
    }
}
