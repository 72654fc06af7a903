//! The values of options: `key=value,flag,key=value`, as util/qemu-option.c of QEMU reads them, or JSON.
//!
//! A comma within a value is written twice. Some options have a first key that need not be written.

use serde_json::Value;

/// A value as QEMU writes it, in its order. What is printed again is read as the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Opts {
    pairs: Vec<Pair>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Pair {
    /// The first one, whose key is not written.
    Implied { key: String, value: String },
    /// `key=value`
    Full { key: String, value: String },
    /// `server`, `nowait`
    Flag(String),
}

impl Pair {
    /// What it means: `nowait` is `wait=off`.
    fn meaning(&self) -> (&str, &str) {
        match self {
            Pair::Implied { key, value } | Pair::Full { key, value } => (key, value),
            Pair::Flag(name) => name
                .strip_prefix("no")
                .map_or((name.as_str(), "on"), |name| (name, "off")),
        }
    }
}

impl Opts {
    /// Reads a value of an option whose first key may be left out if it is `implied`.
    pub(super) fn parse(text: &str, implied: Option<&str>) -> Opts {
        let mut pairs = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let end = rest.find(['=', ',']).unwrap_or(rest.len());
            let (word, after) = rest.split_at(end);
            let implied = implied.filter(|_| pairs.is_empty());
            let pair;
            (pair, rest) = match (after.strip_prefix('='), implied) {
                (Some(after), _) => {
                    let (value, rest) = unescape(after);
                    let key = word.to_owned();
                    (Pair::Full { key, value }, rest)
                }
                (None, Some(key)) => {
                    let (value, rest) = unescape(rest);
                    let key = key.to_owned();
                    (Pair::Implied { key, value }, rest)
                }
                (None, None) => (
                    Pair::Flag(word.to_owned()),
                    after.strip_prefix(',').unwrap_or(after),
                ),
            };
            pairs.push(pair);
        }
        Opts { pairs }
    }

    /// Changes the value of `key`, or adds it.
    pub(super) fn set(&mut self, key: &str, value: &str) {
        let full = Pair::Full {
            key: key.to_owned(),
            value: value.to_owned(),
        };
        // Of several the last one counts.
        match self.pairs.iter_mut().rfind(|pair| pair.meaning().0 == key) {
            Some(pair) => *pair = full,
            None => self.pairs.push(full),
        }
    }

    /// As it is written on the command line.
    pub(super) fn print(&self) -> String {
        let words = self.pairs.iter().map(|pair| match pair {
            Pair::Implied { key, value } => {
                let value = escape(value);
                // These would be read as a key with its value, and as nothing.
                let taken = value
                    .find(['=', ','])
                    .is_some_and(|at| value[at..].starts_with('='));
                match taken || value.is_empty() {
                    true => format!("{key}={value}"),
                    false => value,
                }
            }
            Pair::Full { key, value } => format!("{key}={}", escape(value)),
            Pair::Flag(name) => name.clone(),
        });
        words.collect::<Vec<_>>().join(",")
    }

    /// What it means.
    pub(super) fn keys(&self) -> Keys {
        let meanings = self.pairs.iter().map(Pair::meaning);
        Keys(
            meanings
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
        )
    }
}

fn escape(value: &str) -> String {
    value.replace(',', ",,")
}

/// A value up to the comma that ends it, and what follows that comma.
fn unescape(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(',') {
        value += before;
        match after.strip_prefix(',') {
            Some(after) => {
                value.push(',');
                rest = after;
            }
            None => return (value, after),
        }
    }
    (value + rest, "")
}

/// What a value says, whichever way it is written: names with dots for what lies within, and the value as text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Keys(Vec<(String, String)>);

impl Keys {
    /// Reads a value of either form.
    pub(super) fn parse(text: &str, implied: Option<&str>) -> Keys {
        json(text).map_or_else(
            || Opts::parse(text, implied).keys(),
            |value| Keys::of_json(&value),
        )
    }

    /// As QEMU would write it in keys with dots.
    pub(super) fn of_json(value: &Value) -> Keys {
        let mut pairs = Vec::new();
        flatten("", value, &mut pairs);
        Keys(pairs)
    }

    /// The last one of that name.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        let found = self.0.iter().rfind(|(name, _)| name == key);
        found.map(|(_, value)| value.as_str())
    }

    /// A switch.
    pub(super) fn switch(&self, key: &str) -> Option<bool> {
        self.get(key)
            .map(|value| matches!(value, "on" | "yes" | "true" | "y"))
    }

    /// A switch that is off unless it is said to be on.
    pub(super) fn is_on(&self, key: &str) -> bool {
        self.switch(key).unwrap_or(false)
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }
}

/// The object, if that is what it is.
pub(super) fn json(text: &str) -> Option<Value> {
    if !text.starts_with('{') {
        return None;
    }
    serde_json::from_str(text).ok().filter(Value::is_object)
}

fn flatten(name: &str, value: &Value, pairs: &mut Vec<(String, String)>) {
    let below = |key: &str| match name {
        "" => key.to_owned(),
        name => format!("{name}.{key}"),
    };
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                flatten(&below(key), value, pairs);
            }
        }
        Value::Array(list) => {
            for (number, value) in list.iter().enumerate() {
                flatten(&below(&number.to_string()), value, pairs);
            }
        }
        Value::String(text) => pairs.push((name.to_owned(), text.clone())),
        Value::Bool(on) => pairs.push((name.to_owned(), if *on { "on" } else { "off" }.to_owned())),
        Value::Number(number) => pairs.push((name.to_owned(), number.to_string())),
        Value::Null => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn values_mean_what_qemu_reads() {
        let keys = Keys::parse("/run/a,,b=c,server,nowait,x=1,x=2", Some("path"));
        assert_eq!(keys.get("path"), Some("/run/a,b=c"));
        assert_eq!(
            (keys.switch("server"), keys.switch("wait")),
            (Some(true), Some(false))
        );
        assert_eq!(keys.get("x"), Some("2"));
        let keys = Keys::parse(r#"{"a":{"b":[true,{"c":7}]},"d":"e"}"#, None);
        assert_eq!(
            (keys.get("a.b.0"), keys.get("a.b.1.c"), keys.get("d")),
            (Some("on"), Some("7"), Some("e"))
        );
        assert_eq!(Keys::parse("path=/x,,,y=", None).get("path"), Some("/x,"));
    }

    #[test]
    fn what_is_set_is_in_its_place() {
        let mut opts = Opts::parse("socket,id=a,server,nowait,path=/x", Some("backend"));
        opts.set("wait", "off");
        opts.set("path", "/a,b");
        opts.set("z", "1");
        assert_eq!(opts.print(), "socket,id=a,server,wait=off,path=/a,,b,z=1");
    }

    fn opts() -> impl Strategy<Value = Opts> {
        let pair = prop_oneof![
            ("[a-z.-]{1,6}", "[a-z,=/:{ ]{0,8}").prop_map(|(key, value)| Pair::Full { key, value }),
            "[a-z]{1,6}".prop_map(Pair::Flag),
        ];
        let first = proptest::option::of("[a-z,/:][a-z,=/:]{0,7}");
        (first, proptest::collection::vec(pair, 0..6)).prop_map(|(first, mut pairs)| {
            if let Some(value) = first {
                let key = "first".to_owned();
                pairs.insert(0, Pair::Implied { key, value });
            } else if matches!(pairs.first(), Some(Pair::Flag(_))) {
                pairs.remove(0);
            }
            let flag_first = matches!(pairs.first(), Some(Pair::Flag(_)));
            Opts {
                pairs: if flag_first { Vec::new() } else { pairs },
            }
        })
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_as_the_same(opts in opts()) {
            let again = Opts::parse(&opts.print(), Some("first"));
            prop_assert_eq!(again.keys(), opts.keys());
            prop_assert_eq!(again.print(), opts.print());
        }

        #[test]
        fn any_text_is_read(text in "[a-z,=/:{}\"é]{0,20}", implied in proptest::option::of(Just("first"))) {
            let opts = Opts::parse(&text, implied);
            if !opts.pairs.iter().any(|pair| matches!(pair, Pair::Flag(name) if name.is_empty())) {
                prop_assert_eq!(Opts::parse(&opts.print(), implied).keys(), opts.keys());
            }
        }
    }
}
