//! Virtual machines that move: a guest that checks its own memory and its disk, ticks on its serial line, and answers clients over its network.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{json, Value};
use whimbrel_qemu::qmp::Qmp;
use whimbrel_testbed::vm::{
    disk_image, make_tap, sound, Gap, Guest, Machine, Ram, Serial, Vm, VmOptions, Writer, GUEST, GUEST_PORT,
};
use whimbrel_testbed::{at, TwoHosts, SHARED};

use crate::compare::{moves_exactly, second_monitor, Paused};
use crate::postcopy::count;
use crate::rig::{How, Rig, Side, LONG};

/// The machine's name.
pub(crate) const VM: &str = "vm";

/// Every kind of move.
const STRATEGIES: [&str; 7] = [
    "--strategy precopy",
    "--strategy postcopy",
    "--strategy hybrid",
    "--strategy stopcopy",
    "--strategy postcopy --prepage push",
    "--strategy postcopy --prepage demand --residual-max 3s",
    "--strategy hybrid --passes 2 --prepage push",
];

/// A directory of the machine for the disk, removed in the end.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("whimbrel-vm-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        disk_image(&path.join("disk"), 4).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Two hosts and a machine that runs on one of them.
pub(crate) struct Machines {
    pub(crate) rig: Rig,
    pub(crate) side: Side,
    /// What the guest says where it is now.
    pub(crate) serial: Serial,
    /// As long as it has not moved.
    pub(crate) first: Option<Vm>,
    _scratch: Scratch,
}

pub(crate) fn in_memory() -> Ram {
    Ram::SharedFile {
        path: PathBuf::from("/dev/shm/vm"),
    }
}

impl Machines {
    /// A machine with a disk and a network on alpha, which has come so far that it checks what it wrote.
    pub(crate) fn boot(options: VmOptions) -> Self {
        let scratch = Scratch::new();
        let rig = Rig::with(TwoHosts::builder().shared(&scratch.0), &[]);
        let guest = Guest::build().unwrap();
        for host in [&rig.hosts.alpha, &rig.hosts.beta] {
            make_tap(host, "tap0").unwrap();
            guest.install(host).unwrap();
        }
        let options = VmOptions {
            // All that it writes is checked about once a second.
            writer: Writer {
                mb_per_s: 16,
                ..options.writer
            },
            disk: Some(Path::new(SHARED).join("disk")),
            tap: Some("tap0".to_string()),
            ..options
        };
        let mut vm = Vm::start(&rig.hosts.alpha, &guest, &options).unwrap();
        let pages = u64::from(options.writer.mb) * 256;
        let ready = vm
            .serial
            .wait_tick(|tick| tick.pages > pages && tick.disk_passes > 0, LONG);
        ready.unwrap_or_else(|error| panic!("{error}\n{}", vm.running.output()));
        let serial = std::mem::replace(&mut vm.serial, Serial::open(Path::new("/nowhere")));
        Self {
            rig,
            side: Side::Alpha,
            serial,
            first: Some(vm),
            _scratch: scratch,
        }
    }

    pub(crate) fn how(&self, arguments: &str) -> How {
        How {
            workload: Some(format!("qemu:/run/{VM}.qmp")),
            ..How::with(arguments)
        }
    }

    pub(crate) fn qmp(&self) -> Qmp {
        Qmp::connect(&self.rig.host(self.side).path(format!("/run/{VM}.qmp"))).unwrap()
    }

    /// A client of the guest.
    pub(crate) fn client(&self) -> Client {
        Client::of(&self.rig)
    }

    /// Moves it to the other host, and looks whether the guest has seen anything of it but a pause.
    pub(crate) fn moves(&mut self, arguments: &str) -> Gap {
        self.moves_by(arguments, |rig, side, how| rig.moved(side, how))
    }

    /// The same, and looks at every page.
    fn moves_exactly(&mut self, arguments: &str, paused: Paused) {
        self.moves_by(arguments, |rig, side, how| moves_exactly(rig, side, how, paused));
    }

    fn moves_by(&mut self, arguments: &str, by: impl FnOnce(&Rig, Side, &How) -> Value) -> Gap {
        let there = self.side.other();
        let heard = Serial::of(self.rig.host(there), VM);
        let record = by(&self.rig, self.side, &self.how(arguments));
        assert!(record["downtime_us"].as_u64().is_some(), "{record}");
        if std::env::var_os("WHIMBREL_TEST_RECORD").is_some() {
            println!("{record}");
        }
        let source = std::mem::replace(&mut self.serial, heard);
        self.side = there;
        self.first = None;
        let before = source.ticks().last().unwrap().clone();
        let gone_on = |tick: &whimbrel_testbed::vm::Tick| {
            tick.pages > before.pages + 4096 && tick.disk_passes > before.disk_passes + 1
        };
        self.serial.wait_tick(gone_on, LONG).unwrap();
        let seen = sound(&source.record(), &self.serial.record());
        let seen = seen.unwrap_or_else(|fault| panic!("{arguments}: {fault}"));
        println!(
            "{arguments}: gap {:.0} ms, the guest's {:.0} ms, downtime {} us of {} us",
            seen.ms, seen.guest_ms, record["downtime_us"], record["total_us"]
        );
        seen
    }
}

/// One connection to the guest that lasts.
pub(crate) struct Client(BufReader<TcpStream>);

impl Client {
    /// Of the guest, wherever it is.
    pub(crate) fn of(rig: &Rig) -> Self {
        let stream = rig.hosts.client.connect(at(GUEST, GUEST_PORT), LONG).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        Self(BufReader::new(stream))
    }

    pub(crate) fn ask(&mut self, line: &str) -> String {
        let stream = self.0.get_mut();
        stream.write_all(format!("{line}\n").as_bytes()).unwrap();
        let mut answer = String::new();
        self.0.read_line(&mut answer).unwrap();
        answer.trim_end().to_string()
    }
}

/// So many moves to and fro, by each strategy in turn; then a reset of the machine, and a move right behind it.
fn moves_to_and_fro(options: VmOptions, moves: usize) {
    let mut machines = Machines::boot(options);
    let mut client = machines.client();
    assert_eq!(client.ask("hold 16"), "hold 16 ok");
    for strategy in STRATEGIES.iter().cycle().take(moves) {
        machines.moves(strategy);
        assert_eq!(client.ask("check"), "check 16 bad=0");
    }
    reboots(machines);
}

/// The firmware must be there, too, also at another host than where it begins.
fn reboots(machines: Machines) {
    let boot = machines.serial.ticks().last().unwrap().boot.clone();
    machines.qmp().execute("system_reset", json!({})).unwrap();
    let serial = Serial::of(machines.rig.host(machines.side.other()), VM);
    machines.rig.moved(machines.side, &machines.how(""));
    let again = serial.wait_tick(|tick| tick.boot != boot && tick.seq > 10, LONG);
    assert_eq!(again.unwrap().errors, 0);
}

#[test]
fn a_machine_with_shared_memory_moves_by_every_strategy() {
    let options = VmOptions {
        ram: in_memory(),
        ..VmOptions::new(VM)
    };
    moves_to_and_fro(options, count(STRATEGIES.len(), 20 * STRATEGIES.len()));
}

#[test]
fn a_microvm_with_private_memory_and_two_processors_moves_by_every_strategy() {
    let options = VmOptions {
        machine: Machine::Microvm,
        vcpus: 2,
        ram: Ram::Private,
        ..VmOptions::new(VM)
    };
    moves_to_and_fro(options, count(4, 20 * STRATEGIES.len()));
}

/// What the two above leave out, in `make soak`: the other combinations of machine, memory and number of processors.
#[test]
fn other_machines_move_by_every_strategy() {
    let others = [
        (Machine::Pc, Ram::Memfd, 2),
        (Machine::Q35, in_memory(), 2),
        (Machine::Q35, Ram::Private, 1),
        (Machine::Q35, Ram::Private, 2),
        (Machine::Microvm, in_memory(), 1),
        (Machine::Microvm, in_memory(), 2),
        (Machine::Microvm, Ram::Private, 1),
    ];
    for (machine, ram, vcpus) in others.into_iter().take(count(1, 7)) {
        println!("{machine:?}, {ram:?}, {vcpus} processors");
        let options = VmOptions {
            machine,
            vcpus,
            ram,
            ..VmOptions::new(VM)
        };
        moves_to_and_fro(options, count(1, 20 * STRATEGIES.len()));
    }
}

#[test]
fn no_byte_of_a_machine_is_lost_on_the_way() {
    for (ram, lazily) in [
        (in_memory(), "--strategy postcopy"),
        (Ram::Private, "--strategy hybrid"),
    ] {
        let mut machines = Machines::boot(VmOptions {
            ram,
            more: second_monitor(),
            ..VmOptions::new(VM)
        });
        let meanwhile = Paused::Meanwhile(Duration::from_millis(300));
        machines.moves_exactly("--strategy precopy", meanwhile);
        machines.moves_exactly(lazily, Paused::Before);
    }
}
