//! What the engine asks of a workload (source), of a replica (destination) and of whoever cleans up after a
//! dead controller. `process` fulfils it, and `qemu`.
//!
//! Byte vectors (`spec`, `layout`, `state`, `resources`) are opaque to the engine: they are written and read by
//! the two halves of the same kind of workload. Their length is limited by `wire`.

use std::error::Error;

use std::time::Duration;

use whimbrel_policy::postcopy::Fault;
use whimbrel_policy::{PageRun, Scan};
use whimbrel_wire::FaultTimes;

/// How the migration ended for the source's copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The workload runs at the destination: end the copy here.
    Moved,
    /// The workload stays: it runs on here as if nothing had happened.
    Stays,
}

/// Whether pages are tracked while the workload runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Pages are tracked and sent while it runs.
    Live,
    /// Everything happens while it is frozen (stop-copy): tracking is never armed.
    Stopped,
}

/// What one scan found, with the layout it was made in.
#[derive(Debug, Default)]
pub struct Scanned {
    /// Written, lost and present pages.
    pub scan: Scan,
    /// The workload's layout if it is another than after the scan before (always after the first one).
    pub layout: Option<Vec<u8>>,
    /// Pages that exist with content of their own, for progress and the traffic limit; an estimate while running.
    pub pages_total: u64,
}

/// What a capture gives.
#[derive(Debug, Default)]
pub struct Captured {
    /// The layout if it has changed since [`Workload::layout_frozen`] gave it (the workload may have had to run again for a moment).
    pub layout: Option<Vec<u8>>,
    /// The state beside the memory.
    pub state: Vec<u8>,
}

/// What a workload is made of, as far as it says what a move costs beside its pages. Times are those that were measured for its kind; an
/// estimate.
#[derive(Clone, Debug, Default)]
pub struct Nature {
    /// What memory there is, by kind, in bytes, for people.
    pub memory: Vec<(String, u64)>,
    /// Bytes of the state beside the memory.
    pub state_bytes: u64,
    /// The part of the downtime that is neither pages nor state on the wire.
    pub stop: Duration,
    /// How much longer that is if pages follow after the start.
    pub arm: Duration,
    /// And if older copies of some of those are there already.
    pub drop: Duration,
    /// From the last page until the source's copy is gone.
    pub after: Duration,
}

/// The memory of a frozen workload, to be read while it already runs at the destination. Used by one thread, which need not be the one
/// that froze it; what it reads never changes.
pub trait PageStore: Send + 'static {
    /// One sentence that says what, where and what to do.
    type Error: Error + Send + Sync + 'static;

    /// As in [`Workload::read`].
    fn read(
        &mut self,
        runs: &[PageRun],
        buffer: &mut [u8],
        failed: &mut Vec<PageRun>,
    ) -> Result<(), Self::Error>;
}

/// What a [`Pager`] has to tell the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// A thread waits for this page. Told once for each thread and page; [`Pager::waiting`] says it again.
    Fault(Fault),
    /// These pages are not wanted any more, whatever becomes of their place. Told again, or for pages that were never missing, it
    /// does no harm.
    Gone(PageRun),
}

/// Whoever wants to hear [`News`]. It is called with the pager's lock held: it must not call the pager.
pub type Tell<'a> = &'a mut dyn FnMut(News);

/// The destination's side of post-copy: the workload is there but for its missing pages, for which its threads wait.
///
/// Made by [`Replica::arm`] or [`Recover::pager`]. From then on no thread of the workload reads a missing page as anything but
/// its content, whoever dies: if nobody serves, it waits. Several threads call it at the same time. A page that has arrived is placed
/// where the workload has it now (it may have moved or forked since), nowhere if it is not wanted, and never over newer content.
pub trait Pager: Send + Sync + 'static {
    /// One sentence that says what, where and what to do.
    type Error: Error + Send + Sync + 'static;

    /// Waits up to `timeout` for what the workload does (faults, moves, unmappings, forks) and handles it. To be called again
    /// and again by one thread: calls of the workload wait until it does. False when the workload has ended.
    fn serve(&self, timeout: Duration, tell: Tell<'_>) -> Result<bool, Self::Error>;

    /// The content of `run` has arrived (`None`: zeros). Places it and wakes who waits. Pages that are not missing are left alone.
    fn place(&self, run: PageRun, data: Option<&[u8]>, tell: Tell<'_>) -> Result<(), Self::Error>;

    /// The source says that these pages are settled: who still waits for one of them looks again.
    fn look_again(&self, run: PageRun) -> Result<(), Self::Error>;

    /// How many pages are missing.
    fn missing_pages(&self) -> u64;

    /// Which ones, in order, without overlaps. Exact if nothing is being placed meanwhile.
    fn missing(&self) -> Vec<PageRun>;

    /// Faults that were told and are not served, with `repeated` set.
    fn waiting(&self) -> Vec<Fault>;

    /// How long faults took up to now.
    fn times(&self) -> FaultTimes;

    /// Holds the workload until [`Pager::finish`]. Returns at once: a thread in a fault of the kernel's goes on waiting for it.
    fn pause(&self) -> Result<(), Self::Error>;

    /// Nothing is missing any more: ends the watching, and lets a paused workload run. Idempotent.
    fn finish(&self) -> Result<(), Self::Error>;

    /// The pages that it lacks cannot be had: ends the workload before it reads a wrong byte, and leaves `sentence` where
    /// its user will look for it. Idempotent.
    fn give_up(&self, sentence: &str) -> Result<(), Self::Error>;
}

/// For workloads without post-copy: a store and a pager that cannot exist.
#[derive(Clone, Copy, Debug)]
pub enum Never {}

impl PageStore for Never {
    type Error = std::convert::Infallible;

    fn read(&mut self, _: &[PageRun], _: &mut [u8], _: &mut Vec<PageRun>) -> Result<(), Self::Error> {
        match *self {}
    }
}

impl Pager for Never {
    type Error = std::convert::Infallible;

    fn serve(&self, _: Duration, _: Tell<'_>) -> Result<bool, Self::Error> {
        match *self {}
    }

    fn place(&self, _: PageRun, _: Option<&[u8]>, _: Tell<'_>) -> Result<(), Self::Error> {
        match *self {}
    }

    fn look_again(&self, _: PageRun) -> Result<(), Self::Error> {
        match *self {}
    }

    fn missing_pages(&self) -> u64 {
        match *self {}
    }

    fn missing(&self) -> Vec<PageRun> {
        match *self {}
    }

    fn waiting(&self) -> Vec<Fault> {
        match *self {}
    }

    fn times(&self) -> FaultTimes {
        match *self {}
    }

    fn pause(&self) -> Result<(), Self::Error> {
        match *self {}
    }

    fn finish(&self) -> Result<(), Self::Error> {
        match *self {}
    }

    fn give_up(&self, _: &str) -> Result<(), Self::Error> {
        match *self {}
    }
}

/// What is left to be fetched for a replica whose controller is dead.
#[derive(Debug)]
pub enum Left<P> {
    /// Nothing: it has all of its pages, or never lacked any.
    Nothing,
    /// Pages. A workload of which something could be missed meanwhile is paused until they are there.
    Pages(P),
    /// It cannot be known any more what the workload lacks, and so it was ended, before it could read a wrong byte: this sentence says why.
    Ended(String),
}

/// The source's side: something that runs and can be read, stopped and described.
///
/// Order of calls: `describe`, `begin`, `scan`\* with `rewritten` and `read` between, `make_ready`, `freeze`, `layout_frozen`,
/// `capture`, `scan_frozen`, `read`, `store`, `hold`, `release`. `release(Stays)` may come at any point after `describe` and must
/// leave the workload running, dirty bits and huge pages mended, with nothing of ours left in it.
pub trait Workload {
    /// One sentence that says what, where and what to do.
    type Error: Error + Send + Sync + 'static;
    /// What reads its memory when it is frozen.
    type Store: PageStore;

    /// What the destination must check and prepare. Refuses what cannot move, before anything is touched.
    fn describe(&mut self) -> Result<Vec<u8>, Self::Error>;

    /// What it is made of. Asked for at any time before the freeze; touches nothing.
    fn nature(&mut self) -> Nature {
        Nature::default()
    }

    /// What must be undone if the controller dies now, for [`Recover`]. The engine asks after each call
    /// that may have changed it, and journals it; resources that outlive us are announced before they are made.
    fn resources(&self) -> Vec<u8>;

    /// Starts the tracking of writes (in [`Mode::Live`]). On failure the workload runs untouched.
    fn begin(&mut self, mode: Mode) -> Result<(), Self::Error>;

    /// Pages written since the scan before, get-and-clear, while the workload runs. In the first one: every
    /// page with content of its own. A range that could not be scanned is reported as written the next time.
    fn scan(&mut self) -> Result<Scanned, Self::Error>;

    /// Which of `runs` were written since the last scan; clears nothing. Pages of which that cannot be told before the next scan are left
    /// out (of processes those of shared objects).
    fn rewritten(&mut self, runs: &[PageRun], out: &mut Vec<PageRun>) -> Result<(), Self::Error>;

    /// Reads `runs` one after the other into `buffer`, whose length is their sum in bytes. Runs that could not be
    /// read are added to `failed` and their bytes mean nothing.
    fn read(
        &mut self,
        runs: &[PageRun],
        buffer: &mut [u8],
        failed: &mut Vec<PageRun>,
    ) -> Result<(), Self::Error>;

    /// Reads and makes what [`Workload::freeze`] and `hold` will need and what can be had while the workload runs. Called right before, and
    /// no part of the downtime.
    fn make_ready(&mut self) -> Result<(), Self::Error> {
        Ok(())
    }

    /// Stops every thread and the network of the workload. Frozen on success, running on failure.
    fn freeze(&mut self) -> Result<(), Self::Error>;

    /// The layout if it is another than after the last scan, so that the destination can follow while the state is captured. Frozen
    /// before and after, also on failure.
    fn layout_frozen(&mut self) -> Result<Option<Vec<u8>>, Self::Error>;

    /// The state beside the memory. Frozen before and after, also on failure.
    fn capture(&mut self) -> Result<Captured, Self::Error>;

    /// Like `scan`, of the frozen workload, with `present`. A layout may come with it only to tell what pages are like; its
    /// mappings are those that the state was captured with.
    fn scan_frozen(&mut self) -> Result<Scanned, Self::Error>;

    /// A second reader of the frozen workload's memory, for the pages that follow after the switch-over (post-copy). Valid until
    /// `release`, and only for pages that `scan_frozen` found and did not call urgent.
    fn store(&mut self) -> Result<Self::Store, Self::Error>;

    /// Makes the freeze outlive us: from here on only `release` or [`Recover`] lets it run again.
    fn hold(&mut self) -> Result<(), Self::Error>;

    /// It runs at the destination, and this copy is kept for its pages: what came here for it meanwhile, or still comes, goes there. Called now
    /// and then until `release`. Failures are warnings.
    fn forward(&mut self) {}

    /// The end. After `Moved` the copy is gone; after `Stays` it runs. Idempotent.
    fn release(&mut self, outcome: Outcome) -> Result<(), Self::Error>;

    /// What went wrong without harm to the workload since this was asked before, one sentence each. Asked for before the freeze and
    /// after the release, so that nobody waits meanwhile.
    fn warnings(&mut self) -> Vec<String> {
        Vec::new()
    }
}

/// The destination's side: exists from the first round, memory goes straight to its final place.
///
/// Order of calls: `prepare`, then `follow`, `write`, `zero`, `forget` and at last `load` in the order of the stream, more of `write`,
/// `zero`, `forget`, with post-copy `arm`, then `complete`, `start`, `settle`, and when nothing is missing `mend`. `discard` may come at any point before `start` and leaves nothing behind.
pub trait Replica {
    /// One sentence that says what, where and what to do.
    type Error: Error + Send + Sync + 'static;
    /// What serves its missing pages.
    type Pager: Pager;

    /// Checks that the workload can live here and builds the empty shell. Errors are shown at the source.
    fn prepare(&mut self, spec: &[u8]) -> Result<(), Self::Error>;

    /// As in [`Workload::resources`].
    fn resources(&self) -> Vec<u8>;

    /// Takes over a new layout. Pages that `lost` named at the source are gone afterwards.
    fn follow(&mut self, layout: &[u8]) -> Result<(), Self::Error>;

    /// Writes the pages of `run`; `data` has their length.
    fn write(&mut self, run: PageRun, data: &[u8]) -> Result<(), Self::Error>;

    /// The pages of `run` read as zeros from here on.
    fn zero(&mut self, run: PageRun) -> Result<(), Self::Error>;

    /// The pages of `run` are as if they had never been written (zero, or what the file holds).
    fn forget(&mut self, run: PageRun) -> Result<(), Self::Error>;

    /// Builds what the state describes, as far as it does not need the memory's content: the layout is final (but see
    /// [`Workload::scan_frozen`]), the last pages still come. Done while the source looks for them.
    fn load(&mut self, state: &[u8]) -> Result<(), Self::Error>;

    /// These pages will come after the start. From here on whoever touches one of them waits, also in `complete`, which is called
    /// while the pager is being served by other threads. Refuses pages whose absence cannot be served. `resources` must say
    /// afterwards what [`Recover::pager`] needs.
    fn arm(&mut self, missing: &[PageRun]) -> Result<Self::Pager, Self::Error>;

    /// All other memory is there. The workload is complete afterwards but held by something that outlives us: from here on `start` or
    /// [`Recover::start`] is all it takes.
    fn complete(&mut self) -> Result<(), Self::Error>;

    /// Lets it run. Called once, after the commit was journalled. Idempotent.
    fn start(&mut self) -> Result<(), Self::Error>;

    /// What can wait until it runs (announcements repeated). Failures are only reported.
    fn settle(&mut self) -> Result<(), Self::Error>;

    /// What can wait until no page is missing (huge pages). Failures are only reported.
    fn mend(&mut self) -> Result<(), Self::Error> {
        Ok(())
    }

    /// Ends the shell and leaves nothing behind. Idempotent.
    fn discard(&mut self) -> Result<(), Self::Error>;
}

/// Cleans up from `resources` alone, in another process than the one that made them, which is dead. Every method is
/// idempotent and may find any part of the work done already.
pub trait Recover {
    /// One sentence that says what, where and what to do.
    type Error: Error + Send + Sync + 'static;
    /// What reads the memory of a frozen workload.
    type Store: PageStore;
    /// What serves missing pages.
    type Pager: Pager;

    /// Source: the workload runs on here.
    fn stays(&self, resources: &[u8]) -> Result<(), Self::Error>;
    /// Source: the workload runs at the destination; end the copy here.
    fn moved(&self, resources: &[u8]) -> Result<(), Self::Error>;
    /// Source: what its frozen memory can be read with, as in [`Workload::store`]. If it is not there any more, one that can read nothing.
    fn store(&self, resources: &[u8]) -> Result<Self::Store, Self::Error>;
    /// Destination: the commit is journalled, and `start` was called; what is left to be fetched? Pauses the workload if something is.
    fn pager(&self, resources: &[u8]) -> Result<Left<Self::Pager>, Self::Error>;
    /// Destination: nothing has started and never will.
    fn discard(&self, resources: &[u8]) -> Result<(), Self::Error>;
    /// Destination: the commit is journalled; make it run.
    fn start(&self, resources: &[u8]) -> Result<(), Self::Error>;
}
