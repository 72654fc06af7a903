//! The workload runs at the destination while pages of it are still at the source: whatever happens then, it never sees a wrong one.
//!
//! `WHIMBREL_TEST_VARIANT=hybrid` looks only at the variants that contain this. `WHIMBREL_TEST_SEED=7` repeats the moments and lengths of lost links; a test that fails prints its seed.

use std::hash::{BuildHasher, RandomState};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use whimbrel_testbed::{programs, Finished, Relay};

use crate::clients::{echo, Lines, Load};
use crate::errors::one_sentence;
use crate::rig::{How, Moving, Rig, Side, LONG, NAME};
use crate::{servers, tomcat};

/// Every kind of move that leaves pages for later.
const VARIANTS: [&str; 5] = [
    "--strategy postcopy --prepage bubbling",
    "--strategy postcopy --prepage push",
    "--strategy postcopy --prepage demand --residual-max 3s",
    "--strategy hybrid",
    "--strategy hybrid --passes 2 --prepage push",
];

/// Slow enough that something can happen before the last page has come: about three seconds for [`Paging::slow`].
const SLOWLY: &str = "--strategy postcopy --max-residual-bandwidth 5MB/s --link-timeout 3s";

/// When it may happen after the switch-over: well within the time that [`SLOWLY`] gives.
const SOON: Duration = Duration::from_millis(1200);

/// What is added to the way by a relay that only has to be there.
const NEAR: Duration = Duration::from_micros(100);

/// The short count in `make test`, the long one in `make soak`.
pub(crate) fn count(short: usize, soak: usize) -> usize {
    match std::env::var_os("WHIMBREL_SOAK") {
        Some(_) => soak,
        None => short,
    }
}

/// Moves the workload once for each count, by each variant in turn; `between` is called before each move.
fn chain(rig: &Rig, moves: usize, mut between: impl FnMut(Side)) -> Side {
    let mut side = Side::Alpha;
    let named = std::env::var("WHIMBREL_TEST_VARIANT").ok();
    let wanted = |variant: &&&str| {
        named
            .as_ref()
            .is_none_or(|named| variant.contains(named.as_str()))
    };
    for (number, variant) in VARIANTS.iter().filter(wanted).cycle().take(moves).enumerate() {
        between(side);
        println!("move {}: {variant}", number + 1);
        let record = rig.moved(side, &How::with(variant));
        assert!(record["residual"].is_object(), "{variant}: {record}");
        rig.nothing_left(&[side]).unwrap();
        side = side.other();
    }
    between(side);
    side
}

/// A client that asks the program `paging` over one connection that lasts.
struct Client(Lines);

impl Client {
    /// How many pages have been touched so far, none of them wrong.
    fn touches(&mut self) -> u64 {
        self.0.send("?\n").unwrap();
        let line = self.0.line().unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        assert_eq!(
            (words[0], words[4], words[5]),
            ("touches", "wrong", "0"),
            "{line}"
        );
        words[1].parse().unwrap()
    }

    /// Waits for as many more touches.
    fn more_touches(&mut self, count: u64) {
        let (goal, deadline) = (self.touches() + count, Instant::now() + LONG);
        while self.touches() < goal {
            assert!(Instant::now() < deadline, "{count} touches take too long");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The program `paging` and its client.
struct Paging {
    rig: Rig,
    client: Client,
    pages: u64,
}

impl Paging {
    fn start(megabytes: u64, arguments: &str) -> Self {
        let rig = Rig::new(&[programs::c("paging").unwrap()]);
        rig.serve(&format!("paging {megabytes} {arguments}"));
        let client = Client(Lines::connect(&rig.hosts.client));
        let pages = megabytes * 256;
        Self { rig, client, pages }
    }

    /// Touches each of its pages within four seconds.
    fn slow() -> Self {
        Self::start(32, "sequential 2 1000000")
    }

    /// It runs there, nothing is left at the other host, and every page is right: with `sequential` each is looked at.
    fn is_whole_at(&mut self, side: Side) {
        self.client.more_touches(self.pages + 2);
        self.rig.more_steps(side, 1);
        self.rig.nothing_left(&[side.other()]).unwrap();
    }

    fn finish(self, side: Side) {
        drop(self.client);
        self.rig.finish(side);
    }
}

#[test]
fn pages_are_right_by_every_variant() {
    let mut paging = Paging::start(64, "hotcold 2");
    // The touches are as many as before, and then more.
    let mut before = 0;
    let side = chain(&paging.rig, count(5, 50), |_| {
        paging.client.more_touches(1000);
        let touches = paging.client.touches();
        assert!(touches > before, "{touches} after {before}");
        before = touches;
    });
    paging.client.more_touches(10 * paging.pages);
    paging.finish(side);
}

#[test]
fn no_page_of_the_torture_is_wrong_by_any_variant() {
    let rig = Rig::new(&[programs::c("torture").unwrap()]);
    rig.run("torture");
    let side = chain(&rig, count(5, 500), |side| drop(rig.more_steps(side, 3)));
    rig.more_steps(side, 10);
    rig.finish(side);
}

fn in_turn(variants: &[&'static str], moves: usize) -> Vec<&'static str> {
    variants.iter().copied().cycle().take(moves).collect()
}

#[test]
fn java_with_g1_by_every_variant() {
    servers::java("-XX:+UseG1GC", &in_turn(&VARIANTS, count(5, 50)));
}

#[test]
fn java_with_parallel_by_postcopy_and_hybrid() {
    let moves = in_turn(&[VARIANTS[0], VARIANTS[3]], count(2, 50));
    servers::java("-XX:+UseParallelGC", &moves);
}

#[test]
fn java_with_huge_pages_by_every_variant() {
    let options = "-XX:+UseG1GC -XX:+UseTransparentHugePages";
    servers::java(options, &in_turn(&VARIANTS, count(5, 50)));
}

/// One write of a page in the first pass fills 2 MB with zeros at the destination: what is written at the source afterwards must not be
/// hidden by them.
#[test]
fn a_huge_page_hides_no_missing_page() {
    let rig = Rig::new(&[programs::c("growing").unwrap()]);
    rig.run("growing 64");
    let mut side = Side::Alpha;
    for _ in 0..2 {
        rig.more_steps(side, 5);
        // The pass takes a while, in which the program goes on.
        rig.moved(side, &How::with("--strategy hybrid --max-bandwidth 20MB/s"));
        side = side.other();
    }
    rig.more_steps(side, 5);
    rig.finish(side);
}

#[test]
fn redis_serves_on_while_pages_are_owed() {
    servers::redis_under_load(&[VARIANTS[3], VARIANTS[0], VARIANTS[1]]);
}

#[test]
fn tomcat_keeps_its_connections_while_pages_are_owed() {
    tomcat::under_load([VARIANTS[3], VARIANTS[0]].into_iter().cycle().take(count(2, 20)));
}

#[test]
fn many_connections_are_served_on_while_pages_are_owed() {
    let rig = Rig::new(&[programs::c("echo").unwrap()]);
    rig.serve("echo 7000");
    let load = Load::start(&rig.hosts.client, 6, echo);
    let side = chain(&rig, count(5, 50), |_| load.more(100));
    load.finish();
    rig.finish(side);
}

/// How the link is lost.
#[derive(Clone, Copy, Debug)]
enum Loss {
    /// Connections are reset, and nobody can connect.
    Reset,
    /// Packets of the destination's cable vanish.
    CableOfDestination,
    /// Packets of the source's cable vanish.
    CableOfSource,
    /// Nothing gets through, and nothing is lost.
    Stall,
}

const LOSSES: [Loss; 4] = [
    Loss::Reset,
    Loss::CableOfDestination,
    Loss::CableOfSource,
    Loss::Stall,
];

impl Loss {
    /// Loses the link of a move from `from` for so long.
    fn strike(self, rig: &Rig, from: Side, relay: &Relay, time: Duration) {
        let cable = match self {
            Self::Reset => {
                relay.cut();
                thread::sleep(time);
                return relay.mend();
            }
            Self::Stall => {
                relay.stall(time);
                return thread::sleep(time);
            }
            Self::CableOfDestination => rig.host(from.other()),
            Self::CableOfSource => rig.host(from),
        };
        rig.hosts.cut(cable).unwrap();
        thread::sleep(time);
        rig.hosts.mend(cable).unwrap();
    }
}

/// Numbers that differ with each run, unless the environment names the seed.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new() -> Self {
        let named = std::env::var("WHIMBREL_TEST_SEED").ok();
        let seed = named.map_or_else(
            || RandomState::new().hash_one(0) % 1_000_000,
            |seed| seed.parse().unwrap(),
        );
        println!("WHIMBREL_TEST_SEED={seed}");
        Self((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// From 0 to 1.
    pub(crate) fn part(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// From 0.1 to 10 s; as many below as above 1 s in a long run, mostly short in a short one.
    fn loss(&mut self) -> Duration {
        let power = count(2, 1) as i32;
        Duration::from_secs_f64(0.1 * 100_f64.powf(self.part().powi(power)))
    }
}

/// A move from `from` that loses its link once or twice after the switch-over. Gives its record.
fn endure(rig: &Rig, from: Side, losses: &[Loss], random: &mut Random) -> Value {
    let relay = rig.relay(from.other(), NEAR);
    let how = How {
        via: Some(relay.address()),
        receive_arguments: How::impatient().receive_arguments,
        ..How::with(SLOWLY)
    };
    let mut moving = rig.begin_move(from, &how);
    rig.wait_for_phase(from, "serve", &mut moving);
    for (number, &loss) in losses.iter().enumerate() {
        thread::sleep(SOON.mul_f64(random.part()));
        let over = rig.has_phase(from, "serve", "ended");
        assert!(
            !over || number > 0,
            "nothing is owed any more when {loss:?} comes"
        );
        let time = random.loss();
        println!("from {from:?}: {loss:?} for {time:?}");
        loss.strike(rig, from, &relay, time);
    }
    both_ended_well(&mut moving);
    rig.record(from)
}

fn both_ended_well(moving: &mut Moving) {
    let source = moving.migrate.wait(LONG).unwrap();
    assert!(
        source.success(),
        "migrate: {source:?}\nreceive: {}",
        moving.receive.output()
    );
    moving.receive.wait_success(LONG).unwrap();
}

#[test]
fn a_lost_link_is_taken_up_again() {
    let (mut paging, mut random) = (Paging::slow(), Random::new());
    let mut side = Side::Alpha;
    for number in 0..count(5, 100) {
        let first = LOSSES[number % LOSSES.len()];
        let second = LOSSES[(number / LOSSES.len() + number) % LOSSES.len()];
        // Every other time once more, soon after it was mended.
        let losses = [first, second];
        let record = endure(&paging.rig, side, &losses[..1 + number % 2], &mut random);
        if matches!(first, Loss::Reset) {
            assert!(record["residual"]["reconnects"].as_u64() >= Some(1), "{record}");
        }
        side = side.other();
        paging.is_whole_at(side);
    }
    paging.finish(side);
}

/// Begins a slow move and waits until the workload runs at beta while pages of it are at alpha.
fn owing(rig: &Rig) -> Moving {
    let mut moving = rig.begin_move(Side::Alpha, &How::with(SLOWLY));
    rig.wait_for_phase(Side::Alpha, "serve", &mut moving);
    moving
}

/// Waits until `ps` at the source lists the migration in this state and somebody works on it.
fn wait_for_state(rig: &Rig, state: &str) {
    wait_until_listed(rig, Side::Alpha, |line| {
        line["role"] == "source" && line["state"] == state && line["attended"] == true
    });
}

/// Waits until `ps` lists such a migration.
pub(crate) fn wait_until_listed(rig: &Rig, side: Side, is_wanted: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + LONG;
    loop {
        let listed = rig.whimbrel(side, "ps --json").output;
        let lines = listed
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let mut migrations = lines.filter(|line| line["kind"] == "migration");
        if let Some(migration) = migrations.find(&is_wanted) {
            return migration;
        }
        assert!(Instant::now() < deadline, "{listed}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Ends the guardians of a host as kill -9 does. Hosts have PID namespaces of their own.
pub(crate) fn kill_guardians(rig: &Rig, side: Side) {
    let script = "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline 2>/dev/null | grep -q '^whimbrel guardian' && kill -9 ${p#/proc/}; done; true";
    rig.host(side).run(["sh", "-c", script]).unwrap();
}

/// Nobody wants the pages of a workload that has ended.
#[test]
fn a_workload_that_ends_while_it_lacks_pages_lets_its_copy_go() {
    let paging = Paging::slow();
    let rig = &paging.rig;
    let mut moving = rig.begin_move(Side::Alpha, &How::with("--strategy postcopy --prepage demand"));
    rig.wait_for_phase(Side::Alpha, "serve", &mut moving);
    // It runs there, but may not be listed yet.
    let deadline = Instant::now() + LONG;
    while !rig.whimbrel(Side::Beta, &format!("stop {NAME}")).success() {
        assert!(Instant::now() < deadline, "it cannot be stopped");
        thread::sleep(Duration::from_millis(20));
    }
    both_ended_well(&mut moving);
    let Paging { rig, client, .. } = paging;
    drop(client);
    rig.nothing_left(&[Side::Alpha, Side::Beta]).unwrap();
}

#[test]
fn resume_goes_on_by_hand_when_nobody_is_left() {
    let mut paging = Paging::slow();
    let mut moving = owing(&paging.rig);
    let rig = &paging.rig;
    for side in [Side::Alpha, Side::Beta] {
        kill_guardians(rig, side);
    }
    moving.migrate.kill().unwrap();
    moving.receive.kill().unwrap();
    let unattended = |line: &Value| line["attended"] == false && line["missing_pages"].as_u64() > Some(0);
    let source = wait_until_listed(rig, Side::Alpha, |line| {
        line["state"] == "serving" && unattended(line)
    });
    wait_until_listed(rig, Side::Beta, |line| {
        line["state"] == "running here, fetching" && unattended(line)
    });
    let logs = rig.whimbrel(Side::Beta, &format!("logs {NAME}")).output;
    assert!(!logs.contains("BAD"), "{logs}");
    let id = source["id"].as_str().unwrap();
    let resume = |side| {
        rig.host(side)
            .command(["whimbrel", "resume", id])
            .spawn()
            .unwrap()
    };
    let (mut destination, mut source) = (resume(Side::Beta), resume(Side::Alpha));
    source.wait_success(LONG).unwrap();
    destination.wait_success(LONG).unwrap();
    paging.is_whole_at(Side::Beta);
    paging.finish(Side::Beta);
}

#[test]
fn the_guardian_serves_what_a_killed_source_owes() {
    for after in [Duration::ZERO, SOON] {
        let mut paging = Paging::slow();
        let mut moving = owing(&paging.rig);
        thread::sleep(after);
        assert!(!paging.rig.has_phase(Side::Alpha, "serve", "ended"));
        moving.migrate.kill().unwrap();
        wait_for_state(&paging.rig, "serving");
        moving.receive.wait_success(LONG).unwrap();
        paging.is_whole_at(Side::Beta);
        paging.finish(Side::Beta);
    }
}

#[test]
fn the_guardian_serves_on_while_its_link_is_lost() {
    let mut paging = Paging::slow();
    let mut moving = owing(&paging.rig);
    moving.migrate.kill().unwrap();
    wait_for_state(&paging.rig, "serving");
    let cable = &paging.rig.hosts.alpha;
    paging.rig.hosts.cut(cable).unwrap();
    thread::sleep(Duration::from_millis(500));
    paging.rig.hosts.mend(cable).unwrap();
    moving.receive.wait_success(LONG).unwrap();
    paging.is_whole_at(Side::Beta);
    paging.finish(Side::Beta);
}

#[test]
fn a_killed_destination_leaves_no_wrong_page() {
    let mut paging = Paging::slow();
    let mut moving = owing(&paging.rig);
    moving.receive.kill().unwrap();
    let source = moving.migrate.wait(LONG).unwrap();
    let logs = paging.rig.whimbrel(Side::Beta, &format!("logs {NAME}")).output;
    assert!(!logs.contains("BAD"), "{logs}");
    assert_eq!(paging.rig.processes(Side::Alpha, "paging"), 0, "it has left");
    if paging.rig.processes(Side::Beta, "paging") == 1 {
        assert!(source.success(), "{source:?}");
        paging.is_whole_at(Side::Beta);
        return paging.finish(Side::Beta);
    }
    is_told_plainly(&source);
    let Paging { rig, client, .. } = paging;
    drop(client);
    rig.nothing_left(&[Side::Alpha, Side::Beta]).unwrap();
}

/// What cannot go on is said in one sentence, and no success.
fn is_told_plainly(finished: &Finished) {
    assert!(!finished.success(), "{finished:?}");
    one_sentence(finished, finished.code.unwrap(), &[]);
    let last = finished.output.lines().last().unwrap_or_default();
    assert!(last.contains(' '), "a sentence: {finished:?}");
}
