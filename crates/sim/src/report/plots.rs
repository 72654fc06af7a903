//! The charts of one outcome.

use crate::chart::{Across, Bars, Chart, Mark, Part, Scale, Series, Shape};
use crate::{Outcome, Pause, Sample, SimRound};

use super::units::Unit;
use super::{Named, Time};

/// More points than pixels only make a page large: about twice as many as this are kept of a line.
const POINTS_MAX: usize = 200;

/// Rounds that are drawn.
const ROUNDS_MAX: usize = 30;

/// Rounds whose numbers have room above a chart over time.
const ROUND_NAMES_MAX: usize = 10;

/// Pauses that are shaded, the longest ones.
const SHADES_MAX: usize = 100;

/// When everything was over.
fn end_s(outcome: &Outcome) -> f64 {
    let last = outcome.series.last().map_or(0.0, |sample| sample.at_s);
    let end = outcome
        .pauses
        .iter()
        .map(|pause| pause.begun_s + pause.duration_s);
    end.chain([last, outcome.total_s])
        .filter(|end| end.is_finite())
        .fold(0.0, f64::max)
}

/// What was sent and what was owed, with the rounds.
pub(crate) fn progress(outcome: &Outcome) -> Chart {
    let measures: [Named<Sample, u64>; 3] = [
        ("sent", |sample| sample.sent_bytes),
        ("owed", |sample| sample.owed_bytes),
        ("by storage", |sample| sample.storage_bytes),
    ];
    let values = || {
        outcome
            .series
            .iter()
            .flat_map(|sample| measures.map(|(_, of)| of(sample)))
    };
    let unit = Unit::of_bytes(values().max().unwrap_or(0) as f64);
    let line = |(name, of): Named<Sample, u64>| {
        let points = outcome
            .series
            .iter()
            .map(|sample| (sample.at_s, of(sample) as f64 / unit.size));
        Series::new(name, thinned(points.collect()))
    };
    let used = measures
        .into_iter()
        .filter(|(name, _)| *name != "by storage" || outcome.storage_bytes > 0);
    let frozen = outcome.pauses.iter().filter(|pause| pause.why == "switch-over");
    Chart {
        title: "Progress of the migration (numbers: rounds; shaded: frozen)".to_owned(),
        left: unit.name.to_owned(),
        bottom: "time since the request, s".to_owned(),
        across: Across::Numbers(0.0, end_s(outcome)),
        series: used.map(line).collect(),
        marks: round_marks(outcome),
        shades: frozen.map(span).collect(),
        ..Chart::default()
    }
}

/// The ends of the rounds, with their numbers while there is room.
fn round_marks(outcome: &Outcome) -> Vec<Mark> {
    let rounds = outcome
        .rounds
        .iter()
        .filter(|round| !round.frozen)
        .take(ROUNDS_MAX);
    let mark = |(index, round): (usize, &SimRound)| Mark {
        at: round.begun_s + round.duration_s,
        name: if index < ROUND_NAMES_MAX {
            round.number.to_string()
        } else {
            String::new()
        },
    };
    rounds.enumerate().map(mark).collect()
}

/// What became of the pages that each round owed.
pub(crate) fn rounds(outcome: &Outcome) -> Bars {
    let rounds = &outcome.rounds[..outcome.rounds.len().min(ROUNDS_MAX)];
    let parts: [Named<SimRound, u64>; 4] = [
        ("sent", |round| round.pages_sent),
        ("zero", |round| round.pages_zero),
        ("skipped", |round| round.pages_skipped),
        ("written again", |round| round.pages_rewritten),
    ];
    let part = |(name, of): Named<SimRound, u64>| Part {
        name: name.to_owned(),
        values: rounds.iter().map(|round| of(round) as f64).collect(),
    };
    let name = |round: &SimRound| {
        let what = if round.frozen {
            "last pages, frozen"
        } else {
            "round"
        };
        format!("{what} {}: {}", round.number, Time(round.duration_s))
    };
    Bars {
        title: "Pages by round, and how long each took".to_owned(),
        bottom: "pages".to_owned(),
        names: rounds.iter().map(name).collect(),
        sums: rounds
            .iter()
            .map(|round| format!("{} sent", round.pages_sent))
            .collect(),
        parts: parts.into_iter().map(part).collect(),
    }
}

/// What the application got done, and when it stood still.
pub(super) fn application(outcome: &Outcome) -> Chart {
    let points = outcome
        .series
        .iter()
        .map(|sample| (sample.at_s, sample.progress * 100.0));
    let mut pauses: Vec<&Pause> = outcome.pauses.iter().collect();
    pauses.sort_by(|one, other| other.duration_s.total_cmp(&one.duration_s));
    Chart {
        title: "Progress of the application (shaded: it stands still)".to_owned(),
        left: "% of what it does when left alone".to_owned(),
        bottom: "time since the request, s".to_owned(),
        across: Across::Numbers(0.0, end_s(outcome)),
        series: vec![Series::new("progress", thinned(points.collect()))],
        shades: pauses.into_iter().take(SHADES_MAX).map(span).collect(),
        ..Chart::default()
    }
}

/// How long who asks the application waits because it stands still: the longest pause of each short time.
pub(super) fn latency(outcome: &Outcome) -> Chart {
    let kinds = ["switch-over", "collection", "safepoint", "fault"];
    let of = |why: &str| {
        outcome
            .pauses
            .iter()
            .filter(|pause| pause.why == why)
            .collect::<Vec<_>>()
    };
    let series = kinds
        .into_iter()
        .map(|why| (why, of(why)))
        .filter(|(_, pauses)| !pauses.is_empty());
    let end = end_s(outcome);
    let stems = |(why, pauses): (&str, Vec<&Pause>)| Series {
        shape: Shape::Stems,
        ..Series::new(why, longest(&pauses, end))
    };
    Chart {
        title: "Latency that pauses add for who asks the application".to_owned(),
        left: "ms".to_owned(),
        bottom: "time since the request, s".to_owned(),
        across: Across::Numbers(0.0, end),
        series: series.map(stems).collect(),
        scale: Scale::Logarithmic,
        ..Chart::default()
    }
}

/// The longest pause of each of [`POINTS_MAX`] equal times, in milliseconds.
fn longest(pauses: &[&Pause], end_s: f64) -> Vec<(f64, f64)> {
    let mut longest = vec![(0.0, 0.0); POINTS_MAX + 1];
    for pause in pauses {
        // A cast keeps within its bounds, whatever the number.
        let place = (pause.begun_s / end_s * POINTS_MAX as f64) as usize;
        let one = &mut longest[place.min(POINTS_MAX)];
        if pause.duration_s * 1e3 > one.1 {
            *one = (pause.begun_s, pause.duration_s * 1e3);
        }
    }
    longest.retain(|(_, ms)| *ms > 0.0);
    longest
}

fn span(pause: &Pause) -> (f64, f64) {
    (pause.begun_s, pause.begun_s + pause.duration_s)
}

/// The lowest and the highest of so many neighbours that few points are left, in their order.
fn thinned(points: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    let together = points.len().div_ceil(POINTS_MAX);
    if together <= 2 {
        return points;
    }
    let mut kept = Vec::with_capacity(2 * POINTS_MAX);
    for chunk in points.chunks(together) {
        let by_value = |one: &&(f64, f64), other: &&(f64, f64)| one.1.total_cmp(&other.1);
        let ends = (chunk.iter().min_by(by_value), chunk.iter().max_by(by_value));
        if let (Some(&low), Some(&high)) = ends {
            kept.extend(if low.0 <= high.0 { [low, high] } else { [high, low] });
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thinning_keeps_the_deepest_dip() {
        let points: Vec<(f64, f64)> = (0..10_000)
            .map(|n| (f64::from(n), f64::from(u8::from(n != 4321))))
            .collect();
        let kept = thinned(points);
        assert!(kept.len() <= 2 * POINTS_MAX && kept.contains(&(4321.0, 0.0)));
        assert!(kept.windows(2).all(|pair| pair[0].0 <= pair[1].0));
    }

    #[test]
    fn of_many_pauses_the_longest_are_drawn() {
        let pause = |begun_s: f64, duration_s: f64| Pause {
            begun_s,
            duration_s,
            why: "fault".to_owned(),
        };
        let mut pauses: Vec<Pause> = (0..5000).map(|n| pause(f64::from(n) * 1e-3, 1e-4)).collect();
        pauses.push(pause(2.5, 0.25));
        let outcome = Outcome {
            pauses,
            total_s: 5.0,
            ..Outcome::default()
        };
        let chart = latency(&outcome);
        assert!(chart.series[0].points.len() <= POINTS_MAX + 1);
        assert!(chart.series[0].points.contains(&(2.5, 250.0)));
        assert_eq!(application(&outcome).shades.len(), SHADES_MAX);
        assert_eq!(application(&outcome).shades[0], (2.5, 2.75));
    }
}
