//! Page cache teleportation: two guests, two networks, and the ratio between them.

use super::{Finding, Paper, Told};
use crate::chart::{Across, Chart, Mark, Series};
use crate::sweep::outcomes;
use crate::Outcome;

const WEB: &str = include_str!("../../../../scenarios/papers/teleport-web.toml");
const DATABASE: &str = include_str!("../../../../scenarios/papers/teleport-database.toml");

const RATIOS: [f64; 8] = [0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0];

pub(super) fn simulate() -> Paper {
    let (web, database) = (Curve::of(WEB), Curve::of(DATABASE));
    let mut findings = web_findings(&web);
    findings.extend(database_findings(&database));
    Paper {
        name: "teleport",
        citation: "S. Akiyama, \"Fast Live Migration for Data-intensive VMs by Exploiting Storage Area Network in Datacenter\", \
                   LinuxCon Japan 2014",
        assumptions: vec![
            "What travels is what the printed time without the storage network carries at the printed rate: 3.85 GB of the web server's \
             guest (the clients take 120 Mbit/s of its network), 1.3 GB of the database's. The rest of 4 GB is zeros.",
            "A page read from storage takes 95 us beside its time on the wire, in both experiments: R = 0.3 at 28 s says that the web \
             server's storage gave 32 MB/s, and no page follows the one before.",
            "Both guests have the same ordinary memory: what the web server's has beside its 3 GB of web data. So 0.45 GB of the \
             database were cached.",
            "The ordinary memory is written with 1 MB/s in both guests; TPC-C touches 5 MB/s of the cache and writes a tenth of that.",
        ],
        findings,
        charts: vec![web.chart("Web server"), database.chart("Database")],
        ..Paper::default()
    }
}

/// Migrations with each ratio, and with the one that is found by itself.
struct Curve {
    by_hand: Vec<Outcome>,
    by_itself: Outcome,
}

impl Curve {
    fn of(scenario: &str) -> Self {
        let ratios = RATIOS.map(|ratio| format!("{ratio:?}")).join(",");
        let mut by_hand = outcomes(scenario, &[&format!("migration.teleport={ratios},auto")]);
        let by_itself = by_hand.pop().unwrap_or_default();
        Curve { by_hand, by_itself }
    }

    fn none_s(&self) -> f64 {
        self.by_hand.first().map_or(f64::NAN, |outcome| outcome.total_s)
    }

    fn all_s(&self) -> f64 {
        self.by_hand.last().map_or(f64::NAN, |outcome| outcome.total_s)
    }

    /// The ratio with the shortest time, and that.
    fn best(&self) -> (f64, f64) {
        let times = RATIOS.into_iter().zip(&self.by_hand);
        times
            .map(|(ratio, outcome)| (ratio, outcome.total_s))
            .min_by(|one, other| one.1.total_cmp(&other.1))
            .unwrap_or((f64::NAN, f64::NAN))
    }

    /// What came from storage where nobody said how much, as a part of all pages that it or the network could bring.
    fn found(&self, cache_pages: f64) -> f64 {
        self.by_itself.pages_from_storage as f64 / cache_pages
    }

    fn chart(&self, title: &str) -> Chart {
        let by_hand = RATIOS
            .into_iter()
            .zip(self.by_hand.iter().map(|outcome| outcome.total_s));
        let own_s = self.by_itself.total_s;
        let (best, _) = self.best();
        Chart {
            title: format!("{title}: total time over R"),
            left: "total time, s".into(),
            bottom: "R: part of the page cache that comes from storage".into(),
            across: Across::Numbers(0.0, 1.0),
            series: vec![
                Series::new("R by hand", by_hand.collect()),
                Series::new("R by itself", vec![(0.0, own_s), (1.0, own_s)]),
            ],
            marks: vec![Mark {
                at: best,
                name: "best".into(),
            }],
            ..Chart::default()
        }
    }
}

fn seconds(what: &str, paper: Told, simulated: f64, note: &'static str) -> Finding {
    Finding {
        what: what.into(),
        unit: "s",
        paper,
        simulated,
        note,
    }
}

fn web_findings(web: &Curve) -> Vec<Finding> {
    let (best, best_s) = web.best();
    let own = "Future work there. Beside it: the best time by hand, and a tenth.";
    let faults: u64 = web.by_hand.iter().map(|outcome| outcome.network_faults).sum();
    vec![
        seconds(
            "web server, R = 0: total time",
            Told::Value(35.0),
            web.none_s(),
            "The amount of memory was taken from it.",
        ),
        seconds(
            "web server, best R: total time",
            Told::Value(28.0),
            best_s,
            "The storage's speed was taken from it.",
        ),
        Finding {
            what: "web server: best R".into(),
            unit: "",
            paper: Told::Value(0.3),
            simulated: best,
            note: "With two equal, full networks it would be 0.67: reads were slower than the network.",
        },
        seconds(
            "web server, R = 1: total time",
            Told::Shape(web.none_s(), f64::INFINITY, "a bad R is worse than none"),
            web.all_s(),
            "",
        ),
        seconds(
            "web server, R by itself: total time",
            Told::Shape(0.0, best_s * 1.1, "as fast as the best R by hand"),
            web.by_itself.total_s,
            own,
        ),
        Finding {
            what: "web server, R by itself: R".into(),
            unit: "",
            paper: Told::Value(0.3),
            simulated: web.found(3e9 / 4096.0),
            note: own,
        },
        Finding {
            what: "web server: accesses that wait for a page after the migration".into(),
            unit: "",
            paper: Told::AtMost(0.0),
            simulated: faults as f64,
            note: "The slides show that the throughput is back at once: all of the cache is there.",
        },
    ]
}

const SCATTERED: &str = "19 s say that storage gave 7 MB/s: a database lies more scattered than web pages, \"really slow even with SSD\". The one seek \
                         time that the web server's numbers give does not know of that.";

fn database_findings(database: &Curve) -> Vec<Finding> {
    let (_, best_s) = database.best();
    vec![
        seconds(
            "database, R = 0: total time",
            Told::Value(21.0),
            database.none_s(),
            "The amount of memory was taken from it.",
        ),
        seconds(
            "database, best R: total time",
            Told::Value(19.0),
            best_s,
            SCATTERED,
        ),
        Finding {
            what: "database: part of the time that storage saves".into(),
            unit: "",
            paper: Told::Value(2.0 / 21.0),
            simulated: 1.0 - best_s / database.none_s(),
            note: SCATTERED,
        },
        seconds(
            "database, R by itself: total time",
            Told::Shape(0.0, best_s * 1.1, "as fast as the best R by hand"),
            database.by_itself.total_s,
            "Future work there. Beside it: the best time by hand, and a tenth.",
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    #[cfg_attr(debug_assertions, ignore = "18 migrations of gigabytes: with --release")]
    fn everything_but_what_storage_saves_the_database_is_as_in_the_slides() {
        let paper = simulate();
        let differ = paper
            .findings
            .iter()
            .filter(|one| one.verdict() == Verdict::Disagrees);
        let differ: Vec<_> = differ.map(|one| one.what.as_str()).collect();
        assert_eq!(differ, ["database: part of the time that storage saves"]);
    }
}
