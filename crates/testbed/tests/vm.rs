//! Virtual machines in the hosts, and the guest that checks itself.
#![allow(clippy::unwrap_used)] // helpers of tests

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use whimbrel_testbed::vm::{
    disk_image, make_tap, remove_tap, Guest, Machine, Ram, Vm, VmOptions, GUEST, GUEST_PORT,
};
use whimbrel_testbed::{at, TwoHosts, SHARED};

/// A boot takes two seconds; a starved machine may need much more.
const LIMIT: Duration = Duration::from_secs(60);

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
        ..options
    };
    let hosts = TwoHosts::builder().shared(&scratch.0).build().unwrap();
    let before = hosts.inventory().unwrap();
    make_tap(&hosts.alpha, "tap0").unwrap();
    let guest = Guest::build().unwrap();
    let vm = Vm::start(&hosts.alpha, &guest, &options).unwrap();
    let tick = vm
        .serial
        .wait_tick(|tick| tick.seq > 20 && tick.disk_passes > 1, LIMIT)
        .unwrap_or_else(|error| panic!("{error}\n{}", vm.running.output()));
    let boot = vm.serial.ticks()[0].monotonic;
    eprintln!("{name}: the workload began after {boot:.1} s of the guest's time");
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
    follows_the_disk(&scratch.0.join("disk"), &vm);
    if let Ram::SharedFile { path } = &options.ram {
        fs::remove_file(hosts.alpha.path(path)).unwrap();
    }
    let ticks = vm.serial.ticks();
    assert!(
        ticks
            .windows(2)
            .all(|pair| matches!(pair, [a, b] if b.seq == a.seq + 1)),
        "{ticks:?}"
    );
    drop(vm);
    remove_tap(&hosts.alpha, "tap0").unwrap();
    for socket in [options.qmp(), options.serial()] {
        let _ = fs::remove_file(hosts.alpha.path(socket));
    }
    hosts.wait_as_before(&before, LIMIT).unwrap();
}

/// The guest must notice when its disk is changed behind its back: it does read it again and again.
fn follows_the_disk(disk: &Path, vm: &Vm) {
    let mut bytes = fs::read(disk).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    // Written in place: another file would not be the guest's disk.
    let file = fs::OpenOptions::new().write(true).open(disk).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &bytes[middle..=middle], middle as u64).unwrap();
    vm.serial.wait_tick(|tick| tick.disk_errors > 0, LIMIT).unwrap();
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
        memory_mib: 128,
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
    while !first.serial.connected() {
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut second = Vm::start(&hosts.beta, &guest, &options).unwrap();
    let finished = second.running.wait(LIMIT).unwrap();
    assert!(finished.output.contains("Failed to get"), "{finished:?}");
    assert!(finished.output.contains("lock"), "{finished:?}");
}
