//! Where in a text things are, however TOML lets them be written.

use std::ops::Range;

use toml::de::{DeTable, DeValue};
use toml::Spanned;

use super::error::shortened;

/// What is at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Section,
    /// Several sections of one name, or their elements.
    Sections,
    Value,
}

/// A text and what the reader says of its places. A path names tables and the key, with numbers for the elements of an array.
pub(super) struct Places<'a> {
    text: &'a str,
    root: DeValue<'a>,
}

/// Something that was found.
struct Found<'t, 'a> {
    /// Of its key, or of the element.
    at: Range<usize>,
    value: &'t Spanned<DeValue<'a>>,
}

impl<'a> Places<'a> {
    /// Of a text that is no TOML, nothing is known.
    pub(super) fn of(text: &'a str) -> Self {
        let root = DeTable::parse(text).map_or_else(|_| DeTable::new(), Spanned::into_inner);
        let root = DeValue::Table(root);
        Places { text, root }
    }

    /// The line of what is named, or of the innermost thing around it that is there; the first if nothing is.
    pub(super) fn line(&self, path: &[String]) -> usize {
        let found = (0..=path.len())
            .rev()
            .find_map(|length| self.find(&path[..length]));
        let start = found.map_or(0, |found| found.at.start);
        self.text
            .get(..start)
            .map_or(0, |before| before.matches('\n').count())
            + 1
    }

    /// What is at a path.
    pub(super) fn kind(&self, path: &[String]) -> Kind {
        let is_element = path.last().is_some_and(|part| part.parse::<usize>().is_ok());
        match self.find(path).map(|found| found.value.get_ref()) {
            _ if is_element => Kind::Sections,
            Some(DeValue::Table(_)) => Kind::Section,
            Some(DeValue::Array(all)) if all.iter().any(|one| one.get_ref().is_table()) => Kind::Sections,
            _ => Kind::Value,
        }
    }

    /// A section's name in its brackets.
    pub(super) fn section(&self, path: &[String]) -> String {
        let names = path.iter().filter(|part| part.parse::<usize>().is_err());
        let names: Vec<&str> = names.map(String::as_str).collect();
        let name = shortened(&names.join("."));
        match self.kind(path) {
            Kind::Sections => format!("[[{name}]]"),
            Kind::Section | Kind::Value => format!("[{name}]"),
        }
    }

    /// `key = value` as it is written, or the path if the value is not a plain one.
    pub(super) fn assignment(&self, path: &[String]) -> String {
        let key = path.iter().rfind(|part| part.parse::<usize>().is_err());
        let found = self.find(path).map(|found| found.value);
        let value = found
            .filter(|value| !value.get_ref().is_table())
            .and_then(|value| self.text.get(value.span()));
        match (key, value) {
            (Some(key), Some(value)) => format!("{} = {}", shortened(key), shortened(value)),
            _ => shortened(&path.join(".")),
        }
    }

    fn find(&self, path: &[String]) -> Option<Found<'_, 'a>> {
        let (first, rest) = path.split_first()?;
        let mut found = within(&self.root, first)?;
        for part in rest {
            found = within(found.value.get_ref(), part)?;
        }
        Some(found)
    }
}

fn within<'t, 'a>(value: &'t DeValue<'a>, part: &str) -> Option<Found<'t, 'a>> {
    match value {
        DeValue::Table(table) => {
            let (key, value) = table.iter().find(|(key, _)| key.get_ref() == part)?;
            let at = key.span();
            Some(Found { at, value })
        }
        DeValue::Array(elements) => {
            let value = elements.get(part.parse::<usize>().ok()?)?;
            let at = value.span();
            Some(Found { at, value })
        }
        _ => None,
    }
}
