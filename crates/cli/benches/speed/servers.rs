//! Redis and Tomcat under load, by each strategy: what their clients see before, at and after the switch-over.
//!
//! The working set is counted where the workload has gone, right after the move and under the same load: the referenced bits of its
//! anonymous memory are cleared, and counted after as long a time as its pages were missing. (While they are missing nothing can be seen of it:
//! a page that was placed is marked as referenced, whether anybody has touched it or not.) For real programs the post-copy paper has at most
//! 21 % of the working set in network faults.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use whimbrel_sim::chart::{Across, Chart, Mark, Scale, Series};
use whimbrel_testbed::Host;

use crate::chart::save;
use crate::clients::{same, Lines};
use crate::record::{cell, fault_ms, heads, ms, residual};
use crate::rig::{How, Rig, Side, LONG};
use crate::tomcat;

/// Moves by each strategy. Each is printed, and the one with the median gap is drawn.
const MOVES: usize = 3;

const STRATEGIES: [&str; 3] = ["precopy", "hybrid", "postcopy"];

/// Connections that last over all moves.
const CONNECTIONS: usize = 4;

/// Before and after a move, to see what is usual.
const USUAL: Duration = Duration::from_secs(1);

/// What is drawn, in seconds from the freeze on.
const DRAWN: (f64, f64) = (-2.0, 4.0);

/// Of the requests that were sent within so many seconds, the slowest is drawn.
const DOT: f64 = 0.02;

/// Redis' keys and the length of each value: 128 MB.
const KEYS: usize = 131_072;
const VALUE: usize = 1000;

/// One of so many requests is a SET, the others are GETs.
const SET_EVERY: u64 = 4;

/// What a client does again and again.
type Exchange = Box<dyn FnMut(&mut Lines) -> io::Result<()> + Send>;

/// A server, how it is started and how it is used.
struct Server {
    name: &'static str,
    /// What the process is called.
    program: &'static str,
    start: fn(&Rig),
    /// What the client of this number does.
    client: fn(usize) -> Exchange,
    /// A client's pause between two requests.
    think: Duration,
}

const SERVERS: [Server; 2] = [
    Server {
        name: "redis",
        program: "redis-server",
        start: start_redis,
        client: redis_client,
        think: Duration::from_millis(1),
    },
    // Its pages would fill the link if they were asked for as often.
    Server {
        name: "tomcat",
        program: "java",
        start: |rig| tomcat::start(rig, "-Xms256m -Xmx256m"),
        client: |_| {
            let mut number = 0;
            Box::new(move |lines| {
                number += 1;
                tomcat::exchange(lines, number)
            })
        },
        think: Duration::from_millis(5),
    },
];

pub fn by_strategy() {
    println!(
        "redis with {} MB, and Tomcat, {CONNECTIONS} connections, 1 Gbit/s",
        KEYS * VALUE / 1_000_000
    );
    println!("p99 of requests sent during the move and while pages were missing; faults in % of the working set (the paper: 21 or less)\n");
    heads(&[
        "server",
        "strategy",
        "gap ms",
        "p99 move",
        "p99 resid",
        "errors",
        "reconnects",
        "resent",
        "down ms",
        "total s",
        "resume s",
        "fault max",
        "faults",
        "touched",
        "% faults",
    ]);
    for server in &SERVERS {
        let rig = Rig::new(&[]);
        (server.start)(&rig);
        let seen = Seen::default();
        let mut side = Side::Alpha;
        let series = thread::scope(|scope| {
            let _end = EndClients(&seen);
            for number in 0..CONNECTIONS {
                let exchange = (server.client)(number);
                scope.spawn(|| seen.client(&rig.hosts.client, exchange, server.think));
            }
            STRATEGIES.map(|strategy| measure(&rig, server, &seen, &mut side, strategy))
        });
        rig.finish(side);
        draw(server.name, series.into());
    }
}

/// Moves it some times; gives the line of the median one.
fn measure(rig: &Rig, server: &Server, seen: &Seen, side: &mut Side, strategy: &str) -> Series {
    let mut runs = Vec::new();
    for _ in 0..MOVES {
        let run = Run::make(rig, server, seen, *side, strategy);
        *side = side.other();
        run.print(server.name, strategy);
        runs.push(run);
    }
    runs.sort_by_key(Run::gap);
    runs[MOVES / 2].series(strategy)
}

fn draw(name: &str, series: Vec<Series>) {
    let chart = Chart {
        title: format!("{name}: the slowest request of each {} ms", DOT * 1e3),
        left: "time until the reply, ms".to_string(),
        bottom: "time at which it was sent, s after the freeze".to_string(),
        across: Across::Numbers(DRAWN.0, DRAWN.1),
        series,
        scale: Scale::Logarithmic,
        marks: vec![Mark {
            at: 0.0,
            name: "freeze".to_string(),
        }],
        ..Chart::default()
    };
    save(&format!("latency-{name}.svg"), &chart);
}

fn start_redis(rig: &Rig) {
    rig.serve(
        "redis-server --port 7000 --bind 0.0.0.0 --protected-mode no --appendonly no --dir /tmp --save \"\"",
    );
    let mut lines = Lines::connect(&rig.hosts.client);
    // Replies are awaited in batches: neither side's buffers fill up.
    for batch in 0..KEYS / 64 {
        let keys = batch * 64..(batch + 1) * 64;
        let commands: String = keys
            .map(|key| format!("SET {key} {}\r\n", value(key, 0)))
            .collect();
        lines.send(&commands).unwrap();
        (0..64).for_each(|_| same(&lines.line().unwrap(), "+OK").unwrap());
    }
}

fn value(key: usize, version: u64) -> String {
    format!("{key:09}-{version:09}-").repeat(VALUE / 20)
}

/// Knows what each of its keys must hold. Nobody else writes them.
fn redis_client(client: usize) -> Exchange {
    let mut versions = vec![0; KEYS / CONNECTIONS];
    let (mut random, mut number) = (client as u64 + 1, 0);
    Box::new(move |lines| {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let own = (random >> 33) as usize % versions.len();
        let key = own * CONNECTIONS + client;
        number += 1;
        if number % SET_EVERY == 0 {
            versions[own] += 1;
            lines.send(&format!("SET {key} {}\r\n", value(key, versions[own])))?;
            return same(&lines.line()?, "+OK");
        }
        lines.send(&format!("GET {key}\r\n"))?;
        same(&lines.line()?, &format!("${VALUE}"))?;
        same(&lines.line()?, &value(key, versions[own]))
    })
}

/// A request: when it was sent, and how long its reply took.
type Sample = (Instant, Duration);

/// What all clients have seen.
#[derive(Default)]
struct Seen {
    samples: Mutex<Vec<Sample>>,
    errors: AtomicU64,
    reconnects: AtomicU64,
    resent: AtomicU64,
    stop: AtomicBool,
}

/// The clients end, however the measurement ends.
struct EndClients<'a>(&'a Seen);

impl Drop for EndClients<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

impl Seen {
    /// A client that measures. It goes on after an error, on a new connection.
    fn client(&self, host: &Host, mut exchange: Exchange, think: Duration) {
        let mut lines = Lines::connect(host);
        let mut resent = 0;
        while !self.stop.load(Ordering::Relaxed) {
            let sent = Instant::now();
            match exchange(&mut lines) {
                Ok(()) => self.samples.lock().unwrap().push((sent, sent.elapsed())),
                Err(error) => {
                    println!("a client: {error}");
                    self.errors.fetch_add(1, Ordering::Relaxed);
                    lines = Lines::connect(host);
                    self.reconnects.fetch_add(1, Ordering::Relaxed);
                }
            }
            let before = std::mem::replace(&mut resent, lines.retransmitted());
            let more = resent.saturating_sub(before);
            self.resent.fetch_add(more.into(), Ordering::Relaxed);
            thread::sleep(think);
        }
    }

    fn take(&self) -> Vec<Sample> {
        std::mem::take(&mut *self.samples.lock().unwrap())
    }
}

/// One move, and what the clients have seen of it.
struct Run {
    samples: Vec<Sample>,
    begun: Instant,
    frozen: Instant,
    record: Value,
    errors: u64,
    reconnects: u64,
    /// Segments that the clients' kernel has sent again.
    resent: u64,
    /// Pages of the working set, if pages were missing after the switch-over.
    touched: f64,
}

impl Run {
    fn make(rig: &Rig, server: &Server, seen: &Seen, from: Side, strategy: &str) -> Self {
        // That of an earlier move from here would be taken for this one's.
        let _ = fs::remove_file(rig.host(from).path("/tmp/move.json"));
        seen.take();
        thread::sleep(USUAL);
        let begun = Instant::now();
        let (record, frozen) = thread::scope(|scope| {
            let watch = scope.spawn(|| {
                while !rig.has_phase(from, "freeze", "begun") && begun.elapsed() < LONG {
                    thread::sleep(Duration::from_millis(2));
                }
                Instant::now()
            });
            let record = rig.moved(from, &How::with(&format!("--strategy {strategy}")));
            (record, watch.join().unwrap())
        });
        thread::sleep(USUAL + Duration::from_secs_f64(DRAWN.1).saturating_sub(frozen.elapsed()));
        let mut run = Self {
            samples: seen.take(),
            begun,
            frozen,
            record,
            errors: seen.errors.swap(0, Ordering::Relaxed),
            reconnects: seen.reconnects.swap(0, Ordering::Relaxed),
            resent: seen.resent.swap(0, Ordering::Relaxed),
            touched: f64::NAN,
        };
        if let Some(missing) = run.missing() {
            run.touched = working_set(&process(rig, from.other(), server.program), missing);
        }
        run
    }

    /// How long pages were missing at the destination.
    fn missing(&self) -> Option<Duration> {
        self.record["residual"]["duration_us"]
            .as_u64()
            .map(Duration::from_micros)
    }

    fn gap(&self) -> Duration {
        self.samples
            .iter()
            .map(|sample| sample.1)
            .max()
            .unwrap_or_default()
    }

    /// The 99th percentile of the requests that were sent in this time, in milliseconds.
    fn p99(&self, from: Instant, until: Instant) -> f64 {
        let within = |sample: &&Sample| (from..until).contains(&sample.0);
        let mut times: Vec<Duration> = self
            .samples
            .iter()
            .filter(within)
            .map(|sample| sample.1)
            .collect();
        times.sort();
        let at = times.get(times.len() * 99 / 100);
        at.map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
    }

    fn print(&self, server: &str, strategy: &str) {
        let record = &self.record;
        let time = |name: &str| Duration::from_micros(record[name].as_u64().unwrap_or_default());
        let running = self.frozen + time("downtime_us");
        let missing = self.missing().unwrap_or_default();
        let faults = residual(record, "network_faults");
        let cells = [
            cell(self.gap().as_secs_f64() * 1e3, 1),
            cell(self.p99(self.begun, self.begun + time("total_us")), 1),
            cell(self.p99(running, running + missing), 1),
            cell(self.errors as f64, 0),
            cell(self.reconnects as f64, 0),
            cell(self.resent as f64, 0),
            cell(ms(record, "downtime_us"), 1),
            cell(ms(record, "total_us") / 1e3, 2),
            cell(residual(record, "duration_us") / 1e6, 2),
            cell(fault_ms(record, "max_us"), 1),
            cell(faults, 0),
            cell(self.touched, 0),
            cell(100.0 * faults / self.touched, 1),
        ];
        println!("{server:>11}{strategy:>11}{}", cells.concat());
    }

    /// The slowest request of each short time, over the time around the freeze.
    fn series(&self, strategy: &str) -> Series {
        let (low, high) = DRAWN;
        let mut slowest = vec![0.0_f64; ((high - low) / DOT) as usize];
        for (sent, took) in &self.samples {
            let after = sent.saturating_duration_since(self.frozen).as_secs_f64();
            let before = self.frozen.saturating_duration_since(*sent).as_secs_f64();
            let place = (after - before - low) / DOT;
            // A negative number would become the first place.
            if let Some(one) = slowest.get_mut(place as usize).filter(|_| place >= 0.0) {
                *one = one.max(took.as_secs_f64() * 1e3);
            }
        }
        let places = slowest.into_iter().enumerate();
        let points = places.map(|(index, slow)| (low + (index as f64 + 0.5) * DOT, slow));
        Series::new(strategy, points.collect())
    }
}

/// What a host's /proc has of the process whose first word ends with `program`.
fn process(rig: &Rig, side: Side, program: &str) -> PathBuf {
    let entries = fs::read_dir(rig.host(side).path("/proc")).unwrap().flatten();
    let is_it = |path: &PathBuf| {
        let line = fs::read_to_string(path.join("cmdline")).unwrap_or_default();
        // Redis writes its addresses behind its name.
        let word = line.split(['\0', ' ']).next().unwrap_or_default();
        word.ends_with(program)
    };
    entries.map(|entry| entry.path()).find(is_it).unwrap()
}

/// How many pages of anonymous memory a process touches in this time.
fn working_set(process: &Path, time: Duration) -> f64 {
    fs::write(process.join("clear_refs"), "1").unwrap();
    thread::sleep(time);
    let text = fs::read_to_string(process.join("smaps")).unwrap();
    let (mut anonymous, mut kilobytes) = (false, 0.0);
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[0] {
            "Referenced:" if anonymous => kilobytes += words[1].parse::<f64>().unwrap(),
            // The head of a mapping: addresses, protection, offset, device, inode and perhaps a name.
            range if !range.ends_with(':') => anonymous = words[4] == "0",
            _ => (),
        }
    }
    kilobytes / 4.0
}
