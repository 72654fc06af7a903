//! Why a text is no scenario.

use std::fmt;

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

/// What the TOML reader found, in the words of this program.
pub(super) fn explained(error: &toml::de::Error, text: &str, file: &str) -> ScenarioError {
    let message = error.message().trim().replace('\n', " ");
    let span = error
        .span()
        .filter(|span| span.end <= text.len() && !text.is_empty());
    let is_about_a_key = message.starts_with("unknown field") || message.starts_with("missing field");
    let Some(span) = span else {
        return without_text(error, &message, is_about_a_key, file);
    };
    let before = text.get(..span.start).unwrap_or(text);
    // A key is missing in a table that begins here, or has begun before.
    let line_end = text[span.start..]
        .find('\n')
        .map_or(text.len(), |end| span.start + end);
    let sentence = reworded(&message, &section_at(&text[..line_end]));
    let assigned = text
        .get(span)
        .filter(|_| !is_about_a_key)
        .and_then(|value| assignment(before, value));
    ScenarioError {
        file: file.into(),
        line: before.matches('\n').count() + 1,
        sentence: assigned.map_or(sentence.clone(), |assigned| format!("{assigned}: {sentence}")),
    }
}

/// Without a text the reader names, behind the message, the value's key, or the table in which a key is wrong.
fn without_text(error: &toml::de::Error, message: &str, is_about_a_key: bool, file: &str) -> ScenarioError {
    let whole = error.to_string();
    let named = whole.split("in `").nth(1).and_then(|rest| rest.split('`').next());
    let section = named.map_or("the scenario".into(), |name| format!("[{name}]"));
    let sentence = reworded(message, &section);
    let key = named.filter(|_| !is_about_a_key);
    ScenarioError {
        file: file.into(),
        line: 0,
        sentence: key.map_or(sentence.clone(), |key| format!("{key}: {sentence}")),
    }
}

/// The header under which a text ends.
fn section_at(before: &str) -> String {
    let mut headers = before
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with('[') && line.ends_with(']'));
    headers
        .next_back()
        .map_or_else(|| "the scenario".into(), str::to_owned)
}

/// `key = value`, if a key comes right before the value.
fn assignment(before: &str, value: &str) -> Option<String> {
    let line = before.rsplit('\n').next()?.trim_end();
    let key = line.strip_suffix('=')?.trim_end();
    let key = key.rsplit(['{', ',']).next()?.trim();
    (!value.contains('\n')).then(|| format!("{key} = {value}"))
}

/// serde's sentences about keys and names, in ours.
fn reworded(message: &str, section: &str) -> String {
    let allowed = |rest: &str| {
        let names = rest
            .trim_start_matches(", ")
            .trim_start_matches("expected ")
            .trim_start_matches("one of ");
        names.replace(" or ", ", ").replace('`', "")
    };
    if let Some((name, rest)) = quoted(message, "unknown field ") {
        return format!("unknown key `{name}` in {section}; allowed: {}", allowed(rest));
    }
    if let Some((name, rest)) = quoted(message, "unknown variant ") {
        return format!("`{name}` is not known here; allowed: {}", allowed(rest));
    }
    match quoted(message, "missing field ") {
        Some((name, _)) => format!("the key `{name}` is missing in {section}"),
        None => message.to_owned(),
    }
}

fn quoted<'a>(message: &'a str, start: &str) -> Option<(&'a str, &'a str)> {
    message.strip_prefix(start)?.strip_prefix('`')?.split_once('`')
}

/// The line of a key: `path` names tables and the key, with numbers for the elements of an array of tables, as in
/// `guest.load.1.rate`. The header's line if the key is not there, 0 if that is not either.
pub(super) fn line_of(text: &str, path: &str) -> usize {
    let parts: Vec<&str> = path.split('.').collect();
    let Some((key, tables)) = parts.split_last() else {
        return 0;
    };
    let wanted: Vec<&str> = tables
        .iter()
        .copied()
        .filter(|part| part.parse::<usize>().is_err())
        .collect();
    let number: usize = tables
        .iter()
        .filter_map(|part| part.parse().ok())
        .next_back()
        .unwrap_or(0);
    let (wanted, mut seen, mut header_line, mut is_inside) = (wanted.join("."), 0, 0, tables.is_empty());
    for (line, number_of_line) in text.lines().map(str::trim).zip(1..) {
        if line.starts_with('[') {
            let header = line.trim_matches(['[', ']']).trim();
            is_inside = header == wanted && seen == number;
            seen += usize::from(header == wanted);
            header_line = if is_inside { number_of_line } else { header_line };
        } else if is_inside && line.split('=').next().is_some_and(|name| name.trim() == *key) {
            return number_of_line;
        }
    }
    header_line
}
