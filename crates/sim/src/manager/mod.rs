//! The manager of the third seed ("A simulation of live virtual machine migration", Sun, Lv and Tao, COEN283, 2014): servers, VMs that
//! run an LRU workload, and commands, by hand or from a file.
//!
//! ```text
//!  commands ---> Session ---> hall: servers, VMs, links, one clock ---> log, records, table
//!                               |  ^
//!                        events v  | orders
//!                     policy: Migration up to the switch-over, Residual after it
//! ```
//!
//! What was taken from the seed (sections 5 and 6), and how its Java fragments were read:
//! - A VM has memory for 20 pages and a queue of 100 random references to pages 0 to 49, which begins again at its end. A hit moves the
//!   page to the end of the memory; a miss appends its page, or drops the first one if the memory is full.
//! - A miss costs nothing while the VM is not migrated. While it is, a page is asked for at the source first; only what the source does
//!   not have either comes from disk, in 11 s. (The braces around that sleep do not match in print; its message, "is loaded from disk",
//!   says what it belongs to.) So here a miss of the following context costs 11 s, until the migration is over. The forward context stays a
//!   VM that is not migrated, and its misses cost nothing. `set disk 11s always` makes everybody wait.
//! - Lazy-copy: both contexts go on from the switch-over; what the forward one touches is sent first; the background goes on beside it.
//!   The seed copies pages that it uses, without a limit; here the forward context is `lead` references ahead at most.
//! - The seed says nothing of the time of a reference or a page. See [`Settings`] for what is assumed.
//!
//! What is another way than in the seed, and why:
//! - Its servers are processes that talk to the manager over sockets, and its VMs are threads that sleep. Here all is one object and time
//!   is a number: the same script gives the same log on every machine, to the last line, and eleven seconds take none. Sockets and
//!   threads are what the engine is for; the decisions are the same.
//! - The page table travels with the state, as it has to: a page of it that is still at the source is missing, not unknown. What LRU
//!   replaces before it came need not come at all.
//! - References only read, and what a miss loads counts as written: that is what a round of pre-copy finds.

mod commands;
mod context;
mod hall;
mod log;
mod moving;
mod record;
mod settings;
#[cfg(test)]
mod tests;

use std::fmt::Write as _;
use std::io::Write;
use std::time::Duration;

use commands::{parse, Command, Set, HELP};
use hall::{Hall, Vm};
use log::clock;
pub use record::{Record, Sent};
pub use settings::{Policy, Settings};

/// Bytes of a script.
const SCRIPT_MAX: usize = 1 << 20;
/// A run until all migrations are done ends after this: demand paging of a stopped VM never would.
const UNTIL_DONE_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// The answer to a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Carried out. To be shown: nothing, or whole lines.
    Done(String),
    /// Nothing has changed, or not all of it came about: one sentence.
    Refused(String),
    /// The user has had enough.
    Quit,
}

/// Why a script has ended early.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    /// A line that cannot be carried out.
    #[error("{file}:{line}: {sentence}")]
    Line {
        /// The file.
        file: String,
        /// The line in it, from 1 on.
        line: usize,
        /// What is wrong, and what is allowed.
        sentence: String,
    },
    /// What it shows could not be written.
    #[error("the output of {file} could not be written: {cause}")]
    Output {
        /// The file.
        file: String,
        /// Why.
        cause: std::io::Error,
    },
}

/// Carries out a script, a command on each line, and writes what its commands show.
///
/// # Errors
/// [`ScriptError`]: it ends with the first line that is refused.
pub fn run_script(text: &str, file: &str, out: &mut impl Write) -> Result<(), ScriptError> {
    let wrong = |line, sentence| ScriptError::Line {
        file: file.to_owned(),
        line,
        sentence,
    };
    if text.len() > SCRIPT_MAX {
        return Err(wrong(1, format!("a script has at most {SCRIPT_MAX} bytes")));
    }
    let mut session = Session::default();
    for (number, line) in (1..).zip(text.lines()) {
        match session.line(line) {
            Reply::Done(text) => out
                .write_all(text.as_bytes())
                .map_err(|cause| ScriptError::Output {
                    file: file.to_owned(),
                    cause,
                })?,
            Reply::Refused(sentence) => return Err(wrong(number, sentence)),
            Reply::Quit => return Ok(()),
        }
    }
    Ok(())
}

/// A manager with its servers and VMs.
#[derive(Debug, Default)]
pub struct Session {
    hall: Hall,
}

impl Session {
    /// Carries out one line. `save` writes the file that it names.
    pub fn line(&mut self, line: &str) -> Reply {
        let command = match parse(line) {
            Ok(Command::Quit) => return Reply::Quit,
            Ok(command) => command,
            Err(sentence) => return Reply::Refused(sentence),
        };
        self.carry_out(command).map_or_else(Reply::Refused, Reply::Done)
    }

    /// The migrations that are over, in the order in which they ended.
    pub fn records(&self) -> &[Record] {
        &self.hall.records
    }

    /// The log: a line for each event.
    pub fn log(&self) -> String {
        self.hall.log.text()
    }

    fn carry_out(&mut self, command: Command) -> Result<String, String> {
        let hall = &mut self.hall;
        match command {
            Command::CreateServer { name, memory } => hall.create_server(name, memory)?,
            Command::CreateVm(spec) => hall.create_vm(spec)?,
            Command::Start(vm) => hall.start(&vm)?,
            Command::Stop(vm) => hall.stop(&vm)?,
            Command::Set(set) => apply(&mut hall.settings, &set),
            Command::Migrate { vm, server } => hall.migrate(&vm, &server)?,
            Command::Run(time) => hall.run(hall.now + time, |_| false)?,
            Command::RunUntilDone => self.run_until_done()?,
            Command::SaveLog(file) => return save(&file, &self.log()),
            Command::SaveCompare(file) => return save(&file, &record::csv(self.records())),
            shown => return self.show(shown),
        }
        Ok(String::new())
    }

    fn run_until_done(&mut self) -> Result<(), String> {
        let hall = &mut self.hall;
        hall.run(hall.now + UNTIL_DONE_MAX, |hall| hall.moves.is_empty())?;
        match hall.moves.is_empty() {
            true => Ok(()),
            false => {
                Err("a year has passed, and pages are still missing: nobody touches or pushes them".into())
            }
        }
    }

    fn show(&self, command: Command) -> Result<String, String> {
        let hall = &self.hall;
        Ok(match command {
            Command::Help => HELP.to_owned(),
            Command::List => list(hall),
            Command::ShowMemory(vm) => memory(&hall.vms[hall.vm(&vm)?]),
            Command::ShowRegisters(vm) => {
                let vm = &hall.vms[hall.vm(&vm)?];
                let registers = moving::registers(&vm.context);
                format!("{}: {registers}, clock {}\n", vm.name, clock(hall.now))
            }
            Command::ShowSettings => settings(&hall.settings),
            Command::ShowLog => self.log(),
            Command::Compare if hall.records.is_empty() => "no migration is over yet\n".to_owned(),
            Command::Compare => record::table(&hall.records),
            _ => String::new(),
        })
    }
}

fn apply(settings: &mut Settings, set: &Set) {
    match *set {
        Set::Policy(policy) => settings.policy = policy,
        Set::LinkRate(rate) => settings.link_rate = rate,
        Set::LinkLatency(time) => settings.link_latency = time,
        Set::Reference(time) => settings.reference = time,
        Set::Disk(time, is_always) => (settings.disk, settings.is_disk_always) = (time, is_always),
        Set::Lead(references) => settings.lead = references,
        Set::Downtime(time) => settings.downtime_max = time,
        Set::Background(rate) => settings.background_max = rate,
    }
}

fn save(file: &str, text: &str) -> Result<String, String> {
    std::fs::write(file, text)
        .map(|()| String::new())
        .map_err(|cause| format!("{file} cannot be written: {cause}"))
}

fn list(hall: &Hall) -> String {
    let mut text = format!("clock {}\n", clock(hall.now));
    for (at, server) in hall.servers.iter().enumerate() {
        let used = hall.used_pages(at);
        // Writing into a string cannot fail.
        let _ = writeln!(
            text,
            "server {}: {used} of {} pages used",
            server.name, server.memory
        );
        for vm in hall.vms.iter().filter(|vm| vm.server == at) {
            let _ = writeln!(text, "  VM {}: {}", vm.name, vm_state(hall, vm));
        }
    }
    text
}

fn vm_state(hall: &Hall, vm: &Vm) -> String {
    let runs = if vm.is_running { "runs" } else { "stopped" };
    match vm.moving.and_then(|number| hall.moves.get(&number)) {
        Some(moved) => {
            let (source, destination) = (moved.source, moved.destination);
            let names = (&hall.servers[source].name, &hall.servers[destination].name);
            format!("{runs}, being migrated from {} to {}", names.0, names.1)
        }
        None => runs.to_owned(),
    }
}

/// The page that was used longest ago first; those with a `?` are still at the source.
fn memory(vm: &Vm) -> String {
    let page = |page: &u64| match vm.missing.contains(page) {
        true => format!("{page}?"),
        false => page.to_string(),
    };
    let pages: Vec<_> = vm.context.memory().iter().map(page).collect();
    let missing = match vm.missing.len() {
        0 => String::new(),
        missing => format!(", {missing} still at the source (?)"),
    };
    format!(
        "{}: {} of {} pages{missing}: {}\n",
        vm.name,
        pages.len(),
        vm.context.memory_pages(),
        pages.join(" ")
    )
}

fn settings(settings: &Settings) -> String {
    let always = if settings.is_disk_always { " always" } else { "" };
    let background = settings
        .background_max
        .map_or_else(|| "off".to_owned(), |rate| format!("{rate} B/s"));
    format!(
        "policy {}\nlink rate {} B/s\nlink latency {:?}\nreference {:?}\ndisk {:?}{always}\nlead {}\ndowntime {:?}\nbackground {background}\n",
        settings.policy.name(),
        settings.link_rate,
        settings.link_latency,
        settings.reference,
        settings.disk,
        settings.lead,
        settings.downtime_max,
    )
}
