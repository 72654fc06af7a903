//! Servers, VMs and a clock that exists only here.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;

use super::commands::VmSpec;
use super::context::{references, Context};
use super::log::Log;
use super::moving::{Move, Moves};
use super::record::Record;
use super::settings::Settings;

const SERVERS_MAX: usize = 64;
const VMS_MAX: usize = 256;
/// Migrations that are remembered.
const RECORDS_MAX: usize = 10_000;
/// Events of one `run`: some seconds of a processor.
const EVENTS_MAX: u64 = 5_000_000;

/// A physical server: memory for VMs.
#[derive(Clone, Debug)]
pub(super) struct Server {
    pub name: String,
    pub memory: u64,
}

/// What a context does when it is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Touches the wanted page.
    Touch,
    /// Has the wanted page from disk.
    Load,
}

/// A VM.
#[derive(Clone, Debug)]
pub(super) struct Vm {
    pub name: String,
    pub server: usize,
    pub context: Context,
    /// Started, and not stopped since. It may be frozen all the same.
    pub is_running: bool,
    pub step: Step,
    pub due: Duration,
    /// Events of an older one are void.
    generation: u64,
    /// Pages of its memory that are still at the source.
    pub missing: BTreeSet<u64>,
    /// The page that it waits for, and since when.
    pub waits: Option<(u64, Duration)>,
    /// Loaded, and replaced, since the last scan.
    pub written: BTreeSet<u64>,
    pub lost: BTreeSet<u64>,
    /// The migration that is under way.
    pub moving: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Happens {
    /// The context of a VM is due.
    Context { vm: usize, generation: u64 },
    /// In a migration.
    Moving { number: u32, moves: Moves },
}

/// All there is.
#[derive(Debug, Default)]
pub(super) struct Hall {
    pub now: Duration,
    pub settings: Settings,
    pub servers: Vec<Server>,
    pub vms: Vec<Vm>,
    pub moves: BTreeMap<u32, Move>,
    pub records: Vec<Record>,
    pub log: Log,
    /// When the link from one server to another has sent all that was given to it.
    links: BTreeMap<(usize, usize), Duration>,
    events: BinaryHeap<Reverse<(Duration, u64, Happens)>>,
    events_total: u64,
    moves_total: u32,
}

type Done = Result<(), String>;

impl Hall {
    pub fn say(&mut self, line: &str) {
        self.log.add(self.now, line);
    }

    pub fn create_server(&mut self, name: String, memory: u64) -> Done {
        if self.servers.len() >= SERVERS_MAX {
            return Err(format!("there are {SERVERS_MAX} servers, which is the most"));
        }
        if self.servers.iter().any(|server| server.name == name) {
            return Err(format!("there is a server {name} already"));
        }
        self.say(&format!("server {name}: memory for {memory} pages"));
        self.servers.push(Server { name, memory });
        Ok(())
    }

    pub fn create_vm(&mut self, spec: VmSpec) -> Done {
        if self.vms.len() >= VMS_MAX {
            return Err(format!("there are {VMS_MAX} VMs, which is the most"));
        }
        if self.vms.iter().any(|vm| vm.name == spec.name) {
            return Err(format!("there is a VM {} already", spec.name));
        }
        let server = self.server(&spec.server)?;
        self.check_room(server, spec.memory as u64)?;
        let queue = spec
            .queue
            .unwrap_or_else(|| references(spec.seed, spec.references, spec.pages));
        let context = Context::new(queue, spec.memory);
        self.say(&format!(
            "{}: on {}, memory of {} pages, {} references to {} pages",
            spec.name,
            spec.server,
            spec.memory,
            context.queue_length(),
            context.distinct()
        ));
        self.vms.push(Vm {
            name: spec.name,
            server,
            context,
            is_running: false,
            step: Step::Touch,
            due: Duration::ZERO,
            generation: 0,
            missing: BTreeSet::new(),
            waits: None,
            written: BTreeSet::new(),
            lost: BTreeSet::new(),
            moving: None,
        });
        Ok(())
    }

    pub fn server(&self, name: &str) -> Result<usize, String> {
        let names = || self.servers.iter().map(|server| server.name.as_str()).collect();
        let found = self.servers.iter().position(|server| server.name == name);
        found.ok_or_else(|| unknown("server", name, names()))
    }

    pub fn vm(&self, name: &str) -> Result<usize, String> {
        let names = || self.vms.iter().map(|vm| vm.name.as_str()).collect();
        let found = self.vms.iter().position(|vm| vm.name == name);
        found.ok_or_else(|| unknown("VM", name, names()))
    }

    /// Pages of a server that are taken, by VMs there and on their way to it.
    pub fn used_pages(&self, server: usize) -> u64 {
        let there = self.vms.iter().filter(|vm| vm.server == server);
        let coming = (self.moves.values())
            .filter(|moved| moved.destination == server)
            .filter(|moved| self.vms[moved.vm].server != server);
        let leaving = (self.moves.values())
            .filter(|moved| moved.source == server)
            .filter(|moved| self.vms[moved.vm].server != server);
        let moving = coming.chain(leaving).map(|moved| &self.vms[moved.vm]);
        let pages = there.chain(moving).map(|vm| vm.context.memory_pages() as u64);
        pages.sum()
    }

    fn check_room(&self, server: usize, pages: u64) -> Done {
        let Server { name, memory } = &self.servers[server];
        let free = memory.saturating_sub(self.used_pages(server));
        match pages <= free {
            true => Ok(()),
            false => Err(format!(
                "{name} has {free} of {memory} pages free, and {pages} are needed"
            )),
        }
    }

    pub fn start(&mut self, name: &str) -> Done {
        let vm = self.vm(name)?;
        if self.vms[vm].is_running {
            return Err(format!("{name} runs already"));
        }
        self.check_still(vm)?;
        self.vms[vm].is_running = true;
        self.say(&format!("{name} is started"));
        self.step_after(vm, Step::Touch, self.settings.reference);
        Ok(())
    }

    pub fn stop(&mut self, name: &str) -> Done {
        let vm = self.vm(name)?;
        if !self.vms[vm].is_running {
            return Err(format!("{name} does not run"));
        }
        self.check_still(vm)?;
        self.halt(vm);
        self.vms[vm].is_running = false;
        self.say(&format!("{name} is stopped"));
        Ok(())
    }

    fn check_still(&self, vm: usize) -> Done {
        match self.vms[vm].moving {
            None => Ok(()),
            Some(_) => Err(format!(
                "{} is being migrated; run until done comes first",
                self.vms[vm].name
            )),
        }
    }

    /// Begins a migration.
    pub fn migrate(&mut self, vm: &str, server: &str) -> Done {
        let (vm, destination) = (self.vm(vm)?, self.server(server)?);
        self.check_still(vm)?;
        if self.vms[vm].server == destination {
            return Err(format!("{} is on {server} already", self.vms[vm].name));
        }
        self.check_room(destination, self.vms[vm].context.memory_pages() as u64)?;
        if self.records.len() + self.moves.len() >= RECORDS_MAX {
            return Err(format!("there were {RECORDS_MAX} migrations, which is the most"));
        }
        self.moves_total += 1;
        let moved = Move::new(self, self.moves_total, vm, destination);
        self.vms[vm].moving = Some(self.moves_total);
        self.begin_move(moved)
    }

    /// Lets time pass until then, or until `is_enough`.
    pub fn run(&mut self, until: Duration, is_enough: impl Fn(&Self) -> bool) -> Done {
        for _ in 0..EVENTS_MAX {
            if is_enough(self) {
                return Ok(());
            }
            let next = self.events.peek().map(|Reverse((due, ..))| *due);
            let Some(due) = next.filter(|&due| due <= until) else {
                self.now = until;
                return Ok(());
            };
            self.now = due;
            if let Some(Reverse((.., happens))) = self.events.pop() {
                self.happens(happens)?;
            }
        }
        Err(format!(
            "more than {EVENTS_MAX} events: it is {} now; run it in smaller pieces",
            super::log::clock(self.now)
        ))
    }

    fn happens(&mut self, happens: Happens) -> Done {
        match happens {
            Happens::Context { vm, generation } if generation == self.vms[vm].generation => {
                match self.vms[vm].step {
                    Step::Touch => self.touch(vm),
                    Step::Load => self.load(vm),
                }
                Ok(())
            }
            Happens::Context { .. } => Ok(()),
            Happens::Moving { number, moves } => self.moves_on(number, moves),
        }
    }

    fn at(&mut self, due: Duration, happens: Happens) {
        self.events_total += 1;
        self.events.push(Reverse((due, self.events_total, happens)));
    }

    pub fn moving_at(&mut self, due: Duration, number: u32, moves: Moves) {
        self.at(due, Happens::Moving { number, moves });
    }

    /// The VM's next step comes after so long.
    pub fn step_after(&mut self, vm: usize, step: Step, time: Duration) {
        let due = self.now + time;
        let state = &mut self.vms[vm];
        state.generation += 1;
        (state.step, state.due) = (step, due);
        let generation = state.generation;
        self.at(due, Happens::Context { vm, generation });
    }

    /// The VM does nothing until its next step is set. Gives how long that would have taken.
    pub fn halt(&mut self, vm: usize) -> Duration {
        let state = &mut self.vms[vm];
        state.generation += 1;
        state.due.saturating_sub(self.now)
    }

    /// Gives bytes to the link from one server to another. When they have all left.
    pub fn transmit(&mut self, from: usize, to: usize, bytes: u64) -> Duration {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.settings.link_rate.max(1));
        let time = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let free_at = self.links.entry((from, to)).or_default();
        *free_at = (*free_at).max(self.now) + time;
        *free_at
    }

    /// The VM touches the page that it wants.
    fn touch(&mut self, vm: usize) {
        let state = &self.vms[vm];
        let page = state.context.wanted();
        if state.missing.contains(&page) {
            self.network_fault(vm, page);
        } else if state.context.holds(page) {
            self.hit(vm);
        } else {
            self.miss(vm, page);
        }
    }

    /// The wanted page is there.
    pub fn hit(&mut self, vm: usize) {
        self.vms[vm].context.hit();
        self.referenced(vm);
    }

    fn miss(&mut self, vm: usize, page: u64) {
        let is_following = self.following(vm).is_some();
        let delay = match is_following || self.settings.is_disk_always {
            true => self.settings.disk,
            false => Duration::ZERO,
        };
        if is_following {
            self.disk_fault(vm, page, delay);
        }
        match delay {
            Duration::ZERO => self.load(vm),
            delay => self.step_after(vm, Step::Load, delay),
        }
    }

    fn load(&mut self, vm: usize) {
        let state = &mut self.vms[vm];
        let page = state.context.wanted();
        let replaced = state.context.load();
        state.written.insert(page);
        if let Some(replaced) = replaced {
            state.written.remove(&replaced);
            state.lost.insert(replaced);
            if state.missing.remove(&replaced) {
                self.gone(vm, replaced);
            }
        }
        self.referenced(vm);
    }

    fn referenced(&mut self, vm: usize) {
        self.step_after(vm, Step::Touch, self.settings.reference);
        self.followed(vm);
    }
}

fn unknown(kind: &str, name: &str, names: Vec<&str>) -> String {
    match names.is_empty() {
        true => format!("there is no {kind} {name}, nor any other; create makes one"),
        false => format!("there is no {kind} {name}; there are {}", names.join(", ")),
    }
}
