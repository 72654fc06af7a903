//! How a pager begins: with a stub that lacks pages, or with what a dead controller left.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};

use whimbrel_engine::{Left, Pager};
use whimbrel_kernel::fd;
use whimbrel_kernel::pagemap::{Pagemap, ScanArgs};
use whimbrel_kernel::pidfd;
use whimbrel_kernel::uffd::{feature, mode, Uffd};
use whimbrel_policy::PageRun;

use super::book::{Book, Record, FIRST};
use super::log::{Contents, Log};
use super::{give_up, PagerError, PagerResources, ProcessPager, Result, State};
use crate::container::{self, Identity, Keeper};
use crate::layout::Span;

/// The log's name in the container's directory.
const LOG: &str = "missing";
/// All that moves a page's place is told.
const FEATURES: u64 = feature::EVENT_FORK
    | feature::EVENT_REMAP
    | feature::EVENT_REMOVE
    | feature::EVENT_UNMAP
    | feature::THREAD_ID;

/// What a pager is made of at the destination.
pub(crate) struct Armament<'a> {
    /// New, of the stub.
    pub uffd: Uffd,
    pub process: Identity,
    pub container: &'a container::Resources,
    pub keeper: Keeper,
    /// The pages that will come.
    pub missing: &'a [PageRun],
    /// The mappings that they lie in, whole.
    pub spans: Vec<Span>,
}

impl Armament<'_> {
    /// From here on whoever touches a missing page waits.
    pub fn arm(self) -> Result<(ProcessPager, PagerResources)> {
        self.uffd.api(FEATURES)?;
        for span in &self.spans {
            self.uffd.register(span.start, span.len(), mode::MISSING)?;
        }
        // From now on no huge page is made around a hole; one that was made just before would hide it.
        if let Some(stale) = occupied(self.process.pid, self.missing, &self.spans)?.first() {
            return Err(PagerError::Unfit(format!(
                "the kernel has filled {:#x}-{:#x} with a huge page at the very moment when the workload was to wait for it: try again",
                stale.start, stale.end
            )));
        }
        let kept = self.keeper.keep(self.uffd.as_fd())?;
        let first = Record::Begin {
            missing: self.missing.iter().map(|run| (run.first, run.count)).collect(),
            spans: self.spans,
            kept,
        };
        let mut book = Book::default();
        book.apply(&first)?;
        let path: PathBuf = self.container.directory.join(LOG);
        let log = Log::create(&path, &first)?;
        let uffds = BTreeMap::from([(FIRST, Arc::new(self.uffd))]);
        let state = State::new(book, log, uffds, FIRST + 1, self.keeper);
        let pager = ProcessPager::new(state, self.process, self.container)?;
        Ok((pager, PagerResources { log: path }))
    }
}

/// The parts of `missing` (in order) where something is already: nobody would wait for them. What was received before may be an older
/// copy, and the kernel makes huge pages, whose other parts are zeros.
pub(crate) fn occupied(pid: i32, missing: &[PageRun], spans: &[Span]) -> Result<Vec<Span>> {
    let map = Pagemap::open(pid)?;
    let (mut regions, mut found) = (Vec::new(), Vec::new());
    for span in spans {
        regions.clear();
        map.scan(span.start..span.end, ScanArgs::occupied(), &mut regions)?;
        for region in &regions {
            let from = missing.partition_point(|run| Span::of(run).end <= region.start);
            let inside = missing.get(from..).unwrap_or_default().iter().map(Span::of);
            for run in inside.take_while(|run| run.start < region.end) {
                let part = Span {
                    start: run.start.max(region.start),
                    end: run.end.min(region.end),
                };
                crate::layout::push_span(&mut found, part);
            }
        }
    }
    Ok(found)
}

impl ProcessPager {
    fn new(state: State, process: Identity, container: &container::Resources) -> Result<ProcessPager> {
        Ok(ProcessPager {
            state: Mutex::new(state),
            eager: AtomicUsize::new(0),
            news: fd::pipe(libc::O_CLOEXEC | libc::O_NONBLOCK)?,
            ended: pidfd::open(process.pid)?,
            container: container.clone(),
        })
    }

    /// What a dead controller left. The workload is paused if it lacks pages.
    pub(crate) fn recover(
        resources: &PagerResources,
        process: Identity,
        container: &container::Resources,
    ) -> Result<Left<ProcessPager>> {
        let Some(contents) = Log::read(&resources.log)? else {
            return Ok(Left::Nothing);
        };
        if !process.is_alive() {
            return Ok(Left::Nothing);
        }
        let end = |why: &str| {
            let sentence = format!(
                "workload {} was ended because nobody knows any more which memory it lacks: {why}",
                container.name
            );
            give_up(container, &sentence)?;
            Ok(Left::Ended(sentence))
        };
        let Some(init) = container.init else {
            return end("its container has no init");
        };
        if contents.busy {
            return end("the controller died while it was handling what the workload had just done");
        }
        let Some(state) = rebuild(contents, &Keeper::of(init))? else {
            return match process.is_alive() {
                true => end("its missing pages cannot be served by anybody but the dead controller"),
                false => Ok(Left::Nothing),
            };
        };
        let pager = match ProcessPager::new(state, process, container) {
            Ok(pager) => pager,
            Err(_) if !process.is_alive() => return Ok(Left::Nothing),
            Err(error) => return Err(error),
        };
        if pager.missing_pages() == 0 {
            pager.finish()?;
            return Ok(Left::Nothing);
        }
        pager.pause()?;
        // Who was told to the dead one has to be told to us.
        pager.lock().wake_all();
        Ok(Left::Pages(pager))
    }
}

/// What the log says, with the descriptors that PID 1 keeps. `None`: that is not all there.
fn rebuild(contents: Contents, keeper: &Keeper) -> Result<Option<State>> {
    if !matches!(contents.records.first(), Some(Record::Begin { .. })) {
        return Ok(None);
    }
    let mut book = Book::default();
    let mut next_space = FIRST + 1;
    for record in &contents.records {
        book.apply(record)?;
        if let Record::Forked { child, .. } = record {
            next_space = next_space.max(child.saturating_add(1));
        }
    }
    let mut uffds = BTreeMap::new();
    if !book.missing().is_empty() {
        for (space, addresses) in book.spaces() {
            let Some(Ok(fd)) = addresses.kept.map(|number| keeper.fetch(number)) else {
                return Ok(None);
            };
            uffds.insert(*space, Arc::new(Uffd::from(fd)));
        }
    }
    let state = State::new(book, contents.log, uffds, next_space, keeper.clone());
    Ok(Some(state))
}
