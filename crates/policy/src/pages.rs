//! Pages, runs of pages, and sets of them.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;

/// Bytes in a page. The only page size that x86-64 has for 4-level leaf entries (Intel SDM vol. 3, 4.5).
pub const PAGE_SIZE: u64 = 4096;

/// One private address space, one shared memory object, or one RAM block of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpaceId(pub u32);

/// `count` pages from page number `first` on. In an address space the number is the address / 4096, in an
/// object it is the offset / 4096. The source's numbering is a page's identity for the whole migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageRun {
    /// The space that holds the run.
    pub space: SpaceId,
    /// Number of its first page.
    pub first: u64,
    /// How many pages; never 0.
    pub count: u64,
}

/// A set of page numbers of one space: a sparse bitmap, 512 pages (2 MiB) to a chunk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageSet {
    chunks: BTreeMap<u64, Box<[u64; 8]>>,
    len: u64,
}

/// A set of pages over all spaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pages {
    spaces: BTreeMap<SpaceId, PageSet>,
}
