//! The layout of a workload's memory: which mappings exist, what lies behind them, and what changed between two of them.
//!
//! The source sends its layout whenever it changed; the replica makes its address space like it. Both ends run the
//! same [`difference`], so that they agree about which pages are gone ([`Difference::lost`]): the source tells its
//! policy that nothing is owed for them, the replica has unmapped them.
//!
//! All addresses are bytes in the workload's address space, all offsets bytes in the file or object; everything is
//! a multiple of the page size. The kernel's own mappings (`[vdso]`, `[vvar]`, `[vsyscall]`) are not part of a layout.

use serde::{Deserialize, Serialize};
use whimbrel_policy::{PageRun, SpaceId, PAGE_SIZE};

use crate::state::FileId;

/// One past the last byte that a 64-bit process can map (`TASK_SIZE` with four-level page tables).
pub const ADDRESS_MAX: u64 = 0x7fff_ffff_f000;
/// More mappings than the kernel's default `vm.max_map_count` (65530) are not accepted from a peer.
pub const MAPPINGS_MAX: usize = 1 << 17;
/// More shared objects are not accepted from a peer.
pub const OBJECTS_MAX: usize = 1 << 16;
/// The largest shared object: 16 TiB.
const OBJECT_SIZE_MAX: u64 = 1 << 44;
/// `PATH_MAX` of Linux.
const PATH_BYTES_MAX: usize = 4096;

/// `start..end` in bytes, never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Span {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

impl Span {
    /// Bytes.
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Never true for a span of a layout; here for completeness.
    pub fn is_empty(&self) -> bool {
        self.end <= self.start
    }

    /// Whether the two share a byte.
    pub fn overlaps(&self, other: &Span) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// The pages of the span, as a run of `space`.
    pub fn run(&self, space: SpaceId) -> PageRun {
        PageRun {
            space,
            first: self.start / PAGE_SIZE,
            count: self.len() / PAGE_SIZE,
        }
    }

    /// The bytes of a run.
    pub fn of(run: &PageRun) -> Span {
        Span {
            start: run.first * PAGE_SIZE,
            end: (run.first + run.count) * PAGE_SIZE,
        }
    }
}

/// Appends `span`, joining it with the last one where they touch.
pub(crate) fn push_span(spans: &mut Vec<Span>, span: Span) {
    match spans.last_mut() {
        Some(last) if last.end == span.start => last.end = span.end,
        _ => spans.push(span),
    }
}

/// Everything mapped by a workload: a tree of processes (today one) and the memory objects that they share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// One entry for each process.
    pub processes: Vec<ProcessLayout>,
    /// The shared objects, ascending by space.
    pub objects: Vec<SharedObject>,
}

/// The address space of one process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessLayout {
    /// PID in the workload's namespace.
    pub pid: i32,
    /// The space that numbers its private pages.
    pub space: u32,
    /// Its mappings, ascending, without overlap.
    pub mappings: Vec<Mapping>,
    /// Where the source had huge pages, to be had again (`MADV_COLLAPSE`, madvise(2)).
    pub huge: Vec<Span>,
    /// Guard pages (`MADV_GUARD_INSTALL`, Linux 6.13); only in the last layout.
    pub guards: Vec<Span>,
}

/// One mapping as mmap(2) and madvise(2) made it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapping {
    /// Where it lies.
    pub span: Span,
    /// `PROT_READ`, `PROT_WRITE`, `PROT_EXEC` or-ed.
    pub protection: u8,
    /// `MAP_SHARED` or `MAP_PRIVATE`.
    pub shared: bool,
    /// What lies behind it.
    pub backing: Backing,
    /// `MAP_GROWSDOWN`.
    pub grows_down: bool,
    /// `MAP_NORESERVE`.
    pub no_reserve: bool,
    /// `MAP_DROPPABLE` (Linux 6.11): the kernel may drop its pages.
    pub droppable: bool,
    /// mlock(2).
    pub locked: bool,
    /// Advice that stays with the mapping.
    pub advice: AdviceSet,
    /// `prctl(PR_SET_VMA_ANON_NAME)`.
    pub name: Option<String>,
}

/// What lies behind a mapping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Backing {
    /// Zeros.
    Anonymous,
    /// A file that the destination has as well, with the same content.
    File {
        /// Absolute, as the workload sees it.
        path: String,
        /// Offset of the mapping's first byte.
        offset: u64,
        /// Opened for writing (`VM_MAYWRITE` of a shared mapping).
        writable: bool,
    },
    /// A memory object whose pages travel in a space of their own.
    Object {
        /// Number of the space.
        space: u32,
        /// Offset of the mapping's first byte.
        offset: u64,
        /// Opened for writing (`VM_MAYWRITE` of a shared mapping).
        writable: bool,
    },
}

/// A memory object that several mappings or descriptors may share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedObject {
    /// The space that numbers its pages.
    pub space: u32,
    /// Its identity at the source; the state's descriptors name it by this.
    pub id: FileId,
    /// What it is.
    pub kind: ObjectKind,
    /// Size in bytes, not rounded.
    pub size: u64,
}

/// What a shared object is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ObjectKind {
    /// memfd_create(2).
    Memfd {
        /// As given to memfd_create.
        name: String,
        /// `F_GET_SEALS` of fcntl(2).
        seals: u32,
    },
    /// `MAP_SHARED | MAP_ANONYMOUS`.
    SharedAnonymous,
    /// A file without a name (unlinked): a memory object stands in for it.
    Unlinked {
        /// The path that it had.
        path: String,
    },
    /// A file on the source's memory file system, or a JVM's `hsperfdata`: made anew at the destination.
    CarriedFile {
        /// Absolute, as the workload sees it.
        path: String,
        /// Permission bits.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
    },
}

/// Advice of madvise(2) that stays with a mapping until it is taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// `MADV_HUGEPAGE`
    HugePage,
    /// `MADV_NOHUGEPAGE`
    NoHugePage,
    /// `MADV_DONTFORK`
    DontFork,
    /// `MADV_DONTDUMP`
    DontDump,
    /// `MADV_WIPEONFORK`
    WipeOnFork,
    /// `MADV_MERGEABLE`
    Mergeable,
    /// `MADV_SEQUENTIAL`
    Sequential,
    /// `MADV_RANDOM`
    Random,
}

impl Advice {
    /// All of them, in the order of their bits in an [`AdviceSet`].
    pub const ALL: [Advice; 8] = [
        Advice::HugePage,
        Advice::NoHugePage,
        Advice::DontFork,
        Advice::DontDump,
        Advice::WipeOnFork,
        Advice::Mergeable,
        Advice::Sequential,
        Advice::Random,
    ];

    /// The number for madvise(2).
    pub fn given(self) -> i32 {
        match self {
            Advice::HugePage => libc::MADV_HUGEPAGE,
            Advice::NoHugePage => libc::MADV_NOHUGEPAGE,
            Advice::DontFork => libc::MADV_DONTFORK,
            Advice::DontDump => libc::MADV_DONTDUMP,
            Advice::WipeOnFork => libc::MADV_WIPEONFORK,
            Advice::Mergeable => libc::MADV_MERGEABLE,
            Advice::Sequential => libc::MADV_SEQUENTIAL,
            Advice::Random => libc::MADV_RANDOM,
        }
    }

    /// The number that takes it back. Advice about huge pages can only be turned into its opposite; a mapping that
    /// has neither was never advised, so it is another mapping (see [`same_object`]).
    fn taken_back(self) -> Option<i32> {
        match self {
            Advice::HugePage | Advice::NoHugePage => None,
            Advice::DontFork => Some(libc::MADV_DOFORK),
            Advice::DontDump => Some(libc::MADV_DODUMP),
            Advice::WipeOnFork => Some(libc::MADV_KEEPONFORK),
            Advice::Mergeable => Some(libc::MADV_UNMERGEABLE),
            Advice::Sequential | Advice::Random => Some(libc::MADV_NORMAL),
        }
    }
}

/// A set of [`Advice`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdviceSet(pub u8);

impl AdviceSet {
    fn bit(advice: Advice) -> u8 {
        1 << (advice as u8)
    }

    /// Whether `advice` was given.
    pub fn contains(self, advice: Advice) -> bool {
        self.0 & Self::bit(advice) != 0
    }

    /// The set with `advice` when `given`.
    #[must_use]
    pub fn with(self, advice: Advice, given: bool) -> AdviceSet {
        if given {
            AdviceSet(self.0 | Self::bit(advice))
        } else {
            self
        }
    }

    /// The numbers for madvise(2) that turn `self` into `to`: what is taken back first, because `MADV_NORMAL`
    /// would undo what comes after it.
    pub fn steps_to(self, to: AdviceSet) -> Vec<i32> {
        let back = Advice::ALL
            .iter()
            .filter(|a| self.contains(**a) && !to.contains(**a));
        let give = Advice::ALL
            .iter()
            .filter(|a| to.contains(**a) && !self.contains(**a));
        back.filter_map(|a| a.taken_back())
            .chain(give.map(|a| a.given()))
            .collect()
    }

    fn has_huge_advice(self) -> bool {
        self.contains(Advice::HugePage) || self.contains(Advice::NoHugePage)
    }
}

/// Why bytes from a peer are not a layout.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// It does not decode.
    #[error("the memory layout from the source cannot be decoded ({0}); both ends must run the same release of whimbrel")]
    Decode(#[from] postcard::Error),
    /// It decodes to something impossible.
    #[error("the memory layout from the source makes no sense ({what} at {address:#x}); this is a bug or an attack")]
    Nonsense {
        /// What is wrong.
        what: &'static str,
        /// At which address.
        address: u64,
    },
}

impl Layout {
    /// The bytes that travel.
    pub fn encode(&self) -> Vec<u8> {
        // Into a growing vector, of types that serde derives for: there is nothing that could fail.
        postcard::to_stdvec(self).unwrap_or_default()
    }

    /// Reads and checks what a peer sent.
    ///
    /// # Errors
    /// Bytes that do not decode, and layouts that no process can have.
    pub fn decode(bytes: &[u8]) -> Result<Layout, LayoutError> {
        let layout: Layout = postcard::from_bytes(bytes)?;
        layout.check()?;
        Ok(layout)
    }

    fn check(&self) -> Result<(), LayoutError> {
        let nonsense = |what, address| Err(LayoutError::Nonsense { what, address });
        if self.objects.len() > OBJECTS_MAX {
            return nonsense("too many shared objects", 0);
        }
        if self.objects.windows(2).any(|w| w[0].space >= w[1].space) {
            return nonsense("shared objects out of order", 0);
        }
        if self
            .objects
            .iter()
            .any(|o| o.size > OBJECT_SIZE_MAX || o.space == 0 || !o.kind.is_sane())
        {
            return nonsense("an impossible shared object", 0);
        }
        for process in &self.processes {
            let spans = process.huge.len().max(process.guards.len());
            if process.mappings.len().max(spans) > MAPPINGS_MAX {
                return nonsense("too many mappings", 0);
            }
            let mut free_from = PAGE_SIZE;
            for mapping in &process.mappings {
                if mapping.span.start < free_from {
                    return nonsense("mappings out of order", mapping.span.start);
                }
                if !is_user_span(&mapping.span) || mapping.protection > 7 {
                    return nonsense("an impossible mapping", mapping.span.start);
                }
                if !self.has_backing(mapping) {
                    return nonsense("a mapping of something unknown", mapping.span.start);
                }
                free_from = mapping.span.end;
            }
            let spans = process.huge.iter().chain(&process.guards);
            if let Some(bad) = spans.into_iter().find(|s| !is_user_span(s)) {
                return nonsense("an impossible huge page or guard", bad.start);
            }
        }
        Ok(())
    }

    fn has_backing(&self, mapping: &Mapping) -> bool {
        let fits = |offset: u64| offset % PAGE_SIZE == 0 && offset.checked_add(mapping.span.len()).is_some();
        match &mapping.backing {
            Backing::Anonymous => !mapping.shared,
            Backing::File { path, offset, .. } => is_absolute(path) && fits(*offset),
            Backing::Object { space, offset, .. } => fits(*offset) && self.object(*space).is_some(),
        }
    }

    /// The object with the number `space`.
    pub fn object(&self, space: u32) -> Option<&SharedObject> {
        let at = self.objects.binary_search_by_key(&space, |o| o.space).ok()?;
        self.objects.get(at)
    }

    /// The object that is `id` at the source.
    pub fn object_by_id(&self, id: FileId) -> Option<&SharedObject> {
        self.objects.iter().find(|o| o.id == id)
    }

    /// What is lost on the way from `self` to `new`, in every space: pages of mappings and objects that went away.
    pub fn lost(&self, new: &Layout) -> Vec<PageRun> {
        let mut lost = Vec::new();
        for old in &self.processes {
            let mappings = new
                .processes
                .iter()
                .find(|p| p.space == old.space)
                .map(|p| p.mappings.as_slice());
            let spans = difference(&old.mappings, mappings.unwrap_or_default()).lost;
            lost.extend(spans.iter().map(|s| s.run(SpaceId(old.space))));
        }
        for old in &self.objects {
            let size = new.object(old.space).map_or(0, |o| o.size);
            let (from, to) = (size.div_ceil(PAGE_SIZE), old.size.div_ceil(PAGE_SIZE));
            if from < to {
                lost.push(PageRun {
                    space: SpaceId(old.space),
                    first: from,
                    count: to - from,
                });
            }
        }
        lost
    }
}

impl ObjectKind {
    fn is_sane(&self) -> bool {
        match self {
            ObjectKind::Memfd { name, .. } => name.len() <= 249 && !name.contains('\0'),
            ObjectKind::SharedAnonymous => true,
            ObjectKind::Unlinked { path } | ObjectKind::CarriedFile { path, .. } => is_absolute(path),
        }
    }
}

fn is_user_span(span: &Span) -> bool {
    span.start < span.end
        && span.end <= ADDRESS_MAX
        && span.start % PAGE_SIZE == 0
        && span.end % PAGE_SIZE == 0
}

fn is_absolute(path: &str) -> bool {
    path.starts_with('/') && path.len() < PATH_BYTES_MAX && !path.contains('\0')
}

/// The steps from one list of mappings to another, each list of steps ascending. They are to be taken in the order
/// of the fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// To be unmapped.
    pub unmap: Vec<Span>,
    /// To be mapped: where, and the index of the mapping in the new list. Nothing is mapped there before.
    pub map: Vec<(Span, usize)>,
    /// Mapped already, but with another protection.
    pub protect: Vec<(Span, u8)>,
    /// Mapped already, but advised otherwise: a number for madvise(2).
    pub advise: Vec<(Span, i32)>,
    /// Mapped already, but locked (or not) otherwise.
    pub lock: Vec<(Span, bool)>,
    /// Pages whose content is gone: unmapped or replaced.
    pub lost: Vec<Span>,
}

impl Difference {
    /// Whether nothing has to be done.
    pub fn is_empty(&self) -> bool {
        *self == Difference::default()
    }
}

/// Whether bytes at one address in `old` are still the same bytes in `new`: the kernel can change everything else of
/// a mapping in place.
fn same_object(old: &Mapping, new: &Mapping) -> bool {
    old.shared == new.shared
        && old.grows_down == new.grows_down
        && old.no_reserve == new.no_reserve
        && old.droppable == new.droppable
        && same_backing(old, new)
        && (new.advice.has_huge_advice() || !old.advice.has_huge_advice())
}

fn same_backing(old: &Mapping, new: &Mapping) -> bool {
    let delta = |offset: u64, mapping: &Mapping| offset.wrapping_sub(mapping.span.start);
    match (&old.backing, &new.backing) {
        (Backing::Anonymous, Backing::Anonymous) => true,
        (
            Backing::File {
                path: a,
                offset: oa,
                writable: wa,
            },
            Backing::File {
                path: b,
                offset: ob,
                writable: wb,
            },
        ) => a == b && wa == wb && delta(*oa, old) == delta(*ob, new),
        (
            Backing::Object {
                space: a,
                offset: oa,
                writable: wa,
            },
            Backing::Object {
                space: b,
                offset: ob,
                writable: wb,
            },
        ) => a == b && wa == wb && delta(*oa, old) == delta(*ob, new),
        _ => false,
    }
}

/// The steps that turn `old` into `new`; both are ascending and without overlap.
pub fn difference(old: &[Mapping], new: &[Mapping]) -> Difference {
    let mut steps = Difference::default();
    let mut cuts: Vec<u64> = old
        .iter()
        .chain(new)
        .flat_map(|m| [m.span.start, m.span.end])
        .collect();
    cuts.sort_unstable();
    cuts.dedup();
    let (mut o, mut n) = (0, 0);
    for pair in cuts.windows(2) {
        let span = Span {
            start: pair[0],
            end: pair[1],
        };
        let before = advance(old, &mut o, span);
        let after = advance(new, &mut n, span);
        match (before, after) {
            (None, None) => {}
            (Some(_), None) => steps.drop_span(span),
            (Some(before), Some(after)) if same_object(before, after) => steps.change(span, before, after),
            (before, Some(_)) => {
                if before.is_some() {
                    steps.drop_span(span);
                }
                steps.add(span, n);
            }
        }
    }
    steps
}

/// Moves `at` to the first mapping that ends after `span` begins, and returns it if it covers `span`.
fn advance<'a>(mappings: &'a [Mapping], at: &mut usize, span: Span) -> Option<&'a Mapping> {
    while mappings.get(*at).is_some_and(|m| m.span.end <= span.start) {
        *at += 1;
    }
    mappings.get(*at).filter(|m| m.span.start <= span.start)
}

impl Difference {
    fn drop_span(&mut self, span: Span) {
        push_span(&mut self.unmap, span);
        push_span(&mut self.lost, span);
    }

    fn add(&mut self, span: Span, index: usize) {
        match self.map.last_mut() {
            Some((last, i)) if last.end == span.start && *i == index => last.end = span.end,
            _ => self.map.push((span, index)),
        }
    }

    fn change(&mut self, span: Span, before: &Mapping, after: &Mapping) {
        if before.protection != after.protection {
            match self.protect.last_mut() {
                Some((last, p)) if last.end == span.start && *p == after.protection => last.end = span.end,
                _ => self.protect.push((span, after.protection)),
            }
        }
        self.advise.extend(
            before
                .advice
                .steps_to(after.advice)
                .into_iter()
                .map(|step| (span, step)),
        );
        if before.locked != after.locked {
            self.lock.push((span, after.locked));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn anonymous(first: u64, last: u64) -> Mapping {
        Mapping {
            span: Span {
                start: first * PAGE_SIZE,
                end: last * PAGE_SIZE,
            },
            protection: 3,
            shared: false,
            backing: Backing::Anonymous,
            grows_down: false,
            no_reserve: false,
            droppable: false,
            locked: false,
            advice: AdviceSet::default(),
            name: None,
        }
    }

    fn file(first: u64, last: u64, path: &str, page: u64) -> Mapping {
        let backing = Backing::File {
            path: path.into(),
            offset: page * PAGE_SIZE,
            writable: false,
        };
        Mapping {
            backing,
            ..anonymous(first, last)
        }
    }

    fn span(first: u64, last: u64) -> Span {
        Span {
            start: first * PAGE_SIZE,
            end: last * PAGE_SIZE,
        }
    }

    #[test]
    fn nothing_changed() {
        let list = [anonymous(1, 4), file(5, 9, "/bin/true", 3)];
        assert!(difference(&list, &list).is_empty());
    }

    #[test]
    fn a_mapping_that_grows_and_shrinks_keeps_what_stays() {
        let steps = difference(&[anonymous(10, 20)], &[anonymous(8, 15)]);
        assert_eq!(steps.map, [(span(8, 10), 0)]);
        assert_eq!(steps.unmap, [span(15, 20)]);
        assert_eq!(steps.lost, [span(15, 20)]);
    }

    #[test]
    fn a_split_by_mprotect_loses_nothing() {
        let guarded = Mapping {
            protection: 0,
            ..anonymous(12, 14)
        };
        let steps = difference(
            &[anonymous(10, 20)],
            &[anonymous(10, 12), guarded, anonymous(14, 20)],
        );
        assert_eq!(
            steps,
            Difference {
                protect: vec![(span(12, 14), 0)],
                ..Difference::default()
            }
        );
    }

    #[test]
    fn another_file_or_offset_is_another_mapping() {
        for other in [file(1, 3, "/b", 0), file(1, 3, "/a", 7), anonymous(1, 3)] {
            let steps = difference(&[file(1, 3, "/a", 0)], &[other]);
            assert_eq!((steps.unmap, steps.lost), (vec![span(1, 3)], vec![span(1, 3)]));
            assert_eq!(steps.map, [(span(1, 3), 0)]);
        }
        // The tail of a mapping has the offset of the tail.
        assert_eq!(
            difference(&[file(1, 5, "/a", 0)], &[file(3, 5, "/a", 2)]).lost,
            [span(1, 3)]
        );
    }

    #[test]
    fn advice_is_given_and_taken_back() {
        let advised = |advice| Mapping {
            advice,
            ..anonymous(1, 3)
        };
        let none = AdviceSet::default();
        let sequential = none.with(Advice::Sequential, true);
        let random = none.with(Advice::Random, true).with(Advice::DontFork, true);
        let steps = difference(&[advised(sequential)], &[advised(random)]).advise;
        let numbers: Vec<i32> = steps.iter().map(|s| s.1).collect();
        assert_eq!(
            numbers,
            [libc::MADV_NORMAL, libc::MADV_DONTFORK, libc::MADV_RANDOM]
        );
        // Huge page advice can be inverted, not taken back.
        let (huge, never) = (
            none.with(Advice::HugePage, true),
            none.with(Advice::NoHugePage, true),
        );
        assert_eq!(difference(&[advised(huge)], &[advised(never)]).lost, []);
        assert_eq!(difference(&[advised(huge)], &[advised(none)]).lost, [span(1, 3)]);
    }

    #[test]
    fn objects_that_shrink_or_vanish_lose_pages() {
        let object = |space, size| SharedObject {
            space,
            id: FileId {
                device: 1,
                inode: u64::from(space),
            },
            kind: ObjectKind::SharedAnonymous,
            size,
        };
        let old = Layout {
            processes: vec![],
            objects: vec![object(1, 10 * PAGE_SIZE), object(2, 4096)],
        };
        let new = Layout {
            processes: vec![],
            objects: vec![object(1, 5 * PAGE_SIZE + 1)],
        };
        let lost = old.lost(&new);
        assert_eq!(
            lost[0],
            PageRun {
                space: SpaceId(1),
                first: 6,
                count: 4
            }
        );
        assert_eq!(
            lost[1],
            PageRun {
                space: SpaceId(2),
                first: 0,
                count: 1
            }
        );
    }

    #[test]
    fn nonsense_from_a_peer_is_refused() {
        let with = |mappings| Layout {
            processes: vec![ProcessLayout {
                pid: 2,
                space: 0,
                mappings,
                huge: vec![],
                guards: vec![],
            }],
            objects: vec![],
        };
        let good = with(vec![anonymous(1, 3), file(3, 5, "/a", 0)]);
        assert_eq!(Layout::decode(&good.encode()).unwrap(), good);
        let unknown = Backing::Object {
            space: 7,
            offset: 0,
            writable: true,
        };
        let bad = [
            vec![anonymous(3, 5), anonymous(1, 3)],
            vec![anonymous(1, 4), anonymous(3, 5)],
            vec![anonymous(0, 4)],
            vec![anonymous(4, 4)],
            vec![Mapping {
                span: Span {
                    start: 4097,
                    end: 8192,
                },
                ..anonymous(1, 2)
            }],
            vec![Mapping {
                span: Span {
                    start: 4096,
                    end: ADDRESS_MAX + 4096,
                },
                ..anonymous(1, 2)
            }],
            vec![file(1, 2, "relative", 0)],
            vec![Mapping {
                backing: unknown,
                ..anonymous(1, 2)
            }],
        ];
        for mappings in bad {
            let layout = with(mappings);
            assert!(Layout::decode(&layout.encode()).is_err(), "{layout:?}");
        }
        assert!(Layout::decode(&[0xff; 40]).is_err());
    }

    /// Small lists of mappings over 64 pages.
    fn mappings() -> impl Strategy<Value = Vec<Mapping>> {
        let piece = (0u64..3, 1u64..8, 0u8..4, 0u8..4, any::<u8>(), any::<bool>());
        prop::collection::vec(piece, 0..10).prop_map(|pieces| {
            let mut at = 1;
            let mut list = Vec::new();
            for (gap, pages, protection, kind, advice, locked) in pieces {
                let (first, last) = (at + gap, at + gap + pages);
                let base = match kind {
                    0 => file(first, last, "/a", first),
                    1 => file(first, last, "/b", 100 + first),
                    _ => anonymous(first, last),
                };
                // At most one advice about huge pages, and one about reading, as in the kernel.
                let advice = if advice & 3 == 3 { advice & !1 } else { advice };
                let advice = AdviceSet(if advice >> 6 == 3 { advice & !0x80 } else { advice });
                list.push(Mapping {
                    protection,
                    advice,
                    locked,
                    ..base
                });
                at = last;
            }
            list
        })
    }

    /// What a page is: its mapping moved to the page, so that pages of equal mappings are equal.
    fn page_of(list: &[Mapping], page: u64) -> Option<Mapping> {
        let at = span(page, page + 1);
        let mapping = list.iter().find(|m| m.span.overlaps(&at))?;
        let mut one = mapping.clone();
        if let Backing::File { offset, .. } = &mut one.backing {
            *offset += at.start - mapping.span.start;
        }
        one.span = at;
        Some(one)
    }

    /// Carries the steps out on single pages, as the kernel would, and says which lost their content.
    fn apply(old: &[Mapping], new: &[Mapping], steps: &Difference) -> Vec<(Option<Mapping>, bool)> {
        let inside = |s: &Span, page| s.overlaps(&span(page, page + 1));
        (0..128)
            .map(|page| {
                let mut state = page_of(old, page);
                let mut fresh = false;
                if steps.unmap.iter().any(|s| inside(s, page)) {
                    assert!(state.is_some(), "unmapped what was not mapped");
                    state = None;
                }
                for (_, index) in steps.map.iter().filter(|(s, _)| inside(s, page)) {
                    assert!(state.is_none(), "MAP_FIXED_NOREPLACE would fail");
                    state = page_of(&new[*index..=*index], page);
                    fresh = true;
                }
                for (_, protection) in steps.protect.iter().filter(|(s, _)| inside(s, page)) {
                    state.as_mut().unwrap().protection = *protection;
                }
                for (_, number) in steps.advise.iter().filter(|(s, _)| inside(s, page)) {
                    advise(state.as_mut().unwrap(), *number);
                }
                for (_, locked) in steps.lock.iter().filter(|(s, _)| inside(s, page)) {
                    state.as_mut().unwrap().locked = *locked;
                }
                (state, fresh)
            })
            .collect()
    }

    fn advise(mapping: &mut Mapping, number: i32) {
        let bits = &mut mapping.advice.0;
        for advice in Advice::ALL {
            if advice.given() == number {
                *bits |= AdviceSet::bit(advice);
                // The two kinds of advice about huge pages exclude each other, so do the two about reading.
                match advice {
                    Advice::HugePage => *bits &= !AdviceSet::bit(Advice::NoHugePage),
                    Advice::NoHugePage => *bits &= !AdviceSet::bit(Advice::HugePage),
                    Advice::Sequential => *bits &= !AdviceSet::bit(Advice::Random),
                    Advice::Random => *bits &= !AdviceSet::bit(Advice::Sequential),
                    _ => {}
                }
            } else if advice.taken_back() == Some(number) {
                *bits &= !AdviceSet::bit(advice);
            }
        }
    }

    proptest! {
        #[test]
        fn the_steps_lead_from_old_to_new(old in mappings(), new in mappings()) {
            let steps = difference(&old, &new);
            for (page, (state, fresh)) in apply(&old, &new, &steps).into_iter().enumerate() {
                let page = page as u64;
                prop_assert_eq!(&state, &page_of(&new, page));
                let lost = steps.lost.iter().any(|s| s.overlaps(&span(page, page + 1)));
                let was = page_of(&old, page);
                prop_assert_eq!(lost, was.is_some() && (state.is_none() || fresh));
            }
        }

        #[test]
        fn a_layout_survives_the_wire(old in mappings()) {
            let layout = Layout {
                processes: vec![ProcessLayout { pid: 7, space: 0, mappings: old, huge: vec![span(512, 1024)], guards: vec![span(7, 8)] }],
                objects: vec![],
            };
            prop_assert_eq!(Layout::decode(&layout.encode()).unwrap(), layout);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Layout::decode(&bytes);
        }
    }
}
