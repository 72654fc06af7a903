//! Machines with KVM: their processors write memory through tables of the kernel's own, which the tracking and the waiting must reach as well.
//!
//! Not in `make test`, since not every machine has /dev/kvm: `make kvm-test`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use whimbrel_testbed::vm::{passes, Line, Machine, Pass, Ram, Serial, TinyGuest, TinyOptions, Vm};

use crate::compare::{moves_exactly, second_monitor, Paused};
use crate::rig::{How, Rig, Side, LONG};

/// The machine's name.
const VM: &str = "tiny";

/// So many passes before a move and after it.
const PASSES: u32 = 50;

const STRATEGIES: [&str; 4] = [
    "--strategy precopy",
    "--strategy postcopy",
    "--strategy hybrid",
    "--strategy postcopy --prepage demand --residual-max 3s",
];

/// Two hosts and a machine that runs on one of them.
struct Tiny {
    rig: Rig,
    side: Side,
    /// What the guest says where it is now.
    serial: Serial,
    /// As long as it has not moved.
    first: Option<Vm>,
}

impl Tiny {
    fn boot(machine: Machine, ram: Ram) -> Self {
        assert!(
            Path::new("/dev/kvm").exists(),
            "there is no /dev/kvm here: these tests need a machine with KVM (load the module kvm_intel or kvm_amd)"
        );
        let rig = Rig::new(&[]);
        let guest = TinyGuest::build().unwrap();
        guest.install(&rig.hosts.beta).unwrap();
        let options = TinyOptions {
            name: VM.to_string(),
            machine,
            ram,
            more: second_monitor(),
        };
        let mut vm = guest.start(&rig.hosts.alpha, &options).unwrap();
        let begun = after(&vm.serial, PASSES);
        begun.unwrap_or_else(|error| panic!("{error}\n{}", vm.running.output()));
        Self {
            serial: std::mem::replace(&mut vm.serial, Serial::open(Path::new("/nowhere"))),
            rig,
            side: Side::Alpha,
            first: Some(vm),
        }
    }

    /// Moves it to the other host, and looks whether the guest has noticed.
    fn moves(&mut self, arguments: &str, paused: Option<Paused>) {
        let there = self.side.other();
        let heard = Serial::of(self.rig.host(there), VM);
        let how = How {
            workload: Some(format!("qemu:/run/{VM}.qmp")),
            ..How::with(arguments)
        };
        let record = match paused {
            Some(paused) => moves_exactly(&self.rig, self.side, &how, paused),
            None => self.rig.moved(self.side, &how),
        };
        let source = std::mem::replace(&mut self.serial, heard);
        self.side = there;
        self.first = None;
        // What nobody has written does not move.
        let memory = record["memory_bytes"].as_u64();
        assert!(memory.is_some_and(|bytes| bytes < 48 << 20), "{record}");
        let last = passes(&source.record()).last().unwrap().number;
        after(&self.serial, last + PASSES).unwrap();
        let all = passes(&source.record().joined(&self.serial.record()));
        for pair in all.windows(2) {
            assert_eq!(pair[1].number, pair[0].number + 1, "{arguments}");
        }
        assert_eq!(all.last().unwrap().errors, 0, "{arguments}");
        println!(
            "{arguments}: {} passes here, {} there, downtime {} us of {} us",
            last,
            all.last().unwrap().number - last,
            record["downtime_us"],
            record["total_us"]
        );
    }
}

/// Waits until the guest has come beyond this pass.
fn after(serial: &Serial, number: u32) -> whimbrel_testbed::Result<Pass> {
    let wanted = |line: &Line| Pass::parse(&line.text).filter(|pass| pass.number > number);
    serial.wait_line(&format!("a pass after {number}"), wanted, LONG)
}

fn moves_by_every_strategy(machine: Machine, ram: Ram) {
    let mut tiny = Tiny::boot(machine, ram);
    for strategy in STRATEGIES {
        tiny.moves(strategy, None);
    }
    let meanwhile = Paused::Meanwhile(Duration::from_millis(100));
    tiny.moves("--strategy precopy", Some(meanwhile));
    tiny.moves("--strategy postcopy", Some(Paused::Before));
    tiny.moves("--strategy hybrid", Some(Paused::Before));
}

fn in_memory() -> Ram {
    Ram::SharedFile {
        path: PathBuf::from("/dev/shm/tiny"),
    }
}

#[test]
#[ignore = "needs /dev/kvm: make kvm-test"]
fn kvm_pc_with_shared_memory() {
    moves_by_every_strategy(Machine::Pc, in_memory());
}

#[test]
#[ignore = "needs /dev/kvm: make kvm-test"]
fn kvm_q35_with_private_memory() {
    moves_by_every_strategy(Machine::Q35, Ram::Private);
}
