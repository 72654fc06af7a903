//! The destination's side: a QEMU that waits for its state, and whose memory is filled from outside.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::json;
use whimbrel_engine::Replica;
use whimbrel_policy::PageRun;

use crate::device_state::{self, Settings, Way};
use crate::error::{MachineError, Result};
use crate::launch::{self, MachineResources};
use crate::machine::{locked_files, missing_features, Machine};
use crate::memory::GuestMemory;
use crate::pager::{self, QemuPager};
use crate::spec::{decode, encode, realtime_ns, MachineSpec, MachineState};
use crate::voice::{Voice, Word};
use crate::watch;

/// Clocks that differ by more than this are told.
const CLOCK_DIFFERENCE_MAX: Duration = Duration::from_secs(1);
/// QEMU may be busy with its disks.
const START_MAX: Duration = Duration::from_secs(120);
/// How long a machine that lacks pages is waited for: it starts when they come, which they may do only when we go on.
const START_SOON: Duration = Duration::from_secs(1);

/// How a machine is received.
#[derive(Clone, Debug)]
pub struct ReplicaOptions {
    /// Where its directory is made.
    pub machines: PathBuf,
    /// The name of its directory.
    pub id: String,
    /// Starts it instead of the source's own command line. `{monitor}` stands for the socket of a monitor that it must make.
    pub command: Option<String>,
}

/// A machine that arrives.
#[derive(Debug)]
pub struct QemuReplica {
    options: ReplicaOptions,
    resources: MachineResources,
    spec: Option<MachineSpec>,
    machine: Option<Arc<Mutex<Machine>>>,
    /// Who speaks to it once it lacks pages.
    voice: Option<Arc<Voice>>,
    memory: Option<GuestMemory>,
    state: Option<MachineState>,
    /// By how much the source's clock differs, if that is worth a word.
    clock: Option<Duration>,
    is_started: bool,
    /// From here on it may have been promised to run: only who knows that it never will may end it.
    is_complete: bool,
}

/// Whoever panicked with it did not leave a command half sent that anybody waits for.
pub(crate) fn lock(machine: &Mutex<Machine>) -> MutexGuard<'_, Machine> {
    machine.lock().unwrap_or_else(PoisonError::into_inner)
}

impl QemuReplica {
    /// Nothing exists yet.
    pub fn new(options: ReplicaOptions) -> QemuReplica {
        QemuReplica {
            resources: MachineResources::new(options.machines.join(&options.id)),
            options,
            spec: None,
            machine: None,
            voice: None,
            memory: None,
            state: None,
            clock: None,
            is_started: false,
            is_complete: false,
        }
    }

    fn machine(&self) -> Result<MutexGuard<'_, Machine>> {
        self.machine.as_deref().map(lock).ok_or_else(unprepared)
    }

    fn memory(&mut self) -> Result<&mut GuestMemory> {
        self.memory.as_mut().ok_or_else(unprepared)
    }

    /// What was started must be what the source has.
    fn check(&self, machine: &mut Machine, spec: &MachineSpec) -> Result<()> {
        let (here, there) = (machine.facts()?, &spec.facts);
        let status = machine.status()?;
        if status != "inmigrate" {
            return Err(MachineError::refused(format!(
                "the destination's QEMU does not wait for a migration (its state is \"{status}\"); start it with -S -incoming defer"
            )));
        }
        if (here.version.0, here.version.1) < (there.version.0, there.version.1) {
            return Err(MachineError::refused(format!(
                "the machine runs in QEMU {}.{}, and the destination has {}.{}, which may not understand its devices; install the same release or a newer one",
                there.version.0, there.version.1, here.version.0, here.version.1
            )));
        }
        let differs = |what: &str, there: &str, here: &str, cure: &str| {
            Err(MachineError::refused(format!(
                "the machine's {what} is {there}, and the destination's QEMU has {here}; {cure}"
            )))
        };
        if here.machine != there.machine {
            return differs(
                "type",
                &there.machine,
                &here.machine,
                "start it with the same -machine, with its version",
            );
        }
        if here.accelerator != there.accelerator {
            return differs(
                "accelerator",
                &there.accelerator,
                &here.accelerator,
                "start it with the same -accel",
            );
        }
        if here.cpu != there.cpu {
            return differs("processor", &there.cpu, &here.cpu, "start it with the same -cpu");
        }
        if here.cpus != there.cpus {
            return differs(
                "number of processors",
                &there.cpus.to_string(),
                &here.cpus.to_string(),
                "start it with the same -smp",
            );
        }
        match missing_features(&there.features, &here.features) {
            Some(lacking) => Err(MachineError::refused(format!(
                "the destination's processor lacks features that the machine may use ({lacking}); start the machine with a processor model that both hosts have (-cpu)"
            ))),
            None => Ok(()),
        }
    }

    /// The destination's blocks in the source's order.
    fn blocks(&self, machine: &mut Machine, spec: &MachineSpec) -> Result<GuestMemory> {
        let mut here = machine.memory(spec.way)?;
        let mut blocks = Vec::new();
        for wanted in &spec.blocks {
            let found = here.iter().position(|block| block.name == wanted.name);
            let block = found.map(|index| here.swap_remove(index)).ok_or_else(|| {
                MachineError::refused(format!(
                    "the destination's QEMU has no memory block {}{}; start it with the same arguments as the source",
                    wanted.name,
                    if spec.way == Way::IgnoreShared { " in a shared file" } else { "" }
                ))
            })?;
            if block.bytes != wanted.bytes {
                return Err(MachineError::refused(format!(
                    "memory block {} has {} bytes at the source and {} at the destination; start it with the same memory",
                    wanted.name, wanted.bytes, block.bytes
                )));
            }
            blocks.push(block);
        }
        GuestMemory::new(machine.pid(), blocks)
    }

    /// Everything that was allocated in advance or written by QEMU itself is as if it had never been.
    fn empty(memory: &mut GuestMemory) -> Result<()> {
        for run in memory.present(&memory.everything(), true)? {
            memory.forget(&run)?;
        }
        memory.flush()
    }

    /// What QEMU refuses it refuses at once.
    fn start_by(&mut self, voice: &Voice) -> Result<()> {
        if !self.is_started && self.resources.running {
            voice.say(Word::Cont);
            voice.wait(START_SOON)?;
        }
        self.is_started = true;
        Ok(())
    }

    /// The source has let its disks go when this is asked; a machine without locks there needs none here.
    fn check_locks(&self, pid: i32) -> Result<()> {
        let expected = self.spec.as_ref().is_some_and(|spec| spec.locks);
        match expected && locked_files(pid)?.is_empty() {
            true => Err(MachineError::unfit(format!(
                "the destination's QEMU could not lock the machine's disks (does another QEMU use them?): {}",
                launch::log_tail(&self.resources)
            ))),
            false => Ok(()),
        }
    }
}

fn unprepared() -> MachineError {
    MachineError::unfit("the destination's machine was not prepared")
}

impl Replica for QemuReplica {
    type Error = MachineError;
    type Pager = QemuPager;

    fn prepare(&mut self, spec: &[u8]) -> Result<()> {
        let spec = MachineSpec::read(spec)?;
        let here = realtime_ns();
        let apart = Duration::from_nanos(here.abs_diff(spec.realtime_ns));
        self.clock = (apart > CLOCK_DIFFERENCE_MAX).then_some(apart);
        spec.check_memory()?;
        if self.options.command.is_none() {
            spec.check_host()?;
        }
        let mut machine = launch::start(&spec, self.options.command.as_deref(), &mut self.resources)?;
        self.check(&mut machine, &spec)?;
        let mut memory = self.blocks(&mut machine, &spec)?;
        Self::empty(&mut memory)?;
        let settings = Settings::read(&mut machine.qmp)?;
        settings.make(&mut machine.qmp, spec.way)?;
        self.resources.settings = Some(settings);
        self.memory = Some(memory);
        self.machine = Some(Arc::new(Mutex::new(machine)));
        self.spec = Some(spec);
        Ok(())
    }

    fn resources(&self) -> Vec<u8> {
        encode(&self.resources)
    }

    fn follow(&mut self, _: &[u8]) -> Result<()> {
        Err(MachineError::unfit(
            "a machine's memory has no layout that changes; this is a bug or an attack",
        ))
    }

    fn write(&mut self, run: PageRun, data: &[u8]) -> Result<()> {
        self.memory()?.write(&run, data)
    }

    fn zero(&mut self, run: PageRun) -> Result<()> {
        self.memory()?.forget(&run)
    }

    fn forget(&mut self, run: PageRun) -> Result<()> {
        self.memory()?.forget(&run)
    }

    fn load(&mut self, state: &[u8]) -> Result<()> {
        let state: Option<MachineState> = decode("the state", state)?;
        let state = state.ok_or_else(|| MachineError::unfit("the machine came without a state"))?;
        self.resources.running = state.running;
        self.state = Some(state);
        Ok(())
    }

    fn arm(&mut self, missing: &[PageRun]) -> Result<QemuPager> {
        let memory = self.memory()?;
        for run in missing {
            memory.locate(run)?;
        }
        // Older content of what is missing: what is there is never asked for.
        for stale in memory.present(missing, true)? {
            memory.forget(&stale)?;
        }
        memory.flush()?;
        let memory = memory.clone();
        let made = watch::make(&mut *self.machine()?, pager::FEATURES, true)?;
        let voice = Voice::new(self.machine.clone(), &self.resources, memory.process())?;
        let voice = Arc::clone(self.voice.insert(Arc::new(voice)));
        let (pager, made) = QemuPager::arm(made, voice, memory, missing, &self.resources)?;
        self.resources.pager = Some(made);
        Ok(pager)
    }

    /// QEMU touches some pages of the guest while it loads: all others are there, and those that are not are served.
    fn complete(&mut self) -> Result<()> {
        self.memory()?.flush()?;
        let unloaded = || MachineError::unfit("the machine came without a state");
        let state = self.state.take().ok_or_else(unloaded)?;
        let mut machine = self.machine()?;
        let restored = device_state::restore(&mut machine.qmp, &state.devices);
        let pid = machine.pid();
        drop(machine);
        if let Err(error) = restored {
            return Err(MachineError::unfit(format!(
                "{error}; QEMU's log: {}",
                launch::log_tail(&self.resources)
            )));
        }
        self.check_locks(pid)?;
        self.is_complete = true;
        Ok(())
    }

    fn start(&mut self) -> Result<()> {
        if let Some(voice) = self.voice.clone() {
            return self.start_by(&voice);
        }
        if !std::mem::replace(&mut self.is_started, true) && self.resources.running {
            let mut machine = self.machine()?;
            let started = machine.qmp.execute_within("cont", json!({}), START_MAX);
            drop(machine);
            if started.is_err() {
                self.is_started = false;
            }
            started?;
        }
        Ok(())
    }

    fn settle(&mut self) -> Result<()> {
        let clock = self.clock.take();
        match &self.voice {
            Some(voice) => voice.say(Word::Settle),
            None => {
                let mut machine = self.machine()?;
                announce(&mut machine)?;
                if let Some(settings) = &self.resources.settings {
                    settings.restore(&mut machine.qmp)?;
                }
            }
        }
        match clock {
            Some(apart) => Err(MachineError::unfit(format!(
                "the clocks of the two hosts are {:.1} s apart: the machine's own clock goes on, but its hardware clock jumps; set the hosts' clocks (NTP)",
                apart.as_secs_f64()
            ))),
            None => Ok(()),
        }
    }

    fn discard(&mut self) -> Result<()> {
        if let Some(memory) = &self.memory {
            crate::source::kill(memory.process().as_fd(), memory.pid())?;
        }
        self.memory = None;
        self.machine = None;
        self.voice = None;
        self.resources.discard()
    }
}

/// One that is dropped before it could be promised leaves nothing behind.
impl Drop for QemuReplica {
    fn drop(&mut self) {
        if self.machine.is_some() && !self.is_complete {
            let _ = self.discard();
        }
    }
}

/// Tells the neighbours where the machine's network cards are now.
pub(crate) fn announce(machine: &mut Machine) -> Result<()> {
    let rounds = json!({ "initial": 50, "max": 550, "rounds": 5, "step": 50 });
    machine.qmp.execute("announce-self", rounds)?;
    Ok(())
}
