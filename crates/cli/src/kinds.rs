//! Processes and virtual machines behind one face: what arrives says itself what it is, and so does what a dead controller left.

use std::time::Duration;

use whimbrel_engine::{Left, PageStore, Pager, Recover, Replica, Tell};
use whimbrel_policy::postcopy::Fault;
use whimbrel_policy::PageRun;
use whimbrel_process::container;
use whimbrel_process::{ProcessRecover, ProcessReplica};
use whimbrel_qemu::{QemuRecover, QemuReplica, ReplicaOptions};
use whimbrel_wire::FaultTimes;

/// Either's error, which is one sentence already.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct KindError(Box<dyn std::error::Error + Send + Sync>);

type Result<T> = std::result::Result<T, KindError>;

/// Makes one error of the other.
fn either<T, E: std::error::Error + Send + Sync + 'static>(result: std::result::Result<T, E>) -> Result<T> {
    result.map_err(|error| KindError(Box::new(error)))
}

/// Whether a description or resources are those of a virtual machine.
fn is_machine(bytes: &[u8]) -> bool {
    bytes.starts_with(whimbrel_qemu::spec::KIND)
}

/// One of the two.
#[derive(Debug)]
pub enum Kind<P, Q> {
    /// Of processes.
    Process(P),
    /// Of a virtual machine.
    Machine(Q),
}

/// Does the same with whatever it is.
macro_rules! with {
    ($kind:expr, $it:ident => $call:expr) => {
        match $kind {
            Kind::Process($it) => either($call),
            Kind::Machine($it) => either($call),
        }
    };
}

/// What arrives. Until its description has come nobody knows what it is.
#[derive(Debug)]
pub struct AnyReplica {
    process: container::Options,
    machine: ReplicaOptions,
    is: Option<Kind<Box<ProcessReplica>, Box<QemuReplica>>>,
}

impl AnyReplica {
    /// Nothing exists yet.
    pub fn new(process: container::Options, machine: ReplicaOptions) -> AnyReplica {
        AnyReplica {
            process,
            machine,
            is: None,
        }
    }

    fn is(&mut self) -> Result<&mut Kind<Box<ProcessReplica>, Box<QemuReplica>>> {
        let unprepared = || KindError("the replica was not prepared".into());
        self.is.as_mut().ok_or_else(unprepared)
    }
}

impl Replica for AnyReplica {
    type Error = KindError;
    type Pager = AnyPager;

    fn prepare(&mut self, spec: &[u8]) -> Result<()> {
        let new = match is_machine(spec) {
            true => Kind::Machine(Box::new(QemuReplica::new(self.machine.clone()))),
            false => Kind::Process(Box::new(ProcessReplica::new(self.process.clone()))),
        };
        with!(self.is.insert(new), replica => replica.prepare(spec))
    }

    /// A machine is started while it is prepared, and must be found if we die meanwhile.
    fn resources(&self) -> Vec<u8> {
        match &self.is {
            Some(Kind::Process(replica)) => replica.resources(),
            Some(Kind::Machine(replica)) => replica.resources(),
            None => QemuReplica::new(self.machine.clone()).resources(),
        }
    }

    fn follow(&mut self, layout: &[u8]) -> Result<()> {
        with!(self.is()?, replica => replica.follow(layout))
    }

    fn write(&mut self, run: PageRun, data: &[u8]) -> Result<()> {
        with!(self.is()?, replica => replica.write(run, data))
    }

    fn zero(&mut self, run: PageRun) -> Result<()> {
        with!(self.is()?, replica => replica.zero(run))
    }

    fn forget(&mut self, run: PageRun) -> Result<()> {
        with!(self.is()?, replica => replica.forget(run))
    }

    fn load(&mut self, state: &[u8]) -> Result<()> {
        with!(self.is()?, replica => replica.load(state))
    }

    fn arm(&mut self, missing: &[PageRun]) -> Result<AnyPager> {
        Ok(AnyPager(match self.is()? {
            Kind::Process(replica) => Kind::Process(either(replica.arm(missing))?),
            Kind::Machine(replica) => Kind::Machine(either(replica.arm(missing))?),
        }))
    }

    fn complete(&mut self) -> Result<()> {
        with!(self.is()?, replica => replica.complete())
    }

    fn start(&mut self) -> Result<()> {
        with!(self.is()?, replica => replica.start())
    }

    fn settle(&mut self) -> Result<()> {
        with!(self.is()?, replica => replica.settle())
    }

    fn mend(&mut self) -> Result<()> {
        with!(self.is()?, replica => replica.mend())
    }

    fn discard(&mut self) -> Result<()> {
        match &mut self.is {
            Some(is) => with!(is, replica => replica.discard()),
            None => Ok(()),
        }
    }
}

/// Missing pages of either.
#[derive(Debug)]
pub struct AnyPager(Kind<<ProcessReplica as Replica>::Pager, <QemuReplica as Replica>::Pager>);

impl Pager for AnyPager {
    type Error = KindError;

    fn serve(&self, timeout: Duration, tell: Tell<'_>) -> Result<bool> {
        with!(&self.0, pager => pager.serve(timeout, tell))
    }

    fn place(&self, run: PageRun, data: Option<&[u8]>, tell: Tell<'_>) -> Result<()> {
        with!(&self.0, pager => pager.place(run, data, tell))
    }

    fn look_again(&self, run: PageRun) -> Result<()> {
        with!(&self.0, pager => pager.look_again(run))
    }

    fn missing_pages(&self) -> u64 {
        match &self.0 {
            Kind::Process(pager) => pager.missing_pages(),
            Kind::Machine(pager) => pager.missing_pages(),
        }
    }

    fn missing(&self) -> Vec<PageRun> {
        match &self.0 {
            Kind::Process(pager) => pager.missing(),
            Kind::Machine(pager) => pager.missing(),
        }
    }

    fn waiting(&self) -> Vec<Fault> {
        match &self.0 {
            Kind::Process(pager) => pager.waiting(),
            Kind::Machine(pager) => pager.waiting(),
        }
    }

    fn times(&self) -> FaultTimes {
        match &self.0 {
            Kind::Process(pager) => pager.times(),
            Kind::Machine(pager) => pager.times(),
        }
    }

    fn pause(&self) -> Result<()> {
        with!(&self.0, pager => pager.pause())
    }

    fn finish(&self) -> Result<()> {
        with!(&self.0, pager => pager.finish())
    }

    fn give_up(&self, sentence: &str) -> Result<()> {
        with!(&self.0, pager => pager.give_up(sentence))
    }
}

/// The frozen memory of either.
#[derive(Debug)]
pub struct AnyStore(Kind<<ProcessRecover as Recover>::Store, <QemuRecover as Recover>::Store>);

impl PageStore for AnyStore {
    type Error = KindError;

    fn read(&mut self, runs: &[PageRun], buffer: &mut [u8], failed: &mut Vec<PageRun>) -> Result<()> {
        with!(&mut self.0, store => store.read(runs, buffer, failed))
    }
}

/// Cleans up after dead controllers of either.
#[derive(Clone, Copy, Debug, Default)]
pub struct AnyRecover;

/// Does the same with whoever the resources belong to.
macro_rules! recovering {
    ($resources:ident, $method:ident) => {
        match is_machine($resources) {
            true => either(QemuRecover.$method($resources)),
            false => either(ProcessRecover.$method($resources)),
        }
    };
}

impl Recover for AnyRecover {
    type Error = KindError;
    type Store = AnyStore;
    type Pager = AnyPager;

    fn stays(&self, resources: &[u8]) -> Result<()> {
        recovering!(resources, stays)
    }

    fn moved(&self, resources: &[u8]) -> Result<()> {
        recovering!(resources, moved)
    }

    fn store(&self, resources: &[u8]) -> Result<AnyStore> {
        Ok(AnyStore(match is_machine(resources) {
            true => Kind::Machine(either(QemuRecover.store(resources))?),
            false => Kind::Process(either(ProcessRecover.store(resources))?),
        }))
    }

    fn pager(&self, resources: &[u8]) -> Result<Left<AnyPager>> {
        match is_machine(resources) {
            true => Ok(left(either(QemuRecover.pager(resources))?, Kind::Machine)),
            false => Ok(left(either(ProcessRecover.pager(resources))?, Kind::Process)),
        }
    }

    fn discard(&self, resources: &[u8]) -> Result<()> {
        recovering!(resources, discard)
    }

    fn start(&self, resources: &[u8]) -> Result<()> {
        recovering!(resources, start)
    }
}

fn left<P, Q, T>(left: Left<T>, kind: impl FnOnce(T) -> Kind<P, Q>) -> Left<AnyPager>
where
    Kind<P, Q>: Into<AnyPager>,
{
    match left {
        Left::Nothing => Left::Nothing,
        Left::Pages(pager) => Left::Pages(kind(pager).into()),
        Left::Ended(sentence) => Left::Ended(sentence),
    }
}

impl From<Kind<<ProcessReplica as Replica>::Pager, <QemuReplica as Replica>::Pager>> for AnyPager {
    fn from(kind: Kind<<ProcessReplica as Replica>::Pager, <QemuReplica as Replica>::Pager>) -> Self {
        Self(kind)
    }
}
