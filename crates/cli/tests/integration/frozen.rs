//! What clients send while the workload is frozen arrives when it runs again, without anybody sending it a second time.

use std::net::UdpSocket;

use whimbrel_testbed::{programs, Host};

use crate::clients::{echo, same, Lines};
use crate::rig::{How, Moving, Rig, Side, ADDRESS, LONG};

/// Longer than a frame, so that one segment stands for many until the last moment; no more than may be sent at once.
const TEXT_BYTES: usize = 10_000;

/// Lets the kernel of a client send a segment again after a minute and not before. Whoever waits less has been answered.
fn make_patient(client: &Host) {
    let route = "ip route change 10.77.0.0/24 dev eth0 rto_min 60s";
    let tail_loss_probes = "echo 0 > /proc/sys/net/ipv4/tcp_early_retrans";
    client
        .run(["sh", "-c", &format!("{route} && {tail_loss_probes}")])
        .unwrap();
}

/// A client that says everything once.
struct Caller(UdpSocket);

impl Caller {
    fn new(from: &Host) -> Self {
        let socket = from.in_network(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
        socket.connect(ADDRESS).unwrap();
        socket.set_read_timeout(Some(LONG)).unwrap();
        Self(socket)
    }

    fn say(&self, text: &str) {
        self.0.send(text.as_bytes()).unwrap();
    }

    /// The network may double a datagram, so older answers may still come.
    fn hear(&self, text: &str) {
        let mut buffer = [0; 100];
        while self.0.recv(&mut buffer).unwrap() != text.len() || !buffer.starts_with(text.as_bytes()) {}
    }
}

/// Clients of every kind: beyond the switch, on the source, on the destination.
struct Everybody {
    /// A lasting connection from beyond the switch.
    lines: Option<Lines>,
    spoken: u64,
    callers: [Caller; 3],
}

impl Everybody {
    fn new(rig: &Rig) -> Self {
        make_patient(&rig.hosts.client);
        let mut lines = Lines::connect(&rig.hosts.client);
        // When it answers, it is there for datagrams as well.
        echo(&mut lines, 0).unwrap();
        let hosts = [&rig.hosts.client, &rig.hosts.alpha, &rig.hosts.beta];
        Self {
            lines: Some(lines),
            spoken: 1,
            callers: hosts.map(Caller::new),
        }
    }

    fn say(&mut self) {
        if let Some(lines) = &mut self.lines {
            lines.send(&("x".repeat(TEXT_BYTES) + "\n")).unwrap();
        }
        for caller in &self.callers {
            caller.say(&format!("call {}", self.spoken));
        }
    }

    fn hear(&mut self) {
        let number = self.spoken;
        if let Some(lines) = &mut self.lines {
            let expected = format!("{number} {}", "x".repeat(TEXT_BYTES));
            same(&lines.line().unwrap(), &expected).unwrap();
        }
        for caller in &self.callers {
            caller.hear(&format!("call {number}"));
        }
        self.spoken += 1;
    }

    fn talk(&mut self) {
        self.say();
        self.hear();
    }

    /// They have gone, and nobody had to send anything again.
    fn check(self) {
        let lines = self.lines.iter();
        assert_eq!(lines.map(Lines::retransmitted).sum::<u32>(), 0);
    }
}

/// Begins a move and speaks to the frozen workload. The source's controller goes on after `then`.
fn speak_while_it_is_frozen(
    rig: &Rig,
    side: Side,
    everybody: &mut Everybody,
    then: impl FnOnce(&mut Moving),
) -> Moving {
    everybody.talk();
    let how = How {
        pause_source_at: Some("load"),
        ..How::default()
    };
    let mut moving = rig.begin_move(side, &how);
    moving.migrate.wait_stopped(LONG).unwrap();
    everybody.say();
    then(&mut moving);
    moving.migrate.go_on().unwrap();
    everybody.hear();
    moving
}

#[test]
fn what_is_sent_to_a_frozen_workload_arrives_where_it_goes() {
    let rig = Rig::new(&[programs::c("echo").unwrap()]);
    rig.serve("echo 7000");
    let everybody = Everybody::new(&rig);
    rig.finish(move_around(&rig, everybody));
}

#[test]
fn a_workload_without_connections_is_announced_before_its_source_hears_of_it() {
    let rig = Rig::new(&[programs::c("echo").unwrap()]);
    rig.serve("echo 7000");
    let mut everybody = Everybody::new(&rig);
    // A connection asks its peer where it stands, from which all learn where the workload is now.
    everybody.lines = None;
    rig.finish(move_around(&rig, everybody));
}

/// There and back, twice.
fn move_around(rig: &Rig, mut everybody: Everybody) -> Side {
    let mut side = Side::Alpha;
    for _ in 0..4 {
        let mut moving = speak_while_it_is_frozen(rig, side, &mut everybody, |_| ());
        moving.migrate.wait_success(LONG).unwrap();
        moving.receive.wait_success(LONG).unwrap();
        side = side.other();
    }
    everybody.talk();
    everybody.check();
    side
}

#[test]
fn what_is_sent_to_a_frozen_workload_that_stays_arrives_as_well() {
    let rig = Rig::new(&[programs::c("echo").unwrap()]);
    rig.serve("echo 7000");
    let mut everybody = Everybody::new(&rig);
    for _ in 0..2 {
        let mut moving = speak_while_it_is_frozen(&rig, Side::Alpha, &mut everybody, |moving| {
            moving.receive.kill().unwrap();
        });
        let finished = moving.migrate.wait(LONG).unwrap();
        assert_eq!(finished.code, Some(1), "{finished:?}");
        rig.nothing_left(&[Side::Beta]).unwrap();
    }
    everybody.talk();
    everybody.check();
    rig.finish(Side::Alpha);
}
