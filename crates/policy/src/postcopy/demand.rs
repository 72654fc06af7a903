//! Network faults only.

use alloc::vec::Vec;

use super::{PrePaging, ThreadId, Unsent};
use crate::pages::{Page, PageRun};

/// Demand paging: pushes nothing. A page that the workload never touches stays at the source for ever, so the residual
/// phase ends only when every page was faulted for, or unmapped: **the source can in general not be released**. It is
/// kept as the baseline that pre-paging is measured against.
#[derive(Clone, Copy, Debug, Default)]
pub struct Demand;

impl PrePaging for Demand {
    fn name(&self) -> &'static str {
        "demand"
    }

    fn fault(&mut self, _: ThreadId, _: Page) {}

    fn next(&mut self, _: &mut Unsent, _: u64) -> Vec<PageRun> {
        Vec::new()
    }

    fn restart(&mut self) {}
}
