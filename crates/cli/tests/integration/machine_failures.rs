//! Virtual machines whose move goes wrong: the guest runs in exactly one place, with its memory, its disk and its ticks right, and nothing
//! is left where it does not run.
//!
//! `WHIMBREL_TEST_PHASE=load` plays that phase alone.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{json, Value};
use whimbrel_engine::observer::{Phase, DESTINATION_PHASES, SOURCE_PHASES};
use whimbrel_qemu::machine::locked_files;
use whimbrel_testbed::vm::{sound, Machine, Ram, Serial, Tick, VmOptions};
use whimbrel_testbed::Running;

use crate::machines::{in_memory, Client, Machines, VM};
use crate::postcopy::{count, kill_guardians, wait_until_listed, Random};
use crate::rig::{How, Moving, Side, LONG};

/// Slow enough that something can happen before the last page has come.
const SLOWLY: &str = "--strategy postcopy --max-residual-bandwidth 25MB/s --link-timeout 3s";

/// When it may happen after the switch-over.
const SOON: Duration = Duration::from_millis(800);

/// How long a machine may take to go on after its controller was killed. No time limit of a monitor fits in.
const SETTLES: Duration = Duration::from_secs(20);

/// Small, and quick with its disk.
fn small() -> VmOptions {
    VmOptions {
        memory_mib: 128,
        disk_mb_per_s: 32,
        ..VmOptions::new(VM)
    }
}

fn shared() -> VmOptions {
    VmOptions {
        ram: in_memory(),
        ..small()
    }
}

fn private() -> VmOptions {
    VmOptions {
        machine: Machine::Microvm,
        ram: Ram::Private,
        ..small()
    }
}

/// A machine with a client, and with settings of its user's.
struct Guarded {
    machines: Machines,
    client: Client,
    settings: [Value; 2],
}

impl Guarded {
    fn boot(options: VmOptions) -> Self {
        let machines = Machines::boot(options);
        let mut client = machines.client();
        assert_eq!(client.ask("hold 16"), "hold 16 ok");
        let mut qmp = machines.qmp();
        let on = json!({ "capabilities": [{ "capability": "xbzrle", "state": true }] });
        qmp.execute("migrate-set-capabilities", on).unwrap();
        let slow = json!({ "max-bandwidth": 123_456_789, "downtime-limit": 77 });
        qmp.execute("migrate-set-parameters", slow).unwrap();
        drop(qmp);
        let settings = settings(&machines);
        Self {
            machines,
            client,
            settings,
        }
    }

    /// The machine runs on where it is, as if nobody had ever tried to move it.
    fn runs_on(&mut self) {
        let machines = &self.machines;
        let before = machines.serial.ticks().last().unwrap().clone();
        goes_on(&machines.serial, &before);
        follow(&machines.serial.ticks());
        let pid = machines.first.as_ref().unwrap().running.pid().unwrap();
        let locks = locked_files(pid as i32).unwrap();
        assert_eq!(locks.len(), 1, "its disk is locked: {locks:?}");
        assert_eq!(settings(machines), self.settings);
        assert_eq!(self.client.ask("check"), "check 16 bad=0");
        is_clean(machines, machines.side.other());
    }

    /// It has moved: the guest has seen nothing of it but a pause.
    fn runs_there(&mut self, heard: Serial) {
        let machines = &mut self.machines;
        let source = std::mem::replace(&mut machines.serial, heard);
        machines.side = machines.side.other();
        machines.first = None;
        let before = source.ticks().last().unwrap().clone();
        goes_on(&machines.serial, &before);
        sound(&source.record(), &machines.serial.record()).unwrap();
        assert_eq!(self.client.ask("check"), "check 16 bad=0");
        is_clean(machines, machines.side.other());
    }

    fn there(&self) -> Serial {
        Serial::of(self.machines.rig.host(self.machines.side.other()), VM)
    }
}

/// Memory and disk are checked again.
fn goes_on(serial: &Serial, before: &Tick) {
    let gone_on = |tick: &Tick| tick.pages > before.pages + 512 && tick.disk_passes > before.disk_passes + 1;
    let tick = serial.wait_tick(gone_on, SETTLES).unwrap();
    assert_eq!((tick.errors, tick.disk_errors), (0, 0), "{tick:?}");
}

/// Every tick came once.
fn follow(ticks: &[Tick]) {
    for pair in ticks.windows(2) {
        assert_eq!(pair[0].seq + 1, pair[1].seq, "{pair:?}");
        assert_eq!(pair[0].boot, pair[1].boot, "{pair:?}");
    }
}

fn settings(machines: &Machines) -> [Value; 2] {
    let mut qmp = machines.qmp();
    let running = qmp.execute("query-status", json!({})).unwrap();
    assert_eq!(running["running"], true, "{running}");
    ["query-migrate-parameters", "query-migrate-capabilities"]
        .map(|command| qmp.execute(command, json!({})).unwrap())
}

/// No QEMU, nobody of ours, and no file of a machine. What only waits for the next command to be removed is.
fn is_clean(machines: &Machines, side: Side) {
    let deadline = Instant::now() + SETTLES;
    loop {
        let left = left(machines, side);
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "left behind at {side:?}: {left:?}");
        thread::sleep(Duration::from_millis(100));
    }
}

fn left(machines: &Machines, side: Side) -> Vec<String> {
    let rig = &machines.rig;
    drop(rig.whimbrel(side, "ps"));
    let mut left: Vec<String> = ["qemu-system-x86_64", "whimbrel"]
        .into_iter()
        .filter(|program| rig.processes(side, program) > 0)
        .map(str::to_string)
        .collect();
    for directory in ["/run/whimbrel/machines", "/run/whimbrel/journal", "/dev/shm"] {
        let entries = fs::read_dir(rig.host(side).path(directory)).into_iter().flatten();
        let names = entries.flatten().map(|entry| entry.path().display().to_string());
        // The user's own file.
        left.extend(names.filter(|name| !name.ends_with("/dev/shm/vm")));
    }
    left
}

/// Kills every QEMU of a host.
fn kill_machines(machines: &Machines, side: Side) {
    let script = "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline 2>/dev/null | grep -q '^[^ ]*qemu-[s]ystem' && kill -9 ${p#/proc/}; done; true";
    machines.rig.host(side).run(["sh", "-c", script]).unwrap();
}

/// Whose controller stops itself where.
#[derive(Clone, Copy, Debug, PartialEq)]
enum At {
    Source(Phase),
    Destination(Phase),
}

impl At {
    fn phase(self) -> Phase {
        match self {
            At::Source(phase) | At::Destination(phase) => phase,
        }
    }

    fn is_wanted(self) -> bool {
        let only = std::env::var("WHIMBREL_TEST_PHASE").ok();
        only.is_none_or(|only| only == self.phase().name())
    }

    fn how(self, machines: &Machines, arguments: &str) -> How {
        let phase = Some(self.phase().name());
        let how = How {
            receive_arguments: How::impatient().receive_arguments,
            ..machines.how(&format!("{arguments} --link-timeout 3s"))
        };
        match self {
            At::Source(_) => How {
                pause_source_at: phase,
                ..how
            },
            At::Destination(_) => How {
                pause_destination_at: phase,
                ..how
            },
        }
    }

    /// Begins a move and waits until the controller has stopped itself.
    fn begin(self, machines: &Machines, arguments: &str) -> Moving {
        println!("{self:?} {arguments}");
        let moving = machines
            .rig
            .begin_move(machines.side, &self.how(machines, arguments));
        let Moving { receive, migrate } = &moving;
        let (stopped, other) = match self {
            At::Source(_) => (migrate, receive),
            At::Destination(_) => (receive, migrate),
        };
        let stops = stopped.wait_stopped(LONG);
        stops.unwrap_or_else(|error| panic!("{error}\n{}\n{}", stopped.output(), other.output()));
        moving
    }

    fn stopped(self, moving: &mut Moving) -> &mut Running {
        match self {
            At::Source(_) => &mut moving.migrate,
            At::Destination(_) => &mut moving.receive,
        }
    }
}

/// Kills the controller at each of these places, before the commit.
fn killed_at(guarded: &mut Guarded, places: impl IntoIterator<Item = At>, arguments: &str) {
    for place in places.into_iter().filter(|place| place.is_wanted()) {
        let mut moving = place.begin(&guarded.machines, arguments);
        place.stopped(&mut moving).kill().unwrap();
        if let At::Destination(_) = place {
            let source = moving.migrate.wait(LONG).unwrap();
            assert_eq!(source.code, Some(1), "{source:?}");
        }
        drop(moving);
        guarded.runs_on();
    }
}

fn before_the_commit(phase: &Phase) -> bool {
    !matches!(phase, Phase::Release | Phase::Start | Phase::Settle)
}

#[test]
fn a_machine_runs_on_when_a_controller_is_killed_before_the_commit() {
    let mut guarded = Guarded::boot(shared());
    let source = SOURCE_PHASES.into_iter().filter(before_the_commit);
    killed_at(&mut guarded, source.map(At::Source), "--strategy precopy");
    let destination = DESTINATION_PHASES.into_iter().filter(before_the_commit);
    killed_at(
        &mut guarded,
        destination.map(At::Destination),
        "--strategy precopy",
    );
    // With pages that would have come later: the machine waits for some of them when it is ended.
    let delicate = [At::Source(Phase::Load), At::Destination(Phase::Commit)];
    killed_at(&mut guarded, delicate, "--strategy postcopy");
    guarded.machines.moves("--strategy precopy");
}

#[test]
fn a_machine_with_private_memory_runs_on_when_a_controller_is_killed_before_the_commit() {
    let mut guarded = Guarded::boot(private());
    let delicate = [
        At::Source(Phase::LastScan),
        At::Source(Phase::Load),
        At::Destination(Phase::Load),
        At::Destination(Phase::Commit),
        At::Source(Phase::Capture),
        At::Source(Phase::LastPages),
    ];
    let delicate = delicate.into_iter().take(count(4, 6));
    killed_at(&mut guarded, delicate, "--strategy precopy");
    the_destinations_qemu_dies(&mut guarded);
    guarded.machines.moves("--strategy precopy");
}

/// After the commit the machine is the destination's: its guardian starts it.
#[test]
fn a_machine_starts_when_the_destination_is_killed_after_the_commit() {
    let mut guarded = Guarded::boot(shared());
    for phase in [Phase::Start, Phase::Settle] {
        for strategy in ["--strategy precopy", "--strategy postcopy"] {
            let heard = guarded.there();
            let place = At::Destination(phase);
            let mut moving = place.begin(&guarded.machines, strategy);
            moving.receive.kill().unwrap();
            moving.migrate.wait_success(LONG).unwrap();
            drop(moving);
            guarded.runs_there(heard);
        }
    }
}

#[test]
fn a_machine_that_is_cancelled_or_loses_its_destination_runs_on() {
    let mut guarded = Guarded::boot(shared());
    let phases = [Phase::Round, Phase::LastPages, Phase::Capture];
    for phase in phases.into_iter().take(count(2, 3)) {
        let mut moving = At::Source(phase).begin(&guarded.machines, "--strategy precopy");
        moving.migrate.interrupt().unwrap();
        moving.migrate.go_on().unwrap();
        let finished = moving.migrate.wait(LONG).unwrap();
        assert_eq!(finished.code, Some(130), "{finished:?}");
        drop(moving);
        guarded.runs_on();
    }
    has_its_disk_again(&mut guarded);
    the_destinations_qemu_dies(&mut guarded);
    guarded.machines.moves("--strategy postcopy");
}

/// The destination has the disk's lock already, and does not know yet that it has lost the machine.
fn has_its_disk_again(guarded: &mut Guarded) {
    let mut moving = At::Source(Phase::Load).begin(&guarded.machines, "--strategy precopy");
    thread::sleep(SOON);
    let hosts = &guarded.machines.rig.hosts;
    hosts.cut(&hosts.alpha).unwrap();
    moving.migrate.kill().unwrap();
    thread::sleep(Duration::from_secs(4));
    hosts.mend(&hosts.alpha).unwrap();
    drop(moving);
    guarded.runs_on();
}

/// The one that has been receiving pages.
fn the_destinations_qemu_dies(guarded: &mut Guarded) {
    for phase in [Phase::Round, Phase::Capture].into_iter().take(count(1, 2)) {
        let mut moving = At::Source(phase).begin(&guarded.machines, "--strategy precopy");
        kill_machines(&guarded.machines, Side::Beta);
        moving.migrate.go_on().unwrap();
        let source = moving.migrate.wait(LONG).unwrap();
        assert_eq!(source.code, Some(1), "{source:?}");
        drop(moving);
        guarded.runs_on();
    }
}

/// Whoever is killed between the start of QEMU and the note of it in the journal.
#[test]
fn nothing_is_left_of_a_destination_that_is_killed_while_it_starts_qemu() {
    let mut guarded = Guarded::boot(shared());
    let directory = guarded
        .machines
        .rig
        .host(Side::Beta)
        .path("/run/whimbrel/machines");
    for number in 0..count(4, 60) {
        let machines = &guarded.machines;
        let mut moving = machines.rig.begin_move(machines.side, &machines.how(""));
        let deadline = Instant::now() + LONG;
        let is_there = || fs::read_dir(&directory).is_ok_and(|mut entries| entries.next().is_some());
        while !is_there() {
            assert!(Instant::now() < deadline, "{}", moving.receive.output());
        }
        thread::sleep(Duration::from_millis(number as u64 % 12 * 24));
        moving.receive.kill().unwrap();
        assert_eq!(moving.migrate.wait(LONG).unwrap().code, Some(1));
        drop(moving);
        guarded.runs_on();
    }
}

/// Who is killed while pages are still at the source.
#[derive(Clone, Copy, Debug)]
enum Killed {
    Destination,
    DestinationAndGuardian,
    Source,
    SourceAndGuardian,
    Everybody,
}

impl Killed {
    fn side(self, from: Side) -> [bool; 2] {
        let (source, destination) = match self {
            Killed::Destination | Killed::DestinationAndGuardian => (false, true),
            Killed::Source | Killed::SourceAndGuardian => (true, false),
            Killed::Everybody => (true, true),
        };
        match from {
            Side::Alpha => [source, destination],
            Side::Beta => [destination, source],
        }
    }

    /// Kills, and starts what a user would who sees it.
    fn strike(self, machines: &Machines, moving: &mut Moving) -> Vec<Running> {
        let [alpha, beta] = self.side(machines.side);
        let sides: Vec<Side> = [(Side::Alpha, alpha), (Side::Beta, beta)]
            .into_iter()
            .filter_map(|(side, killed)| killed.then_some(side))
            .collect();
        let alone = matches!(self, Killed::Destination | Killed::Source);
        for &side in &sides {
            if !alone {
                kill_guardians(&machines.rig, side);
            }
            match side == machines.side {
                true => moving.migrate.kill().unwrap(),
                false => moving.receive.kill().unwrap(),
            };
        }
        if alone {
            return Vec::new();
        }
        thread::sleep(SOON);
        let resume = |&side: &Side| {
            let unattended = |line: &Value| line["attended"] == false;
            let line = wait_until_listed(&machines.rig, side, unattended);
            assert!(line["missing_pages"].as_u64() > Some(0), "{line}");
            let id = line["id"].as_str().unwrap();
            machines
                .rig
                .host(side)
                .command(["whimbrel", "resume", id])
                .spawn()
                .unwrap()
        };
        // The destination first: the source looks for it.
        let mut resumed: Vec<Running> = sides
            .iter()
            .filter(|&&side| side != machines.side)
            .map(resume)
            .collect();
        resumed.extend(sides.iter().filter(|&&side| side == machines.side).map(resume));
        resumed
    }
}

/// Begins a slow move and waits until the machine runs there while pages of it are here.
fn owing(machines: &Machines, arguments: &str) -> Moving {
    let how = How {
        receive_arguments: How::impatient().receive_arguments,
        ..machines.how(arguments)
    };
    let mut moving = machines.rig.begin_move(machines.side, &how);
    machines.rig.wait_for_phase(machines.side, "serve", &mut moving);
    moving
}

/// In the order in which a short test takes them.
const KILLED: [Killed; 5] = [
    Killed::DestinationAndGuardian,
    Killed::Source,
    Killed::Destination,
    Killed::SourceAndGuardian,
    Killed::Everybody,
];

fn killed_while_owing(options: VmOptions, each: impl IntoIterator<Item = Killed>, after: Duration) {
    let mut guarded = Guarded::boot(options);
    for killed in each {
        println!("{killed:?}");
        let heard = guarded.there();
        let machines = &guarded.machines;
        let mut moving = owing(machines, SLOWLY);
        thread::sleep(after);
        assert!(!machines.rig.has_phase(machines.side, "serve", "ended"));
        let mut resumed = killed.strike(machines, &mut moving);
        for one in &mut resumed {
            one.wait_success(LONG).unwrap();
        }
        if !matches!(
            killed,
            Killed::Source | Killed::SourceAndGuardian | Killed::Everybody
        ) {
            moving.migrate.wait_success(LONG).unwrap();
        }
        if matches!(killed, Killed::Source | Killed::SourceAndGuardian) {
            moving.receive.wait_success(LONG).unwrap();
        }
        guarded.runs_there(heard);
        drop(moving);
    }
}

#[test]
fn a_machine_gets_its_pages_whoever_is_killed() {
    killed_while_owing(shared(), KILLED.into_iter().take(count(4, 5)), Duration::ZERO);
}

#[test]
fn a_machine_with_private_memory_gets_its_pages_whoever_is_killed() {
    let last_first = KILLED.into_iter().rev();
    killed_while_owing(private(), last_first.take(count(1, 5)), SOON);
}

#[test]
fn a_machine_endures_lost_links_and_the_loss_of_its_copy() {
    let mut guarded = Guarded::boot(shared());
    loses_its_link_at_the_commit(&mut guarded);
    let mut random = Random::new();
    for number in 0..count(2, 30) {
        loses_its_link_while_owing(&mut guarded, ["postcopy", "hybrid"][number % 2], &mut random);
    }
    loses_its_copy(&mut guarded);
}

/// QEMU itself may wait for a page when it is told to run, and the link may be gone at this moment.
fn loses_its_link_at_the_commit(guarded: &mut Guarded) {
    let strategies = [
        "--strategy postcopy",
        "--strategy postcopy --prepage demand --residual-max 2s",
    ];
    for strategy in strategies.into_iter().take(count(1, 2)) {
        let heard = guarded.there();
        let place = At::Destination(Phase::Start);
        let mut moving = place.begin(&guarded.machines, strategy);
        let hosts = &guarded.machines.rig.hosts;
        hosts.cut(&hosts.alpha).unwrap();
        moving.receive.go_on().unwrap();
        thread::sleep(Duration::from_secs(4));
        hosts.mend(&hosts.alpha).unwrap();
        moving.migrate.wait_success(SETTLES).unwrap();
        moving.receive.wait_success(SETTLES).unwrap();
        guarded.runs_there(heard);
    }
}

fn loses_its_link_while_owing(guarded: &mut Guarded, strategy: &str, random: &mut Random) {
    let heard = guarded.there();
    let machines = &guarded.machines;
    let mut moving = owing(machines, &SLOWLY.replace("postcopy", strategy));
    for side in [Side::Alpha, Side::Beta, Side::Alpha] {
        thread::sleep(SOON.mul_f64(random.part()));
        let time = Duration::from_secs_f64(0.1 + 2.9 * random.part() * random.part());
        println!("{strategy}: {side:?} is cut for {time:?}");
        machines.rig.hosts.cut(machines.rig.host(side)).unwrap();
        thread::sleep(time);
        machines.rig.hosts.mend(machines.rig.host(side)).unwrap();
    }
    moving.migrate.wait_success(LONG).unwrap();
    moving.receive.wait_success(LONG).unwrap();
    guarded.runs_there(heard);
}

/// A file is still its own when QEMU has ended.
fn loses_its_copy(guarded: &mut Guarded) {
    let heard = guarded.there();
    let mut moving = owing(&guarded.machines, SLOWLY);
    kill_machines(&guarded.machines, guarded.machines.side);
    moving.migrate.wait_success(LONG).unwrap();
    moving.receive.wait_success(LONG).unwrap();
    guarded.runs_there(heard);
}

/// Better none than one that has read wrong memory.
#[test]
fn a_machine_is_ended_when_its_pages_are_lost() {
    let guarded = Guarded::boot(private());
    let heard = guarded.there();
    let machines = &guarded.machines;
    let mut moving = owing(machines, SLOWLY);
    kill_machines(machines, Side::Alpha);
    let destination = moving.receive.wait(LONG).unwrap();
    let source = moving.migrate.wait(LONG).unwrap();
    assert_eq!(destination.code, Some(5), "{destination:?}");
    assert!(source.output.contains("cannot be read any more"), "{source:?}");
    assert_eq!(machines.rig.processes(Side::Beta, "qemu-system-x86_64"), 0);
    let told = "was ended before it could read wrong memory";
    assert!(destination.output.contains(told), "{destination:?}");
    let entries = fs::read_dir(machines.rig.host(Side::Beta).path("/run/whimbrel/machines")).unwrap();
    let troubles = entries.flatten().map(|entry| entry.path().join("trouble"));
    let troubles: Vec<String> = troubles.flat_map(fs::read_to_string).collect();
    assert!(troubles.iter().any(|text| text.contains(told)), "{troubles:?}");
    for tick in heard.ticks() {
        assert_eq!((tick.errors, tick.disk_errors), (0, 0), "{tick:?}");
    }
}
