//! The relay: what goes in comes out, in order and whole, unless it is cut.
#![allow(clippy::unwrap_used)]

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use whimbrel_testbed::{at, Relay, TwoHosts, BETA, CLIENT};

const LIMIT: Duration = Duration::from_secs(60);

/// Longer than any test.
const HOUR: Duration = Duration::from_secs(3600);

struct Setting {
    relay: Relay,
    listener: TcpListener,
    hosts: TwoHosts,
}

impl Setting {
    fn new(delay: Duration) -> Self {
        let hosts = TwoHosts::builder().unshaped().build().unwrap();
        let listener = hosts.beta.listen(at(BETA, 7000)).unwrap();
        let relay = Relay::start(&hosts.client, at(CLIENT, 0), at(BETA, 7000), delay).unwrap();
        Self {
            relay,
            listener,
            hosts,
        }
    }

    /// A connection from alpha to beta through the relay: both its ends.
    fn connect(&self) -> (TcpStream, TcpStream) {
        let near = self.hosts.alpha.connect(self.relay.address(), LIMIT).unwrap();
        let (far, _) = self.listener.accept().unwrap();
        for end in [&near, &far] {
            end.set_read_timeout(Some(LIMIT)).unwrap();
        }
        (near, far)
    }
}

/// Bytes whose order shows, and sizes from 1 to 100,000.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn pieces(seed: u64) -> Vec<Vec<u8>> {
        let mut random = Self(seed);
        let piece = |_| {
            let length = match random.next() % 4 {
                0 => 1 + random.next() % 100_000,
                _ => 1 + random.next() % 100,
            };
            (0..length).map(|_| random.next() as u8).collect()
        };
        (0..400).map(piece).collect()
    }
}

#[test]
fn an_echo_arrives_whole_and_in_order() {
    for delay in [0, 100, 2500].map(Duration::from_micros) {
        let setting = Setting::new(delay);
        let exchange = |seed| {
            let (mut near, mut far) = setting.connect();
            let pieces = Random::pieces(seed);
            let expected = pieces.concat();
            let mut sender = near.try_clone().unwrap();
            thread::spawn(move || {
                let mut buffer = [0; 5000];
                while let Ok(count @ 1..) = far.read(&mut buffer) {
                    far.write_all(&buffer[..count]).unwrap();
                }
                far.shutdown(Shutdown::Write).unwrap();
            });
            thread::spawn(move || {
                pieces.iter().for_each(|piece| sender.write_all(piece).unwrap());
                sender.shutdown(Shutdown::Write).unwrap();
            });
            let mut heard = Vec::new();
            near.read_to_end(&mut heard).unwrap();
            assert_eq!(heard.len(), expected.len());
            assert!(heard == expected, "the bytes differ");
            expected.len() as u64
        };
        let sent: u64 = thread::scope(|scope| {
            let exchanges = [1, 2, 3].map(|seed| scope.spawn(move || exchange(seed)));
            exchanges.map(|one| one.join().unwrap()).iter().sum()
        });
        // The last bytes may be here before they are counted, but are counted before the connection is gone.
        let deadline = Instant::now() + LIMIT;
        while setting.relay.connections() > 0 {
            assert!(Instant::now() < deadline, "connections that are over stay");
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(setting.relay.forwarded(), 2 * sent);
    }
}

#[test]
fn both_ends_see_a_cut_and_nobody_gets_in_until_it_is_mended() {
    let setting = Setting::new(Duration::ZERO);
    let (mut near, mut far) = setting.connect();
    near.write_all(b"hello").unwrap();
    far.read_exact(&mut [0; 5]).unwrap();
    assert_eq!(setting.relay.connections(), 1);
    setting.relay.cut();
    assert_eq!(setting.relay.connections(), 0);
    for end in [&mut near, &mut far] {
        let error = end.read(&mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    let connect = || setting.hosts.alpha.connect(setting.relay.address(), LIMIT);
    assert!(connect().is_err(), "it is cut");
    setting.relay.mend();
    let (mut near, mut far) = setting.connect();
    near.write_all(b"again").unwrap();
    let mut heard = [0; 5];
    far.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"again");
}

#[test]
fn a_reset_is_passed_on() {
    let setting = Setting::new(Duration::from_micros(100));
    let (near, mut far) = setting.connect();
    far.write_all(b"nobody reads this").unwrap();
    near.peek(&mut [0; 1]).unwrap();
    // What closes with something unread resets (RFC 2525, 2.17).
    drop(near);
    let error = far.read(&mut [0; 1]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_target_that_refuses_resets() {
    let setting = Setting::new(Duration::ZERO);
    let relay = Relay::start(
        &setting.hosts.client,
        at(CLIENT, 0),
        at(BETA, 7001),
        Duration::ZERO,
    )
    .unwrap();
    // The reset may come before the connecting end has looked.
    let Ok(mut near) = setting.hosts.alpha.connect(relay.address(), LIMIT) else {
        return;
    };
    near.set_read_timeout(Some(LIMIT)).unwrap();
    let error = near.read(&mut [0; 1]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_stall_passes_nothing_and_loses_nothing() {
    let setting = Setting::new(Duration::ZERO);
    let (mut near, mut far) = setting.connect();
    near.write_all(b"before").unwrap();
    far.read_exact(&mut [0; 6]).unwrap();
    setting.relay.stall(HOUR);
    near.write_all(b"near").unwrap();
    far.write_all(b"far").unwrap();
    // Both have arrived at the relay, for all that the kernels know, and would be passed on now.
    for end in [&near, &far] {
        end.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    }
    for end in [&mut near, &mut far] {
        let error = end.read(&mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        end.set_read_timeout(Some(LIMIT)).unwrap();
    }
    assert_eq!((setting.relay.forwarded(), setting.relay.connections()), (6, 1));
    setting.relay.mend();
    let mut heard = [[0; 4]; 2];
    far.read_exact(&mut heard[0]).unwrap();
    near.read_exact(&mut heard[1][..3]).unwrap();
    assert_eq!(heard, [*b"near", *b"far\0"]);
}

#[test]
fn a_sender_without_a_receiver_is_slowed_down() {
    let setting = Setting::new(Duration::from_micros(2500));
    let (mut near, mut far) = setting.connect();
    near.set_nonblocking(true).unwrap();
    let piece = vec![7; 1 << 20];
    let (mut sent, mut full) = (0, 0);
    // Full for a while means that nothing moves any more.
    while full < 20 {
        match near.write(&piece) {
            Ok(count) => (sent, full) = (sent + count, 0),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                full += 1;
                thread::sleep(Duration::from_millis(10));
            }
        }
        assert!(sent < 100 << 20, "it takes all that there is");
    }
    let reader = thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        let mut heard = 0;
        while let Ok(count @ 1..) = far.read(&mut buffer) {
            assert!(buffer[..count].iter().all(|&byte| byte == 7));
            heard += count;
        }
        heard
    });
    near.shutdown(Shutdown::Write).unwrap();
    assert_eq!(reader.join().unwrap(), sent);
}
