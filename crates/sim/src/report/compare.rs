//! Charts of many outcomes side by side: bars, and lines over what was swept.

use crate::chart::{Across, Bars, Chart, Part, Series};
use crate::Outcome;

use super::units::Unit;
use super::{Bytes, Case, Named, Setting, Time};

/// More lines nobody can tell apart.
pub(super) const LINES_MAX: usize = 7;

/// What a bar or a line of a comparison shows: name, number, and how it is said.
pub(super) struct Measure {
    pub name: &'static str,
    parts: &'static [Named<Outcome, f64>],
    unit: fn(f64) -> Unit,
    words: fn(f64) -> String,
}

/// Total time by phase, downtime, traffic by network.
pub(super) const MEASURES: [Measure; 3] = [
    Measure {
        name: "Total time",
        parts: &[
            ("preparation", |outcome| outcome.preparation_s),
            ("downtime", |outcome| outcome.downtime_s),
            ("resume", |outcome| outcome.resume_s),
        ],
        unit: Unit::of_seconds,
        words: |seconds| Time(seconds).to_string(),
    },
    Measure {
        name: "Downtime",
        parts: &[("downtime", |outcome| outcome.downtime_s)],
        unit: Unit::of_seconds,
        words: |seconds| Time(seconds).to_string(),
    },
    Measure {
        name: "Traffic",
        parts: &[
            ("network", |outcome| outcome.bytes as f64),
            ("storage", |outcome| outcome.storage_bytes as f64),
        ],
        unit: Unit::of_bytes,
        words: |bytes| Bytes(bytes as u64).to_string(),
    },
];

impl Measure {
    fn of(&self, outcome: &Outcome) -> f64 {
        self.parts.iter().map(|(_, part)| part(outcome)).sum()
    }

    fn unit_for<'a>(&self, cases: impl Iterator<Item = &'a Case>) -> Unit {
        let highest = cases.map(|case| self.of(&case.outcome)).fold(0.0, f64::max);
        (self.unit)(highest)
    }

    /// A bar for each case.
    pub(super) fn bars(&self, cases: &[Case]) -> Bars {
        let unit = self.unit_for(cases.iter());
        let part = |(name, value): &Named<Outcome, f64>| Part {
            name: (*name).to_owned(),
            values: cases
                .iter()
                .map(|case| value(&case.outcome) / unit.size)
                .collect(),
        };
        Bars {
            title: self.name.to_owned(),
            bottom: unit.name.to_owned(),
            names: cases.iter().map(name).collect(),
            sums: cases
                .iter()
                .map(|case| (self.words)(self.of(&case.outcome)))
                .collect(),
            parts: self.parts.iter().map(part).collect(),
        }
    }

    /// Over a swept key: a line for each group of cases that differ in this key only.
    pub(super) fn lines(&self, over: &Over) -> Chart {
        let groups = || over.groups.iter().take(LINES_MAX);
        let unit = self.unit_for(groups().flat_map(|group| group.cases.iter().map(|(_, case)| *case)));
        let line = |group: &Group| {
            let point = |(x, case): &(f64, &Case)| (*x, self.of(&case.outcome) / unit.size);
            Series::new(group.name.clone(), group.cases.iter().map(point).collect())
        };
        Chart {
            title: format!("{} over {}", self.name, over.key),
            left: unit.name.to_owned(),
            bottom: over.key.to_owned(),
            across: over.across.clone(),
            series: groups().map(line).collect(),
            ..Chart::default()
        }
    }
}

/// The scenario, and the strategy if the name does not tell it.
pub(super) fn name(case: &Case) -> String {
    let Outcome {
        scenario, strategy, ..
    } = &case.outcome;
    if scenario.contains(strategy.as_str()) {
        scenario.clone()
    } else {
        format!("{scenario} ({strategy})")
    }
}

/// A swept key whose values are quantities, and the cases over it.
pub(super) struct Over<'a> {
    key: &'a str,
    across: Across,
    pub groups: Vec<Group<'a>>,
}

/// Cases that differ in one key only, in its order.
pub(super) struct Group<'a> {
    name: String,
    cases: Vec<(f64, &'a Case)>,
}

/// The swept keys that a line can be drawn over: those with two values or more, all of which are numbers or begin with one (`100mbit`).
/// Numbers have their place on the axis; others stand in the order of the sweep.
pub(super) fn over_keys(cases: &[Case]) -> Vec<Over<'_>> {
    let first = cases.first().map_or(&[][..], |case| &case.swept);
    first
        .iter()
        .filter_map(|setting| over(cases, &setting.key))
        .collect()
}

fn over<'a>(cases: &'a [Case], key: &'a str) -> Option<Over<'a>> {
    let value = |case: &'a Case| case.swept.iter().find(|setting| setting.key == key);
    let mut values: Vec<String> = Vec::new();
    for setting in cases.iter().filter_map(value) {
        let words = setting.words();
        if !values.contains(&words) {
            values.push(words);
        }
    }
    if values.len() < 2
        || !values
            .iter()
            .all(|words| words.starts_with(|c: char| c.is_ascii_digit()))
    {
        return None;
    }
    let numbers: Vec<f64> = values.iter().filter_map(|words| number(words)).collect();
    let are_numbers = numbers.len() == values.len();
    let place = |words: &str| match are_numbers {
        true => number(words),
        false => values
            .iter()
            .position(|value| value == words)
            .map(|index| index as f64),
    };
    let mut groups: Vec<Group> = Vec::new();
    for case in cases {
        let Some(x) = value(case).and_then(|setting| place(&setting.words())) else {
            continue;
        };
        let name = group_name(case, key);
        match groups.iter_mut().find(|group| group.name == name) {
            Some(group) => group.cases.push((x, case)),
            None => groups.push(Group {
                name,
                cases: vec![(x, case)],
            }),
        }
    }
    for group in &mut groups {
        group.cases.sort_by(|one, other| one.0.total_cmp(&other.0));
    }
    let across = if are_numbers {
        let low = numbers.iter().copied().fold(f64::INFINITY, f64::min);
        Across::Numbers(low, numbers.iter().copied().fold(low, f64::max))
    } else {
        Across::Columns(values)
    };
    Some(Over { key, across, groups })
}

/// As TOML writes it.
fn number(words: &str) -> Option<f64> {
    let number: f64 = words.replace('_', "").parse().ok()?;
    number.is_finite().then_some(number)
}

/// The scenario, the strategy and the other swept values.
fn group_name(case: &Case, key: &str) -> String {
    let others = case.swept.iter().filter(|setting| setting.key != key);
    let others: Vec<String> = others
        .map(Setting::words)
        .filter(|words| *words != case.outcome.strategy)
        .collect();
    let mut name = case.base().to_owned();
    for word in std::iter::once(&case.outcome.strategy).chain(&others) {
        if !word.is_empty() {
            name = format!("{name} {word}");
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(rate: impl Into<toml::Value>, strategy: &str, downtime_s: f64) -> Case {
        let setting = |key: &str, value: toml::Value| Setting {
            key: key.to_owned(),
            value,
        };
        let swept = vec![
            setting("link.rate", rate.into()),
            setting("migration.strategy", strategy.into()),
        ];
        let outcome = Outcome {
            scenario: format!("web{}", crate::report::suffix(&swept)),
            strategy: strategy.to_owned(),
            downtime_s,
            ..Outcome::default()
        };
        Case { swept, outcome }
    }

    #[test]
    fn a_line_for_each_group_over_numbers_in_their_order() {
        let cases = [
            case(30, "precopy", 0.01),
            case(10, "precopy", 0.03),
            case(20, "postcopy", 0.002),
        ];
        let overs = over_keys(&cases);
        assert_eq!(overs.len(), 1, "a strategy is no quantity");
        let chart = MEASURES[1].lines(&overs[0]);
        assert_eq!(chart.across, Across::Numbers(10.0, 30.0));
        assert_eq!(chart.left, "ms");
        assert_eq!(
            chart.series[0],
            Series::new("web precopy", vec![(10.0, 30.0), (30.0, 10.0)])
        );
        assert_eq!(chart.series[1], Series::new("web postcopy", vec![(20.0, 2.0)]));
    }

    #[test]
    fn quantities_with_units_are_columns_in_the_order_of_the_sweep() {
        let cases = [case("1Gbit/s", "precopy", 0.5), case("200Mbit/s", "precopy", 1.0)];
        let chart = MEASURES[1].lines(&over_keys(&cases)[0]);
        assert_eq!(
            chart.across,
            Across::Columns(vec!["1Gbit/s".into(), "200Mbit/s".into()])
        );
        assert_eq!(chart.series[0].points, [(0.0, 0.5), (1.0, 1.0)]);
        assert!(over_keys(&cases[..1]).is_empty());
    }
}
