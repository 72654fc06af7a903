//! How fast migrations are simulated.
//!
//! Goals: a million pages and a hundred thousand events a second, the whole pre-copy of a 16 GB machine in less than a second, and a sweep over
//! a thousand scenarios on two cores in a minute.

use std::fs;
use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Instant;

use whimbrel_sim::sweep::{self, Plan};
use whimbrel_sim::{simulate, Scenario};

const LOADS: [(&str, &str); 5] = [
    ("idle", ""),
    (
        "uniform, 20 MB/s",
        "[[guest.load]]\nmodel = \"uniform\"\nrate = \"20MB/s\"\n",
    ),
    (
        "uniform, 200 MB/s",
        "[[guest.load]]\nmodel = \"uniform\"\nrate = \"200MB/s\"\n",
    ),
    (
        "hot-cold, 60 MB/s",
        "[[guest.load]]\nmodel = \"hot-cold\"\nrate = \"60MB/s\"\n",
    ),
    (
        "heap, 300 MB/s",
        "[[guest.load]]\nmodel = \"heap\"\nrate = \"300MB/s\"\nsize = \"4GiB\"\n",
    ),
];

/// Simulations of the sweep.
const SWEPT: usize = 1000;
const THREADS: NonZeroUsize = NonZeroUsize::new(2).unwrap();

pub fn speed() {
    println!("one core; seconds of the simulation, and of what it simulates\n");
    for (strategy, size) in [("precopy", "16GiB"), ("postcopy", "4GiB"), ("hybrid", "4GiB")] {
        for (name, load) in LOADS {
            one(strategy, size, name, load);
        }
    }
    sweep();
}

fn one(strategy: &str, size: &str, name: &str, load: &str) {
    let text = format!(
        "[memory]\nsize = \"{size}\"\n[link]\nrate = \"1Gbit/s\"\nlatency = \"100us\"\n[guest]\nvcpus = 4\n{load}\
         [migration]\nstrategy = \"{strategy}\"\n"
    );
    let scenario = Scenario::parse(&text, "speed.toml").unwrap();
    let (begun, cpu_before_s) = (Instant::now(), cpu_s());
    let outcome = simulate(&scenario);
    let (took_s, cpu_s) = (begun.elapsed().as_secs_f64(), cpu_s() - cpu_before_s);
    println!(
        "{strategy:<9}{size:>6} {name:<18}{took_s:>7.3} s, CPU {cpu_s:>5.2} s, for {:>6.1} s;{:>9.0} pages and {:>9.0} events a second",
        outcome.total_s,
        (outcome.pages_sent + outcome.pages_zero) as f64 / took_s,
        outcome.events as f64 / took_s,
    );
}

/// The scenarios that come with the program, each with as many seeds.
fn sweep() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scenarios");
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files: Vec<_> = files
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    let seeds: Vec<String> = (1..=SWEPT.div_ceil(files.len()))
        .map(|seed| seed.to_string())
        .collect();
    let seeds = format!("seed={}", seeds.join(",")).parse().unwrap();
    let plan = |path: &std::path::PathBuf| {
        let text = fs::read_to_string(path).unwrap();
        Plan::new(
            &text,
            &path.display().to_string(),
            std::slice::from_ref(&seeds),
            None,
        )
        .unwrap()
    };
    let plans: Vec<Plan> = files.iter().map(plan).collect();
    let (begun, cpu_before_s) = (Instant::now(), cpu_s());
    let cases = sweep::run(&plans, THREADS, &|| ()).unwrap();
    println!(
        "\nsweep of {} scenarios on {THREADS} cores: {:.1} s, CPU {:.1} s",
        cases.len(),
        begun.elapsed().as_secs_f64(),
        cpu_s() - cpu_before_s,
    );
}

/// CPU time of this process; other processes on this machine make the clock on the wall run ahead of it.
fn cpu_s() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    // utime and stime, the 14th and 15th field (proc_pid_stat(5)); the second one may contain blanks, and ends with a parenthesis.
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let ticks = fields.split_whitespace().skip(11).take(2);
    ticks.map(|ticks| ticks.parse::<f64>().unwrap()).sum::<f64>() / 100.0
}
