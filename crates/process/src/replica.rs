//! The destination's side: a container with a stub that becomes the workload.
//!
//! Memory goes straight to its final place from the first round on. The stub's mappings follow the source's; what a round
//! brings is written with process_vm_writev(2), shared objects through descriptors that we hold.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use whimbrel_engine::Replica;
use whimbrel_kernel::memory::{self, MemFile};
use whimbrel_kernel::pagemap::{Pagemap, Region, ScanArgs};
use whimbrel_kernel::{maps, pidfd, sparse, uffd};
use whimbrel_policy::{PageRun, PAGE_SIZE};

use crate::calls::Plan;
use crate::capture::RepairedSocket;
use crate::container::{self, log, Container, Identity, Introduction};
use crate::layout::{
    difference, AdviceSet, Backing, Difference, Layout, LayoutError, Mapping, ObjectKind, SharedObject, Span,
    ADDRESS_MAX,
};
use crate::pager::{occupied, Armament, PagerError, PagerResources, ProcessPager};
use crate::rebuild::{self, Built, Target};
use crate::recover::{self, RecoverError};
use crate::source::{can_wait, Image};
use crate::spec::{Spec, SpecError};
use crate::state::{FileId, FileKind, State};
use crate::stub::{Stub, StubError};
use crate::tracker::{pieces, PRIVATE};

/// Drops that are carried out together.
const DROPS_MAX: usize = 1024;
/// Mappings that are made together: their files are open at the same time.
const MAPPINGS_AT_ONCE: usize = 200;
/// `MADV_DONTNEED_LOCKED` (Linux 5.18): also drops what is locked.
const MADV_DONTNEED_LOCKED: u64 = 24;
/// `MADV_GUARD_INSTALL` (Linux 6.13): pages that may not be touched.
const MADV_GUARD_INSTALL: u64 = 102;
/// `MLOCK_ONFAULT` of mlock2(2): what is there is locked, and nothing is made only to be locked.
const MLOCK_ONFAULT: u64 = 1;
/// `MAP_DROPPABLE` of mmap(2).
const MAP_DROPPABLE: i32 = 8;
/// `PR_SET_VMA`, `PR_SET_VMA_ANON_NAME` of prctl(2).
const PR_SET_VMA: u64 = 0x5356_4d41;
/// A clock that is behind by more than this is not waited for.
const CLOCK_WAIT_MAX: Duration = Duration::from_secs(2);
/// Zeros to be written.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// What can go wrong at the destination.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    /// A system call failed.
    #[error(transparent)]
    Kernel(#[from] whimbrel_kernel::error::Error),
    /// The workload cannot live here.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// Its container cannot be made.
    #[error(transparent)]
    Container(#[from] container::Error),
    /// The stub.
    #[error(transparent)]
    Stub(#[from] StubError),
    /// What the source sent as its layout.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The state cannot be had here.
    #[error(transparent)]
    Rebuild(#[from] rebuild::Error),
    /// Starting or ending it.
    #[error(transparent)]
    Recover(#[from] RecoverError),
    /// Pages that come after the start.
    #[error(transparent)]
    Pager(#[from] PagerError),
    /// The state does not decode.
    #[error(
        "the state of the workload cannot be decoded ({0}); both ends must run the same release of whimbrel"
    )]
    Decode(#[from] postcard::Error),
    /// A file that moves along cannot be made.
    #[error("cannot make {path}, which moves with the workload: {source}")]
    Carry {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A shared memory object cannot be written.
    #[error("cannot write a shared memory object of the workload: {0}")]
    Object(io::Error),
    /// The source sent something that does not fit together, or a call came out of order.
    #[error("{0}")]
    Unfit(String),
}

type Result<T> = std::result::Result<T, ReplicaError>;

/// What [`crate::recover`] needs to start or discard a replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaResources {
    /// Its container.
    pub container: container::Resources,
    /// Its process.
    pub process: Option<Identity>,
    /// Its TCP connections, silent until it starts.
    pub repaired: Vec<RepairedSocket>,
    /// Files that were made for it.
    pub carried: Vec<(PathBuf, FileId)>,
    /// Pages that come after its start.
    pub pager: Option<PagerResources>,
}

/// A shared object on its way in.
#[derive(Debug)]
struct Object {
    layout: SharedObject,
    /// Its descriptor in the stub.
    inside: u64,
    /// Ours.
    file: File,
}

/// A workload that arrives.
#[derive(Debug)]
pub struct ProcessReplica {
    options: container::Options,
    spec: Option<Spec>,
    container: Option<Container>,
    resources: Option<ReplicaResources>,
    stub: Option<Stub>,
    memory: Option<MemFile>,
    mappings: Vec<Mapping>,
    huge: Vec<Span>,
    guards: Vec<Span>,
    objects: BTreeMap<u32, Object>,
    /// To be dropped before anything else touches them.
    drops: Vec<Span>,
    drops_ascend: bool,
    /// What [`Replica::load`] built. From then on no mapping changes: the stub has the workload's descriptors.
    loaded: Option<Loaded>,
    /// Open from the beginning on, since it is needed when every microsecond counts. Without it the neighbours are told a little later.
    introduction: Option<Introduction>,
}

/// The workload but for its last pages.
#[derive(Debug)]
struct Loaded {
    state: State,
    built: Built,
}

impl ProcessReplica {
    /// Nothing exists yet. The network of the container is cut until the start whatever `options` say.
    pub fn new(options: container::Options) -> ProcessReplica {
        ProcessReplica {
            options: container::Options {
                locked: true,
                ..options
            },
            spec: None,
            container: None,
            resources: None,
            stub: None,
            memory: None,
            mappings: Vec::new(),
            huge: Vec::new(),
            guards: Vec::new(),
            objects: BTreeMap::new(),
            drops: Vec::new(),
            drops_ascend: true,
            loaded: None,
            introduction: None,
        }
    }

    fn stub(&mut self) -> Result<&mut Stub> {
        self.stub
            .as_mut()
            .ok_or_else(|| ReplicaError::Unfit("the replica was not prepared".into()))
    }

    fn pid(&self) -> Result<i32> {
        let stub = self.stub.as_ref();
        stub.map(Stub::pid)
            .ok_or_else(|| ReplicaError::Unfit("the replica was not prepared".into()))
    }

    fn plan(&mut self) -> Result<Plan> {
        Ok(self.stub()?.plan()?)
    }

    /// `arrived` is when the description did.
    fn build(&mut self, spec: &Spec, arrived: Instant) -> Result<()> {
        let process = spec.processes.first().ok_or(SpecError::Nonsense("no process"))?;
        let plan = container::Plan::new(&spec.container, &self.options)?;
        let offsets = spec.clocks.offsets_to_continue(arrived.elapsed())?;
        let mut container = Container::create(plan, Some(offsets))?;
        let resources = |container: &Container, process| ReplicaResources {
            container: container.resources().clone(),
            process,
            repaired: Vec::new(),
            carried: Vec::new(),
            pager: None,
        };
        self.resources = Some(resources(&container, None));
        self.introduction = Introduction::prepare(container.resources()).ok().flatten();
        log::append(&container.log_path(), &spec.log)?;
        let started = container.spawn_stub(process.pid)?;
        self.resources = Some(resources(&container, Some(Identity::of(started.pid)?)));
        self.container = Some(container);
        self.stub = Some(Stub::seize(started.pid, &process.kernel)?);
        self.memory = Some(MemFile::open(started.pid)?);
        Ok(())
    }

    /// Makes the shared objects that are new and gives all of them their size.
    fn follow_objects(&mut self, new: &Layout) -> Result<()> {
        for object in &new.objects {
            if !self.objects.contains_key(&object.space) {
                let made = self.make_object(object)?;
                self.objects.insert(object.space, made);
            }
            if let Some(known) = self.objects.get_mut(&object.space) {
                known.file.set_len(object.size).map_err(ReplicaError::Object)?;
                known.layout = object.clone();
            }
        }
        Ok(())
    }

    fn make_object(&mut self, object: &SharedObject) -> Result<Object> {
        let mut plan = self.plan()?;
        let made = match &object.kind {
            ObjectKind::CarriedFile { path, mode, uid, gid } => {
                self.carry(path, *mode, (*uid, *gid))?;
                let name = plan.text(path.as_bytes());
                let flags = (libc::O_RDWR | libc::O_CLOEXEC | libc::O_NOFOLLOW) as u64;
                plan.call(
                    "openat",
                    libc::SYS_openat,
                    &[libc::AT_FDCWD as u64, name, flags, 0],
                )
            }
            kind => {
                let name = match kind {
                    ObjectKind::Memfd { name, .. } => name,
                    _ => "whimbrel",
                };
                let name = plan.text(name.as_bytes());
                let flags = u64::from(libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING);
                plan.call("memfd_create", libc::SYS_memfd_create, &[name, flags])
            }
        };
        let stub = self.stub()?;
        let inside = plan.run(stub.remote())?.result(made) as u64;
        let place = format!("/proc/{}/fd/{inside}", stub.pid());
        let file = File::options()
            .read(true)
            .write(true)
            .open(place)
            .map_err(ReplicaError::Object)?;
        Ok(Object {
            layout: object.clone(),
            inside,
            file,
        })
    }

    /// Makes a file that moves along. One that a JVM left behind is replaced; others must not exist.
    fn carry(&mut self, path: &str, mode: u32, owner: (u32, u32)) -> Result<()> {
        let failed = |source| ReplicaError::Carry {
            path: path.into(),
            source,
        };
        let place = PathBuf::from(format!("/proc/{}/root{path}", self.pid()?));
        if let Some(directory) = place.parent() {
            make_directory(directory, owner).map_err(failed)?;
        }
        if path.contains("/hsperfdata_") {
            let _ = fs::remove_file(&place);
        }
        let file = File::options()
            .write(true)
            .create_new(true)
            .open(&place)
            .map_err(failed)?;
        std::os::unix::fs::fchown(&file, Some(owner.0), Some(owner.1)).map_err(failed)?;
        file.set_permissions(fs::Permissions::from_mode(mode & 0o7777))
            .map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        let id = FileId {
            device: metadata.dev(),
            inode: metadata.ino(),
        };
        let real = fs::canonicalize(&place).map_err(failed)?;
        if let Some(resources) = &mut self.resources {
            resources.carried.push((real, id));
        }
        Ok(())
    }

    /// Takes the steps from the old mappings to the new ones.
    fn apply(&mut self, steps: &Difference, new: &[Mapping]) -> Result<()> {
        let mut plan = self.plan()?;
        for span in &steps.unmap {
            plan.call("munmap", libc::SYS_munmap, &[span.start, span.len()]);
        }
        plan.run(self.stub()?.remote())?;
        for some in steps.map.chunks(MAPPINGS_AT_ONCE) {
            self.map(some, new)?;
        }
        let mut plan = self.plan()?;
        for (span, protection) in &steps.protect {
            plan.call(
                "mprotect",
                libc::SYS_mprotect,
                &[span.start, span.len(), u64::from(*protection)],
            );
        }
        for (span, advice) in &steps.advise {
            advise(&mut plan, *span, *advice);
        }
        for (span, locked) in &steps.lock {
            lock(&mut plan, *span, *locked);
        }
        plan.run(self.stub()?.remote())?;
        Ok(())
    }

    /// One mapping of the source must be one here, too: mremap(2) refuses to go across a border. Pieces that came to be at different
    /// times are not joined by the kernel once they hold pages, so such a mapping is made anew around its content.
    fn join_pieces(&mut self, new: &[Mapping]) -> Result<()> {
        let vmas = maps::read(self.pid()?)?;
        let broken = |mapping: &Mapping| {
            let at = vmas.partition_point(|vma| vma.end <= mapping.span.start);
            !mapping.shared && vmas.get(at).is_none_or(|vma| vma.end < mapping.span.end)
        };
        for (index, mapping) in new.iter().enumerate() {
            if broken(mapping) {
                let content = self.content_of(mapping.span)?;
                let mut plan = self.plan()?;
                plan.call(
                    "munmap",
                    libc::SYS_munmap,
                    &[mapping.span.start, mapping.span.len()],
                );
                plan.run(self.stub()?.remote())?;
                self.map(&[(mapping.span, index)], new)?;
                for (start, bytes) in content {
                    self.write_private(start, &bytes)?;
                }
            }
        }
        Ok(())
    }

    /// The private pages of a span.
    fn content_of(&self, span: Span) -> Result<Vec<(u64, Vec<u8>)>> {
        let mut regions = Vec::new();
        Pagemap::open(self.pid()?)?.scan(span.start..span.end, ScanArgs::private_present(), &mut regions)?;
        let memory = self.memory()?;
        let read = |region: &Region| {
            let mut bytes = vec![0; region.len() as usize];
            memory.read(region.start, &mut bytes)?;
            Ok((region.start, bytes))
        };
        regions.iter().map(read).collect()
    }

    fn memory(&self) -> Result<&MemFile> {
        self.memory
            .as_ref()
            .ok_or_else(|| ReplicaError::Unfit("the replica was not prepared".into()))
    }

    /// Makes new mappings: opens what lies behind them, maps, advises, closes.
    fn map(&mut self, some: &[(Span, usize)], new: &[Mapping]) -> Result<()> {
        let wanted: Vec<(Span, &Mapping)> = some
            .iter()
            .filter_map(|(span, index)| Some((*span, new.get(*index)?)))
            .collect();
        let opened = self.open_files(&wanted)?;
        let mut plan = self.plan()?;
        for (span, mapping) in &wanted {
            if plan.is_full() {
                plan.run(self.stub()?.remote())?;
                plan = self.plan()?;
            }
            let fd = self.descriptor_of(mapping, &opened)?;
            plan_mapping(&mut plan, *span, mapping, fd);
        }
        for fd in opened.values() {
            plan.call("close", libc::SYS_close, &[*fd]);
        }
        plan.run(self.stub()?.remote())?;
        Ok(())
    }

    /// Opens the files behind `wanted` in the stub: by path, and whether they are opened for writing.
    fn open_files(&mut self, wanted: &[(Span, &Mapping)]) -> Result<BTreeMap<(String, bool), u64>> {
        let mut keys: Vec<(String, bool)> = wanted.iter().filter_map(|(_, m)| self.file_key(m)).collect();
        keys.sort_unstable();
        keys.dedup();
        let mut opened = BTreeMap::new();
        for some in keys.chunks(64) {
            let mut plan = self.plan()?;
            for (path, writable) in some {
                let name = plan.text(path.as_bytes());
                let access = if *writable { libc::O_RDWR } else { libc::O_RDONLY };
                let flags = (access | libc::O_CLOEXEC) as u64;
                let what = format!("openat {path}");
                plan.call(&what, libc::SYS_openat, &[libc::AT_FDCWD as u64, name, flags, 0]);
            }
            let answers = plan.run(self.stub()?.remote())?;
            let fds = (0..some.len()).map(|index| answers.result(index) as u64);
            opened.extend(some.iter().cloned().zip(fds));
        }
        Ok(opened)
    }

    /// What has to be opened for a mapping. Objects are open already, but a mapping that may never be written needs
    /// a descriptor that cannot be written through.
    fn file_key(&self, mapping: &Mapping) -> Option<(String, bool)> {
        match &mapping.backing {
            Backing::Anonymous => None,
            Backing::File { path, writable, .. } => Some((path.clone(), *writable)),
            Backing::Object {
                space,
                writable: false,
                ..
            } if mapping.shared => Some((
                format!("/proc/self/fd/{}", self.objects.get(space)?.inside),
                false,
            )),
            Backing::Object { .. } => None,
        }
    }

    fn descriptor_of(
        &self,
        mapping: &Mapping,
        opened: &BTreeMap<(String, bool), u64>,
    ) -> Result<Option<u64>> {
        if let Some(key) = self.file_key(mapping) {
            return Ok(opened.get(&key).copied());
        }
        match &mapping.backing {
            Backing::Object { space, .. } => {
                let unknown = || ReplicaError::Unfit(format!("a mapping of the unknown object {space}"));
                Ok(Some(self.objects.get(space).ok_or_else(unknown)?.inside))
            }
            _ => Ok(None),
        }
    }

    fn object(&self, run: &PageRun) -> Result<&Object> {
        let unknown = || ReplicaError::Unfit(format!("pages of the unknown object {}", run.space.0));
        self.objects.get(&run.space.0).ok_or_else(unknown)
    }

    fn punch(&self, run: &PageRun) -> Result<()> {
        let span = Span::of(run);
        Ok(sparse::punch_hole(
            &self.object(run)?.file,
            span.start,
            span.len(),
        )?)
    }

    fn drop_later(&mut self, span: Span) -> Result<()> {
        self.drops_ascend &= self.drops.last().is_none_or(|last| last.end <= span.start);
        crate::layout::push_span(&mut self.drops, span);
        if self.drops.len() >= DROPS_MAX {
            self.flush()?;
        }
        Ok(())
    }

    /// Pages come in ascending order, so that what comes mostly lies behind all that waits.
    fn is_to_be_dropped(&self, span: &Span) -> bool {
        let behind = self.drops.last().is_none_or(|last| last.end <= span.start);
        let sorted = self.drops_ascend;
        !(behind && sorted) && self.drops.iter().any(|drop| drop.overlaps(span))
    }

    /// Carries out the drops that wait.
    fn flush(&mut self) -> Result<()> {
        if self.drops.is_empty() {
            return Ok(());
        }
        let drops = std::mem::take(&mut self.drops);
        self.drops_ascend = true;
        let mut plan = self.plan()?;
        for span in drops {
            plan.call(
                "madvise(MADV_DONTNEED_LOCKED)",
                libc::SYS_madvise,
                &[span.start, span.len(), MADV_DONTNEED_LOCKED],
            );
        }
        plan.run(self.stub()?.remote())?;
        Ok(())
    }

    fn write_private(&mut self, start: u64, data: &[u8]) -> Result<()> {
        let span = Span {
            start,
            end: start + data.len() as u64,
        };
        if self.is_to_be_dropped(&span) {
            self.flush()?;
        }
        let done = memory::writev(self.pid()?, &[(start, data.len())], data)?;
        let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) else {
            return Ok(());
        };
        // Through the protection.
        Ok(self.memory()?.write(start + done as u64, rest)?)
    }

    /// The parts of `span` that lie in mappings, each with whether dropping it leaves zeros.
    fn parts(&self, span: Span) -> Vec<(Span, bool)> {
        let from = self
            .mappings
            .partition_point(|mapping| mapping.span.end <= span.start);
        let inside = self
            .mappings
            .iter()
            .skip(from)
            .take_while(|mapping| mapping.span.start < span.end);
        let part = |mapping: &Mapping| Span {
            start: mapping.span.start.max(span.start),
            end: mapping.span.end.min(span.end),
        };
        inside
            .map(|mapping| (part(mapping), mapping.backing == Backing::Anonymous))
            .collect()
    }

    /// The mappings that missing pages lie in, whole: a mapping of which only a part was watched would be two, and mremap(2) refuses
    /// to go across.
    fn watched(&self, missing: &[PageRun]) -> Result<Vec<Span>> {
        let unserved = |run: &PageRun| {
            ReplicaError::Unfit(format!(
                "{} pages from page {:#x} of space {} on cannot come after the start; this is a bug or an attack",
                run.count, run.first, run.space.0
            ))
        };
        let mut watched = BTreeSet::new();
        for run in missing {
            let end = run
                .first
                .checked_add(run.count)
                .filter(|end| *end <= ADDRESS_MAX / PAGE_SIZE);
            if run.space != PRIVATE || end.is_none() {
                return Err(unserved(run));
            }
            let span = Span::of(run);
            let from = self
                .mappings
                .partition_point(|mapping| mapping.span.end <= span.start);
            let mut at = span.start;
            for mapping in self.mappings.iter().skip(from) {
                if at >= span.end || mapping.span.start > at || !can_wait(mapping) {
                    break;
                }
                watched.insert(mapping.span);
                at = mapping.span.end;
            }
            if at < span.end {
                return Err(unserved(run));
            }
        }
        Ok(watched.into_iter().collect())
    }

    /// Installs guard pages.
    fn install_guards(&mut self) -> Result<()> {
        if self.guards.is_empty() {
            return Ok(());
        }
        let mut plan = self.plan()?;
        for span in &self.guards {
            let args = [span.start, span.len(), MADV_GUARD_INSTALL];
            plan.call("madvise(MADV_GUARD_INSTALL)", libc::SYS_madvise, &args);
        }
        plan.run(self.stub()?.remote())?;
        Ok(())
    }

    /// Gives memory objects their seals, when nobody has to write them any more.
    fn seal_objects(&self) -> Result<()> {
        for object in self.objects.values() {
            match object.layout.kind {
                ObjectKind::Memfd { seals, .. } if seals != 0 => sparse::add_seals(&object.file, seals)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// A thread inside the source's vdso would go on in code whose data is not here.
    fn check_threads(&mut self, state: &State) -> Result<()> {
        let Some(forbidden) = self.stub()?.forbidden() else {
            return Ok(());
        };
        let threads = state.processes.iter().flat_map(|process| &process.threads);
        let inside = |rip: u64| (forbidden.start..forbidden.end).contains(&rip);
        match threads.into_iter().find(|thread| inside(thread.registers.rip)) {
            Some(thread) => Err(ReplicaError::Unfit(format!(
                "thread {} was frozen inside the vdso, and the destination has another kernel: try again",
                thread.tid
            ))),
            None => Ok(()),
        }
    }

    fn build_state(&mut self, state: &State) -> Result<Built> {
        let network = self.network()?;
        let files: BTreeMap<FileId, BorrowedFd<'_>> = self
            .objects
            .values()
            .map(|object| (object.layout.id, object.file.as_fd()))
            .collect();
        let object = |id: FileId| files.get(&id).copied();
        let unprepared = || ReplicaError::Unfit("the replica was not prepared".into());
        let stub = self.stub.as_mut().ok_or_else(unprepared)?;
        let last_gadget = stub.last_gadget()?;
        let mut target = Target {
            remote: stub.remote(),
            last_gadget,
            network: network.as_ref().map(AsFd::as_fd),
            object: &object,
        };
        let mut built = rebuild::build(&mut target, state)?;
        if let Some(resources) = &mut self.resources {
            resources.repaired = std::mem::take(&mut built.repaired);
        }
        Ok(built)
    }

    /// The network namespace of the container, if it has one of its own.
    fn network(&self) -> Result<Option<OwnedFd>> {
        match &self.container {
            Some(container) if container.spec().network.is_some() => Ok(Some(container.namespace("net")?)),
            _ => Ok(None),
        }
    }

    /// From here on the freezer holds the complete workload, and it outlives us.
    fn hand_to_freezer(&mut self, tids: &[i32]) -> Result<()> {
        let unprepared = || ReplicaError::Unfit("the replica was not prepared".into());
        let container = self.container.as_mut().ok_or_else(unprepared)?;
        container.group().freeze()?;
        if let Some(stub) = self.stub.take() {
            stub.detach(tids)?;
        }
        Ok(container.survive()?)
    }

    /// The workload's log has another path here if this host keeps its logs elsewhere.
    fn redirect_log(&self, state: &mut State) {
        let (Some(spec), Some(container)) = (&self.spec, &self.container) else {
            return;
        };
        let Some(theirs) = spec.container.log.as_deref() else {
            return;
        };
        let ours = container.log_path();
        for file in &mut state.files {
            if let FileKind::Path { path, .. } = &mut file.kind {
                if Path::new(path.as_str()) == theirs {
                    *path = ours.to_string_lossy().into_owned();
                }
            }
        }
    }
}

fn make_directory(directory: &Path, owner: (u32, u32)) -> io::Result<()> {
    match fs::create_dir(directory) {
        Ok(()) => std::os::unix::fs::chown(directory, Some(owner.0), Some(owner.1)),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(e),
    }
}

fn plan_mapping(plan: &mut Plan, span: Span, mapping: &Mapping, fd: Option<u64>) {
    let kind = match mapping {
        Mapping { droppable: true, .. } => MAP_DROPPABLE,
        Mapping { shared: true, .. } => libc::MAP_SHARED,
        _ => libc::MAP_PRIVATE,
    };
    let flag = |on: bool, flag: i32| if on { flag } else { 0 };
    let flags = kind
        | libc::MAP_FIXED_NOREPLACE
        | flag(fd.is_none(), libc::MAP_ANONYMOUS)
        | flag(mapping.grows_down, libc::MAP_GROWSDOWN)
        | flag(mapping.no_reserve, libc::MAP_NORESERVE);
    let offset = match &mapping.backing {
        Backing::Anonymous => 0,
        Backing::File { offset, .. } | Backing::Object { offset, .. } => {
            offset + (span.start - mapping.span.start)
        }
    };
    let protection = u64::from(mapping.protection);
    let args = [
        span.start,
        span.len(),
        protection,
        flags as u64,
        fd.unwrap_or(u64::MAX),
        offset,
    ];
    plan.call("mmap", libc::SYS_mmap, &args);
    for advice in AdviceSet::default().steps_to(mapping.advice) {
        advise(plan, span, advice);
    }
    if mapping.locked {
        lock(plan, span, true);
    }
    if let Some(name) = &mapping.name {
        let name = plan.text(name.as_bytes());
        // A kernel without names goes on without.
        plan.attempt(
            "prctl(PR_SET_VMA)",
            libc::SYS_prctl,
            &[PR_SET_VMA, 0, span.start, span.len(), name],
        );
    }
}

/// Advice that only helps may be refused by a kernel that cannot follow it.
fn advise(plan: &mut Plan, span: Span, advice: i32) {
    let args = [span.start, span.len(), advice as u64];
    let optional = [
        libc::MADV_HUGEPAGE,
        libc::MADV_NOHUGEPAGE,
        libc::MADV_MERGEABLE,
        libc::MADV_UNMERGEABLE,
    ];
    if optional.contains(&advice) {
        plan.attempt("madvise", libc::SYS_madvise, &args);
    } else {
        plan.call("madvise", libc::SYS_madvise, &args);
    }
}

fn lock(plan: &mut Plan, span: Span, on: bool) {
    if on {
        plan.call(
            "mlock2",
            libc::SYS_mlock2,
            &[span.start, span.len(), MLOCK_ONFAULT],
        );
    } else {
        plan.call("munlock", libc::SYS_munlock, &[span.start, span.len()]);
    }
}

/// Waits until the workload's clock here shows at least what it showed when it was frozen: time never goes backwards.
fn await_clock(pid: i32, frozen_at_ns: u64) -> Result<()> {
    let now = container::Clocks::of(pid)?.monotonic_ns;
    let behind = i64::try_from(frozen_at_ns)
        .unwrap_or(i64::MAX)
        .saturating_sub(now);
    let behind = Duration::from_nanos(u64::try_from(behind).unwrap_or(0));
    if behind > CLOCK_WAIT_MAX {
        return Err(ReplicaError::Unfit(format!(
            "the workload's clock would go back by {} s here; was this host suspended during the migration? Try again",
            behind.as_secs()
        )));
    }
    std::thread::sleep(behind);
    Ok(())
}

impl Replica for ProcessReplica {
    type Error = ReplicaError;
    type Pager = ProcessPager;

    fn prepare(&mut self, spec: &[u8]) -> Result<()> {
        let arrived = Instant::now();
        let spec = Spec::decode(spec)?;
        spec.check_host(Path::new("/"))?;
        let built = self.build(&spec, arrived);
        self.spec = Some(spec);
        built
    }

    fn resources(&self) -> Vec<u8> {
        self.resources.as_ref().map(recover::encode).unwrap_or_default()
    }

    fn follow(&mut self, layout: &[u8]) -> Result<()> {
        let mut new = Layout::decode(layout)?;
        self.flush()?;
        self.follow_objects(&new)?;
        let process = match new.processes.as_mut_slice() {
            [process] if process.space == PRIVATE.0 => process,
            _ => {
                return Err(ReplicaError::Unfit(
                    "a layout of another number of processes than one".into(),
                ))
            }
        };
        let mappings = std::mem::take(&mut process.mappings);
        self.huge = std::mem::take(&mut process.huge);
        self.guards = std::mem::take(&mut process.guards);
        if self.loaded.is_some() {
            return match mappings == self.mappings {
                true => Ok(()),
                false => Err(ReplicaError::Unfit(
                    "a mapping has changed after the state was sent".into(),
                )),
            };
        }
        let stub = self.stub()?;
        let spans: Vec<Span> = mappings.iter().map(|mapping| mapping.span).collect();
        let reserved = stub.reserved();
        if spans
            .iter()
            .any(|span| reserved.iter().any(|kernel| kernel.overlaps(span)))
        {
            return Err(ReplicaError::Unfit(
                "the workload has mapped over its vdso".into(),
            ));
        }
        stub.make_room(&spans)?;
        let steps = difference(&self.mappings, &mappings);
        self.apply(&steps, &mappings)?;
        self.join_pieces(&mappings)?;
        self.mappings = mappings;
        self.objects.retain(|space, _| new.object(*space).is_some());
        Ok(())
    }

    fn write(&mut self, run: PageRun, data: &[u8]) -> Result<()> {
        let span = Span::of(&run);
        if run.space == PRIVATE {
            return self.write_private(span.start, data);
        }
        let object = self.object(&run)?;
        // The last page of a file may reach beyond its end.
        let bytes = object
            .layout
            .size
            .saturating_sub(span.start)
            .min(data.len() as u64);
        let data = data.get(..bytes as usize).unwrap_or_default();
        object
            .file
            .write_all_at(data, span.start)
            .map_err(ReplicaError::Object)
    }

    fn zero(&mut self, run: PageRun) -> Result<()> {
        if run.space != PRIVATE {
            return self.punch(&run);
        }
        for (part, dropped_is_zero) in self.parts(Span::of(&run)) {
            if dropped_is_zero {
                self.drop_later(part)?;
                continue;
            }
            let mut at = part.start;
            while at < part.end {
                let bytes = (part.end - at).min(ZEROS.len() as u64);
                self.write_private(at, ZEROS.get(..bytes as usize).unwrap_or_default())?;
                at += bytes;
            }
        }
        Ok(())
    }

    fn forget(&mut self, run: PageRun) -> Result<()> {
        if run.space != PRIVATE {
            return self.punch(&run);
        }
        for (part, _) in self.parts(Span::of(&run)) {
            self.drop_later(part)?;
        }
        Ok(())
    }

    fn load(&mut self, state: &[u8]) -> Result<()> {
        let Image { mut state, log } = postcard::from_bytes(state)?;
        self.flush()?;
        self.check_threads(&state)?;
        self.redirect_log(&mut state);
        if let Some(container) = &self.container {
            log::append(&container.log_path(), &log)?;
        }
        let built = self.build_state(&state)?;
        self.loaded = Some(Loaded { state, built });
        Ok(())
    }

    fn arm(&mut self, missing: &[PageRun]) -> Result<ProcessPager> {
        // Older content of what is missing was dropped, and must be gone: what is there is never asked for.
        self.flush()?;
        let spans = self.watched(missing)?;
        for span in occupied(self.pid()?, missing, &spans)? {
            self.drop_later(span)?;
        }
        self.flush()?;
        let unprepared = || ReplicaError::Unfit("the replica was not prepared".into());
        let container = self.container.as_ref().ok_or_else(unprepared)?;
        let keeper = container.keeper()?;
        let resources = self.resources.as_mut().ok_or_else(unprepared)?;
        let process = resources.process.ok_or_else(unprepared)?;
        let stub = self.stub.as_mut().ok_or_else(unprepared)?;
        let pidfd = pidfd::open(process.pid)?;
        let armament = Armament {
            uffd: uffd::take_out(stub.remote(), pidfd.as_fd(), 0)?,
            process,
            container: container.resources(),
            keeper,
            missing,
            spans,
        };
        let (pager, made) = armament.arm()?;
        resources.pager = Some(made);
        Ok(pager)
    }

    fn complete(&mut self) -> Result<()> {
        self.flush()?;
        self.install_guards()?;
        self.seal_objects()?;
        let unloaded = || ReplicaError::Unfit("the replica has no state".into());
        let Loaded { state, built } = self.loaded.take().ok_or_else(unloaded)?;
        let stub = self.stub()?;
        let (pid, last_gadget) = (stub.pid(), stub.last_gadget()?);
        let tids = rebuild::finish(stub.remote(), last_gadget, &state, built)?;
        self.hand_to_freezer(&tids)?;
        await_clock(pid, state.clocks.monotonic_ns)
    }

    fn start(&mut self) -> Result<()> {
        match &self.resources {
            Some(resources) => Ok(recover::wake(resources, self.introduction.as_mut())?),
            None => Err(ReplicaError::Unfit("the replica was not loaded".into())),
        }
    }

    fn settle(&mut self) -> Result<()> {
        self.introduction = None;
        let Some(resources) = &self.resources else {
            return Ok(());
        };
        container::note_started(&resources.container)?;
        Ok(container::announce_repeatedly(&resources.container)?)
    }

    fn mend(&mut self) -> Result<()> {
        let Some(resources) = &self.resources else {
            return Ok(());
        };
        if let Some(process) = resources.process.filter(Identity::is_alive) {
            let spans: Vec<_> = self
                .huge
                .iter()
                .map(|span| (span.start, span.len() as usize))
                .collect();
            pidfd::collapse(pidfd::open(process.pid)?.as_fd(), &pieces(&spans))?;
        }
        Ok(())
    }

    fn discard(&mut self) -> Result<()> {
        if let Some(stub) = self.stub.take() {
            let group = self.container.as_ref().map(Container::group);
            // What follows kills and waits again; this is for us as its tracer.
            let _ = stub.kill(|| drop(group.map(|group| group.thaw())));
        }
        self.objects.clear();
        // It would keep the network namespace.
        self.introduction = None;
        let ended = self.resources.as_ref().map_or(Ok(()), recover::discard);
        self.container = None;
        self.resources = None;
        Ok(ended?)
    }
}

/// One that is dropped before it could start leaves nothing behind.
impl Drop for ProcessReplica {
    fn drop(&mut self) {
        if self.stub.is_some() {
            let _ = self.discard();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_ahead_is_not_waited_for_and_one_far_behind_is_refused() {
        let me = std::process::id() as i32;
        let now = container::Clocks::of(me).unwrap().monotonic_ns as u64;
        await_clock(me, now - 1000).unwrap();
        let sentence = await_clock(me, now + 100_000_000_000).unwrap_err().to_string();
        assert!(sentence.contains("go back by"), "{sentence}");
    }
}
