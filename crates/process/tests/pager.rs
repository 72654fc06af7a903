//! Programs that run before their memory is there: the test is the source, and answers late, in any order.

#![allow(clippy::unwrap_used)] // helpers of tests

mod common;

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use common::{Host, Program};
use whimbrel_engine::contract::{Captured, Scanned};
use whimbrel_engine::{Left, Mode, News, Outcome, PageStore, Pager, Recover, Replica, Workload};
use whimbrel_kernel::namespace;
use whimbrel_policy::{PageRun, Pages, PAGE_SIZE};
use whimbrel_process::container::Registry;
use whimbrel_process::pager::ProcessPager;
use whimbrel_process::replica::ReplicaResources;
use whimbrel_process::{ProcessRecover, ProcessReplica, ProcessWorkload};
use whimbrel_wire::FaultTimes;

const PATIENCE: Duration = Duration::from_secs(30);

/// xorshift64*: the same numbers again for the same seed.
struct Random(u64);

impl Random {
    /// A new seed each time, printed, or that of `WHIMBREL_SEED`.
    fn new() -> Random {
        let given = std::env::var("WHIMBREL_SEED").ok();
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap();
        let seed = given.map_or(now.as_nanos() as u64 | 1, |seed| seed.parse().unwrap());
        println!("WHIMBREL_SEED={seed}");
        Random(seed)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % limit
    }
}

/// Pages as the source has them.
fn content(store: &mut impl PageStore<Error: std::fmt::Debug>, run: PageRun) -> Vec<u8> {
    let mut bytes = vec![0; (run.count * PAGE_SIZE) as usize];
    let mut failed = Vec::new();
    store.read(&[run], &mut bytes, &mut failed).unwrap();
    assert!(failed.is_empty(), "{failed:?} of a frozen workload");
    bytes
}

/// Everything up to the last page that cannot wait. Gives what is missing.
fn load(source: &mut ProcessWorkload, replica: &mut ProcessReplica) -> Vec<PageRun> {
    let follow = |layout: Option<Vec<u8>>, replica: &mut ProcessReplica| {
        layout.iter().for_each(|layout| replica.follow(layout).unwrap());
    };
    replica.prepare(&source.describe().unwrap()).unwrap();
    source.begin(Mode::Stopped).unwrap();
    source.make_ready().unwrap();
    source.freeze().unwrap();
    follow(source.layout_frozen().unwrap(), replica);
    let Captured { layout, state } = source.capture().unwrap();
    follow(layout, replica);
    replica.load(&state).unwrap();
    let Scanned { scan, layout, .. } = source.scan_frozen().unwrap();
    follow(layout, replica);
    let mut missing = Pages::from_runs(&scan.present.unwrap()).unwrap();
    let mut urgent = Pages::from_runs(&scan.urgent).unwrap();
    urgent.intersect_with(&missing);
    missing.subtract(&urgent);
    for run in urgent.runs() {
        let mut bytes = vec![0; (run.count * PAGE_SIZE) as usize];
        source.read(&[run], &mut bytes, &mut Vec::new()).unwrap();
        replica.write(run, &bytes).unwrap();
    }
    println!("{} pages now, {} later", urgent.len(), missing.len());
    missing.runs().collect()
}

/// What the one thread that serves hears.
#[derive(Default)]
struct Heard {
    faults: Mutex<Vec<PageRun>>,
    done: AtomicBool,
}

impl Heard {
    fn hear(&self, news: News) {
        if let News::Fault(fault) = news {
            self.faults.lock().unwrap().push(PageRun {
                space: fault.page.space,
                first: fault.page.number,
                count: 1,
            });
        }
    }

    fn serve(&self, pager: &ProcessPager) {
        while !self.done.load(Ordering::Relaxed) {
            let alive = pager
                .serve(Duration::from_millis(20), &mut |news| self.hear(news))
                .unwrap();
            assert!(alive, "the workload has ended");
        }
    }
}

/// Pieces of all runs in any order.
fn shuffled(missing: &[PageRun], random: &mut Random) -> Vec<PageRun> {
    let mut pieces = Vec::new();
    for run in missing {
        let mut rest = *run;
        while rest.count > 0 {
            let count = (1 + random.below(40)).min(rest.count);
            pieces.push(PageRun { count, ..rest });
            (rest.first, rest.count) = (rest.first + count, rest.count - count);
        }
    }
    for index in (1..pieces.len()).rev() {
        pieces.swap(index, random.below(index as u64 + 1) as usize);
    }
    pieces
}

/// Sends everything: for some time only what is asked for, and late; then the rest in any order, until nothing is missing.
fn send_all<S: PageStore<Error: std::fmt::Debug>>(
    pager: &ProcessPager,
    store: &mut S,
    heard: &Heard,
    random: &mut Random,
    only_faults: Duration,
) {
    let begin = Instant::now();
    let place = |store: &mut S, run: PageRun| {
        let bytes = content(store, run);
        let zero = bytes.iter().all(|byte| *byte == 0);
        let data = (!zero).then_some(bytes.as_slice());
        pager.place(run, data, &mut |news| heard.hear(news)).unwrap();
    };
    while begin.elapsed() < only_faults {
        std::thread::sleep(Duration::from_micros(random.below(1500)));
        let faults = std::mem::take(&mut *heard.faults.lock().unwrap());
        for fault in shuffled(&faults, random) {
            place(store, fault);
        }
    }
    for piece in shuffled(&pager.missing(), random) {
        if random.below(6) == 0 {
            std::thread::sleep(Duration::from_micros(random.below(1500)));
        }
        let faults = std::mem::take(&mut *heard.faults.lock().unwrap());
        for fault in shuffled(&faults, random) {
            place(store, fault);
        }
        place(store, piece);
    }
    assert_eq!(pager.missing(), [], "all pages were placed");
}

/// Moves it; the memory follows.
fn move_late(
    program: &Program,
    mut source: ProcessWorkload,
    to: &Host,
    random: &mut Random,
    only_faults: Duration,
) -> FaultTimes {
    let mut replica = to.replica();
    let missing = load(&mut source, &mut replica);
    source.hold().unwrap();
    let pager = replica.arm(&missing).unwrap();
    assert!(pager.finish().is_err(), "pages are missing");
    let heard = Heard::default();
    std::thread::scope(|scope| {
        scope.spawn(|| heard.serve(&pager));
        replica.complete().unwrap();
        replica.start().unwrap();
        let mut store = source.store().unwrap();
        send_all(&pager, &mut store, &heard, random, only_faults);
        heard.done.store(true, Ordering::Relaxed);
    });
    let times = pager.times();
    println!("{:?} {} local", times.all, times.local_faults);
    pager.finish().unwrap();
    pager.finish().unwrap();
    source.release(Outcome::Moved).unwrap();
    replica.settle().unwrap();
    replica.mend().unwrap();
    program.goes_on(2);
    times
}

fn of(program: &Program) -> ProcessWorkload {
    ProcessWorkload::new(program.pid(), None).unwrap()
}

/// Three threads map, unmap, move, empty and fork memory that is not there yet, and know what must be in every page.
#[test]
fn a_torture_of_mappings_finds_every_page_that_comes_late() {
    let mut random = Random::new();
    let program = Program::start("torture", &[&random.below(1000).to_string()]);
    program.goes_on(2);
    let hosts = [Host::new("late-0"), Host::new("late-1")];
    let soon = Duration::ZERO;
    move_late(&program, of(&program), &hosts[0], &mut random, soon);
    let begin = Instant::now();
    for round in 1.. {
        let (from, to) = (&hosts[(round + 1) % 2], &hosts[round % 2]);
        let only_faults = Duration::from_millis(random.below(3) * 150);
        move_late(&program, from.source(), to, &mut random, only_faults);
        if begin.elapsed() > Duration::from_secs(12) {
            println!("{round} moves");
            break;
        }
    }
}

/// Whoever believes what the kernel tells in the order in which it tells it loses pages here.
#[test]
fn what_threads_move_onto_each_others_old_places_is_found() {
    let mut random = Random::new();
    let hosts = [Host::new("shuffle-0"), Host::new("shuffle-1")];
    let program = Program::start("shuffle", &[&random.below(1000).to_string()]);
    program.goes_on(2);
    let only_faults = Duration::from_millis(1500);
    move_late(&program, of(&program), &hosts[0], &mut random, only_faults);
    move_late(&program, hosts[0].source(), &hosts[1], &mut random, only_faults);
    program.goes_on(5);
    println!("{:?}", program.lines().last());
}

/// What can wait does, whatever its protection; what cannot is there before the start.
#[test]
fn every_kind_of_memory_comes_late_or_in_time() {
    let mut random = Random::new();
    let hosts = [Host::new("late-kinds-0"), Host::new("late-kinds-1")];
    for (name, moves) in [("memory", 2), ("machinery", 3)] {
        let directory = std::env::temp_dir().join(format!("whimbrel-late-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let program = Program::start(name, &[directory.to_str().unwrap()]);
        program.goes_on(2);
        let soon = Duration::from_millis(300);
        move_late(&program, of(&program), &hosts[0], &mut random, soon);
        for round in 1..moves {
            let (from, to) = (&hosts[(round + 1) % 2], &hosts[round % 2]);
            move_late(&program, from.source(), to, &mut random, soon);
        }
        program.goes_on(8);
        let last = hosts[(moves + 1) % 2].entry();
        whimbrel_process::container::end(&last.resources).unwrap();
        std::fs::remove_dir_all(&directory).unwrap();
    }
}

#[test]
fn the_kernel_itself_waits_for_pages_that_it_is_to_read_or_write() {
    let mut random = Random::new();
    let program = Program::start("late", &[]);
    program.goes_on(2);
    let host = Host::new("late-kernel");
    let times = move_late(&program, of(&program), &host, &mut random, Duration::from_secs(2));
    // Those of the kernel come first, for each of two pages.
    assert!(times.all.faults > 100, "{times:?}");
    program.goes_on(10);
}

/// Where the process of [`controller`] leaves what a journal would hold.
fn journal(root: &Path, side: &str) -> PathBuf {
    root.join(format!("journal-{side}"))
}

/// Not a test: what [`orphan`] runs in a process of its own, up to the moment in which it is killed.
#[test]
#[ignore = "is run by other tests, in a process of its own"]
fn controller() {
    let Ok(pid) = std::env::var("WHIMBREL_TEST_PID") else {
        return;
    };
    let root = PathBuf::from(std::env::var("WHIMBREL_TEST_ROOT").unwrap());
    let host = Host {
        registry: Registry::at(&root.join("workloads")),
        root: root.clone(),
    };
    let mut source = ProcessWorkload::new(pid.parse().unwrap(), None).unwrap();
    let mut replica = host.replica();
    let missing = load(&mut source, &mut replica);
    source.hold().unwrap();
    let pager = replica.arm(&missing).unwrap();
    let heard = Heard::default();
    std::thread::scope(|scope| {
        scope.spawn(|| heard.serve(&pager));
        replica.complete().unwrap();
        std::fs::write(journal(&root, "source"), source.resources()).unwrap();
        replica.start().unwrap();
        let mut store = source.store().unwrap();
        let some = missing.iter().step_by(3).take(20);
        for run in some {
            let bytes = content(&mut store, *run);
            pager.place(*run, Some(&bytes), &mut |_| {}).unwrap();
        }
        while pager.waiting().is_empty() {
            std::thread::yield_now();
        }
        std::fs::write(journal(&root, "unfinished"), replica.resources()).unwrap();
        std::fs::rename(journal(&root, "unfinished"), journal(&root, "destination")).unwrap();
        if std::env::var("WHIMBREL_TEST_SERVE").is_ok() {
            send_all(&pager, &mut store, &heard, &mut Random::new(), PATIENCE);
        }
        loop {
            std::thread::sleep(PATIENCE);
        }
    });
}

/// A workload that lacks pages and whose controller was killed: the journals of both ends.
struct Orphan {
    program: Program,
    host: Host,
    theirs: Vec<u8>,
    ours: Vec<u8>,
}

impl Orphan {
    /// Its controller is killed when the first thread waits.
    fn new(test: &str) -> Orphan {
        Self::after(test, "torture", None)
    }

    /// Its controller is killed when the first thread waits, or serves on for so long.
    fn after(test: &str, program: &str, served: Option<Duration>) -> Orphan {
        let program = Program::start(program, &["5"]);
        program.goes_on(2);
        let mut host = Host::new(test);
        let mut controller = Self::controller(&program, &host, served.is_some());
        let begin = Instant::now();
        while !journal(&host.root, "destination").exists() {
            assert!(controller.try_wait().unwrap().is_none() && begin.elapsed() < PATIENCE);
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(served.unwrap_or_default());
        controller.kill().unwrap();
        controller.wait().unwrap();
        host.registry = Registry::at(&host.root.join("workloads"));
        let read = |side| std::fs::read(journal(&host.root, side)).unwrap();
        let (theirs, ours) = (read("source"), read("destination"));
        Orphan {
            program,
            host,
            theirs,
            ours,
        }
    }

    fn controller(program: &Program, host: &Host, serves: bool) -> Child {
        let mut command = Command::new(std::env::current_exe().unwrap());
        if serves {
            command.env("WHIMBREL_TEST_SERVE", "1");
        }
        command
            .args(["--exact", "controller", "--ignored", "--nocapture"])
            .env("WHIMBREL_TEST_PID", program.pid().to_string())
            .env("WHIMBREL_TEST_ROOT", &host.root)
            .spawn()
            .unwrap()
    }

    fn resources(&self) -> ReplicaResources {
        postcard::from_bytes(&self.ours).unwrap()
    }
}

#[test]
fn threads_wait_beyond_the_death_of_who_serves_them_and_another_one_goes_on() {
    let orphan = Orphan::new("late-orphan");
    let held = orphan.program.lines().len();
    std::thread::sleep(Duration::from_millis(500));
    orphan.program.has_written(held); // and nobody has complained
    assert_eq!(
        orphan.program.lines().len(),
        held,
        "somebody went on without its pages"
    );
    ProcessRecover.start(&orphan.ours).unwrap();
    let Left::Pages(pager) = ProcessRecover.pager(&orphan.ours).unwrap() else {
        panic!("pages are missing");
    };
    let mut store = ProcessRecover.store(&orphan.theirs).unwrap();
    let heard = Heard::default();
    std::thread::scope(|scope| {
        scope.spawn(|| heard.serve(&pager));
        send_all(&pager, &mut store, &heard, &mut Random::new(), Duration::ZERO);
        heard.done.store(true, Ordering::Relaxed);
    });
    assert_eq!(
        orphan.program.lines().len(),
        held,
        "it is paused until all is there"
    );
    pager.finish().unwrap();
    orphan.program.goes_on(3);
    assert!(matches!(
        ProcessRecover.pager(&orphan.ours).unwrap(),
        Left::Nothing
    ));
    ProcessRecover.moved(&orphan.theirs).unwrap();
    // Nothing of it can be had, and whoever asks for it hears that.
    let mut failed = Vec::new();
    let one = PageRun {
        space: whimbrel_policy::SpaceId(0),
        first: 1,
        count: 1,
    };
    let mut gone = ProcessRecover.store(&orphan.theirs).unwrap();
    gone.read(&[one], &mut [0; 4096], &mut failed).unwrap();
    assert_eq!(failed, [one]);
    orphan.program.goes_on(2);
}

/// Whoever serves is killed at any moment. Either the workload goes on with every page, or it is ended and its source goes on.
#[test]
fn a_death_at_any_moment_never_lets_a_wrong_page_be_read() {
    let mut random = Random::new();
    let (mut ended, mut went_on) = (0, 0);
    for round in 0..10 {
        let name = ["torture", "shuffle"][round % 2];
        let served = Duration::from_millis(random.below(200));
        let orphan = Orphan::after(&format!("late-any-{round}"), name, Some(served));
        ProcessRecover.start(&orphan.ours).unwrap();
        match ProcessRecover.pager(&orphan.ours).unwrap() {
            Left::Ended(_) => {
                ended += 1;
                println!("{name} was ended");
                ProcessRecover.discard(&orphan.ours).unwrap();
                // It goes on from where it was, and what its copy has written since does not count.
                ProcessRecover.stays(&orphan.theirs).unwrap();
            }
            Left::Pages(pager) => {
                went_on += 1;
                let mut store = ProcessRecover.store(&orphan.theirs).unwrap();
                let heard = Heard::default();
                std::thread::scope(|scope| {
                    scope.spawn(|| heard.serve(&pager));
                    send_all(&pager, &mut store, &heard, &mut random, Duration::ZERO);
                    heard.done.store(true, Ordering::Relaxed);
                });
                pager.finish().unwrap();
                ProcessRecover.moved(&orphan.theirs).unwrap();
            }
            Left::Nothing => panic!("pages are missing"),
        }
        orphan.program.goes_on(3);
    }
    println!("{ended} were ended, {went_on} went on");
}

#[test]
fn a_workload_of_which_nobody_knows_what_it_lacks_is_ended() {
    let orphan = Orphan::new("late-busy");
    let resources = orphan.resources();
    // Killed between taking an event and writing it down.
    let log = resources.pager.clone().unwrap().log;
    let mut bytes = std::fs::read(&log).unwrap();
    bytes[0] = 1;
    std::fs::write(&log, bytes).unwrap();
    ProcessRecover.start(&orphan.ours).unwrap();
    let Left::Ended(sentence) = ProcessRecover.pager(&orphan.ours).unwrap() else {
        panic!("it was not ended");
    };
    let begin = Instant::now();
    while resources.process.unwrap().is_alive() {
        assert!(begin.elapsed() < PATIENCE);
        std::thread::yield_now();
    }
    assert!(matches!(
        ProcessRecover.pager(&orphan.ours).unwrap(),
        Left::Nothing | Left::Ended(_)
    ));
    let entry = orphan
        .host
        .registry
        .get(&resources.container.name)
        .unwrap()
        .unwrap();
    assert_eq!(entry.trouble(), Some(sentence));
    ProcessRecover.stays(&orphan.theirs).unwrap();
    orphan.program.goes_on(2);
}

#[test]
fn pages_whose_absence_cannot_be_served_are_refused_and_an_armed_replica_can_be_discarded() {
    let program = Program::start("torture", &["3"]);
    program.goes_on(2);
    let host = Host::new("late-discard");
    let (mut source, mut replica) = (of(&program), host.replica());
    let missing = load(&mut source, &mut replica);
    let nowhere = PageRun {
        first: 5,
        count: 1,
        ..missing[0]
    };
    assert!(replica
        .arm(&[nowhere])
        .unwrap_err()
        .to_string()
        .contains("cannot come after"));
    let pager = replica.arm(&missing).unwrap();
    replica.discard().unwrap();
    assert!(!pager.serve(Duration::from_secs(1), &mut |_| {}).unwrap());
    host.is_empty();
    source.release(Outcome::Stays).unwrap();
    program.goes_on(2);
}

#[test]
fn giving_up_ends_all_of_a_paused_workload() {
    let orphan = Orphan::new("late-give-up");
    let resources = orphan.resources();
    let Left::Pages(pager) = ProcessRecover.pager(&orphan.ours).unwrap() else {
        panic!("pages are missing");
    };
    pager.give_up("nothing to be had").unwrap();
    pager.give_up("again").unwrap();
    let begin = Instant::now();
    while pager.serve(Duration::from_millis(100), &mut |_| {}).unwrap() {
        assert!(begin.elapsed() < PATIENCE);
    }
    let entry = orphan
        .host
        .registry
        .get(&resources.container.name)
        .unwrap()
        .unwrap();
    assert_eq!(entry.trouble().as_deref(), Some("nothing to be had"));
    namespace::kill(orphan.program.pid());
    ProcessRecover.moved(&orphan.theirs).unwrap();
}
