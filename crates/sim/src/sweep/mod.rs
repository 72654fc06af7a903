//! The same scenario with other values: each combination of what `--sweep` names, on all cores.

mod run;

use std::str::FromStr;

use toml::{Table, Value};

use crate::report::{suffix, Setting};
use crate::{Scenario, ScenarioError};

pub(crate) use run::outcomes;
pub use run::{count, run};

/// Simulations of one run at most: their outcomes stay in memory.
pub const CASES_MAX: usize = 10_000;

/// Parts of a key at most.
const PARTS_MAX: usize = 16;

/// Why nothing was simulated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SweepError {
    /// A sweep is not written like one.
    #[error("{0:?} is no sweep; write it like link.rate=100Mbit/s,1Gbit/s")]
    Form(String),
    /// There is an empty value.
    #[error("a value of {0} is empty; write values with single commas between them")]
    EmptyValue(String),
    /// Two sweeps have the same key, or one has a part of the other's.
    #[error("{0} is swept twice; name all its values at once")]
    Repeated(String),
    /// There are too many combinations.
    #[error("the sweeps have more than {CASES_MAX} combinations")]
    TooMany,
    /// There is no such place in the scenario.
    #[error("{file} has no place for {key}: {sentence}")]
    Place {
        /// The scenario's file.
        file: String,
        /// The key of the sweep.
        key: String,
        /// What is there instead.
        sentence: String,
    },
    /// The scenario itself is wrong.
    #[error(transparent)]
    Scenario(#[from] ScenarioError),
    /// The scenario is wrong with these values.
    #[error("with {swept}: {error}")]
    Values {
        /// Keys and values.
        swept: String,
        /// What is wrong with them, and what is allowed.
        error: ScenarioError,
    },
}

/// A key and its values, written `key=a,b,c`. The key is a path: names, and numbers from 0 on for the elements of an array, as in
/// `guest.load.0.rate`. Values are those of TOML (`true`, `5`, `"a,b"`, `[1, 2]`); what is none is a string, so that `1Gbit/s` needs no quotes.
#[derive(Clone, Debug, PartialEq)]
pub struct Sweep {
    /// The path.
    pub key: String,
    /// One at least.
    pub values: Vec<Value>,
}

impl FromStr for Sweep {
    type Err = SweepError;

    fn from_str(text: &str) -> Result<Self, SweepError> {
        let form = || SweepError::Form(text.to_owned());
        let (key, list) = text.split_once('=').ok_or_else(form)?;
        let key = key.trim();
        if key.split('.').any(str::is_empty) || key.split('.').count() > PARTS_MAX {
            return Err(form());
        }
        let is_cut = |list: &str| list.is_empty() || list.starts_with(',') || list.ends_with(',');
        let values = match toml_value(&format!("[{list}]")) {
            Some(Value::Array(values)) if !is_cut(list.trim()) => values,
            _ => list
                .split(',')
                .map(|word| value(word, key))
                .collect::<Result<_, _>>()?,
        };
        let key = key.to_owned();
        Ok(Self { key, values })
    }
}

fn value(word: &str, key: &str) -> Result<Value, SweepError> {
    match word.trim() {
        "" => Err(SweepError::EmptyValue(key.to_owned())),
        word => Ok(toml_value(word).unwrap_or_else(|| Value::String(word.to_owned()))),
    }
}

fn toml_value(text: &str) -> Option<Value> {
    let mut table: Table = format!("value = {text}").parse().ok()?;
    // More than one key: the text was more than a value.
    table.remove("value").filter(|_| table.is_empty())
}

/// A scenario and what is swept in it.
#[derive(Clone, Debug)]
pub struct Plan {
    file: String,
    name: String,
    table: Table,
    sweeps: Vec<Sweep>,
}

impl Plan {
    /// A scenario from a file's text. It must be right without the sweeps, too. A `seed` replaces the scenario's own.
    ///
    /// # Errors
    /// One sentence about the scenario, with its line, or about the sweeps.
    pub fn new(text: &str, file: &str, sweeps: &[Sweep], seed: Option<u32>) -> Result<Self, SweepError> {
        let name = Scenario::parse(text, file)?.name().to_owned();
        // What was parsed as a scenario parses as a table.
        let mut table: Table = text.parse().unwrap_or_default();
        if let Some(seed) = seed {
            table.insert("seed".to_owned(), i64::from(seed).into());
        }
        distinct(sweeps)?;
        let (file, sweeps) = (file.to_owned(), sweeps.to_vec());
        let plan = Self {
            file,
            name,
            table,
            sweeps,
        };
        match plan.len() {
            0..=CASES_MAX => Ok(plan),
            _ => Err(SweepError::TooMany),
        }
    }

    /// Reads every combination.
    ///
    /// # Errors
    /// The first one that is no scenario.
    pub fn check(&self) -> Result<(), SweepError> {
        (0..self.len()).try_for_each(|number| self.scenario(&self.settings(number)).map(drop))
    }

    /// The number of combinations. Never 0.
    fn len(&self) -> usize {
        let sizes = self.sweeps.iter().map(|sweep| sweep.values.len());
        sizes.fold(1, usize::saturating_mul)
    }

    /// The values of a combination; the last sweep's change fastest.
    fn settings(&self, number: usize) -> Vec<Setting> {
        let mut rest = number;
        let pick = |sweep: &Sweep| {
            let value = sweep.values[rest % sweep.values.len()].clone();
            rest /= sweep.values.len();
            let key = sweep.key.clone();
            Setting { key, value }
        };
        let mut settings: Vec<Setting> = self.sweeps.iter().rev().map(pick).collect();
        settings.reverse();
        settings
    }

    /// The scenario with these values set.
    ///
    /// # Errors
    /// A key that is no place in it, or a value that does not belong there.
    pub(crate) fn scenario(&self, settings: &[Setting]) -> Result<Scenario, SweepError> {
        let mut table = self.table.clone();
        for setting in settings {
            let path: Vec<&str> = setting.key.split('.').collect();
            set(&mut table, &path, &setting.value).map_err(|sentence| SweepError::Place {
                file: self.file.clone(),
                key: setting.key.clone(),
                sentence,
            })?;
        }
        let name = self.name.clone() + &suffix(settings);
        table.insert("name".to_owned(), Value::String(name));
        Scenario::from_table(table, &self.file).map_err(|error| match settings {
            [] => error.into(),
            _ => SweepError::Values {
                swept: suffix(settings).trim_start_matches(", ").to_owned(),
                error,
            },
        })
    }
}

fn distinct(sweeps: &[Sweep]) -> Result<(), SweepError> {
    for (index, sweep) in sweeps.iter().enumerate() {
        let is_same = |other: &&Sweep| is_within(&sweep.key, &other.key) || is_within(&other.key, &sweep.key);
        if sweeps[..index].iter().any(|other| is_same(&other)) {
            return Err(SweepError::Repeated(sweep.key.clone()));
        }
    }
    Ok(())
}

/// Whether the path is the other one, or goes on from there.
fn is_within(path: &str, outer: &str) -> bool {
    let rest = path.strip_prefix(outer);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Puts a value into its place. Tables that are not there yet are made: whether the scenario knows them is found out when it is read.
fn set(table: &mut Table, path: &[&str], value: &Value) -> Result<(), String> {
    let Some((name, rest)) = path.split_first() else {
        return Ok(());
    };
    if rest.is_empty() {
        table.insert((*name).to_owned(), value.clone());
        return Ok(());
    }
    let next = table.entry(*name).or_insert_with(|| Value::Table(Table::new()));
    set_within(next, name, rest, value)
}

/// As [`set`], in what is called `name`.
fn set_within(place: &mut Value, name: &str, path: &[&str], value: &Value) -> Result<(), String> {
    let Some((first, rest)) = path.split_first() else {
        *place = value.clone();
        return Ok(());
    };
    match place {
        Value::Table(table) => set(table, path, value),
        Value::Array(elements) => {
            let count = elements.len();
            let element = first
                .parse()
                .ok()
                .and_then(|index: usize| elements.get_mut(index));
            let element = element
                .ok_or_else(|| format!("{name} has {}, and {first} is none of them", numbers(count)))?;
            set_within(element, first, rest, value)
        }
        _ => Err(format!("{name} is a value, and nothing is inside it")),
    }
}

fn numbers(count: usize) -> String {
    match count {
        0 => "no elements".to_owned(),
        1 => "one element, 0".to_owned(),
        count => format!("the elements 0 to {}", count - 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCENARIO: &str = "name = \"web\"\n[memory]\nsize = \"64MiB\"\n[link]\nrate = \"1Gbit/s\"\n\
        [[guest.load]]\nmodel = \"uniform\"\nrate = \"1MB/s\"\n";

    fn sweep(text: &str) -> Sweep {
        text.parse().unwrap()
    }

    fn plan(sweeps: &[&str]) -> Result<Plan, SweepError> {
        let sweeps: Vec<Sweep> = sweeps.iter().map(|text| sweep(text)).collect();
        Plan::new(SCENARIO, "web.toml", &sweeps, None)
    }

    fn scenarios(plan: &Plan) -> Result<Vec<String>, SweepError> {
        let one = |number| plan.scenario(&plan.settings(number));
        (0..plan.len())
            .map(one)
            .map(|scenario| Ok(scenario?.name().to_owned()))
            .collect()
    }

    #[test]
    fn values_are_those_of_toml_else_strings() {
        assert_eq!(
            sweep("a.b=1,2.5,true").values,
            [1.into(), 2.5.into(), true.into()]
        );
        assert_eq!(sweep("a=1Gbit/s, 5").values, [Value::from("1Gbit/s"), 5.into()]);
        assert_eq!(sweep("a=\"x,y\",\"z\"").values, [Value::from("x,y"), "z".into()]);
        assert_eq!(sweep("a=[1, 2]").values, [Value::Array(vec![1.into(), 2.into()])]);
        // No second key can be smuggled in.
        assert_eq!(sweep("a=1]\nb=[2").values, [Value::from("1]\nb=[2")]);
    }

    #[test]
    fn what_is_no_sweep_is_said_in_one_sentence() {
        let error = |text: &str| text.parse::<Sweep>().unwrap_err().to_string();
        assert_eq!(
            error("link.rate"),
            "\"link.rate\" is no sweep; write it like link.rate=100Mbit/s,1Gbit/s"
        );
        assert!(error("=1").contains("no sweep") && error("a..b=1").contains("no sweep"));
        assert!(error(&("a.".repeat(90_000) + "b=1")).contains("no sweep"));
        for text in ["a=", "a=1,,2", "a=1,", "a=,1"] {
            assert!(error(text).starts_with("a value of a is empty"), "{text}");
        }
    }

    #[test]
    fn every_combination_comes_once_the_last_key_fastest() {
        let plan = plan(&["link.rate=1Gbit/s,2Gbit/s", "guest.load.0.rate=1MB/s,2MB/s,3MB/s"]).unwrap();
        let names = scenarios(&plan).unwrap();
        assert_eq!(names.len(), 6);
        assert_eq!(names[0], "web, link.rate=1Gbit/s, guest.load.0.rate=1MB/s");
        assert_eq!(names[1], "web, link.rate=1Gbit/s, guest.load.0.rate=2MB/s");
        assert_eq!(names[5], "web, link.rate=2Gbit/s, guest.load.0.rate=3MB/s");
    }

    #[test]
    fn a_seed_replaces_that_of_the_file() {
        let plan = Plan::new(SCENARIO, "web.toml", &[], Some(77)).unwrap();
        assert_eq!(plan.scenario(&[]).unwrap().seed(), 77);
    }

    #[test]
    fn a_wrong_key_or_value_is_named() {
        let error = |text: &str| scenarios(&plan(&[text]).unwrap()).unwrap_err().to_string();
        let key = error("link.rte=1Gbit/s");
        assert!(
            key.starts_with("with link.rte=1Gbit/s: web.toml: ") && key.contains("rte"),
            "{key}"
        );
        let value = error("migration.strategy=hope");
        assert!(value.contains("hope") && value.contains("postcopy"), "{value}");
        assert_eq!(
            error("guest.load.0.rate=-5MB/s"),
            "with guest.load.0.rate=-5MB/s: web.toml: guest.load.0.rate: a rate must be positive"
        );
        assert_eq!(
            error("guest.load.3.rate=1"),
            "web.toml has no place for guest.load.3.rate: load has one element, 0, and 3 is none of them"
        );
        assert!(error("memory.size.x=1").ends_with("size is a value, and nothing is inside it"));
    }

    #[test]
    fn sweeps_do_not_overlap_and_are_not_endless() {
        assert!(matches!(
            plan(&["link.rate=1", "link.rate=2"]),
            Err(SweepError::Repeated(_))
        ));
        assert!(matches!(
            plan(&["link=1", "link.rate=2"]),
            Err(SweepError::Repeated(_))
        ));
        assert!(plan(&["link.rate=1Gbit/s", "link.rates=2"]).is_ok());
        let numbers = vec!["1"; 200].join(",");
        let many = ["a", "b", "c"].map(|key| format!("{key}={numbers}"));
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(plan(&many).unwrap_err(), SweepError::TooMany);
    }
}
