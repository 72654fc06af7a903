//! What stands in the way of a virtual machine's move is said in one sentence before anything is touched, by `check` and by `migrate`; and memory
//! that the guest does not use does not travel.

use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{json, Value};
use whimbrel_qemu::qmp::Qmp;
use whimbrel_testbed::vm::{disk_image, make_tap, sound, Guest, Ram, Serial, Vm, VmOptions, Writer};
use whimbrel_testbed::{Host, Running};

use crate::errors::one_sentence;
use crate::machines::Client;
use crate::rig::{How, Rig, Side, LONG};

const VM: &str = "vm";
const REFUSED: i32 = 3;

/// A machine whose guest never runs.
fn idle() -> VmOptions {
    VmOptions {
        memory_mib: 64,
        more: vec!["-S".to_string()],
        ..VmOptions::new(VM)
    }
}

fn start(rig: &Rig, options: &VmOptions) -> Vm {
    let guest = Guest::build().unwrap();
    guest.install(&rig.hosts.beta).unwrap();
    let vm = Vm::start(&rig.hosts.alpha, &guest, options).unwrap();
    let deadline = Instant::now() + LONG;
    while !vm.qmp().exists() {
        assert!(Instant::now() < deadline, "{}", vm.running.output());
        std::thread::sleep(Duration::from_millis(5));
    }
    vm
}

/// Somebody who receives on beta, and the key.
fn receive(rig: &Rig, options: &[&str]) -> (Running, String) {
    let words = ["whimbrel", "receive", "--keep", "--listen", "10.77.0.2:7440"];
    let receive = rig
        .hosts
        .beta
        .command(words.iter().chain(options))
        .spawn()
        .unwrap();
    let line = receive.line_with("--key ", LONG).unwrap();
    let key = line.split_once("--key ").unwrap().1;
    (receive, key.split_whitespace().next().unwrap().to_string())
}

/// Both commands refuse it for the same reason; the machine and the destination are as before.
fn refused_by_both(rig: &Rig, machine: &Vm, options: &[&str], parts: &[&str]) {
    let (receive, key) = receive(rig, options);
    for command in ["check", "migrate"] {
        let line = format!("{command} qemu:/run/{VM}.qmp 10.77.0.2:7440 --key {key}");
        one_sentence(&rig.whimbrel(Side::Alpha, &line), REFUSED, parts);
    }
    assert_eq!(status(machine), "prelaunch");
    // The source is told first, and then the destination puts everything away.
    let directories =
        || std::fs::read_dir(rig.hosts.beta.path("/run/whimbrel/machines")).map_or(0, Iterator::count);
    let deadline = Instant::now() + LONG;
    while directories() + rig.processes(Side::Beta, "qemu-system-x86_64") > 0 {
        assert!(
            Instant::now() < deadline,
            "something is left: {}",
            receive.output()
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn status(machine: &Vm) -> String {
    let mut qmp = Qmp::connect(machine.qmp()).unwrap();
    let status = qmp.execute("query-status", json!({})).unwrap();
    status["status"].as_str().unwrap().to_string()
}

#[test]
fn a_machine_that_could_come_may_ask_and_come_later() {
    let rig = Rig::new(&[]);
    let _machine = start(&rig, &idle());
    let alone = rig.whimbrel(Side::Alpha, &format!("check qemu:/run/{VM}.qmp"));
    assert!(
        alone.success() && alone.output.contains("vm can move"),
        "{alone:?}"
    );
    let (mut receive, key) = receive(&rig, &[]);
    let end = format!("qemu:/run/{VM}.qmp 10.77.0.2:7440 --key {key}");
    for _ in 0..2 {
        let asked = rig.whimbrel(Side::Alpha, &format!("check {end}"));
        assert!(
            asked.success() && asked.output.contains("vm can move to 10.77.0.2:7440"),
            "{asked:?}"
        );
    }
    assert_eq!(rig.processes(Side::Beta, "qemu-system-x86_64"), 0);
    let moved = rig.whimbrel(Side::Alpha, &format!("migrate {end}"));
    assert!(moved.success(), "{moved:?}\n{}", receive.output());
    assert_eq!(rig.processes(Side::Beta, "qemu-system-x86_64"), 1);
    assert!(
        receive.output().contains("asked whether a workload could come"),
        "{}",
        receive.output()
    );
    receive.kill().unwrap();
}

#[test]
fn a_disk_that_only_the_source_sees() {
    let rig = Rig::new(&[]);
    disk_image(&rig.hosts.alpha.path("/tmp/disk"), 1).unwrap();
    let options = VmOptions {
        disk: Some(PathBuf::from("/tmp/disk")),
        ..idle()
    };
    let machine = start(&rig, &options);
    refused_by_both(&rig, &machine, &[], &["/tmp/disk", "storage that both hosts see"]);
}

#[test]
fn a_destination_of_another_kind() {
    let rig = Rig::new(&[]);
    let machine = start(&rig, &idle());
    let qemu = "qemu-system-x86_64 -nodefaults -no-user-config -display none -m 64 -qmp unix:{monitor},server=on,wait=off -S -incoming defer";
    let other_type = format!("{qemu} -machine pc");
    refused_by_both(
        &rig,
        &machine,
        &["--vm-command", &other_type],
        &["type is pc-q35", "pc-i440fx"],
    );
    let other_cpu = format!("{qemu} -machine q35 -cpu Nehalem");
    refused_by_both(
        &rig,
        &machine,
        &["--vm-command", &other_cpu],
        &["processor", "Nehalem"],
    );
    let not_waiting = "qemu-system-x86_64 -nodefaults -display none -m 64 -machine q35 -qmp unix:{monitor},server=on,wait=off -S";
    refused_by_both(
        &rig,
        &machine,
        &["--vm-command", not_waiting],
        &["does not wait", "-incoming defer"],
    );
    refused_by_both(
        &rig,
        &machine,
        &["--vm-command", "echo no such machine; exit 7"],
        &["did not start", "no such machine"],
    );
}

#[test]
fn no_monitor_or_one_that_is_taken() {
    let rig = Rig::new(&[]);
    let machine = start(&rig, &idle());
    for command in [
        "check qemu:/run/none.qmp",
        "migrate qemu:/run/none.qmp 10.77.0.2:7440 --key 00000-00000-00000-00000-000000",
    ] {
        one_sentence(
            &rig.whimbrel(Side::Alpha, command),
            REFUSED,
            &["/run/none.qmp", "-qmp unix:"],
        );
    }
    let _taken = Qmp::connect(machine.qmp()).unwrap();
    let finished = rig.whimbrel(Side::Alpha, &format!("check qemu:/run/{VM}.qmp"));
    one_sentence(&finished, REFUSED, &["somebody else is connected", "-qmp unix:"]);
}

#[test]
fn a_machine_that_qemu_moves_already() {
    let rig = Rig::new(&[]);
    let machine = start(&rig, &idle());
    let mut qmp = Qmp::connect(machine.qmp()).unwrap();
    // It does not end by itself that way.
    let stay = json!({ "capabilities": [{ "capability": "pause-before-switchover", "state": true }] });
    qmp.execute("migrate-set-capabilities", stay).unwrap();
    qmp.execute("migrate", json!({ "uri": "exec:cat > /dev/null" }))
        .unwrap();
    drop(qmp);
    for command in ["check", "migrate"] {
        let line =
            format!("{command} qemu:/run/{VM}.qmp 10.77.0.2:7440 --key 00000-00000-00000-00000-000000");
        let finished = rig.whimbrel(Side::Alpha, &line);
        one_sentence(&finished, REFUSED, &["already being migrated", "migrate_cancel"]);
    }
}

/// What a machine says to somebody who plays its network card: nothing is offered, and nothing is asked for.
fn play_vhost_user(path: PathBuf) {
    std::thread::spawn(move || {
        let mut stream = loop {
            match UnixStream::connect(&path) {
                Ok(stream) => break stream,
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        // Request, flags and size; then so many bytes (docs/interop/vhost-user.rst of QEMU).
        let mut head = [0u8; 12];
        while stream.read_exact(&mut head).is_ok() {
            let word = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap());
            let mut payload = vec![0; word(8) as usize];
            stream.read_exact(&mut payload).unwrap();
            // GET_FEATURES, GET_VRING_BASE, GET_PROTOCOL_FEATURES, GET_QUEUE_NUM want an answer.
            if matches!(word(0), 1 | 11 | 15 | 17) {
                let answer = [word(0), 1 | 4, 8, 0, 0].map(u32::to_le_bytes).concat();
                if stream.write_all(&answer).is_err() {
                    return;
                }
            }
        }
    });
}

#[test]
fn memory_that_another_process_writes() {
    let rig = Rig::new(&[]);
    let vhost = "-chardev socket,id=card,path=/run/card,server=on -netdev vhost-user,id=net1,chardev=card -device virtio-net-pci,netdev=net1,romfile=";
    let options = VmOptions {
        ram: Ram::Memfd,
        more: vhost.split(' ').chain(["-S"]).map(str::to_string).collect(),
        ..idle()
    };
    play_vhost_user(rig.hosts.alpha.path("/run/card"));
    let machine = start(&rig, &options);
    refused_by_both(&rig, &machine, &[], &["vhost-user", "-netdev"]);
}

/// Leaves the guest so many MiB.
fn balloon(monitor: &Path, mib: u64) {
    let mut qmp = Qmp::connect(monitor).unwrap();
    qmp.execute("balloon", json!({ "value": mib << 20 })).unwrap();
}

/// Bytes that a file in memory takes.
fn taken(host: &Host, path: &Path) -> u64 {
    std::fs::metadata(host.path(path)).unwrap().blocks() * 512
}

/// Of the RAM of the machine that has arrived: its file has no name any more.
fn taken_by_the_machine(rig: &Rig, side: Side) -> u64 {
    let processes = std::fs::read_dir(rig.host(side).path("/proc")).unwrap().flatten();
    let is_machine = |process: &std::fs::DirEntry| {
        std::fs::read(process.path().join("cmdline"))
            .is_ok_and(|line| line.starts_with(b"qemu-system-x86_64"))
    };
    let machine = processes.into_iter().find(is_machine).unwrap();
    let fds = std::fs::read_dir(machine.path().join("fd")).unwrap().flatten();
    let files = fds.filter(|fd| std::fs::read_link(fd.path()).is_ok_and(|link| link.starts_with("/dev/shm")));
    files
        .map(|fd| std::fs::metadata(fd.path()).unwrap().blocks() * 512)
        .max()
        .unwrap()
}

/// The monitor that whimbrel gave to the machine that has arrived.
fn second_monitor(rig: &Rig, side: Side) -> PathBuf {
    let machines = std::fs::read_dir(rig.host(side).path("/run/whimbrel/machines")).unwrap();
    machines.flatten().next().unwrap().path().join("qemu/monitor")
}

#[test]
fn memory_that_the_guest_does_not_use_does_not_travel() {
    let rig = Rig::new(&[]);
    for host in [&rig.hosts.alpha, &rig.hosts.beta] {
        make_tap(host, "tap0").unwrap();
    }
    let ram = PathBuf::from("/dev/shm/vm");
    let options = VmOptions {
        ram: Ram::SharedFile { path: ram.clone() },
        memory_mib: 384,
        balloon: true,
        tap: Some("tap0".to_string()),
        writer: Writer {
            mb: 24,
            mb_per_s: 40,
            ..VmOptions::new(VM).writer
        },
        ..VmOptions::new(VM)
    };
    let machine = start(&rig, &options);
    machine.serial.wait_tick(|tick| tick.seq > 5, LONG).unwrap();
    let before = taken(&rig.hosts.alpha, &ram);
    let mut client = Client::of(&rig);
    assert_eq!(client.ask("hold 160"), "hold 160 ok");
    let held = taken(&rig.hosts.alpha, &ram);
    assert!(held > before + (150 << 20), "{before} {held}");
    client.ask("drop");
    // Free pages that the guest reports become holes in the same way, but when it likes.
    balloon(machine.qmp(), 128);
    let deadline = Instant::now() + LONG;
    while taken(&rig.hosts.alpha, &ram) > 150 << 20 {
        let now = taken(&rig.hosts.alpha, &ram);
        assert!(
            Instant::now() < deadline,
            "{before} {held} {now}: the balloon does not grow"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    let how = |arguments: &str| How {
        workload: Some(format!("qemu:/run/{VM}.qmp")),
        ..How::with(arguments)
    };
    let record = rig.moved(Side::Alpha, &how(""));
    let pages = |record: &Value, name: &str| -> u64 {
        let rounds = record["rounds"].as_array().unwrap();
        rounds.iter().map(|round| round[name].as_u64().unwrap()).sum()
    };
    let sent = pages(&record, "pages_sent") * 4096;
    assert!(sent < 160 << 20, "{sent} bytes of {held}: {record}");
    let there = taken_by_the_machine(&rig, Side::Beta);
    assert!(there < 160 << 20, "{there} of {held}");

    // What the balloon takes after it was sent is dropped where it arrived.
    balloon(&second_monitor(&rig, Side::Beta), 384);
    let mut client = Client::of(&rig);
    // Until the balloon has let go of enough.
    while client.ask("hold 100") != "hold 100 ok" {
        assert!(Instant::now() < deadline + LONG, "the balloon does not shrink");
        std::thread::sleep(Duration::from_millis(50));
    }
    let slowly = how("--max-bandwidth 25MB/s --max-downtime 1ms --max-rounds 8");
    let mut moving = rig.begin_move(Side::Beta, &slowly);
    while !rig.has_phase(Side::Beta, "round", "ended") {
        assert!(!moving.migrate.ended(), "{}", moving.migrate.output());
        std::thread::sleep(Duration::from_millis(2));
    }
    let sent = taken_by_the_machine(&rig, Side::Alpha);
    assert!(sent > 160 << 20, "only {sent} bytes were there to be dropped");
    client.ask("drop");
    balloon(&second_monitor(&rig, Side::Beta), 128);
    let finished = moving.migrate.wait(LONG).unwrap();
    assert!(finished.success(), "{finished:?}");
    moving.receive.wait(LONG).unwrap();
    let arrived = taken_by_the_machine(&rig, Side::Alpha);
    assert!(arrived < 160 << 20, "{arrived} bytes for a machine of 128 MiB");
    assert_eq!(client.ask("still there"), "still there");
}

/// Such a QEMU may not make a userfaultfd: it is given one. It is the same user's at the destination.
#[test]
fn a_machine_of_another_user_in_a_sandbox() {
    let rig = Rig::new(&[]);
    let guest = Guest::build().unwrap();
    for host in [&rig.hosts.alpha, &rig.hosts.beta] {
        guest.install(host).unwrap();
        host.run(["chmod", "1777", "/run"]).unwrap();
    }
    let options = VmOptions::new(VM);
    let user = "setpriv --reuid=65534 --regid=65534 --clear-groups qemu-system-x86_64 \
                -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
    let words = user
        .split_whitespace()
        .map(str::to_string)
        .chain(options.arguments(&guest));
    let machine = rig.hosts.alpha.command(words).spawn().unwrap();
    let mut serial = Serial::of(&rig.hosts.alpha, VM);
    let ready = serial.wait_tick(|tick| tick.seq > 5, LONG);
    ready.unwrap_or_else(|error| panic!("{error}\n{}", machine.output()));
    let mut side = Side::Alpha;
    for strategy in ["--strategy precopy", "--strategy postcopy"] {
        let there = Serial::of(rig.host(side.other()), VM);
        let how = How {
            workload: Some(format!("qemu:/run/{VM}.qmp")),
            ..How::with(strategy)
        };
        rig.moved(side, &how);
        there.wait_tick(|tick| tick.pages > 8192, LONG).unwrap();
        sound(&serial.record(), &there.record()).unwrap_or_else(|fault| panic!("{strategy}: {fault}"));
        (side, serial) = (side.other(), there);
        let user = std::fs::metadata(second_monitor(&rig, side)).unwrap().uid();
        assert_eq!(user, 65534);
    }
}
