//! Real programs move by the two halves of the contract, without a network between them: what matters here is memory, and that
//! nothing is left of a move or of its failure.

#![allow(clippy::unwrap_used)] // helpers of tests

mod common;

use std::fs;
use std::time::{Duration, Instant};

use common::{Host, Program};
use whimbrel_engine::contract::{Captured, Scanned};
use whimbrel_engine::{Mode, Outcome, Recover, Replica, Workload};
use whimbrel_kernel::freezer::Group;
use whimbrel_kernel::{maps, memory, proc};
use whimbrel_policy::{Pages, Scan, PAGE_SIZE};
use whimbrel_process::replica::ReplicaResources;
use whimbrel_process::source::SourceResources;
use whimbrel_process::{ProcessRecover, ProcessReplica, ProcessWorkload};

const BATCH_PAGES: u64 = 256;
const PATIENCE: Duration = Duration::from_secs(30);

/// Bytes of `struct rseq` that the kernel writes (linux/rseq.h).
const RSEQ_BYTES: usize = 32;

/// What a policy knows, in its simplest form.
#[derive(Default)]
struct Move {
    owed: Pages,
    copied: Pages,
    touched: Pages,
    bytes: u64,
}

impl Move {
    fn take(&mut self, scan: &Scan) {
        for run in &scan.lost {
            self.owed.remove(*run);
            self.copied.remove(*run);
            self.touched.remove(*run);
        }
        let written = Pages::from_runs(&scan.written).unwrap();
        self.copied.subtract(&written);
        self.owed.union_with(&written);
    }

    fn follow(&self, scanned: &Scanned, replica: &mut ProcessReplica) {
        if let Some(layout) = &scanned.layout {
            replica.follow(layout).unwrap();
        }
    }

    fn send(&mut self, source: &mut ProcessWorkload, replica: &mut ProcessReplica, running: bool) {
        let runs: Vec<_> = self.owed.runs().collect();
        let mut buffer = vec![0; (BATCH_PAGES * PAGE_SIZE) as usize];
        for mut run in runs {
            while run.count > 0 {
                let mut some = run;
                some.count = run.count.min(BATCH_PAGES);
                (run.first, run.count) = (run.first + some.count, run.count - some.count);
                let bytes = &mut buffer[..(some.count * PAGE_SIZE) as usize];
                let mut failed = Vec::new();
                source.read(&[some], bytes, &mut failed).unwrap();
                assert!(running || failed.is_empty(), "{failed:?} of a frozen workload");
                if !failed.is_empty() {
                    continue; // stays owed
                }
                match bytes.iter().all(|byte| *byte == 0) {
                    true => replica.zero(some).unwrap(),
                    false => replica.write(some, bytes).unwrap(),
                }
                self.bytes += some.count * PAGE_SIZE;
                self.owed.remove(some);
                self.copied.insert(some).unwrap();
                self.touched.insert(some).unwrap();
            }
        }
    }

    /// All rounds, and the replica loaded; the source is held.
    fn until_loaded(
        mode: Mode,
        rounds: u32,
        program: &Program,
        source: &mut ProcessWorkload,
        replica: &mut ProcessReplica,
    ) -> u64 {
        let mut progress = Move::default();
        replica.prepare(&source.describe().unwrap()).unwrap();
        source.begin(mode).unwrap();
        for _ in 0..rounds {
            let scanned = source.scan().unwrap();
            progress.take(&scanned.scan);
            progress.follow(&scanned, replica);
            progress.send(source, replica, true);
            // What the first step changes in the mappings, the second one meets.
            program.goes_on(2);
        }
        source.make_ready().unwrap();
        let follow = |layout: Option<Vec<u8>>, replica: &mut ProcessReplica| {
            layout.iter().for_each(|layout| replica.follow(layout).unwrap());
        };
        source.freeze().unwrap();
        follow(source.layout_frozen().unwrap(), replica);
        let Captured { layout, state } = source.capture().unwrap();
        follow(layout, replica);
        replica.load(&state).unwrap();
        let scanned = source.scan_frozen().unwrap();
        progress.take(&scanned.scan);
        let present = Pages::from_runs(&scanned.scan.present.clone().unwrap()).unwrap();
        progress.owed.intersect_with(&present);
        let mut missing = present.clone();
        missing.subtract(&progress.copied);
        progress.owed.union_with(&missing);
        progress.follow(&scanned, replica);
        let mut dropped = std::mem::take(&mut progress.touched);
        dropped.subtract(&present);
        dropped.runs().for_each(|run| replica.forget(run).unwrap());
        progress.bytes = 0;
        progress.send(source, replica, false);
        source.hold().unwrap();
        replica.complete().unwrap();
        is_same_memory(source, replica);
        progress.bytes
    }
}

/// Anonymous memory of both is the same, but for what the kernel itself writes for each thread (struct rseq).
fn is_same_memory(source: &ProcessWorkload, replica: &ProcessReplica) {
    let source: SourceResources = postcard::from_bytes(&source.resources()).unwrap();
    let replica: ReplicaResources = postcard::from_bytes(&replica.resources()).unwrap();
    let (here, there) = (source.process.pid, replica.process.unwrap().pid);
    let page_of = |pid, address| {
        let mut page = vec![0; PAGE_SIZE as usize];
        memory::read(pid, address, &mut page).ok().map(|()| page)
    };
    let vmas = maps::read(here).unwrap();
    for vma in vmas.iter().filter(|vma| vma.is_anonymous()) {
        for address in (vma.start..vma.end).step_by(PAGE_SIZE as usize) {
            let (Some(left), Some(right)) = (page_of(here, address), page_of(there, address)) else {
                continue;
            };
            let differ = left
                .iter()
                .zip(&right)
                .filter(|(left, right)| left != right)
                .count();
            assert!(differ <= RSEQ_BYTES, "{differ} bytes differ at {address:#x}");
        }
    }
}

/// Moves it, and returns the bytes that went while it was frozen.
fn moved(mode: Mode, program: &Program, mut source: ProcessWorkload, to: &Host) -> u64 {
    let rounds = if mode == Mode::Live { 3 } else { 0 };
    let mut replica = to.replica();
    let bytes = Move::until_loaded(mode, rounds, program, &mut source, &mut replica);
    replica.start().unwrap();
    source.release(Outcome::Moved).unwrap();
    replica.settle().unwrap();
    replica.mend().unwrap();
    bytes
}

fn of(program: &Program) -> ProcessWorkload {
    ProcessWorkload::new(program.pid(), None).unwrap()
}

/// Nothing of ours is in the process any more, and nothing holds it.
fn is_untouched(pid: i32) {
    let begin = Instant::now();
    while proc::Status::read(pid).unwrap().number("TracerPid") != Some(0) {
        assert!(begin.elapsed() < PATIENCE, "it is still traced");
        std::thread::yield_now();
    }
    let flags = proc::text(pid, "smaps").unwrap();
    assert!(
        !flags
            .lines()
            .any(|line| line.starts_with("VmFlags:") && line.contains(" uw")),
        "still tracked"
    );
    let group = proc::text(pid, "cgroup").unwrap();
    assert!(!group.contains("whimbrel-"), "{group}");
}

#[test]
fn every_kind_of_memory_moves_there_and_back() {
    let directory = std::env::temp_dir().join(format!("whimbrel-memory-{}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    let program = Program::start("memory", &[directory.to_str().unwrap()]);
    program.goes_on(2);
    let (here, there) = (Host::new("kinds-here"), Host::new("kinds-there"));
    moved(Mode::Live, &program, of(&program), &there);
    program.goes_on(6);
    for mode in [Mode::Stopped, Mode::Live] {
        moved(mode, &program, there.source(), &here);
        program.goes_on(6);
        moved(mode, &program, here.source(), &there);
        program.goes_on(6);
    }
    drop((here, there));
    fs::remove_dir_all(directory).unwrap();
}

#[test]
fn a_torture_of_mappings_moves_ten_times_without_a_wrong_byte() {
    let program = Program::start("torture", &["11"]);
    program.goes_on(2);
    let hosts = [Host::new("torture-0"), Host::new("torture-1")];
    moved(Mode::Live, &program, of(&program), &hosts[0]);
    for turn in 1..10 {
        program.goes_on(2);
        moved(
            Mode::Live,
            &program,
            hosts[(turn + 1) % 2].source(),
            &hosts[turn % 2],
        );
    }
    program.goes_on(3);
}

#[test]
fn huge_pages_arrive_as_huge_pages() {
    let program = Program::start("hugepages", &["32"]);
    program.goes_on(2);
    let host = Host::new("huge");
    moved(Mode::Live, &program, of(&program), &host);
    program.goes_on(3);
    let last = program.lines().pop().unwrap();
    assert!(last.ends_with("huge 32 of 32"), "{last}");
}

#[test]
fn what_was_sent_before_is_not_sent_again() {
    let program = Program::start("counter", &["64"]);
    program.goes_on(2);
    let host = Host::new("little");
    let bytes = moved(Mode::Live, &program, of(&program), &host);
    program.goes_on(2);
    assert!(bytes < 8 << 20, "{bytes} bytes while it was frozen");
}

#[test]
fn after_a_failure_the_source_runs_on_with_nothing_of_ours_in_it() {
    for (name, rounds) in [("memory", 2), ("machinery", 1), ("hugepages", 2)] {
        let program = Program::start(name, &[]);
        program.goes_on(2);
        let host = Host::new(&format!("failure-{name}"));
        let (mut source, mut replica) = (of(&program), host.replica());
        Move::until_loaded(Mode::Live, rounds, &program, &mut source, &mut replica);
        replica.discard().unwrap();
        replica.discard().unwrap();
        source.release(Outcome::Stays).unwrap();
        source.release(Outcome::Stays).unwrap();
        program.goes_on(3);
        is_untouched(program.pid());
        host.is_empty();
        if name == "hugepages" {
            let last = program.lines().pop().unwrap();
            assert!(last.ends_with("huge 64 of 64"), "{last}");
        }
    }
}

#[test]
fn a_workload_that_was_made_ready_leaves_its_group_again() {
    let program = Program::start("machinery", &["ready"]);
    let group = || proc::text(program.pid(), "cgroup").unwrap();
    let before = group();
    let ends: [fn(ProcessWorkload, Vec<u8>); 3] = [
        |mut source, _| source.release(Outcome::Stays).unwrap(),
        |source, _| drop(source),
        // As a controller that dies now: the journal was written before the group was made.
        |source, journal| {
            std::mem::forget(source);
            ProcessRecover.stays(&journal).unwrap();
        },
    ];
    for end in ends {
        let mut source = of(&program);
        let journal = source.resources();
        source.make_ready().unwrap();
        assert!(group().contains("whimbrel-"), "{}", group());
        end(source, journal);
        assert_eq!(group(), before);
        program.goes_on(1);
    }
}

/// A daemon that the workload has made is in its group, but is not it.
#[test]
fn what_else_is_in_the_group_of_a_moved_workload_lives_on() {
    let program = Program::start("machinery", &["daemon"]);
    let mut source = of(&program);
    source.make_ready().unwrap();
    let below = Group::plan(program.pid(), "none").unwrap();
    let group = below.path().parent().unwrap();
    let mut daemon = std::process::Command::new("sleep").arg("100").spawn().unwrap();
    Group::at(group).add(daemon.id() as i32).unwrap();
    ProcessRecover.moved(&source.resources()).unwrap();
    assert!(!group.exists());
    assert!(daemon.try_wait().unwrap().is_none());
    daemon.kill().unwrap();
    daemon.wait().unwrap();
}

/// The journals of both ends when their controllers die with the replica loaded and the source held: their tracees are let go,
/// nothing else is undone.
fn left_by_dead_controllers(program: &Program, host: &Host) -> (Vec<u8>, Vec<u8>) {
    let work = || {
        let (mut source, mut replica) = (of(program), host.replica());
        Move::until_loaded(Mode::Live, 1, program, &mut source, &mut replica);
        let resources = (source.resources(), replica.resources());
        std::mem::forget(source);
        std::mem::forget(replica);
        resources
    };
    std::thread::scope(|scope| scope.spawn(work).join().unwrap())
}

#[test]
fn the_journal_alone_is_enough_to_go_back() {
    let program = Program::start("machinery", &["back"]);
    program.goes_on(2);
    let host = Host::new("back");
    let (theirs, ours) = left_by_dead_controllers(&program, &host);
    let held = program.lines().len();
    for _ in 0..2 {
        ProcessRecover.discard(&ours).unwrap();
    }
    host.is_empty();
    // What another program does meanwhile shows that time passes.
    Program::start("machinery", &["clock"]).goes_on(3);
    assert_eq!(program.lines().len(), held, "it ran before it was let go");
    for _ in 0..2 {
        ProcessRecover.stays(&theirs).unwrap();
    }
    program.goes_on(3);
}

#[test]
fn the_journal_alone_is_enough_to_go_on() {
    let program = Program::start("machinery", &["on"]);
    program.goes_on(2);
    let host = Host::new("on");
    let (theirs, ours) = left_by_dead_controllers(&program, &host);
    for _ in 0..2 {
        ProcessRecover.start(&ours).unwrap();
        ProcessRecover.moved(&theirs).unwrap();
    }
    program.goes_on(3);
    let entry = host.entry();
    assert!(maps::read(entry.process.unwrap().pid).is_ok());
}

#[test]
fn a_workload_that_only_was_looked_at_is_as_before() {
    let program = Program::start("machinery", &["look"]);
    program.goes_on(2);
    let mut source = of(&program);
    source.describe().unwrap();
    source.begin(Mode::Live).unwrap();
    for _ in 0..20 {
        source.scan().unwrap();
    }
    source.release(Outcome::Stays).unwrap();
    program.goes_on(2);
    is_untouched(program.pid());
}
