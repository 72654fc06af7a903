//! The source's side: a running process that is tracked, stopped, read, and in the end let go or ended.
//!
//! In each round the process is stopped for about a millisecond (maps are read, new mappings are registered), then it runs on while its pages
//! are scanned and read. The freeze proper is the same stop, with the network cut; when the destination is complete, the cgroup
//! freezer takes over, since a ptrace stop ends with its tracer.
//!
//! ptrace belongs to a thread: all calls come from the same one.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use whimbrel_engine::contract::{Captured as CapturedState, Scanned};
use whimbrel_engine::{Mode, Nature, Outcome, Workload};
use whimbrel_kernel::freezer::Group;
use whimbrel_kernel::maps::{self, Vma};
use whimbrel_kernel::ptrace::{self, Stopped};
use whimbrel_kernel::{pidfd, proc};
use whimbrel_policy::{PageRun, Scan, PAGE_SIZE};

use crate::capture::{self, Captured, Input, Prefetch, RepairedSocket, RestartMemo};
use crate::check::{self, CheckOptions};
use crate::container::{self, log, ContainerSpec, Entry, Frames, Identity};
use crate::cpu::CpuFeatures;
use crate::layout::{Advice, Backing, Layout, Mapping, ObjectKind, ProcessLayout};
use crate::nature;
use crate::objects::{ObjectError, Objects};
use crate::recover;
use crate::refusal::{Refusal, Subject};
use crate::spec::{needed_files, resident_bytes, ProcessSpec, Spec, SpecError};
use crate::state::{FileId, State};
use crate::store::{bytes_of, MemoryStore};
use crate::survey::{kernel_mappings, FlagTable, Surveyor};
use crate::tracker::{Tracker, PRIVATE};
use crate::vdso::KernelMappings;

/// How often the workload is frozen anew when something in it passes by itself.
const CAPTURES_MAX: u32 = 20;
/// How long it runs in between: so long after the first attempt, twice as long after the second, and so on.
const CAPTURE_PAUSE: Duration = Duration::from_millis(10);
/// How often the workload is checked before a refusal stands.
const CHECKS_MIN: u32 = 4;
/// How often the flags of mappings are read anew when new mappings appear before the freeze.
const FLAG_READINGS_MAX: u32 = 3;
/// The log's tail that travels with the state, in bytes: it is part of the blackout.
const LOG_REST_MAX: u64 = 1 << 20;

/// What can go wrong at the source.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// It cannot move.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A system call failed.
    #[error(transparent)]
    Kernel(#[from] whimbrel_kernel::error::Error),
    /// Its state could not be captured.
    #[error(transparent)]
    Capture(#[from] capture::Error),
    /// Its container could not be handled.
    #[error(transparent)]
    Container(#[from] container::Error),
    /// It could not be described.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// A shared memory object cannot be read.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// What was read could not be written down.
    #[error("cannot encode the state of process {pid}: {source}")]
    Encode {
        /// The process.
        pid: i32,
        /// Why.
        source: postcard::Error,
    },
    /// A call came out of order, or the workload changed in a way that cannot be followed.
    #[error("process {pid} {what}")]
    Unfit {
        /// The process.
        pid: i32,
        /// What it did or is not.
        what: &'static str,
    },
}

type Result<T> = std::result::Result<T, SourceError>;

/// What [`recover`] needs to finish or undo a migration at the source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceResources {
    /// The workload's process.
    pub process: Identity,
    /// The cgroup that freezes it.
    pub group: PathBuf,
    /// Whether that cgroup was made for the migration (and has to go afterwards).
    pub own_group: bool,
    /// Its container, if `run` started it.
    pub container: Option<container::Resources>,
    /// Its TCP sockets, which may be in repair mode.
    pub sockets: Vec<RepairedSocket>,
    /// Files that moved along: (path as seen from here, identity).
    pub carried: Vec<(PathBuf, FileId)>,
}

/// What travels as the state.
#[derive(Debug, Serialize, Deserialize)]
pub struct Image {
    /// Everything beside the memory.
    pub state: State,
    /// What the log got since the description was made.
    pub log: log::Chunk,
}

/// A process on its way.
#[derive(Debug)]
pub struct ProcessWorkload {
    pid: i32,
    /// PID in its own namespace.
    inner_pid: i32,
    container: ContainerSpec,
    resources: SourceResources,
    surveyor: Surveyor,
    objects: Objects,
    flags: FlagTable,
    layout: Option<Layout>,
    kernel: KernelMappings,
    tracker: Tracker,
    memory: MemoryStore,
    memo: RestartMemo,
    /// Read before the freeze.
    prefetch: Option<Prefetch>,
    /// For the network, if it has one of its own.
    lock: Option<container::Lock>,
    frozen: Option<Frozen>,
    /// Mappings that were lost between the last scan and the freeze.
    lost: Vec<PageRun>,
    /// It may be in a group made for the migration.
    grouped: bool,
    held: bool,
    released: bool,
    /// What came for it while it was frozen is on its way to the destination.
    forwarded: bool,
    log_from: u64,
    /// What is sent to it while it is frozen; opened before.
    frames: Option<Frames>,
    warnings: Vec<String>,
}

/// What belongs to the freeze.
#[derive(Debug)]
struct Frozen {
    stopped: Stopped,
    vmas: Vec<Vma>,
    prefetch: Prefetch,
    repaired: Vec<RepairedSocket>,
}

impl ProcessWorkload {
    /// The process `pid`; `entry` tells its container if `run` started it. Nothing is touched.
    ///
    /// # Errors
    /// There is no such process, or it cannot be examined.
    pub fn new(pid: i32, entry: Option<&Entry>) -> Result<ProcessWorkload> {
        let container = match entry {
            Some(entry) => entry.spec.clone(),
            None => ContainerSpec::of_process(pid)?,
        };
        let (group, own_group) = match entry {
            Some(entry) => (entry.resources.group.clone(), false),
            None => (
                Group::plan(pid, &format!("whimbrel-{}", container.id))?
                    .path()
                    .to_owned(),
                true,
            ),
        };
        let resources = SourceResources {
            process: Identity::of(pid)?,
            group,
            own_group,
            container: entry.map(|entry| entry.resources.clone()),
            sockets: Vec::new(),
            carried: Vec::new(),
        };
        let numbers = proc::Status::read(pid)?.namespace_pids();
        Ok(ProcessWorkload {
            pid,
            inner_pid: numbers.last().map_or(pid, |number| *number as i32),
            container,
            resources,
            surveyor: Surveyor::new(pid)?,
            objects: Objects::default(),
            flags: FlagTable::default(),
            layout: None,
            kernel: KernelMappings::default(),
            tracker: Tracker::watch(pid)?,
            memory: MemoryStore::open(pid)?,
            memo: RestartMemo::default(),
            prefetch: None,
            lock: None,
            frozen: None,
            lost: Vec::new(),
            grouped: false,
            held: false,
            released: false,
            forwarded: false,
            log_from: 0,
            frames: None,
            warnings: Vec::new(),
        })
    }

    fn unfit(&self, what: &'static str) -> SourceError {
        SourceError::Unfit { pid: self.pid, what }
    }

    /// Files below the workload's root.
    fn root(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root", self.pid))
    }

    /// The log's path as the workload sees it: the destination makes it.
    fn log(&self) -> Option<&Path> {
        self.container.log.as_deref()
    }

    fn read_log(&mut self, most: u64) -> Result<log::Chunk> {
        let Some(path) = self.log() else {
            return Ok(log::Chunk::default());
        };
        let chunk = log::read(path, self.log_from, most)?;
        self.log_from = chunk.next;
        Ok(chunk)
    }

    /// The layout of `vmas`, which have flags. Objects are opened while the mappings are there.
    fn survey(&mut self, vmas: &[Vma]) -> Result<Layout> {
        self.objects.update(&self.surveyor.objects(vmas)?)?;
        let mappings = self.surveyor.mappings(vmas, &self.objects)?;
        let process = ProcessLayout {
            pid: self.inner_pid,
            space: PRIVATE.0,
            mappings,
            ..ProcessLayout::default()
        };
        Ok(Layout {
            processes: vec![process],
            objects: self.objects.layout(),
        })
    }

    /// Takes over a new layout: what was lost since the last one, and its bytes if it differs.
    fn adopt(&mut self, layout: Layout) -> (Vec<PageRun>, Option<Vec<u8>>) {
        let lost = self
            .layout
            .as_ref()
            .map(|old| old.lost(&layout))
            .unwrap_or_default();
        let changed = self.layout.as_ref() != Some(&layout);
        let bytes = changed.then(|| layout.encode());
        self.layout = Some(layout);
        (lost, bytes)
    }

    fn refresh_flags(&mut self) -> Result<()> {
        let vmas = maps::read_with_flags(self.pid)?;
        self.tracker.note_huge(&vmas)?;
        self.flags = FlagTable::new(vmas);
        Ok(())
    }

    /// Stops it for a moment, in which its maps are read and registered.
    fn look(&mut self) -> Result<(Vec<Vma>, Layout)> {
        let stopped = Stopped::stop(self.pid)?;
        let looked = self.look_stopped();
        // Also on failure: the stop may have interrupted system calls.
        let mended = capture::mend(&stopped, &mut self.memo);
        stopped.detach();
        mended?;
        looked
    }

    fn look_stopped(&mut self) -> Result<(Vec<Vma>, Layout)> {
        let mut vmas = maps::read(self.pid)?;
        self.flags.apply(&mut vmas);
        self.tracker.register(&vmas)?;
        let layout = self.survey(&vmas)?;
        Ok((vmas, layout))
    }

    /// Stops the process until every mapping has known flags. They were read while it ran; if new mappings have appeared
    /// since then they are read anew, at last from the stopped process, which is slow but true.
    fn stop_with_flags(&mut self) -> Result<(Stopped, Vec<Vma>)> {
        for reading in 1.. {
            let stopped = Stopped::stop(self.pid)?;
            match self.frozen_vmas(reading == FLAG_READINGS_MAX) {
                Ok(Some(vmas)) => return Ok((stopped, vmas)),
                other => {
                    let mended = capture::mend(&stopped, &mut self.memo);
                    stopped.detach();
                    other?;
                    mended?;
                    self.refresh_flags()?;
                }
            }
        }
        Err(self.unfit("changes its mappings all the time"))
    }

    fn frozen_vmas(&mut self, last: bool) -> Result<Option<Vec<Vma>>> {
        let mut vmas = maps::read(self.pid)?;
        if !self.flags.covers(&vmas) {
            if !last {
                return Ok(None);
            }
            self.refresh_flags()?;
        }
        self.flags.apply(&mut vmas);
        Ok(Some(vmas))
    }

    fn capture_once(&mut self) -> Result<State> {
        let pid = self.pid;
        let not_frozen = SourceError::Unfit {
            pid,
            what: "is not frozen",
        };
        let frozen = self.frozen.as_mut().ok_or(not_frozen)?;
        if !proc::children(pid)?.is_empty() {
            let (subject, what) = (Subject::Process { pid }, "has started a child process".to_owned());
            return Err(capture::Error::Busy { subject, what }.into());
        }
        let input = Input {
            stopped: &frozen.stopped,
            mappings: &frozen.vmas,
            prefetch: &frozen.prefetch,
            memo: &mut self.memo,
        };
        let Captured { state, repaired } = capture::capture(input)?;
        frozen.repaired = repaired;
        Ok(state)
    }

    /// Checks it; short-lived children get the time to end, and those that do not are named.
    fn check(&self) -> Result<()> {
        for attempt in 1.. {
            match check::check(self.pid, &CheckOptions::default()) {
                // A child may have ended since it was found, and the next one be there already.
                Err(_) if attempt < CHECKS_MIN || attempt < CAPTURES_MAX && self.has_children()? => {
                    std::thread::sleep(CAPTURE_PAUSE * attempt);
                }
                checked => return Ok(checked?),
            }
        }
        Ok(())
    }

    fn has_children(&self) -> Result<bool> {
        Ok(!proc::children(self.pid)?.is_empty())
    }

    /// Lets a frozen workload run on: the reverse of [`Workload::freeze`] and [`Workload::capture`].
    fn unfreeze(&mut self) -> Result<()> {
        let Some(frozen) = self.frozen.take() else {
            return Ok(());
        };
        // Each step is tried whatever became of the one before; the first failure is told.
        let awake = capture::leave_repair(self.pid, &frozen.repaired).map(drop);
        let unlocked = self
            .resources
            .container
            .as_ref()
            .map_or(Ok(()), container::unlock);
        self.with_frames(Frames::deliver_here);
        let mended = capture::mend(&frozen.stopped, &mut self.memo);
        frozen.stopped.detach();
        awake?;
        unlocked?;
        mended?;
        Ok(())
    }

    /// The group of [`Workload::hold`], made while the workload runs: moving a process takes the kernel up to 20 ms. Its path
    /// is journalled from the beginning.
    fn join_group(&mut self) -> Result<()> {
        if self.resources.own_group && !std::mem::replace(&mut self.grouped, true) {
            let group = Group::at(&self.resources.group);
            group.create()?;
            group.add(self.pid)?;
        }
        Ok(())
    }

    /// It runs, and is where it was before: the reverse of [`Self::join_group`] and of [`Workload::hold`].
    fn leave_group(&mut self) -> Result<()> {
        if self.grouped || self.held {
            recover::thaw(&self.resources)?;
        }
        Ok(())
    }

    fn prepare_lock(&mut self) -> Result<()> {
        if let (None, Some(container)) = (&self.lock, &self.resources.container) {
            self.lock = container::Lock::prepare(container)?;
        }
        Ok(())
    }

    /// Makes ready to catch what is sent to it while it is frozen.
    fn open_frames(&mut self) {
        let container = self
            .resources
            .container
            .as_ref()
            .filter(|_| self.frames.is_none());
        match container.map_or(Ok(None), Frames::open) {
            Ok(Some(frames)) => self.frames = Some(frames),
            Ok(None) => {}
            Err(error) => self.warn_of_frames(&error),
        }
    }

    /// Does something with what is sent to it while it is frozen. That this fails is no reason to fail: the peers send it again.
    fn with_frames<T>(&mut self, work: impl FnOnce(&Frames) -> container::Result<T>) {
        if let Some(Err(error)) = self.frames.as_ref().map(work) {
            self.warn_of_frames(&error);
        }
    }

    fn warn_of_frames(&mut self, error: &container::Error) {
        let warning = format!(
            "clients that send to process {} while it is frozen must wait for their own timers: {error}",
            self.pid
        );
        // It may be frozen again and again.
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }

    fn kill_tracees(&self, stopped: Stopped) -> Result<()> {
        whimbrel_kernel::namespace::kill(self.pid);
        // The freezer of cgroup version 1 keeps killed processes frozen.
        Group::at(&self.resources.group).thaw()?;
        Ok(stopped.kill()?)
    }

    /// Files that will be made at the destination, with their identity here.
    fn note_carried(&mut self) {
        let root = self.root();
        let objects = self.layout.iter().flat_map(|layout| &layout.objects);
        let carried = objects.filter_map(|object| match &object.kind {
            ObjectKind::CarriedFile { path, .. } => {
                Some((root.join(path.trim_start_matches('/')), object.id))
            }
            _ => None,
        });
        // The root is that of a process which will be gone: its own path is needed.
        let resolved = carried.filter_map(|(path, id)| Some((std::fs::canonicalize(path).ok()?, id)));
        self.resources.carried = resolved.collect();
    }

    /// What is urgent whatever its threads do.
    fn urgent_mappings(&self) -> Vec<PageRun> {
        let processes = self.layout.iter().flat_map(|layout| &layout.processes);
        let mappings = processes.flat_map(|process| &process.mappings);
        let unserved = mappings.filter(|mapping| !mapping.shared && !can_wait(mapping));
        unserved.map(|mapping| mapping.span.run(PRIVATE)).collect()
    }

    /// Pages that must be there when the workload starts at the destination: those whose absence cannot be served, those that a child must
    /// not have, and those that rebuilding a thread writes to. Spans are generous: pages that are not owed do not count.
    fn urgent(&self, stopped: &Stopped, shared: &[PageRun]) -> Result<Vec<PageRun>> {
        let mut urgent = self.urgent_mappings();
        for tid in stopped.tids() {
            let rseq = ptrace::rseq(*tid)?;
            if rseq.pointer != 0 {
                let first = rseq.pointer / PAGE_SIZE;
                let last = (rseq.pointer.saturating_add(u64::from(rseq.size)) - 1) / PAGE_SIZE;
                urgent.push(PageRun {
                    space: PRIVATE,
                    first,
                    count: (last - first).min(1) + 1,
                });
            }
        }
        urgent.extend_from_slice(shared);
        Ok(urgent)
    }
}

/// Whether the absence of its pages can be served at the destination.
pub(crate) fn can_wait(mapping: &Mapping) -> bool {
    let wiped = mapping.advice.contains(Advice::WipeOnFork);
    mapping.backing == Backing::Anonymous && !mapping.shared && !mapping.droppable && !wiped
}

fn pages(runs: &[PageRun]) -> u64 {
    runs.iter().map(|run| run.count).sum()
}

impl Workload for ProcessWorkload {
    type Error = SourceError;
    type Store = MemoryStore;

    fn describe(&mut self) -> Result<Vec<u8>> {
        self.check()?;
        let vmas = maps::read_with_flags(self.pid)?;
        check::mappings(
            self.pid,
            &vmas
                .iter()
                .filter(|vma| !vma.is_special())
                .cloned()
                .collect::<Vec<_>>(),
        )?;
        self.kernel = kernel_mappings(self.pid, &vmas)?;
        let layout = self.survey(&vmas)?;
        let mappings = layout
            .processes
            .iter()
            .flat_map(|process| process.mappings.clone())
            .collect::<Vec<_>>();
        let made: Vec<PathBuf> = self
            .log()
            .map(Path::to_path_buf)
            .into_iter()
            .chain(carried_paths(&layout))
            .collect();
        let spec = Spec {
            processes: vec![ProcessSpec {
                pid: self.inner_pid,
                kernel: self.kernel.clone(),
            }],
            files: needed_files(self.pid, &vmas, &mappings, &made)?,
            cpu: CpuFeatures::here().map_err(|source| SpecError::Proc {
                path: "/proc/cpuinfo".into(),
                source,
            })?,
            page_bytes: PAGE_SIZE,
            container: self.container.clone(),
            log: self.read_log(log::TAIL_MAX)?,
            resident_bytes: resident_bytes(self.pid),
            // Last, because time goes on.
            clocks: container::Clocks::of(self.pid)?,
        };
        Ok(spec.encode()?)
    }

    fn nature(&mut self) -> Nature {
        nature::of(self.pid)
    }

    fn resources(&self) -> Vec<u8> {
        recover::encode(&self.resources)
    }

    fn begin(&mut self, mode: Mode) -> Result<()> {
        if mode == Mode::Live {
            let stopped = Stopped::stop_leader(self.pid)?;
            // Before it is driven to see what it was doing, afterwards because it was interrupted again.
            let seen = capture::mend(&stopped, &mut self.memo);
            let armed = self.tracker.arm();
            let mended = capture::mend(&stopped, &mut self.memo);
            stopped.detach();
            armed?;
            seen.and(mended)?;
        }
        Ok(())
    }

    fn scan(&mut self) -> Result<Scanned> {
        if !self.flags.covers(&maps::read(self.pid)?) {
            self.refresh_flags()?;
        }
        let (vmas, layout) = self.look()?;
        let (lost, layout) = self.adopt(layout);
        let mut written = self.tracker.scan(&vmas)?;
        let shared = self.objects.scan_running()?;
        let mut urgent = self.urgent_mappings();
        urgent.extend_from_slice(&shared);
        written.extend(shared);
        let pages_total = resident_bytes(self.pid) / PAGE_SIZE;
        Ok(Scanned {
            scan: Scan {
                written,
                lost,
                present: None,
                urgent,
            },
            layout,
            pages_total,
        })
    }

    fn rewritten(&mut self, runs: &[PageRun], out: &mut Vec<PageRun>) -> Result<()> {
        for some in runs.chunk_by(|a, b| a.space == b.space) {
            if some.first().is_some_and(|run| run.space == PRIVATE) {
                self.tracker.rewritten(some, out)?;
            }
        }
        Ok(())
    }

    fn read(&mut self, runs: &[PageRun], buffer: &mut [u8], failed: &mut Vec<PageRun>) -> Result<()> {
        let mut rest = buffer;
        for some in runs.chunk_by(|a, b| (a.space == PRIVATE) == (b.space == PRIVATE)) {
            let bytes = (pages(some) * PAGE_SIZE) as usize;
            let (part, others) = rest.split_at_mut(bytes.min(rest.len()));
            rest = others;
            if some.first().is_some_and(|run| run.space == PRIVATE) {
                self.memory.read_private(some, part, failed)?;
                continue;
            }
            let mut at = 0;
            for run in some {
                let place = part.get_mut(at..at + bytes_of(run)).unwrap_or_default();
                at += bytes_of(run);
                if !self.objects.read(run, place) {
                    failed.push(*run);
                }
            }
        }
        Ok(())
    }

    fn make_ready(&mut self) -> Result<()> {
        let prefetch = Prefetch::read(self.pid)?;
        self.resources.sockets = prefetch.sockets.clone();
        self.prefetch = Some(prefetch);
        self.join_group()?;
        self.open_frames();
        self.prepare_lock()?;
        self.refresh_flags()
    }

    fn freeze(&mut self) -> Result<()> {
        if self.prefetch.is_none() {
            self.make_ready()?;
        }
        let prefetch = self
            .prefetch
            .take()
            .ok_or_else(|| self.unfit("was not made ready"))?;
        let (stopped, vmas) = self.stop_with_flags()?;
        self.frozen = Some(Frozen {
            stopped,
            vmas,
            prefetch,
            repaired: Vec::new(),
        });
        // Threads first: what they have written is on its way, and nothing new comes.
        self.with_frames(Frames::hold);
        if let Some(Err(error)) = self.lock.as_mut().map(container::Lock::close) {
            self.unfreeze()?;
            return Err(error.into());
        }
        if let Some(frozen) = self.frozen.as_mut().filter(|_| self.lock.is_some()) {
            frozen.prefetch.note_unsent(self.pid);
        }
        Ok(())
    }

    fn layout_frozen(&mut self) -> Result<Option<Vec<u8>>> {
        let frozen = self.frozen.as_mut();
        let vmas = frozen.map_or(Vec::new(), |frozen| std::mem::take(&mut frozen.vmas));
        let layout = self.survey(&vmas);
        let kernel = kernel_mappings(self.pid, &vmas);
        if let Some(frozen) = &mut self.frozen {
            frozen.vmas = vmas;
        }
        if kernel? != self.kernel {
            return Err(self.unfit("has moved its vdso during the migration: try again"));
        }
        let (lost, layout) = self.adopt(layout?);
        self.lost.extend(lost);
        self.note_carried();
        Ok(layout)
    }

    fn capture(&mut self) -> Result<CapturedState> {
        for attempt in 1.. {
            match self.capture_once() {
                Ok(state) => {
                    // Once, against the one that the destination has: what came and went in between is none of its business, but
                    // what was replaced by something alike is.
                    let layout = match attempt {
                        1 => None,
                        _ => self.layout_frozen()?,
                    };
                    let image = Image {
                        state,
                        log: self.read_log(LOG_REST_MAX)?,
                    };
                    let pid = self.pid;
                    let encoded = postcard::to_stdvec(&image);
                    let state = encoded.map_err(|source| SourceError::Encode { pid, source })?;
                    return Ok(CapturedState { layout, state });
                }
                Err(SourceError::Capture(error)) if error.is_transient() && attempt < CAPTURES_MAX => {
                    self.unfreeze()?;
                    std::thread::sleep(CAPTURE_PAUSE * attempt);
                    self.freeze()?;
                }
                Err(error) => return Err(error),
            }
        }
        Err(self.unfit("was never in a state that can be captured"))
    }

    fn scan_frozen(&mut self) -> Result<Scanned> {
        let frozen = self
            .frozen
            .as_mut()
            .map(|frozen| std::mem::take(&mut frozen.vmas));
        let vmas = frozen.ok_or_else(|| self.unfit("is not frozen"))?;
        let private = self.tracker.scan_frozen(&vmas)?;
        let shared = self.objects.scan_frozen()?;
        let mut layout = self.layout.clone().unwrap_or_default();
        if let Some(process) = layout.processes.first_mut() {
            process.huge = private.huge;
            process.guards = private.guards;
        }
        let (_, layout) = self.adopt(layout);
        let lost = std::mem::take(&mut self.lost);
        if let Some(frozen) = &mut self.frozen {
            frozen.vmas = vmas;
        }
        let (mut written, mut present) = (private.written, private.present);
        let objects: Vec<PageRun> = shared.written.iter().chain(&shared.present).copied().collect();
        let frozen = self.frozen.as_ref().ok_or_else(|| self.unfit("is not frozen"))?;
        let urgent = self.urgent(&frozen.stopped, &objects)?;
        written.extend(shared.written);
        present.extend(shared.present);
        let pages_total = pages(&present);
        Ok(Scanned {
            scan: Scan {
                written,
                lost,
                present: Some(present),
                urgent,
            },
            layout,
            pages_total,
        })
    }

    fn store(&mut self) -> Result<MemoryStore> {
        Ok(MemoryStore::open(self.pid)?)
    }

    fn hold(&mut self) -> Result<()> {
        self.held = true;
        Ok(Group::at(&self.resources.group).freeze()?)
    }

    fn forward(&mut self) {
        match std::mem::replace(&mut self.forwarded, true) {
            false => self.with_frames(Frames::forward),
            true => self.with_frames(Frames::forward_late),
        }
    }

    fn release(&mut self, outcome: Outcome) -> Result<()> {
        if std::mem::replace(&mut self.released, true) {
            return Ok(());
        }
        match outcome {
            Outcome::Stays => {
                let running = self.unfreeze();
                self.leave_group()?;
                self.tracker.disarm();
                self.objects.clear();
                running
            }
            Outcome::Moved => {
                self.forward();
                // A traced thread is not gone before its tracer has seen its end.
                if let Some(frozen) = self.frozen.take() {
                    self.kill_tracees(frozen.stopped)?;
                }
                let ended = recover::end(&self.resources);
                self.with_frames(Frames::forward_late);
                Ok(ended?)
            }
        }
    }

    fn warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }
}

/// A workload that is dropped without a word stays.
impl Drop for ProcessWorkload {
    fn drop(&mut self) {
        if !self.released && !self.held {
            let _ = self.unfreeze();
            let _ = self.leave_group();
        }
    }
}

fn carried_paths(layout: &Layout) -> impl Iterator<Item = PathBuf> + '_ {
    layout.objects.iter().filter_map(|object| match &object.kind {
        ObjectKind::CarriedFile { path, .. } => Some(PathBuf::from(path)),
        _ => None,
    })
}

/// Ends process `identity` if it still is that one, and waits for its end.
///
/// # Errors
/// It does not end.
pub(crate) fn kill(identity: Identity, thaw: impl FnOnce() -> Result<()>) -> Result<()> {
    if !identity.is_alive() {
        return thaw();
    }
    let process = pidfd::open(identity.pid)?;
    pidfd::send_signal(process.as_fd(), libc::SIGKILL)?;
    // The freezer of cgroup version 1 keeps killed processes frozen.
    thaw()?;
    if !pidfd::wait_exit(process.as_fd(), KILL_WAIT_MAX)? {
        return Err(SourceError::Unfit {
            pid: identity.pid,
            what: "was killed but does not end: it hangs in the kernel",
        });
    }
    Ok(())
}

/// How long a killed process may take: it gives all of its memory back.
const KILL_WAIT_MAX: Duration = Duration::from_secs(30);
