use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use super::*;

#[test]
fn offsets_are_parsed_in_both_spellings() {
    let text = "monotonic          10         5\nboottime          -3  999999999\n";
    let expected = ClockOffsets {
        monotonic_ns: 10_000_000_005,
        boottime_ns: -2_000_000_001,
    };
    assert_eq!(parse_offsets(text), Some(expected));
    assert_eq!(parse_offsets("1 10 5\n7 -3 999999999"), Some(expected));
    assert_eq!(parse_offsets("monotonic ten 5"), None);
    assert_eq!(parse_offsets("monotonic 9223372036854775807 5"), None);
}

#[test]
fn the_caller_stays_in_its_network_namespace() {
    let own = fs::read_link("/proc/thread-self/ns/net").unwrap();
    let inside = thread::spawn(|| {
        unshare(Kinds::NETWORK).unwrap();
        File::open("/proc/thread-self/ns/net").unwrap()
    });
    let namespace = inside.join().unwrap();
    let seen = in_network(namespace.as_fd(), || {
        fs::read_link("/proc/thread-self/ns/net").unwrap()
    })
    .unwrap();
    assert_ne!(seen, own);
    assert_eq!(fs::read_link("/proc/thread-self/ns/net").unwrap(), own);
}

#[test]
fn forking_with_threads_is_refused() {
    // The test harness has threads.
    let refusal = fork().unwrap_err().to_string();
    assert!(refusal.contains("cannot be forked safely"), "{refusal}");
}

#[test]
fn poll_tells_data_and_end_of_file() {
    let (mut a, b) = UnixStream::pair().unwrap();
    let (c, d) = UnixStream::pair().unwrap();
    let fds = [Some(b.as_fd()), None, Some(d.as_fd())];
    assert_eq!(poll_readable(&fds, Some(Duration::ZERO)).unwrap(), [false; 3]);
    a.write_all(b"x").unwrap();
    drop(c);
    assert_eq!(poll_readable(&fds, None).unwrap(), [true, false, true]);
    let mut one = [0];
    (&b).read_exact(&mut one).unwrap();
    assert_eq!(poll_readable(&fds, None).unwrap(), [false, false, true]);
}
