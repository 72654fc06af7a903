//! The commands: a pure parser. Every error is a sentence that says what is allowed.

use std::str::FromStr;
use std::time::Duration;

use super::context::{SEED_MEMORY, SEED_PAGES, SEED_REFERENCES};
use super::settings::Policy;

/// Characters of a line.
pub(super) const LINE_MAX: usize = 4096;
const NAME_MAX: usize = 32;
const MEMORY_MAX: u64 = 4096;
const SERVER_MEMORY_MAX: u64 = 1 << 20;
const REFERENCES_MAX: u64 = 100_000;
const PAGES_MAX: u64 = 1_000_000;
/// A year: what a simulation can run for, and any time that is set.
const TIME_MAX: Duration = Duration::from_secs(365 * 24 * 3600);
const SERVER_MEMORY: u64 = 64;

/// What can be typed.
pub(super) const HELP: &str = "\
create server NAME [memory 64]             a server that holds so many pages
create vm NAME on SERVER [memory 20] [references 100] [pages 50] [seed 1] [preset seed] [queue 1,2,3]
list                                       servers and VMs
start VM | stop VM
set policy stopcopy | precopy | postcopy [push|bubbling|demand] | lazycopy
set link rate 1KiB/s | set link latency 100ms
set reference 1s                           from one reference to the next
set disk 11s [always]                      a page from disk: while migrated, or always
set lead 8                                 references that the forward context is ahead at most
set downtime 10s                           at which pre-copy freezes
set background 512B/s | set background off a limit on the push and on pre-copy
migrate VM to SERVER                       begins it; run lets it go on
run 10s | run until done                   lets time pass: so much, or until no VM is being migrated
show memory VM | show registers VM | show settings | show log
compare                                    a table of the migrations so far
save log FILE | save compare FILE          the table as CSV
help | quit
";

/// A VM to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct VmSpec {
    pub name: String,
    pub server: String,
    pub memory: usize,
    pub references: usize,
    pub pages: u64,
    pub seed: u64,
    /// Instead of random references.
    pub queue: Option<Vec<u64>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Set {
    Policy(Policy),
    LinkRate(u64),
    LinkLatency(Duration),
    Reference(Duration),
    Disk(Duration, bool),
    Lead(u64),
    Downtime(Duration),
    Background(Option<u64>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// An empty line, or a comment.
    Nothing,
    Help,
    Quit,
    CreateServer {
        name: String,
        memory: u64,
    },
    CreateVm(VmSpec),
    List,
    Start(String),
    Stop(String),
    Set(Set),
    Migrate {
        vm: String,
        server: String,
    },
    Run(Duration),
    RunUntilDone,
    ShowMemory(String),
    ShowRegisters(String),
    ShowSettings,
    ShowLog,
    Compare,
    SaveLog(String),
    SaveCompare(String),
}

type Parsed<T> = Result<T, String>;

/// Reads one line.
pub(super) fn parse(line: &str) -> Parsed<Command> {
    if line.len() > LINE_MAX {
        return Err(format!("a line has at most {LINE_MAX} characters"));
    }
    let mut words = Words::new(line);
    let Some(first) = words.next() else {
        return Ok(Command::Nothing);
    };
    let command = match first.to_ascii_lowercase().as_str() {
        "help" => Command::Help,
        "quit" | "exit" => Command::Quit,
        "list" => Command::List,
        "compare" => Command::Compare,
        "create" => create(&mut words)?,
        "start" => Command::Start(words.name("a VM")?),
        "stop" => Command::Stop(words.name("a VM")?),
        "set" => Command::Set(set(&mut words)?),
        "migrate" => migrate(&mut words)?,
        "run" => run(&mut words)?,
        "show" => show(&mut words)?,
        "save" => save(&mut words)?,
        _ => return Err(format!("{first:?} is no command; type help to see them all")),
    };
    words.end()?;
    Ok(command)
}

fn create(words: &mut Words) -> Parsed<Command> {
    match words.keyword("create", &["server", "vm"])? {
        "server" => create_server(words),
        _ => create_vm(words).map(Command::CreateVm),
    }
}

fn create_server(words: &mut Words) -> Parsed<Command> {
    let name = words.name("the server")?;
    let mut memory = SERVER_MEMORY;
    if !words.is_over() {
        words.keyword("the name", &["memory"])?;
        memory = words.number("memory", 1, SERVER_MEMORY_MAX)?;
    }
    Ok(Command::CreateServer { name, memory })
}

fn create_vm(words: &mut Words) -> Parsed<VmSpec> {
    let name = words.name("the VM")?;
    words.keyword("the name", &["on"])?;
    let mut vm = VmSpec {
        name,
        server: words.name("a server")?,
        memory: SEED_MEMORY,
        references: SEED_REFERENCES,
        pages: SEED_PAGES,
        seed: 1,
        queue: None,
    };
    while !words.is_over() {
        let options = ["memory", "references", "pages", "seed", "preset", "queue"];
        match words.keyword("the server", &options)? {
            "memory" => vm.memory = words.number("memory", 1, MEMORY_MAX)? as usize,
            "references" => vm.references = words.number("references", 1, REFERENCES_MAX)? as usize,
            "pages" => vm.pages = words.number("pages", 1, PAGES_MAX)?,
            "seed" => vm.seed = words.number("seed", 0, u64::MAX)?,
            "queue" => vm.queue = Some(words.queue()?),
            _ => {
                words.keyword("preset", &["seed"])?;
                (vm.memory, vm.references, vm.pages) = (SEED_MEMORY, SEED_REFERENCES, SEED_PAGES);
            }
        }
    }
    Ok(vm)
}

fn set(words: &mut Words) -> Parsed<Set> {
    let all = [
        "policy",
        "link",
        "reference",
        "disk",
        "lead",
        "downtime",
        "background",
    ];
    Ok(match words.keyword("set", &all)? {
        "policy" => Set::Policy(policy(words)?),
        "link" => match words.keyword("link", &["rate", "latency"])? {
            "rate" => Set::LinkRate(words.rate()?),
            _ => Set::LinkLatency(words.time()?),
        },
        "reference" => match words.time()? {
            Duration::ZERO => return Err("a reference takes some time; write it like 1s".to_owned()),
            time => Set::Reference(time),
        },
        "disk" => {
            let time = words.time()?;
            let is_always = !words.is_over();
            if is_always {
                words.keyword("the time", &["always"])?;
            }
            Set::Disk(time, is_always)
        }
        "lead" => Set::Lead(words.number("lead", 1, REFERENCES_MAX)?),
        "downtime" => Set::Downtime(words.time()?),
        _ => match words.peek().is_some_and(|word| word.eq_ignore_ascii_case("off")) {
            true => {
                words.next();
                Set::Background(None)
            }
            false => Set::Background(Some(words.rate()?)),
        },
    })
}

fn policy(words: &mut Words) -> Parsed<Policy> {
    let all = ["stopcopy", "precopy", "postcopy", "lazycopy", "guide"];
    let kind = match words.keyword("policy", &all)? {
        "stopcopy" => return Ok(Policy::StopCopy),
        "precopy" => return Ok(Policy::PreCopy),
        "postcopy" if !words.is_over() => words.keyword("postcopy", &["push", "bubbling", "demand"])?,
        "postcopy" => "push",
        _ => return Ok(Policy::LazyCopy),
    };
    Ok(match kind {
        "push" => Policy::Push,
        "bubbling" => Policy::Bubbling,
        _ => Policy::Demand,
    })
}

fn migrate(words: &mut Words) -> Parsed<Command> {
    let vm = words.name("a VM")?;
    words.keyword("the VM", &["to"])?;
    let server = words.name("a server")?;
    Ok(Command::Migrate { vm, server })
}

fn run(words: &mut Words) -> Parsed<Command> {
    if !words
        .peek()
        .is_some_and(|word| word.eq_ignore_ascii_case("until"))
    {
        return words.time().map(Command::Run);
    }
    words.next();
    words.keyword("until", &["done"])?;
    Ok(Command::RunUntilDone)
}

fn show(words: &mut Words) -> Parsed<Command> {
    let what = words.keyword("show", &["memory", "registers", "settings", "log"])?;
    Ok(match what {
        "memory" => Command::ShowMemory(words.name("a VM")?),
        "registers" => Command::ShowRegisters(words.name("a VM")?),
        "settings" => Command::ShowSettings,
        _ => Command::ShowLog,
    })
}

fn save(words: &mut Words) -> Parsed<Command> {
    let what = words.keyword("save", &["log", "compare"])?;
    let file = words
        .next()
        .ok_or("after save log and save compare comes a file")?;
    Ok(match what {
        "log" => Command::SaveLog(file.to_owned()),
        _ => Command::SaveCompare(file.to_owned()),
    })
}

/// The words of a line, up to a comment.
struct Words<'a> {
    words: std::iter::Peekable<std::str::SplitWhitespace<'a>>,
}

impl<'a> Words<'a> {
    fn new(line: &'a str) -> Self {
        let begins_comment =
            |&(at, c): &(usize, char)| c == '#' && (at == 0 || line[..at].ends_with(char::is_whitespace));
        let end = line
            .char_indices()
            .find(begins_comment)
            .map_or(line.len(), |(at, _)| at);
        Words {
            words: line[..end].split_whitespace().peekable(),
        }
    }

    fn next(&mut self) -> Option<&'a str> {
        self.words.next()
    }

    fn peek(&mut self) -> Option<&'a str> {
        self.words.peek().copied()
    }

    fn is_over(&mut self) -> bool {
        self.words.peek().is_none()
    }

    fn end(&mut self) -> Parsed<()> {
        match self.next() {
            None => Ok(()),
            Some(word) => Err(format!("{word:?} is too much: the command ends before it")),
        }
    }

    /// One of `allowed`, in any case.
    fn keyword(&mut self, after: &str, allowed: &[&'static str]) -> Parsed<&'static str> {
        let found = self.next();
        let known = |word: &str| (allowed.iter().copied()).find(|allowed| word.eq_ignore_ascii_case(allowed));
        found.and_then(known).ok_or_else(|| {
            let found = found.map_or("not the end of the line".to_owned(), |word| {
                format!("not {word:?}")
            });
            format!("after {after} comes {}, {found}", allowed.join(" or "))
        })
    }

    fn name(&mut self, what: &str) -> Parsed<String> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        match self.next() {
            Some(word) if word.len() <= NAME_MAX && word.chars().all(allowed) => Ok(word.to_owned()),
            found => Err(format!(
                "{} is no name for {what}: up to {NAME_MAX} letters, digits, - and _ are",
                found.map_or("nothing".to_owned(), |word| format!("{word:?}")),
            )),
        }
    }

    fn number(&mut self, what: &str, min: u64, max: u64) -> Parsed<u64> {
        let found = self.next().unwrap_or("nothing");
        let number = u64::from_str(found).ok();
        number
            .filter(|number| (min..=max).contains(number))
            .ok_or_else(|| format!("{what} is a whole number from {min} to {max}, not {found}"))
    }

    fn queue(&mut self) -> Parsed<Vec<u64>> {
        let wrong = || format!("a queue is a list like 1,2,3 of numbers below {PAGES_MAX}");
        let list = self.next().ok_or_else(wrong)?;
        let page = |word: &str| u64::from_str(word).ok().filter(|&page| page < PAGES_MAX);
        let queue: Option<Vec<u64>> = list.split(',').map(page).collect();
        queue.ok_or_else(wrong)
    }

    fn time(&mut self) -> Parsed<Duration> {
        let found = self.next().unwrap_or("nothing");
        let seconds = split(found).and_then(|(number, unit)| match unit.as_str() {
            "us" => Some(number / 1e6),
            "ms" => Some(number / 1e3),
            "s" => Some(number),
            "min" => Some(number * 60.0),
            "h" => Some(number * 3600.0),
            _ => None,
        });
        seconds
            .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
            .filter(|&time| time <= TIME_MAX)
            .ok_or_else(|| format!("{found:?} is no time up to a year; write it like 500ms, 10s or 2min"))
    }

    /// Bytes per second.
    fn rate(&mut self) -> Parsed<u64> {
        let found = self.next().unwrap_or("nothing");
        let rate = split(found).and_then(|(number, unit)| {
            let factor = match unit.strip_suffix("/s").unwrap_or(&unit) {
                "b" => 1.0,
                "kb" => 1e3,
                "mb" => 1e6,
                "gb" => 1e9,
                "kib" => 1024.0,
                "mib" => 1_048_576.0,
                "gib" => 1_073_741_824.0,
                "kbit" => 125.0,
                "mbit" => 125e3,
                "gbit" => 125e6,
                _ => return None,
            };
            Some(number * factor)
        });
        rate.filter(|rate| (1.0..=1e12).contains(rate))
            .map(|rate| rate as u64)
            .ok_or_else(|| {
                format!("{found:?} is no rate from 1B/s to 1000GB/s; write it like 1KiB/s or 100mbit")
            })
    }
}

/// The number and the unit in small letters.
fn split(text: &str) -> Option<(f64, String)> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = text.split_at(end);
    Some((number.parse().ok()?, unit.to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::proptest;

    fn vm(name: &str) -> VmSpec {
        VmSpec {
            name: name.to_owned(),
            server: "a".to_owned(),
            memory: 20,
            references: 100,
            pages: 50,
            seed: 1,
            queue: None,
        }
    }

    #[test]
    fn commands_are_read_in_any_case_with_comments_and_spaces() {
        let server = |memory| {
            Ok(Command::CreateServer {
                name: "a".to_owned(),
                memory,
            })
        };
        assert_eq!(parse("  Create SERVER a "), server(64));
        assert_eq!(parse("create server a memory 100 # large"), server(100));
        assert_eq!(parse("create vm v on a"), Ok(Command::CreateVm(vm("v"))));
        assert_eq!(
            parse("create vm v on a memory 3 seed 9 queue 1,2,1"),
            Ok(Command::CreateVm(VmSpec {
                memory: 3,
                seed: 9,
                queue: Some(vec![1, 2, 1]),
                ..vm("v")
            }))
        );
        assert_eq!(
            parse("create vm v on a pages 9 preset seed"),
            Ok(Command::CreateVm(vm("v")))
        );
        for empty in ["", "   ", "# create server a", "\t#"] {
            assert_eq!(parse(empty), Ok(Command::Nothing));
        }
        assert_eq!(
            parse("SAVE log a#b"),
            Ok(Command::SaveLog("a#b".to_owned())),
            "no comment within a word"
        );
    }

    #[test]
    fn settings_have_units() {
        let set = |line| match parse(line) {
            Ok(Command::Set(set)) => set,
            other => panic!("{line}: {other:?}"),
        };
        assert_eq!(set("set policy PostCopy"), Set::Policy(Policy::Push));
        assert_eq!(set("set policy postcopy demand"), Set::Policy(Policy::Demand));
        assert_eq!(set("set policy guide"), Set::Policy(Policy::LazyCopy));
        assert_eq!(set("set link rate 2KiB/s"), Set::LinkRate(2048));
        assert_eq!(set("set link rate 1gbit"), Set::LinkRate(125_000_000));
        assert_eq!(
            set("set link latency 1.5ms"),
            Set::LinkLatency(Duration::from_micros(1500))
        );
        assert_eq!(
            set("set disk 11s always"),
            Set::Disk(Duration::from_secs(11), true)
        );
        assert_eq!(set("set background off"), Set::Background(None));
        assert_eq!(set("set background 512B/s"), Set::Background(Some(512)));
        assert_eq!(parse("run until done"), Ok(Command::RunUntilDone));
        assert_eq!(parse("run 2min"), Ok(Command::Run(Duration::from_secs(120))));
    }

    #[test]
    fn what_is_wrong_is_said_in_a_sentence() {
        for (line, sentence) in [
            (
                "crate server a",
                "\"crate\" is no command; type help to see them all",
            ),
            (
                "create",
                "after create comes server or vm, not the end of the line",
            ),
            ("create vm v in a", "after the name comes on, not \"in\""),
            (
                "create server a memory 0",
                "memory is a whole number from 1 to 1048576, not 0",
            ),
            (
                "create server a/b",
                "\"a/b\" is no name for the server: up to 32 letters, digits, - and _ are",
            ),
            (
                "run 10",
                "\"10\" is no time up to a year; write it like 500ms, 10s or 2min",
            ),
            (
                "run -1s",
                "\"-1s\" is no time up to a year; write it like 500ms, 10s or 2min",
            ),
            (
                "set policy fast",
                "after policy comes stopcopy or precopy or postcopy or lazycopy or guide, not \"fast\"",
            ),
            (
                "set link rate 0B/s",
                "\"0B/s\" is no rate from 1B/s to 1000GB/s; write it like 1KiB/s or 100mbit",
            ),
            (
                "set reference 0s",
                "a reference takes some time; write it like 1s",
            ),
            ("list all", "\"all\" is too much: the command ends before it"),
            (
                "create vm v on a queue 1,,2",
                "a queue is a list like 1,2,3 of numbers below 1000000",
            ),
            ("save log", "after save log and save compare comes a file"),
        ] {
            assert_eq!(parse(line), Err(sentence.to_owned()), "{line}");
        }
        assert!(parse(&"x".repeat(5000)).is_err());
    }

    proptest! {
        #[test]
        fn no_line_makes_it_panic(line in "(create|set|run|show|migrate)?[ a-z0-9#.,-]{0,40}\\PC{0,10}") {
            let _ = parse(&line);
        }
    }
}
