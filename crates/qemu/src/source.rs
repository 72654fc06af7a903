//! The source's side: a running machine that is tracked, paused, read, and in the end let go or ended.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use whimbrel_engine::contract::{Captured, Scanned};
use whimbrel_engine::{Mode, Nature, Outcome, PageStore, Workload};
use whimbrel_kernel::identity::Identity;
use whimbrel_kernel::pidfd;
use whimbrel_kernel::uffd::feature;
use whimbrel_policy::{PageRun, Scan};

use crate::arguments::Arguments;
use crate::blocks::Place;
use crate::device_state::{self, Saver, Settings, Way};
use crate::error::{MachineError, Result};
use crate::machine::{directory, owner, Machine};
use crate::memory::GuestMemory;
use crate::qmp::Qmp;
use crate::spec::{encode, realtime_ns, BlockSpec, MachineSpec, MachineState};
use crate::tracker::Tracker;
use crate::watch;

/// How long QEMU may take to end itself before it is killed.
const END_MAX: Duration = Duration::from_secs(5);
/// How long the disks are waited for that the destination has taken. It is told that the machine stays only after that: one that does not
/// notice by itself leaves them to our guardian.
const DISKS_MAX: Duration = Duration::from_secs(5);
/// How long a killed process may take to be gone: its memory is given back.
const DEATH_MAX: Duration = Duration::from_secs(10);

/// Freeze, capture and load of the devices, and the start. These figures were measured with QEMU 7.2 and TCG on two cores of a virtual machine.
const STOP: Duration = Duration::from_millis(26);
/// Its memory has to be armed, and loading faults for some of it.
const ARM: Duration = Duration::from_millis(6);
/// Written pages lie scattered: each of them is a hole to be made.
const DROP: Duration = Duration::from_millis(2);
/// The source's QEMU is ended.
const AFTER: Duration = Duration::from_millis(30);
/// Devices of a small machine.
const STATE_BYTES: u64 = 256 << 10;

/// The guest's memory by block.
fn by_name(memory: &GuestMemory) -> Vec<(String, u64)> {
    let named = |block: &crate::blocks::Block| (block.name.clone(), block.bytes);
    memory.blocks().iter().map(named).collect()
}

/// What is needed to finish or undo a migration at the source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceResources {
    /// QEMU.
    pub process: Identity,
    /// Its monitor.
    pub monitor: PathBuf,
    /// The user's settings, once they were changed.
    pub settings: Option<Settings>,
    /// It ran before we paused it.
    pub ran: bool,
    /// How its devices' state is written.
    pub way: Way,
    /// The blocks that we carry: name, bytes, address in QEMU.
    pub blocks: Vec<Place>,
}

impl SourceResources {
    /// Connects to the machine. Another QEMU may have made its monitor at the same path meanwhile.
    pub(crate) fn attach(&self) -> Result<Machine> {
        let machine = Machine::attach(&self.monitor)?;
        match machine.process == self.process {
            true => Ok(machine),
            false => Err(MachineError::unfit(format!(
                "the monitor {} belongs to another QEMU (process {}) now, and that of process {} cannot be reached",
                self.monitor.display(),
                machine.pid(),
                self.process.pid
            ))),
        }
    }
}

/// A machine on its way.
#[derive(Debug)]
pub struct QemuWorkload {
    machine: Machine,
    name: String,
    machine_type: String,
    resources: SourceResources,
    memory: Option<GuestMemory>,
    tracker: Option<Tracker>,
    saver: Option<Saver>,
    /// It ran when it was frozen.
    was_running: bool,
    is_frozen: bool,
    is_released: bool,
    warnings: Vec<String>,
}

impl QemuWorkload {
    /// The machine behind a monitor. Nothing is touched.
    ///
    /// # Errors
    /// Nobody answers there.
    pub fn new(monitor: &Path) -> Result<QemuWorkload> {
        let monitor = std::path::absolute(monitor).map_err(MachineError::file("find", monitor))?;
        let machine = Machine::attach(&monitor)?;
        let resources = SourceResources {
            process: machine.process,
            monitor,
            settings: None,
            ran: false,
            way: Way::DevicesOnly,
            blocks: Vec::new(),
        };
        let arguments = Arguments::of_process(machine.pid());
        let given = arguments.ok().and_then(|arguments| arguments.name());
        Ok(QemuWorkload {
            name: given.unwrap_or_else(|| format!("qemu ({})", machine.pid())),
            machine_type: String::new(),
            machine,
            resources,
            memory: None,
            tracker: None,
            saver: None,
            was_running: false,
            is_frozen: false,
            is_released: false,
            warnings: Vec::new(),
        })
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn memory(&mut self) -> Result<&mut GuestMemory> {
        self.memory.as_mut().ok_or_else(not_begun)
    }

    fn parts(&mut self) -> Result<(&mut Tracker, &mut GuestMemory)> {
        self.tracker
            .as_mut()
            .zip(self.memory.as_mut())
            .ok_or_else(not_begun)
    }

    fn scanned(&mut self, written: Vec<PageRun>, last: bool) -> Result<Scanned> {
        let (tracker, _) = self.parts()?;
        let present = last.then(|| tracker.present().runs().collect());
        Ok(Scanned {
            pages_total: tracker.present().len(),
            layout: None,
            scan: Scan {
                written,
                present,
                ..Scan::default()
            },
        })
    }

    /// The blocks may have become others since (memory that was plugged in).
    fn check_blocks(&mut self) -> Result<()> {
        let now = self.machine.memory(self.resources.way)?;
        let memory = self.memory()?;
        let same = now.len() == memory.blocks().len()
            && now
                .iter()
                .zip(memory.blocks())
                .all(|(a, b)| (&a.name, a.bytes, a.host) == (&b.name, b.bytes, b.host));
        match same {
            true => Ok(()),
            false => Err(MachineError::refused(
                "the machine's memory has changed since the migration began (was memory plugged in or out?); start again",
            )),
        }
    }

    /// It runs on if it ran, with the user's settings.
    fn go_on(&mut self) -> Result<()> {
        if let Some(saver) = self.saver.take() {
            saver.dismiss(&mut self.machine.qmp);
        }
        device_state::dismiss_left(&mut self.machine.qmp);
        // Each only once it is done: on failure this is called again.
        if self.is_frozen && self.was_running {
            self.machine.go_on(DISKS_MAX)?;
        }
        self.is_frozen = false;
        if let Some(settings) = &self.resources.settings {
            settings.restore(&mut self.machine.qmp)?;
        }
        self.resources.settings = None;
        Ok(())
    }
}

fn not_begun() -> MachineError {
    MachineError::unfit("the migration of the machine has not begun")
}

impl Workload for QemuWorkload {
    type Error = MachineError;
    type Store = GuestMemory;

    fn describe(&mut self) -> Result<Vec<u8>> {
        let (way, blocks) = self.machine.check()?;
        let facts = self.machine.facts()?;
        let pid = self.machine.pid();
        let arguments =
            Arguments::of_process(pid).map_err(MachineError::file("read", format!("/proc/{pid}/cmdline")))?;
        let spec_of = |block: &crate::blocks::Block| BlockSpec {
            name: block.name.clone(),
            bytes: block.bytes,
            shared: block.is_shared(),
        };
        let specs = blocks.iter().map(spec_of).collect();
        self.resources.blocks = blocks.iter().map(crate::blocks::Block::place).collect();
        let memory = GuestMemory::new(pid, blocks)?;
        let present = memory.present(&memory.everything(), false)?;
        let spec = MachineSpec {
            name: self.name.clone(),
            arguments: arguments.words().to_vec(),
            directory: directory(pid)?,
            owner: owner(pid)?,
            way,
            blocks: specs,
            locks: !self.machine.locked_files()?.is_empty(),
            resident_bytes: present.iter().map(|run| run.count).sum::<u64>() * whimbrel_policy::PAGE_SIZE,
            realtime_ns: realtime_ns(),
            facts,
        };
        self.machine_type = spec.facts.machine.clone();
        self.resources.way = way;
        self.tracker = Some(Tracker::new(pid)?);
        self.memory = Some(memory);
        Ok(encode(&spec))
    }

    fn nature(&mut self) -> Nature {
        let memory = self.memory.as_ref().map(by_name).unwrap_or_default();
        Nature {
            memory,
            state_bytes: STATE_BYTES,
            stop: STOP,
            arm: ARM,
            drop: DROP,
            after: AFTER,
        }
    }

    fn resources(&self) -> Vec<u8> {
        encode(&self.resources)
    }

    fn begin(&mut self, mode: Mode) -> Result<()> {
        let settings = Settings::read(&mut self.machine.qmp)?;
        self.resources.settings = Some(settings);
        self.resources.ran = self.machine.is_running()?;
        if mode == Mode::Live {
            let uffd = watch::make(&mut self.machine, feature::TRACK_WRITES, false)?.uffd;
            let (tracker, memory) = self.parts()?;
            tracker.arm(uffd, memory)?;
        }
        Ok(())
    }

    fn scan(&mut self) -> Result<Scanned> {
        let (tracker, memory) = self.parts()?;
        let written = tracker.take(memory)?;
        self.scanned(written, false)
    }

    fn rewritten(&mut self, runs: &[PageRun], out: &mut Vec<PageRun>) -> Result<()> {
        let (tracker, memory) = self.parts()?;
        tracker.peek(memory, runs, out)
    }

    fn read(&mut self, runs: &[PageRun], buffer: &mut [u8], failed: &mut Vec<PageRun>) -> Result<()> {
        self.memory()?.read(runs, buffer, failed)
    }

    fn make_ready(&mut self) -> Result<()> {
        self.check_blocks()?;
        let way = self.resources.way;
        if let Some(settings) = &self.resources.settings {
            settings.make(&mut self.machine.qmp, way)?;
        }
        if self.saver.is_none() {
            self.saver = Some(Saver::prepare(&mut self.machine.qmp, way)?);
        }
        self.resources.ran = self.machine.is_running()?;
        Ok(())
    }

    fn freeze(&mut self) -> Result<()> {
        let was_running = self.machine.is_running()?;
        match self.machine.qmp.execute("stop", json!({})) {
            Ok(_) => {
                self.was_running = was_running;
                self.is_frozen = true;
                Ok(())
            }
            Err(error) => {
                if was_running {
                    // Running on failure: it may have stopped and not have been able to say so.
                    let _ = self.machine.qmp.execute("cont", json!({}));
                }
                Err(error.into())
            }
        }
    }

    fn layout_frozen(&mut self) -> Result<Option<Vec<u8>>> {
        Ok(None)
    }

    fn capture(&mut self) -> Result<Captured> {
        let saver = self.saver.take().ok_or_else(not_begun)?;
        let devices = saver.save(&mut self.machine.qmp, &self.machine_type)?;
        let state = MachineState {
            running: self.was_running,
            devices,
        };
        Ok(Captured {
            layout: None,
            state: encode(&state),
        })
    }

    fn scan_frozen(&mut self) -> Result<Scanned> {
        let (tracker, memory) = self.parts()?;
        let written = tracker.take_last(memory)?;
        self.scanned(written, true)
    }

    fn store(&mut self) -> Result<GuestMemory> {
        Ok(self.memory()?.clone())
    }

    /// A paused machine stays paused whatever becomes of us.
    fn hold(&mut self) -> Result<()> {
        match self.machine.is_running()? {
            false => Ok(()),
            true => Err(MachineError::unfit(
                "somebody has let the machine run while it was being moved",
            )),
        }
    }

    fn release(&mut self, outcome: Outcome) -> Result<()> {
        if self.is_released {
            return Ok(());
        }
        if let Some(tracker) = &mut self.tracker {
            tracker.disarm();
        }
        match outcome {
            Outcome::Stays => self.go_on()?,
            Outcome::Moved => end(&self.resources, Some(&mut self.machine.qmp))?,
        }
        self.is_released = true;
        Ok(())
    }

    fn warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }
}

/// Ends the QEMU of a machine that runs elsewhere. Idempotent.
pub(crate) fn end(resources: &SourceResources, qmp: Option<&mut Qmp>) -> Result<()> {
    if !resources.process.is_alive() {
        return Ok(());
    }
    let process = pidfd::open(resources.process.pid)?;
    if !resources.process.is_alive() {
        return Ok(());
    }
    let asked = match qmp {
        Some(qmp) => qmp.post("quit", json!({})).is_ok(),
        // What a connection that is closed at once has said may not be heard any more.
        None => resources
            .attach()
            .and_then(|mut machine| Ok(machine.qmp.execute("quit", json!({}))?))
            .is_ok(),
    };
    if asked && pidfd::wait_exit(process.as_fd(), END_MAX)? {
        return Ok(());
    }
    kill(process.as_fd(), resources.process.pid)
}

/// Kills a QEMU and waits until it is gone.
pub(crate) fn kill(process: std::os::fd::BorrowedFd<'_>, pid: i32) -> Result<()> {
    // One that is gone already is as good.
    let _ = pidfd::send_signal(process, libc::SIGKILL);
    match pidfd::wait_exit(process, DEATH_MAX)? {
        true => Ok(()),
        false => Err(MachineError::unfit(format!(
            "QEMU (process {pid}) does not end although it was killed"
        ))),
    }
}
