//! Tables 1 and 3, and what follows from them.

use std::time::Duration;

use whimbrel_policy::collect::Region;

/// At least this part of what is collected lives.
const SURVIVAL_MIN: f64 = 0.01;
/// The heap, of what is used of it: G1's reserve is a tenth.
const HEAP_PER_USED: f64 = 1.1;
/// Part of the young generation that is allocated between two collections; the rest is for survivors.
const EDEN_SHARE: f64 = 0.8;
/// G1's default (section 2.2).
const REGION_BYTES: u64 = 1 << 20;

/// A row of table 1, and of table 3.
#[derive(Debug)]
pub(super) struct Program {
    pub name: &'static str,
    /// AR.
    pub allocated_mb_per_s: f64,
    /// GR.
    pub garbage_mb_per_s: f64,
    /// Dead, and young, before a collection, in percent of what is used.
    dead_percent: f64,
    young_percent: f64,
    /// HU.
    pub used_mb: f64,
    /// Table 3, "Migr. GC".
    collection_ms: f64,
}

impl Program {
    fn dead_mb(&self) -> f64 {
        self.used_mb * self.dead_percent / 100.0
    }

    pub fn young_mb(&self) -> f64 {
        self.used_mb * self.young_percent / 100.0
    }

    /// The part of the heap that a collection frees, and that garbage goes through.
    pub fn fresh_mb(&self) -> f64 {
        self.dead_mb().max(self.young_mb())
    }

    pub fn heap_mb(&self) -> f64 {
        self.used_mb * HEAP_PER_USED
    }

    /// What lives through a collection of that part.
    pub fn survival(&self) -> f64 {
        (1.0 - self.dead_mb() / self.fresh_mb()).max(SURVIVAL_MIN)
    }

    /// What replaces what lives.
    pub fn live_mb_per_s(&self) -> f64 {
        self.allocated_mb_per_s - self.garbage_mb_per_s
    }

    /// cost(r), as a rate: table 3's duration over the live bytes that a collection copies.
    pub fn copied_mb_per_s(&self) -> f64 {
        self.survival() * EDEN_SHARE * self.fresh_mb() / (self.collection_ms / 1e3)
    }

    /// The heap before a collection as equations 1 to 5 see it: dead bytes and costs are spread evenly over the regions of that part, and
    /// the others are full of live data.
    pub fn regions(&self) -> Vec<Region> {
        let bytes = |mb: f64| (mb * 1e6) as u64;
        let count = bytes(self.fresh_mb()).div_ceil(REGION_BYTES);
        let all = bytes(self.used_mb).div_ceil(REGION_BYTES).max(count);
        let cost = Duration::from_secs_f64(self.collection_ms / 1e3 / count as f64);
        let region = |at: u64| {
            let is_fresh = at < count;
            Region {
                start: at * REGION_BYTES,
                size_bytes: REGION_BYTES,
                used_bytes: REGION_BYTES,
                dead_bytes: if is_fresh {
                    bytes(self.dead_mb()) / count
                } else {
                    0
                },
                cost,
                had_live_in_snapshot: false,
            }
        };
        (0..all).map(region).collect()
    }
}

const fn program(
    name: &'static str,
    [allocated_mb_per_s, garbage_mb_per_s, dead_percent, young_percent, used_mb]: [f64; 5],
    collection_ms: f64,
) -> Program {
    Program {
        name,
        allocated_mb_per_s,
        garbage_mb_per_s,
        dead_percent,
        young_percent,
        used_mb,
        collection_ms,
    }
}

// 6.28 is no constant of mathematics here.
#[allow(clippy::approx_constant)]
/// AR, GR, % Gbg, % Yng, HU; Migr. GC. The paper writes sunflow and avrora in two ways each.
pub(super) const PROGRAMS: [Program; 15] = [
    program("scimark", [11.85, 6.28, 53.22, 0.21, 481.40], 18.0),
    program("derby", [815.53, 301.75, 37.41, 37.41, 449.10], 7.0),
    program("crypto", [258.46, 250.53, 96.93, 0.57, 349.0], 8.0),
    program("compress", [31.25, 0.94, 2.88, 3.60, 55.60], 3.0),
    program("xml", [740.94, 614.98, 82.72, 82.38, 149.30], 11.0),
    program("serial", [585.86, 181.62, 30.92, 30.87, 187.90], 4.0),
    program("mpegaudio", [86.07, 66.27, 76.75, 86.42, 24.30], 7.0),
    program("avrora", [1.94, 1.44, 74.38, 75.22, 22.60], 12.0),
    program("h2", [405.14, 121.54, 29.62, 34.75, 423.00], 36.0),
    program("fop", [223.66, 140.20, 60.23, 63.33, 176.00], 26.0),
    program("pmd", [130.63, 84.91, 64.57, 68.45, 232.30], 22.0),
    program("sunflow", [457.03, 389.33, 82.63, 82.18, 142.20], 6.0),
    program("eclipse", [9.05, 4.80, 53.40, 57.67, 107.50], 38.0),
    program("tomcat", [61.05, 53.11, 87.49, 88.35, 127.90], 17.0),
    program("jython", [794.59, 659.51, 82.54, 82.54, 178.10], 13.0),
];

/// The program of this name.
pub(super) fn named(name: &str) -> Option<&'static Program> {
    PROGRAMS.iter().find(|program| program.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use whimbrel_policy::collect::CollectionSet;

    #[test]
    fn derby_by_hand() {
        let derby = named("derby").unwrap();
        // 37.41 % of 449.1 MB, all of it young; 815.53 - 301.75 MB/s of what lives.
        assert!((derby.fresh_mb() - 168.008).abs() < 1e-3, "{}", derby.fresh_mb());
        assert!((derby.live_mb_per_s() - 513.78).abs() < 1e-9);
        assert_eq!(derby.survival(), SURVIVAL_MIN);
        // 1 % of 134.4 MB in 7 ms.
        assert!((derby.copied_mb_per_s() - 192.01).abs() < 0.01);
    }

    #[test]
    fn at_a_gigabit_it_pays_to_collect_every_region_with_garbage() {
        for program in &PROGRAMS {
            let regions = program.regions();
            let chosen = CollectionSet::choose(&regions, 125_000_000);
            let with_garbage = regions.iter().filter(|region| region.dead_bytes > 0).count();
            assert_eq!(chosen.0.len(), with_garbage, "{}", program.name);
            // Table 3's duration is what they cost together.
            let cost_ms = chosen.gc_cost(&regions).as_secs_f64() * 1e3;
            assert!(
                (cost_ms - program.collection_ms).abs() < 0.01,
                "{}: {cost_ms}",
                program.name
            );
        }
    }
}
