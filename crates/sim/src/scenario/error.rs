//! Why a text is no scenario.

use std::fmt;

use serde_path_to_error::Segment;

use super::place::{Kind, Places};
use super::Scenario;

/// One sentence with file, line and key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {sentence}", Place(.file, *.line))]
pub struct ScenarioError {
    /// The file.
    pub file: String,
    /// The line in it, from 1 on; 0 if it is not known.
    pub line: usize,
    /// What is wrong, and what is allowed.
    pub sentence: String,
}

struct Place<'a>(&'a str, usize);

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place(file, 0) => f.write_str(file),
            Place(file, line) => write!(f, "{file}:{line}"),
        }
    }
}

/// Characters of a name or value in a sentence at most: it may come from anywhere.
const SHOWN_CHARS_MAX: usize = 60;

/// What can be put into brackets at the top.
const SECTIONS: [&str; 8] = [
    "memory",
    "link",
    "storage",
    "guest",
    "application",
    "balloon",
    "host",
    "migration",
];

/// Reads a text that was written by hand.
pub(super) fn read(text: &str, file: &str) -> Result<Scenario, ScenarioError> {
    let deserializer = toml::Deserializer::parse(text).map_err(|error| no_toml(&error, text, file))?;
    serde_path_to_error::deserialize(deserializer).map_err(|error| {
        explained(&error, &Places::of(text), file, |places, path| {
            places.assignment(path)
        })
    })
}

/// Reads what was already read as TOML.
pub(super) fn read_table(table: toml::Table, file: &str) -> Result<Scenario, ScenarioError> {
    // Without lines: what was changed since the text was read is in none of them.
    let text = toml::to_string(&table).unwrap_or_default();
    serde_path_to_error::deserialize(table).map_err(|error| ScenarioError {
        line: 0,
        ..explained(&error, &Places::of(&text), file, |_, path| path.join("."))
    })
}

/// A text that is not even TOML.
fn no_toml(error: &toml::de::Error, text: &str, file: &str) -> ScenarioError {
    let span = error.span().unwrap_or_default();
    let before = text.get(..span.start).unwrap_or(text);
    let message = error.message().trim().replace('\n', " ");
    let sentence = match text.get(span) {
        Some(key) if message.starts_with("duplicate key") => {
            format!(
                "`{}` is there already; each key and section can be said once",
                shortened(key)
            )
        }
        _ => format!("this is no TOML: {}", shortened(&message)),
    };
    ScenarioError {
        file: file.into(),
        line: before.matches('\n').count() + 1,
        sentence,
    }
}

/// What the reader found, in the words of this program. `name` says which key, by its path, has a wrong value.
fn explained(
    error: &serde_path_to_error::Error<toml::de::Error>,
    places: &Places<'_>,
    file: &str,
    name: impl Fn(&Places<'_>, &[String]) -> String,
) -> ScenarioError {
    let message = error.inner().message().trim().replace('\n', " ");
    let mut path: Vec<String> = error.path().iter().filter_map(part).collect();
    let sentence = if let Some((name, names)) = unknown(&message, "unknown field ") {
        if path.last().map(String::as_str) != Some(name) {
            path.push(name.to_owned());
        }
        unknown_key(&path, names, places)
    } else if let Some(name) = message.strip_prefix("missing field ") {
        missing_key(&path, name.trim_matches('`'), places)
    } else {
        format!("{}: {}", name(places, &path), reworded(&message, &path, places))
    };
    ScenarioError {
        file: file.into(),
        line: places.line(&path),
        sentence,
    }
}

fn part(segment: &Segment) -> Option<String> {
    match segment {
        Segment::Seq { index } => Some(index.to_string()),
        Segment::Map { key } => Some(key.clone()),
        Segment::Enum { .. } | Segment::Unknown => None,
    }
}

fn unknown_key(path: &[String], names: Vec<&str>, places: &Places<'_>) -> String {
    let (name, within) = path
        .split_last()
        .map_or(("", path), |(name, within)| (name, within));
    let is_top = within.is_empty();
    let is_section = places.kind(path) != Kind::Value;
    let names: Vec<&str> = names
        .into_iter()
        .filter(|name| !(is_section && is_top) || SECTIONS.contains(name))
        .collect();
    let what = match is_section {
        true => format!("unknown section {}", places.section(path)),
        false => format!("unknown key `{}`", shortened(name)),
    };
    let place = match (is_section, is_top) {
        (true, true) => String::new(),
        (false, true) => " in the scenario".into(),
        _ => format!(" in {}", places.section(within)),
    };
    format!("{what}{place}; allowed: {}", names.join(", "))
}

fn missing_key(path: &[String], name: &str, places: &Places<'_>) -> String {
    match path.is_empty() {
        true => format!("the section [{name}] is missing"),
        false => format!("the key `{name}` is missing in {}", places.section(path)),
    }
}

/// serde's sentences about values and names, in ours.
fn reworded(message: &str, path: &[String], places: &Places<'_>) -> String {
    if let Some((name, names)) = unknown(message, "unknown variant ") {
        return format!(
            "`{}` is not known here; allowed: {}",
            shortened(name),
            names.join(", ")
        );
    }
    if message.starts_with("wanted ") {
        return "must be a name in quotes".into();
    }
    let is_of_serde = message.starts_with("invalid ");
    let expected = message.rsplit_once(", expected ").filter(|_| is_of_serde);
    match expected.map(|(_, expected)| expected) {
        None => message.to_owned(),
        Some("a boolean") => "must be true or false".into(),
        Some("a string") => "must be text in quotes".into(),
        Some("u32") => format!("must be a whole number between 0 and {}", u32::MAX),
        Some("u64") => "must be a whole number, 0 or more".into(),
        Some("a sequence") => format!("must be a list of sections, [[{}]]", path.join(".")),
        Some("unit" | "unit variant") => "must be a name in quotes".into(),
        Some(expected) if expected.starts_with("struct ") => {
            format!("must be a section, {}", places.section(path))
        }
        Some(expected) => expected.to_owned(),
    }
}

/// The name that is unknown, and those that are known.
fn unknown<'a>(message: &'a str, start: &str) -> Option<(&'a str, Vec<&'a str>)> {
    let rest = message.strip_prefix(start)?.strip_prefix('`')?;
    let (name, known) = rest.rsplit_once("`, expected ")?;
    // They stand between backticks: each second part.
    Some((name, known.split('`').skip(1).step_by(2).collect()))
}

/// One line, of a bearable length.
pub(super) fn shortened(text: &str) -> String {
    let shown = text.chars().take(SHOWN_CHARS_MAX);
    let mut shown: String = shown.map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(SHOWN_CHARS_MAX).is_some() {
        shown.push('…');
    }
    shown
}
