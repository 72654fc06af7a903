//! Memory and descriptors of other processes.
#![allow(clippy::unwrap_used)]

mod puppet;

use std::os::fd::AsFd;
use std::time::Duration;

use puppet::{Puppet, PAGE};
use whimbrel_kernel::memory::{self, MemFile};
use whimbrel_kernel::pidfd;

#[test]
fn many_spans_are_read_and_written_in_order() {
    let mut puppet = Puppet::new();
    let start = puppet.map(3000 * PAGE);
    let spans: Vec<memory::Span> = (0..3000).map(|page| (start + page * PAGE + 1, 3)).collect();
    let data: Vec<u8> = (0..9000u32).map(|index| index as u8).collect();
    assert_eq!(memory::writev(puppet.pid, &spans, &data).unwrap(), 9000);
    let mut back = vec![0; 9000];
    assert_eq!(memory::readv(puppet.pid, &spans, &mut back).unwrap(), 9000);
    assert_eq!(back, data);
}

#[test]
fn a_transfer_tells_how_far_it_got() {
    let mut puppet = Puppet::new();
    let start = puppet.map(4 * PAGE);
    puppet.call(libc::SYS_munmap, &[start + 2 * PAGE, PAGE]);
    let bytes = PAGE as usize;
    let spans: Vec<memory::Span> = (0..4).map(|page| (start + page * PAGE, bytes)).collect();
    let mut buffer = vec![1; 4 * bytes];
    assert_eq!(memory::readv(puppet.pid, &spans, &mut buffer).unwrap(), 2 * bytes);
    assert_eq!(memory::writev(puppet.pid, &spans, &buffer).unwrap(), 2 * bytes);
    assert_eq!(
        memory::readv(puppet.pid, &spans[2..], &mut buffer[..2 * bytes]).unwrap(),
        0
    );
    let error = memory::read(puppet.pid, start + PAGE, &mut buffer).unwrap_err();
    assert_eq!(error.errno(), Some(libc::EFAULT));
    assert!(error.to_string().contains("only 4096 are accessible"), "{error}");
    assert!(
        memory::readv(puppet.pid, &spans, &mut buffer[1..]).is_err(),
        "lengths differ"
    );
    assert!(memory::readv(puppet.pid, &[(start, usize::MAX), (start, 2)], &mut buffer[..1]).is_err());
    assert_eq!(
        memory::read_u64(i32::MAX, start).unwrap_err().errno(),
        Some(libc::ESRCH)
    );
}

#[test]
fn the_memory_file_goes_through_protections() {
    let mut puppet = Puppet::new();
    let start = puppet.map(PAGE);
    puppet.store(start, 5);
    puppet.call(libc::SYS_mprotect, &[start, PAGE, 0]);
    assert!(memory::read_u64(puppet.pid, start).is_err());
    let file = MemFile::open(puppet.pid).unwrap();
    let mut word = [0; 8];
    file.read(start, &mut word).unwrap();
    assert_eq!(u64::from_ne_bytes(word), 5);
    file.write(start, &6u64.to_ne_bytes()).unwrap();
    puppet.call(libc::SYS_mprotect, &[start, PAGE, libc::PROT_READ as u64]);
    assert_eq!(puppet.load(start), 6);
    let error = file.read(start + (1 << 40), &mut word).unwrap_err();
    assert_eq!(error.errno(), Some(libc::EIO), "{error}");
}

#[test]
fn words_travel_as_numbers() {
    let mut puppet = Puppet::new();
    let start = puppet.map(PAGE);
    memory::write_words(puppet.pid, start, &[1, u64::MAX, 3]).unwrap();
    assert_eq!(memory::read_words(puppet.pid, start).unwrap(), [1, u64::MAX, 3]);
    assert_eq!(memory::read_u32(puppet.pid, start + 8).unwrap(), u32::MAX);
}

#[test]
fn a_descriptor_of_a_process_is_taken_over_and_its_end_is_told() {
    let mut puppet = Puppet::new();
    let process = pidfd::open(puppet.pid).unwrap();
    let inside = puppet.call(libc::SYS_eventfd2, &[42, 0]) as i32;
    let fd = pidfd::getfd(process.as_fd(), inside).unwrap();
    assert_eq!(
        whimbrel_kernel::fd::read(fd.as_fd(), 8).unwrap(),
        42u64.to_ne_bytes()
    );
    assert_eq!(
        pidfd::getfd(process.as_fd(), 54321).unwrap_err().errno(),
        Some(libc::EBADF)
    );
    assert!(!pidfd::wait_exit(process.as_fd(), Duration::ZERO).unwrap());
    pidfd::send_signal(process.as_fd(), libc::SIGKILL).unwrap();
    assert!(pidfd::wait_exit(process.as_fd(), Duration::from_secs(10)).unwrap());
    puppet.wait();
    assert_eq!(
        pidfd::send_signal(process.as_fd(), 0).unwrap_err().errno(),
        Some(libc::ESRCH)
    );
}
