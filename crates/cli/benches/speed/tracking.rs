//! What an application loses while its writes are tracked and nothing else happens.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use whimbrel_engine::{Mode, Outcome, Workload};
use whimbrel_process::ProcessWorkload;
use whimbrel_testbed::programs;

use crate::record::line;

/// Time with and time without, in turn, so that a change of the machine hits both.
const TURNS: usize = 5;
/// One scan a second.
const SCANS: u32 = 4;

pub fn cost_to_the_application() {
    println!("a writer without pause, 512 MB of which it rewrites 64 MB; {TURNS} turns\n");
    let mut writer = Writer::start("512", "64");
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        without.push(writer.rate(|| ()));
        let mut workload = ProcessWorkload::new(writer.child.id() as i32, None).unwrap();
        workload.describe().unwrap();
        workload.begin(Mode::Live).unwrap();
        workload.scan().unwrap();
        with.push(writer.rate(|| drop(workload.scan().unwrap())));
        workload.release(Outcome::Stays).unwrap();
    }
    let median = |rates: &mut Vec<f64>| {
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    };
    let (without, with) = (median(&mut without), median(&mut with));
    line("pages written untracked", without / 1e3, "k/s", "");
    line("pages written with a scan a second", with / 1e3, "k/s", "");
    line("loss", 100.0 * (1.0 - with / without), "%", "goal: 2 % or less");
}

/// The program `writer`, and how many pages it has written.
struct Writer {
    child: Child,
    lines: BufReader<File>,
    path: PathBuf,
}

impl Writer {
    fn start(megabytes: &str, hot: &str) -> Self {
        // A file, since a pipe to us could not move along.
        let path = std::env::temp_dir().join(format!("whimbrel-tracking-{}", std::process::id()));
        let output = File::create(&path).unwrap();
        let lines = BufReader::new(File::open(&path).unwrap());
        // Nor could what cargo leaves open for its children.
        let closing = "for fd in /proc/self/fd/*; do n=${fd##*/}; [ $n -gt 2 ] && eval \"exec $n>&-\"; done; exec \"$@\"";
        let child = Command::new("bash")
            .args(["-c", closing, "bash"])
            .arg(programs::c("writer").unwrap())
            .args([megabytes, hot])
            .stdin(Stdio::null())
            .stdout(output)
            .spawn()
            .unwrap();
        let mut writer = Self { child, lines, path };
        writer.next_line();
        writer
    }

    /// Pages per second while `each_second` is called each second.
    fn rate(&mut self, mut each_second: impl FnMut()) -> f64 {
        let (begun, before) = self.next_line();
        for second in 1..=SCANS {
            thread::sleep(
                (begun + Duration::from_secs(second.into())).saturating_duration_since(Instant::now()),
            );
            each_second();
        }
        let (ended, after) = self.next_line();
        (after - before) as f64 / (ended - begun).as_secs_f64()
    }

    /// The moment at which a line arrives, and its number.
    fn next_line(&mut self) -> (Instant, u64) {
        let mut line = String::new();
        // What has come before.
        self.lines.read_to_string(&mut line).unwrap();
        line.clear();
        while !line.ends_with('\n') {
            if self.lines.read_line(&mut line).unwrap() == 0 {
                thread::sleep(Duration::from_micros(100));
            }
        }
        let last = line.trim_end().rsplit(' ').next();
        (Instant::now(), last.unwrap().parse().unwrap())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.path);
    }
}
