//! Stands in for workload and replica until they are here.

use whimbrel_engine::contract::Scanned;
use whimbrel_engine::{Mode, Outcome, Recover, Replica, Workload};
use whimbrel_policy::PageRun;

/// All that it says.
#[derive(Debug, thiserror::Error)]
#[error("this release cannot move workloads yet")]
pub struct NotYet;

/// Source, destination and recovery.
#[derive(Debug, Default)]
pub struct Pending;

impl Workload for Pending {
    type Error = NotYet;

    fn describe(&mut self) -> Result<Vec<u8>, NotYet> {
        Err(NotYet)
    }
    fn resources(&self) -> Vec<u8> {
        Vec::new()
    }
    fn begin(&mut self, _: Mode) -> Result<(), NotYet> {
        Err(NotYet)
    }
    fn scan(&mut self) -> Result<Scanned, NotYet> {
        Err(NotYet)
    }
    fn rewritten(&mut self, _: &[PageRun], _: &mut Vec<PageRun>) -> Result<(), NotYet> {
        Err(NotYet)
    }
    fn read(&mut self, _: &[PageRun], _: &mut [u8], _: &mut Vec<PageRun>) -> Result<(), NotYet> {
        Err(NotYet)
    }
    fn freeze(&mut self) -> Result<(), NotYet> {
        Err(NotYet)
    }
    fn capture(&mut self) -> Result<Vec<u8>, NotYet> {
        Err(NotYet)
    }
    fn scan_frozen(&mut self) -> Result<Scanned, NotYet> {
        Err(NotYet)
    }
    fn hold(&mut self) -> Result<(), NotYet> {
        Err(NotYet)
    }
    fn release(&mut self, _: Outcome) -> Result<(), NotYet> {
        Ok(())
    }
}

impl Replica for Pending {
    type Error = NotYet;

    fn prepare(&mut self, _: &[u8]) -> Result<(), NotYet> {
        Err(NotYet)
    }
    fn resources(&self) -> Vec<u8> {
        Vec::new()
    }
    fn follow(&mut self, _: &[u8]) -> Result<(), NotYet> {
        Err(NotYet)
    }
    fn write(&mut self, _: PageRun, _: &[u8]) -> Result<(), NotYet> {
        Err(NotYet)
    }
    fn zero(&mut self, _: PageRun) -> Result<(), NotYet> {
        Err(NotYet)
    }
    fn forget(&mut self, _: PageRun) -> Result<(), NotYet> {
        Err(NotYet)
    }
    fn load(&mut self, _: &[u8]) -> Result<(), NotYet> {
        Err(NotYet)
    }
    fn start(&mut self) -> Result<(), NotYet> {
        Err(NotYet)
    }
    fn settle(&mut self) -> Result<(), NotYet> {
        Err(NotYet)
    }
    fn discard(&mut self) -> Result<(), NotYet> {
        Ok(())
    }
}

impl Recover for Pending {
    type Error = NotYet;

    fn stays(&self, _: &[u8]) -> Result<(), NotYet> {
        Err(NotYet)
    }
    fn moved(&self, _: &[u8]) -> Result<(), NotYet> {
        Err(NotYet)
    }
    fn discard(&self, _: &[u8]) -> Result<(), NotYet> {
        Err(NotYet)
    }
    fn start(&self, _: &[u8]) -> Result<(), NotYet> {
        Err(NotYet)
    }
}
