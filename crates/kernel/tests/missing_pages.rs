//! What the kernel does when missing pages are served with userfaultfd. Each test is one statement.
#![allow(clippy::unwrap_used)]

mod puppet;

use puppet::{Puppet, PAGE};
use whimbrel_kernel::uffd::{self, feature, mode, Event, Injection, Uffd};

/// A userfaultfd of another process.
fn injected(pid: i32, features: u64) -> whimbrel_kernel::error::Result<Uffd> {
    let how = Injection {
        features,
        ..Injection::default()
    };
    uffd::inject(pid, how).map(|(uffd, _)| uffd)
}

/// A puppet with 16 pages whose absence is served.
fn served(features: u64) -> (Puppet, Uffd, u64) {
    let mut puppet = Puppet::new();
    let start = puppet.map(16 * PAGE);
    let uffd = injected(puppet.pid, features).unwrap();
    uffd.register(start, 16 * PAGE, mode::MISSING).unwrap();
    (puppet, uffd, start)
}

fn wait_event(uffd: &Uffd) -> Event {
    loop {
        if let Some(event) = uffd.events().unwrap().pop() {
            return event;
        }
        std::thread::yield_now();
    }
}

fn content(byte: u8, pages: u64) -> Vec<u8> {
    vec![byte; (pages * PAGE) as usize]
}

fn word(byte: u8) -> i64 {
    i64::from_ne_bytes([byte; 8])
}

#[test]
fn a_thread_waits_for_a_missing_page_until_it_is_copied() {
    let (mut puppet, uffd, start) = served(feature::THREAD_ID);
    puppet.begin(3, &[start + 5 * PAGE + 8]);
    let Event::Fault {
        address,
        flags,
        thread,
    } = wait_event(&uffd)
    else {
        panic!("not a fault");
    };
    assert_eq!((address & !(PAGE - 1), flags), (start + 5 * PAGE, 0));
    assert_eq!(thread, puppet.pid as u32);
    uffd.copy(start + 5 * PAGE, &content(7, 1), 0).unwrap();
    assert_eq!(puppet.reply(), word(7));
}

#[test]
fn copying_onto_a_page_that_is_there_gives_eexist() {
    let (mut puppet, uffd, start) = served(0);
    uffd.copy(start + PAGE, &content(1, 1), 0).unwrap();
    let partial = uffd.copy(start, &content(2, 4), 0).unwrap_err();
    assert_eq!(
        (partial.done, partial.error.errno()),
        (PAGE, Some(libc::EAGAIN)),
        "it stops before that page"
    );
    let partial = uffd.copy(start + PAGE, &content(2, 1), 0).unwrap_err();
    assert_eq!((partial.done, partial.error.errno()), (0, Some(libc::EEXIST)));
    uffd.wake(start + PAGE, PAGE).unwrap();
    assert_eq!(
        puppet.load(start + PAGE) as i64,
        word(1),
        "what was there first stays"
    );
}

#[test]
fn copying_across_the_end_of_a_mapping_gives_enoent() {
    let (mut puppet, uffd, start) = served(0);
    puppet.call(
        libc::SYS_mprotect,
        &[start + 2 * PAGE, PAGE, libc::PROT_READ as u64],
    );
    let partial = uffd.copy(start, &content(1, 4), 0).unwrap_err();
    assert_eq!(partial.error.errno(), Some(libc::ENOENT), "two mappings");
    for page in 0..4 {
        uffd.copy(start + page * PAGE, &content(1, 1), 0).unwrap();
    }
}

#[test]
fn everything_gives_eagain_while_an_event_is_queued() {
    let (mut puppet, uffd, start) = served(feature::EVENT_REMOVE | feature::EVENT_UNMAP);
    puppet.begin_call(libc::SYS_madvise, &[start, PAGE, libc::MADV_DONTNEED as u64]);
    puppet.wait_in_call(libc::SYS_madvise);
    // it waits in the call until the event is read; the very moment of queueing may still be ahead
    let refused = loop {
        match uffd.zeropage(start + 8 * PAGE, PAGE, 0) {
            Err(partial) if partial.error.errno() == Some(libc::EEXIST) => std::thread::yield_now(),
            Err(partial) => break partial.error.errno(),
            Ok(()) => {}
        }
    };
    assert_eq!(refused, Some(libc::EAGAIN));
    let Event::Remove { start: from, end } = wait_event(&uffd) else {
        panic!("not a removal");
    };
    assert_eq!((from, end), (start, start + PAGE));
    assert_eq!(puppet.reply(), 0);
    uffd.copy(start, &content(1, 1), 0).unwrap();
    puppet.begin_call(libc::SYS_munmap, &[start + PAGE, PAGE]);
    assert!(matches!(wait_event(&uffd), Event::Unmap { start: from, .. } if from == start + PAGE));
    assert_eq!(puppet.reply(), 0);
}

#[test]
fn a_move_is_told_with_both_ends() {
    let (mut puppet, uffd, start) = served(feature::EVENT_REMAP);
    let to = start + (1 << 30);
    let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
    puppet.begin_call(libc::SYS_mremap, &[start, 16 * PAGE, 16 * PAGE, flags, to]);
    let Event::Remap {
        from,
        to: there,
        bytes,
    } = wait_event(&uffd)
    else {
        panic!("not a move");
    };
    assert_eq!((from, there, bytes), (start, to, 16 * PAGE));
    assert_eq!(puppet.reply(), to as i64);
    uffd.zeropage(to, PAGE, 0).unwrap();
}

#[test]
fn a_fork_brings_the_userfaultfd_of_the_child() {
    let (mut puppet, uffd, start) = served(feature::EVENT_FORK);
    puppet.begin(puppet::FORK, &[puppet.pid as u64]);
    let Event::Fork(child) = wait_event(&uffd) else {
        panic!("not a fork");
    };
    // the fork still has the address spaces for a moment after its event was read
    assert!(puppet.reply() > 0);
    child.zeropage(start, PAGE, 0).unwrap();
    uffd.zeropage(start, PAGE, 0).unwrap();
}

#[test]
fn closing_the_last_userfaultfd_lets_a_waiting_thread_read_zeros() {
    let (mut puppet, uffd, start) = served(0);
    puppet.begin(3, &[start]);
    assert!(matches!(wait_event(&uffd), Event::Fault { .. }));
    drop(uffd);
    assert_eq!(
        puppet.reply(),
        0,
        "silent corruption: a guardian has to hold a duplicate"
    );
}

#[test]
fn a_page_of_a_memfd_that_is_not_mapped_is_a_minor_fault() {
    let mut puppet = Puppet::new();
    let name = puppet.map(PAGE);
    let (fd, writer) = puppet.map_memfd(name, 2 * PAGE);
    puppet.store(writer, 9);
    let start = puppet.map_fd(fd, 2 * PAGE);
    let uffd = injected(puppet.pid, feature::MINOR_SHMEM).unwrap();
    uffd.register(start, 2 * PAGE, mode::MINOR).unwrap();
    puppet.begin(3, &[start]);
    assert!(matches!(wait_event(&uffd), Event::Fault { flags: 4, .. }));
    uffd.continue_(start, PAGE, 0).unwrap();
    assert_eq!(puppet.reply(), 9);
    let partial = uffd.continue_(start + PAGE, PAGE, 0).unwrap_err();
    assert_eq!(partial.error.errno(), Some(libc::EFAULT), "a hole");
}

/// Everything that is queued, in the order in which the kernel hands it out.
fn pending(uffd: &Uffd) -> Vec<&'static str> {
    let name = |event: &Event| match event {
        Event::Fault { .. } => "fault",
        Event::Fork(_) => "fork",
        Event::Remap { .. } => "remap",
        Event::Remove { .. } => "remove",
        Event::Unmap { .. } => "unmap",
    };
    uffd.events().unwrap().iter().map(name).collect()
}

fn is_mapped(pid: i32, address: u64) -> bool {
    let vmas = whimbrel_kernel::maps::read(pid).unwrap();
    vmas.iter().any(|vma| (vma.start..vma.end).contains(&address))
}

fn wait_until(mut condition: impl FnMut() -> bool) {
    while !condition() {
        std::thread::yield_now();
    }
}

/// What the threads of a process but its leader wait for: the number of a system call, or -1.
fn others(pid: i32) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let tids = tasks.map(|task| task.unwrap().file_name());
    let others = tids.filter(|tid| tid.to_str() != Some(&pid.to_string()));
    let paths = others.map(|tid| format!("/proc/{pid}/task/{}/syscall", tid.to_str().unwrap()));
    paths
        .map(|path| std::fs::read_to_string(path).unwrap_or_default())
        .collect()
}

/// A puppet with two apart areas of 16 pages whose absence is served, and what happens to them is told.
fn two_areas() -> (Puppet, Uffd, u64, u64) {
    let features = feature::EVENT_REMAP | feature::EVENT_UNMAP | feature::EVENT_REMOVE;
    let (mut puppet, uffd, first) = served(features);
    let second = puppet.map_at(first + (1 << 30), 16 * PAGE, libc::MAP_FIXED);
    uffd.register(second, 16 * PAGE, mode::MISSING).unwrap();
    (puppet, uffd, first, second)
}

/// A move is told twice: that it was made, and later that its old place was unmapped. Meanwhile something else may have been moved to the
/// old place: whoever believes the second event forgets pages that are there.
#[test]
fn the_unmapping_of_a_move_is_told_after_what_came_to_its_place() {
    let (mut puppet, uffd, first, second) = two_areas();
    let mut twin = puppet.twin();
    let away = second + (1 << 30);
    let fixed = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
    puppet.begin_call(libc::SYS_mremap, &[first, 16 * PAGE, 16 * PAGE, fixed, away]);
    wait_until(|| is_mapped(puppet.pid, away));
    twin.begin_call(libc::SYS_mremap, &[second, 16 * PAGE, 16 * PAGE, fixed, first]);
    wait_until(|| is_mapped(puppet.pid, first));
    let mut told = Vec::new();
    wait_until(|| {
        let events = uffd.events().unwrap();
        told.extend(events.iter().map(|event| match event {
            Event::Remap { from, to, .. } => (*from, *to),
            Event::Unmap { start, .. } => (*start, 0),
            other => panic!("{other:?}"),
        }));
        told.len() == 4
    });
    let at = |wanted| told.iter().position(|one| *one == wanted).unwrap();
    assert!(at((first, away)) < at((second, first)));
    assert!(at((second, first)) < at((first, 0)), "{told:x?}");
    assert_eq!((puppet.reply(), twin.reply()), (away as i64, first as i64));
    uffd.zeropage(first, PAGE, 0).unwrap();
}

/// A page that was moved is asked for at its new place before anybody was told of the move. Whoever takes it for a new page gives zeros.
#[test]
fn a_fault_is_told_before_the_event_that_explains_it() {
    let (mut puppet, uffd, first, second) = two_areas();
    let mut twin = puppet.twin();
    let to = second + (1 << 30);
    let fixed = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
    puppet.begin_call(libc::SYS_mremap, &[first, 16 * PAGE, 16 * PAGE, fixed, to]);
    wait_until(|| is_mapped(puppet.pid, to));
    puppet.wait_in_call(libc::SYS_mremap);
    twin.begin_load(to);
    // No system call: it waits for the page.
    wait_until(|| others(puppet.pid).iter().any(|task| task.starts_with("-1 ")));
    let refused = uffd.zeropage(to, PAGE, 0).unwrap_err();
    assert_eq!(
        refused.error.errno(),
        Some(libc::EAGAIN),
        "nothing can be filled before the event was read"
    );
    assert_eq!(pending(&uffd), ["fault", "remap"]);
    wait_until(|| pending(&uffd) == ["unmap"]);
    assert_eq!(puppet.reply(), to as i64);
    uffd.copy(to, &content(7, 1), 0).unwrap();
    assert_eq!(twin.reply(), word(7));
}

/// An unmapping that is told late need not be true any more: the kernel itself has to say what is watched.
#[test]
fn the_kernel_tells_what_is_registered_and_when_nothing_changes() {
    let (mut puppet, uffd, first, second) = two_areas();
    assert!(!uffd.is_changing().unwrap());
    assert!(uffd.is_registered(first, 16 * PAGE).unwrap());
    assert!(!uffd.is_registered(first, 17 * PAGE).unwrap(), "beyond its end");
    uffd.copy(first, &content(1, 1), 0).unwrap();
    assert!(uffd.is_registered(first, PAGE).unwrap(), "with its content");
    puppet.begin_call(libc::SYS_munmap, &[second, 16 * PAGE]);
    wait_until(|| uffd.is_changing().unwrap());
    assert_eq!(
        uffd.is_registered(first, PAGE).unwrap_err().errno(),
        Some(libc::EAGAIN)
    );
    wait_until(|| pending(&uffd) == ["unmap"]);
    assert_eq!(puppet.reply(), 0);
    assert!(!uffd.is_changing().unwrap());
    assert!(!uffd.is_registered(second, PAGE).unwrap());
    let plain = puppet.map_at(second, 16 * PAGE, libc::MAP_FIXED);
    assert!(!uffd.is_registered(plain, PAGE).unwrap(), "another mapping");
}

const MADV_GUARD_INSTALL: u64 = 102;

/// The page of zeros keeps off guards (Linux 6.13); a copy does not, which this kernel may change.
#[test]
fn zeros_do_not_overwrite_a_guard() {
    let (mut puppet, uffd, first, _) = two_areas();
    if puppet.try_call(libc::SYS_madvise, &[first, PAGE, MADV_GUARD_INSTALL]) < 0 {
        return; // no guards here
    }
    let partial = uffd.zeropage(first, PAGE, 0).unwrap_err();
    assert_eq!(partial.error.errno(), Some(libc::EEXIST));
    println!("a copy onto a guard: {:?}", uffd.copy(first, &content(1, 1), 0));
}

/// The kernel looks for the mapping before it looks whether something changes: so a place can seem to be gone that was only moved, and
/// whoever believes that loses its pages. How often that happens depends on luck; that it can be told apart does not.
#[test]
fn where_no_mapping_is_found_it_can_be_told_whether_it_was_moved_just_now() {
    let (mut puppet, uffd, start) = served(feature::EVENT_REMAP | feature::EVENT_UNMAP);
    let away = start + (1 << 30);
    let (mut here, mut there) = (start, away);
    let mut seen = 0;
    for _ in 0..3000 {
        let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
        puppet.begin_call(libc::SYS_mremap, &[here, 16 * PAGE, 16 * PAGE, flags, there]);
        // A hole that is filled again and again, until it is away.
        let refused = loop {
            match uffd.zeropage(here + PAGE, PAGE, 0) {
                Ok(()) => {}
                Err(partial) if partial.error.errno() == Some(libc::EEXIST) => {}
                Err(partial) => break partial.error.errno(),
            }
        };
        assert!(
            matches!(refused, Some(libc::EAGAIN | libc::ENOENT)),
            "{refused:?}"
        );
        seen += u32::from(refused == Some(libc::ENOENT));
        assert!(uffd.is_changing().unwrap(), "after {refused:?}");
        // The move, and the end of the old place: in one reading or in two.
        let mut told = 0;
        while told < 2 {
            told += uffd.events().unwrap().len();
        }
        assert_eq!(puppet.reply(), there as i64);
        (here, there) = (there, here);
    }
    println!("{seen} of 3000 moves made their place seem to be gone");
}
