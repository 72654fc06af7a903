//! What the kernel does when writes are tracked with userfaultfd (WP_ASYNC) and PAGEMAP_SCAN. Each test is one statement.
#![allow(clippy::unwrap_used)]

mod puppet;

use std::os::fd::AsFd;

use puppet::{Puppet, PAGE};
use whimbrel_kernel::pagemap::{category, Pagemap, Region, ScanArgs};
use whimbrel_kernel::uffd::{self, feature, mode, Injection, Uffd};
use whimbrel_kernel::{memory, pidfd};

/// A userfaultfd of another process.
fn injected(pid: i32, features: u64) -> whimbrel_kernel::error::Result<Uffd> {
    let how = Injection {
        features,
        ..Injection::default()
    };
    uffd::inject(pid, how).map(|(uffd, _)| uffd)
}

/// A puppet with tracked memory.
struct Tracked {
    puppet: Puppet,
    uffd: Uffd,
    pagemap: Pagemap,
    start: u64,
    pages: u64,
}

impl Tracked {
    /// Private memory, all touched, tracked, and the first scan taken.
    fn new(pages: u64) -> Tracked {
        let mut puppet = Puppet::new();
        let start = puppet.map(pages * PAGE);
        puppet.touch(start, pages);
        let mut tracked = Tracked::of(puppet, start, pages);
        tracked.take();
        tracked
    }

    fn of(puppet: Puppet, start: u64, pages: u64) -> Tracked {
        let uffd = injected(puppet.pid, feature::TRACK_WRITES).unwrap();
        uffd.register(start, pages * PAGE, mode::WP).unwrap();
        let pagemap = Pagemap::open(puppet.pid).unwrap();
        Tracked {
            puppet,
            uffd,
            pagemap,
            start,
            pages,
        }
    }

    fn page(&self, page: u64) -> u64 {
        self.start + page * PAGE
    }

    fn scan(&self, args: ScanArgs) -> whimbrel_kernel::error::Result<Vec<u64>> {
        let mut found: Vec<Region> = Vec::new();
        self.pagemap
            .scan(self.start..self.page(self.pages), args, &mut found)?;
        let pages = |region: &Region| (region.start - self.start) / PAGE..(region.end - self.start) / PAGE;
        Ok(found.iter().flat_map(pages).collect())
    }

    /// Numbers of the pages that are told as written and there, which are then protected again.
    fn take(&mut self) -> Vec<u64> {
        self.scan(ScanArgs::take_written()).unwrap()
    }

    /// Numbers of the pages that have this category, whatever else they are; changes nothing.
    fn having(&self, category: u64) -> Vec<u64> {
        self.scan(ScanArgs {
            mask: category,
            returned: category,
            ..ScanArgs::default()
        })
        .unwrap()
    }
}

#[test]
fn a_scan_tells_what_was_written_since_the_last_one() {
    let mut tracked = Tracked::new(100);
    assert_eq!(tracked.take(), []);
    tracked.puppet.store(tracked.page(7), 1);
    tracked.puppet.store(tracked.page(99), 1);
    tracked.puppet.load(tracked.page(50));
    assert_eq!(tracked.take(), [7, 99]);
    assert_eq!(tracked.take(), []);
}

#[test]
fn a_scan_that_is_taken_and_not_put_back_loses_what_it_told() {
    let mut tracked = Tracked::new(4);
    tracked.puppet.store(tracked.page(2), 1);
    assert_eq!(tracked.having(category::WRITTEN), [2], "a scan that only looks");
    assert_eq!(tracked.take(), [2]);
    assert_eq!(
        tracked.having(category::WRITTEN),
        [],
        "whoever dropped that answer has lost a page"
    );
}

#[test]
fn what_the_kernel_writes_for_a_read_is_seen() {
    let mut tracked = Tracked::new(8);
    let pair = tracked.puppet.map(PAGE);
    tracked.puppet.call(libc::SYS_pipe2, &[pair, 0]);
    let ends = tracked.puppet.load(pair);
    tracked.puppet.call(libc::SYS_write, &[ends >> 32, pair, 100]);
    let to = tracked.page(3) + 4090;
    assert_eq!(
        tracked
            .puppet
            .call(libc::SYS_read, &[ends & 0xffff_ffff, to, 100]),
        100
    );
    assert_eq!(tracked.take(), [3, 4]);
}

#[test]
fn what_another_process_writes_is_seen() {
    let mut tracked = Tracked::new(8);
    memory::write(tracked.puppet.pid, tracked.page(5), &[1]).unwrap();
    let through = memory::MemFile::open(tracked.puppet.pid).unwrap();
    through.write(tracked.page(6), &[1]).unwrap();
    assert_eq!(tracked.take(), [5, 6]);
}

#[test]
fn a_dropped_page_counts_as_written_and_is_not_there() {
    let mut tracked = Tracked::new(8);
    tracked.puppet.call(
        libc::SYS_madvise,
        &[tracked.page(2), PAGE, libc::MADV_DONTNEED as u64],
    );
    assert_eq!(tracked.having(category::WRITTEN), [2]);
    assert!(!tracked.having(category::PRESENT).contains(&2));
    assert_eq!(
        tracked.take(),
        [],
        "so it has to be told as dropped and not as written"
    );
    tracked.puppet.store(tracked.page(2), 1);
    assert_eq!(tracked.take(), [2]);
}

#[test]
fn pages_whose_page_table_may_be_gone_count_as_written() {
    let tables = 3;
    let table_pages = 512;
    let mut tracked = Tracked::new(tables * table_pages);
    let first = tracked.start.next_multiple_of(table_pages * PAGE);
    tracked.puppet.call(
        libc::SYS_madvise,
        &[first, table_pages * PAGE, libc::MADV_DONTNEED as u64],
    );
    let from = (first - tracked.start) / PAGE;
    let dropped: Vec<u64> = (from..from + table_pages).collect();
    assert_eq!(tracked.scan(ScanArgs::written()).unwrap(), dropped);
}

#[test]
fn a_dropped_copy_of_a_files_page_looks_like_an_unwritten_page_in_swap() {
    let mut puppet = Puppet::new();
    let name = puppet.map(PAGE);
    let fd = puppet.call(libc::SYS_memfd_create, &[name, 0]);
    puppet.call(libc::SYS_ftruncate, &[fd, 8 * PAGE]);
    let access = (libc::PROT_READ | libc::PROT_WRITE) as u64;
    let start = puppet.call(
        libc::SYS_mmap,
        &[0, 8 * PAGE, access, libc::MAP_PRIVATE as u64, fd, 0],
    );
    puppet.touch(start, 8);
    let mut tracked = Tracked::of(puppet, start, 8);
    assert_eq!(tracked.take(), (0..8).collect::<Vec<_>>());
    tracked.puppet.call(
        libc::SYS_madvise,
        &[tracked.page(2), PAGE, libc::MADV_DONTNEED as u64],
    );
    assert_eq!(
        tracked.having(category::SWAPPED),
        [2],
        "a mark was left in its place"
    );
    assert_eq!(
        tracked.having(category::WRITTEN),
        [],
        "so the scan does not tell that it has changed"
    );
}

#[test]
fn a_page_that_was_declared_free_does_not_count_as_written() {
    let mut tracked = Tracked::new(8);
    tracked.puppet.call(
        libc::SYS_madvise,
        &[tracked.page(2), PAGE, libc::MADV_FREE as u64],
    );
    assert_eq!(tracked.having(category::WRITTEN), []);
}

#[test]
fn a_page_that_was_never_touched_counts_as_written() {
    let mut puppet = Puppet::new();
    let start = puppet.map(8 * PAGE);
    let mut tracked = Tracked::of(puppet, start, 8);
    assert_eq!(tracked.having(category::WRITTEN), (0..8).collect::<Vec<_>>());
    assert_eq!(
        tracked.take(),
        [],
        "therefore what is asked for must be there, too"
    );
    tracked.puppet.load(tracked.page(1));
    assert_eq!(
        tracked.having(category::ZERO),
        [1],
        "reading gives the common page of zeros"
    );
    assert_eq!(tracked.take(), []);
}

#[test]
fn a_new_mapping_in_a_tracked_range_is_not_tracked_and_says_so() {
    let mut tracked = Tracked::new(8);
    let at = tracked.page(3);
    tracked.puppet.map_at(at, PAGE, libc::MAP_FIXED);
    tracked.puppet.store(at, 1);
    let error = tracked.scan(ScanArgs::take_written()).unwrap_err();
    assert_eq!(error.errno(), Some(libc::EPERM));
    tracked.uffd.register(at, PAGE, mode::WP).unwrap();
    assert_eq!(tracked.take(), [3]);
}

#[test]
fn a_mapping_that_moved_is_not_tracked_any_more() {
    let mut tracked = Tracked::new(8);
    let (from, bytes) = (tracked.start, 8 * PAGE);
    let to = tracked.puppet.map(bytes);
    let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
    tracked
        .puppet
        .call(libc::SYS_mremap, &[from, bytes, bytes, flags, to]);
    tracked.start = to;
    assert_eq!(
        tracked.scan(ScanArgs::take_written()).unwrap_err().errno(),
        Some(libc::EPERM)
    );
    tracked.uffd.register(to, bytes, mode::WP).unwrap();
    assert_eq!(
        tracked.take(),
        (0..8).collect::<Vec<_>>(),
        "registered again, all of it counts"
    );
}

#[test]
fn registering_again_keeps_what_was_written() {
    let mut tracked = Tracked::new(8);
    tracked.puppet.store(tracked.page(4), 1);
    tracked.uffd.register(tracked.start, 8 * PAGE, mode::WP).unwrap();
    assert_eq!(tracked.take(), [4]);
    tracked.uffd.register(tracked.start, 8 * PAGE, mode::WP).unwrap();
    assert_eq!(tracked.take(), []);
}

#[test]
fn only_one_userfaultfd_can_have_a_mapping() {
    let tracked = Tracked::new(8);
    let other = injected(tracked.puppet.pid, feature::TRACK_WRITES).unwrap();
    let error = other.register(tracked.start, PAGE, mode::WP).unwrap_err();
    assert_eq!(error.errno(), Some(libc::EBUSY));
}

#[test]
fn closing_the_userfaultfd_ends_the_tracking() {
    let Tracked {
        puppet,
        uffd,
        pagemap,
        start,
        pages,
    } = Tracked::new(8);
    drop(uffd);
    let mut found = Vec::new();
    let error = pagemap
        .scan(start..start + pages * PAGE, ScanArgs::take_written(), &mut found)
        .unwrap_err();
    assert_eq!(error.errno(), Some(libc::EPERM));
    let again = Tracked::of(puppet, start, pages);
    assert_eq!(again.having(category::WP_ALLOWED).len(), 8);
}

#[test]
fn registering_a_part_splits_the_mapping() {
    let tracked = Tracked::new(8);
    let parts = |tracked: &Tracked| {
        let vmas = whimbrel_kernel::maps::read(tracked.puppet.pid).unwrap();
        vmas.iter()
            .filter(|vma| vma.start < tracked.page(8) && vma.end > tracked.start)
            .count()
    };
    assert_eq!(parts(&tracked), 1);
    tracked.uffd.unregister(tracked.page(2), 2 * PAGE).unwrap();
    assert_eq!(parts(&tracked), 3);
}

#[test]
fn private_pages_of_a_file_are_tracked_once_they_are_copies() {
    let mut puppet = Puppet::new();
    let name = puppet.map(PAGE);
    let (fd, shared) = puppet.map_memfd(name, 4 * PAGE);
    puppet.touch(shared, 4);
    let flags = libc::MAP_PRIVATE as u64;
    let start = puppet.call(libc::SYS_mmap, &[0, 4 * PAGE, 3, flags, fd, 0]);
    (0..4).for_each(|page| assert_eq!(puppet.load(start + page * PAGE), page + 1));
    let mut tracked = Tracked::of(puppet, start, 4);
    assert_eq!(tracked.take(), [], "pages of the file are left out");
    tracked.puppet.store(tracked.page(1), 9);
    assert_eq!(tracked.take(), [1]);
}

/// A memfd with two mappings of 4 pages, the first one tracked.
fn shared_twice() -> (Tracked, u64, u64) {
    let mut puppet = Puppet::new();
    let name = puppet.map(PAGE);
    let (fd, start) = puppet.map_memfd(name, 4 * PAGE);
    let other = puppet.map_fd(fd, 4 * PAGE);
    puppet.touch(start, 4);
    let tracked = Tracked::of(puppet, start, 4);
    tracked.scan(take_shared()).unwrap();
    (tracked, other, fd)
}

/// As `take_written`, for shared memory.
fn take_shared() -> ScanArgs {
    ScanArgs {
        inverted: 0,
        mask: category::WRITTEN,
        ..ScanArgs::take_written()
    }
}

#[test]
fn a_write_through_another_mapping_of_a_memfd_is_not_seen() {
    let (mut tracked, other, _) = shared_twice();
    tracked.puppet.store(tracked.page(1), 77);
    assert_eq!(tracked.scan(take_shared()).unwrap(), [1]);
    tracked.puppet.store(other + 2 * PAGE, 77);
    assert_eq!(tracked.puppet.load(tracked.page(2)), 77);
    assert_eq!(tracked.scan(take_shared()).unwrap(), []);
}

#[test]
fn a_pwrite_to_a_memfd_is_not_seen() {
    let (mut tracked, other, fd) = shared_twice();
    tracked.puppet.call(libc::SYS_pwrite64, &[fd, other, 8, 3 * PAGE]);
    assert_eq!(tracked.puppet.load(tracked.page(3)), 1);
    assert_eq!(tracked.scan(take_shared()).unwrap(), []);
}

#[test]
fn reading_a_hole_of_a_memfd_allocates_it() {
    let mut puppet = Puppet::new();
    let page = puppet.map(PAGE);
    let (fd, start) = puppet.map_memfd(page, 64 * PAGE);
    let blocks = |puppet: &mut Puppet| {
        puppet.call(libc::SYS_fstat, &[fd, page]);
        // st_blocks is the word at 64 in struct stat, in units of 512 bytes
        puppet.load(page + 64) * 512 / PAGE
    };
    assert_eq!(blocks(&mut puppet), 0);
    let mut buffer = vec![1; 8 * PAGE as usize];
    memory::read(puppet.pid, start, &mut buffer).unwrap();
    assert!(buffer.iter().all(|byte| *byte == 0));
    assert_eq!(
        blocks(&mut puppet),
        8,
        "therefore ask SEEK_DATA or the page map first"
    );
}

#[test]
fn a_scan_goes_on_where_its_buffer_was_full() {
    let pages = 20_000;
    let mut puppet = Puppet::new();
    let start = puppet.map(pages * PAGE);
    let pid = puppet.pid;
    let every_other: Vec<u64> = (0..pages).step_by(2).collect();
    let spans: Vec<memory::Span> = every_other.iter().map(|page| (start + page * PAGE, 1)).collect();
    let ones = vec![1; spans.len()];
    assert_eq!(memory::writev(pid, &spans, &ones).unwrap(), ones.len());
    let mut tracked = Tracked::of(puppet, start, pages);
    assert_eq!(tracked.take(), every_other);
    assert_eq!(tracked.take(), []);
    memory::write(pid, start, &vec![2; (pages * PAGE) as usize]).unwrap();
    let mut found = Vec::new();
    tracked
        .pagemap
        .scan(start..start + pages * PAGE, ScanArgs::take_written(), &mut found)
        .unwrap();
    assert_eq!(found.len(), 1, "{:?}", &found[..found.len().min(3)]);
}

#[test]
fn tracking_splits_a_huge_page_at_its_first_write_and_collapse_mends_it() {
    const HUGE: u64 = 2 << 20;
    let mut puppet = Puppet::new();
    let area = puppet.map(2 * HUGE);
    let start = area.next_multiple_of(HUGE);
    puppet.call(libc::SYS_madvise, &[start, HUGE, libc::MADV_HUGEPAGE as u64]);
    puppet.store(start, 1);
    let process = pidfd::open(puppet.pid).unwrap();
    pidfd::collapse(process.as_fd(), &[(start, HUGE as usize)]).unwrap();
    let mut tracked = Tracked::of(puppet, start, HUGE / PAGE);
    let huge = |tracked: &Tracked| tracked.having(category::HUGE).len();
    assert_eq!(
        huge(&tracked),
        512,
        "this machine gives no huge page: is there free memory?"
    );
    tracked.take();
    assert_eq!(huge(&tracked), 512);
    tracked.puppet.store(tracked.page(5), 1);
    assert_eq!(huge(&tracked), 0);
    assert_eq!(tracked.take(), [5], "the other pages of it stay protected");
    drop(tracked.uffd);
    assert_eq!(
        pidfd::collapse(process.as_fd(), &[(start, HUGE as usize)]).unwrap(),
        HUGE as usize
    );
    let mut found = Vec::new();
    let huge = ScanArgs {
        mask: category::HUGE,
        ..ScanArgs::default()
    };
    tracked
        .pagemap
        .scan(start..start + HUGE, huge, &mut found)
        .unwrap();
    assert_eq!(found.iter().map(Region::len).sum::<u64>(), HUGE);
}
