//! Virtual machines in the hosts, and the guest that checks itself.
#![allow(clippy::unwrap_used)] // helpers of tests

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use whimbrel_testbed::vm::{disk_image, gap, Guest, Machine, Ram, Vm, VmOptions, Writer, GUEST, GUEST_PORT};
use whimbrel_testbed::{at, TwoHosts, SHARED};

/// A boot takes two seconds; a starved machine may need much more.
const LIMIT: Duration = Duration::from_secs(60);

/// What lies between two words of a page that the workload has written.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Comes around in a second.
const BRISK: Writer = Writer {
    mb: 8,
    mb_per_s: 8,
    tick_ms: 20,
    threads: 0,
};

/// A directory of the machine, removed in the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("whimbrel-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Asks the guest, as a client does.
fn ask(hosts: &TwoHosts, line: &str) -> String {
    let mut stream = hosts.client.connect(at(GUEST, GUEST_PORT), LIMIT).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.write_all(format!("{line}\n").as_bytes()).unwrap();
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).unwrap();
    answer
}

/// Boots a machine with all devices, and looks whether guest, disk and network do what they should.
fn boots(options: VmOptions) {
    let name = options.name.clone();
    let scratch = Scratch::new(&name);
    disk_image(&scratch.0.join("disk"), 4).unwrap();
    let options = VmOptions {
        disk: Some(Path::new(SHARED).join("disk")),
        tap: Some("tap0".to_string()),
        writer: BRISK,
        ..options
    };
    let hosts = TwoHosts::builder().shared(&scratch.0).build().unwrap();
    let before = hosts.inventory().unwrap();
    let guest = Guest::build().unwrap();
    let started = Instant::now();
    let vm = Vm::start(&hosts.alpha, &guest, &options).unwrap();
    let tick = vm
        .serial
        .wait_tick(|tick| tick.seq > 20 && tick.disk_passes > 1, LIMIT)
        .unwrap_or_else(|error| panic!("{error}\n{}", vm.running.output()));
    let boot = vm.serial.ticks()[0].at.duration_since(started);
    eprintln!("{name}: the first tick came after {boot:.1?}");
    assert_eq!((tick.errors, tick.disk_errors), (0, 0), "{tick:?}");
    // The whole buffer must have been written once for anything to be checked.
    let pages = u64::from(options.writer.mb) * 256;
    let checked = vm.serial.wait_tick(|tick| tick.pages > pages, LIMIT).unwrap();
    assert_eq!(checked.errors, 0, "{checked:?}");
    assert!(vm.qmp().exists());

    hosts
        .client
        .run(["busybox", "ping", "-c", "1", "-W", "5", &GUEST.to_string()])
        .unwrap();
    assert_eq!(ask(&hosts, "hello"), "hello\n");
    assert_eq!(ask(&hosts, "hold 8"), "hold 8 ok\n");
    assert_eq!(ask(&hosts, "check"), "check 8 bad=0\n");
    assert_eq!(ask(&hosts, "drop"), "drop 8 bad=0\n");
    if options.balloon {
        gives_back_what_it_drops(&hosts, &vm);
    }
    notices_a_changed_disk(&scratch.0.join("disk"), &vm);
    if let Ram::SharedFile { path } = &options.ram {
        notices_changed_memory(&hosts.alpha.path(path), &vm);
    }
    let ticks = vm.serial.ticks();
    assert!(
        ticks
            .windows(2)
            .all(|pair| matches!(pair, [a, b] if b.seq == a.seq + 1)),
        "{ticks:?}"
    );
    vm.remove(&hosts.alpha, &options).unwrap();
    hosts.wait_as_before(&before, LIMIT).unwrap();
}

/// Memory that the guest does not use any more must leave QEMU, by way of the balloon.
fn gives_back_what_it_drops(hosts: &TwoHosts, vm: &Vm) {
    let resident_kb = || {
        let status = fs::read_to_string(format!("/proc/{}/status", vm.running.pid().unwrap())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.unwrap().split_whitespace().next().unwrap();
        number.parse::<u64>().unwrap()
    };
    assert_eq!(ask(hosts, "hold 100"), "hold 100 ok\n");
    let held = resident_kb();
    assert_eq!(ask(hosts, "drop"), "drop 100 bad=0\n");
    let deadline = Instant::now() + LIMIT;
    while resident_kb() + (50 << 10) > held {
        assert!(
            Instant::now() < deadline,
            "held {held} kB, and still {}",
            resident_kb()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The guest must notice when its disk is changed behind its back: it does read it again and again.
fn notices_a_changed_disk(disk: &Path, vm: &Vm) {
    let disk = OpenOptions::new().read(true).write(true).open(disk).unwrap();
    flip_a_bit(&disk, 2 << 20);
    vm.serial.wait_tick(|tick| tick.disk_errors > 0, LIMIT).unwrap();
}

/// The same for its memory. Several pages, since one may be just about to be written.
fn notices_changed_memory(ram: &Path, vm: &Vm) {
    let ram = OpenOptions::new().read(true).write(true).open(ram).unwrap();
    let length = ram.metadata().unwrap().len();
    let word = |at: u64| {
        let mut bytes = [0; 8];
        ram.read_exact_at(&mut bytes, at).unwrap();
        u64::from_le_bytes(bytes)
    };
    let written =
        |page: &u64| (0..3).all(|n| word(page + 8 * n + 8).wrapping_sub(word(page + 8 * n)) == STEP);
    for page in (0..length).step_by(4096).filter(written).take(5) {
        flip_a_bit(&ram, page + 2000);
    }
    vm.serial.wait_tick(|tick| tick.errors > 0, LIMIT).unwrap();
}

fn flip_a_bit(file: &File, at: u64) {
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    byte[0] ^= 1;
    file.write_all_at(&byte, at).unwrap();
}

#[test]
fn a_q35_boots_and_checks_itself() {
    boots(VmOptions {
        vcpus: 2,
        ram: Ram::SharedFile {
            path: PathBuf::from("/dev/shm/big"),
        },
        ..VmOptions::new("big")
    });
}

#[test]
fn a_microvm_boots_and_checks_itself() {
    boots(VmOptions {
        machine: Machine::Microvm,
        memory_mib: 256,
        memory_extra: 8192,
        balloon: true,
        ..VmOptions::new("small")
    });
}

#[test]
fn a_shared_disk_is_locked_between_the_hosts() {
    let scratch = Scratch::new("locks");
    disk_image(&scratch.0.join("disk"), 1).unwrap();
    let hosts = TwoHosts::builder().shared(&scratch.0).build().unwrap();
    let guest = Guest::build().unwrap();
    let options = VmOptions {
        disk: Some(Path::new(SHARED).join("disk")),
        // Its guest need not even begin.
        more: vec!["-S".to_string()],
        ..VmOptions::new("first")
    };
    let first = Vm::start(&hosts.alpha, &guest, &options).unwrap();
    first.serial.wait_connected(LIMIT).unwrap();
    let mut second = Vm::start(&hosts.beta, &guest, &options).unwrap();
    let finished = second.running.wait(LIMIT).unwrap();
    assert!(finished.output.contains("Failed to get"), "{finished:?}");
    assert!(finished.output.contains("lock"), "{finished:?}");
}

/// Has QEMU's monitor do something.
fn command(vm: &Vm, line: &str) {
    let mut monitor = UnixStream::connect(vm.qmp()).unwrap();
    monitor.set_read_timeout(Some(LIMIT)).unwrap();
    let lines = format!("{{\"execute\": \"qmp_capabilities\"}}\n{line}\n");
    monitor.write_all(lines.as_bytes()).unwrap();
    // Its greeting and events come between the answers.
    let mut answers = BufReader::new(monitor).lines().map(Result::unwrap);
    for _ in 0..2 {
        let answer = answers.find(|answer| answer.contains("\"return\"") || answer.contains("\"error\""));
        assert!(answer.as_ref().unwrap().contains("return"), "{line}: {answer:?}");
    }
}

/// QEMU's own migration is a move that is known to work: nothing may be lost in the eyes of the guest.
#[test]
fn a_machine_moved_by_qemu_itself_loses_nothing() {
    let scratch = Scratch::new("moves");
    disk_image(&scratch.0.join("disk"), 4).unwrap();
    let hosts = TwoHosts::builder().shared(&scratch.0).build().unwrap();
    let guest = Guest::build().unwrap();
    let mut options = VmOptions {
        machine: Machine::Pc,
        disk: Some(Path::new(SHARED).join("disk")),
        tap: Some("tap0".to_string()),
        writer: BRISK,
        ..VmOptions::new("moving")
    };
    let source = Vm::start(&hosts.alpha, &guest, &options).unwrap();
    source
        .serial
        .wait_tick(|tick| tick.disk_passes > 1, LIMIT)
        .unwrap();
    options.more = ["-incoming", "defer"].map(str::to_string).to_vec();
    let destination = Vm::start(&hosts.beta, &guest, &options).unwrap();
    destination.serial.wait_connected(LIMIT).unwrap();
    for (vm, what) in [(&destination, "migrate-incoming"), (&source, "migrate")] {
        let uri = r#"{"uri": "tcp:10.77.0.2:7000"}"#;
        command(vm, &format!(r#"{{"execute": "{what}", "arguments": {uri}}}"#));
    }
    let first = destination.serial.wait_tick(|_| true, LIMIT).unwrap();
    // Long enough for all memory and the whole disk to be looked at again.
    destination
        .serial
        .wait_tick(
            |tick| {
                tick.pages > first.pages + u64::from(BRISK.mb) * 256
                    && tick.disk_passes > first.disk_passes + 1
            },
            LIMIT,
        )
        .unwrap();
    assert_eq!(ask(&hosts, "hello"), "hello\n");
    let gap = gap(&source.serial.record(), &destination.serial.record()).unwrap();
    eprintln!("{gap:?}");
    assert!(gap.contiguous && gap.errors == 0, "{gap:?}");
}
