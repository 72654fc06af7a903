//! The sample server: threads that keep rewriting memory which they check, and a TCP service that shows it.
//!
//! A line for each request and each reply:
//!
//! ```text
//!     page SEQUENCE REGION PAGE  ->  SEQUENCE SERVED REGION PAGE GENERATION DIGEST
//!     check                      ->  ok PAGES        compares every page of every region
//! ```
//!
//! SERVED counts the replies of this connection, from 1. A reply that begins with `BAD` says what is wrong.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;

use super::content::Region;

/// How often a thread writes its share.
const TICK: Duration = Duration::from_millis(10);

/// Nine of ten writes go to one of this many parts of a region: most programs have a hot set.
const HOT_PART: usize = 16;

/// A request is never longer; whoever sends more is cut off.
const REQUEST_BYTES_MAX: usize = 200;

/// What the sample server does.
#[derive(Args, Clone, Debug)]
pub struct ServerArgs {
    /// Port to listen on, all addresses.
    #[arg(long, default_value_t = 7000)]
    pub port: u16,
    /// Memory to keep, in MiB.
    #[arg(long, default_value_t = 192)]
    pub memory_mib: usize,
    /// Memory to rewrite every second, in MiB.
    #[arg(long, default_value_t = 24)]
    pub rewrite_mib: usize,
    /// Threads that do so.
    #[arg(long, default_value_t = 4)]
    pub threads: usize,
}

/// What all threads share.
struct Shared {
    regions: Vec<Mutex<Region>>,
    rewritten: AtomicU64,
    wrong: AtomicU64,
}

impl Shared {
    fn region(&self, number: usize) -> Option<MutexGuard<'_, Region>> {
        Some(
            self.regions
                .get(number)?
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }

    /// Counts a wrong page.
    fn expect(&self, right: bool) {
        if !right {
            self.wrong.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn check_all(&self) -> String {
        let mut pages = 0;
        for number in 0..self.regions.len() {
            let Some(region) = self.region(number) else {
                continue;
            };
            pages += region.pages();
            (0..region.pages()).for_each(|page| self.expect(region.right(page)));
        }
        match self.wrong.load(Ordering::Relaxed) {
            0 => format!("ok {pages}"),
            wrong => format!("BAD {wrong} pages were found with another content"),
        }
    }
}

/// Serves until it is killed.
pub fn serve(args: &ServerArgs) -> anyhow::Result<()> {
    let threads = args.threads.clamp(1, 64);
    let pages = args.memory_mib * 256 / threads;
    let rewrites = (args.rewrite_mib * 256 / threads).div_ceil(100);
    let regions = (0..threads)
        .map(|number| Mutex::new(Region::new(number as u64, pages)))
        .collect();
    let shared = Arc::new(Shared {
        regions,
        rewritten: AtomicU64::new(0),
        wrong: AtomicU64::new(0),
    });
    let listener = TcpListener::bind(("0.0.0.0", args.port))
        .with_context(|| format!("cannot listen on port {}; choose another with --port", args.port))?;
    for number in 0..threads {
        let shared = Arc::clone(&shared);
        thread::spawn(move || rewrite_for_ever(&shared, number, rewrites));
    }
    let accepting = Arc::clone(&shared);
    thread::spawn(move || accept_for_ever(&listener, &accepting));
    report_for_ever(&shared)
}

/// Checks and rewrites pages at a steady pace.
fn rewrite_for_ever(shared: &Shared, number: usize, rewrites_per_tick: usize) {
    let mut random = Random(number as u64 + 1);
    let mut next = Instant::now();
    loop {
        for _ in 0..rewrites_per_tick {
            // Locked for each page anew, so that replies do not wait for a whole tick.
            let Some(mut region) = shared.region(number) else {
                return;
            };
            let hot = random.below(10) != 0;
            let page = random.below(if hot {
                region.pages() / HOT_PART
            } else {
                region.pages()
            });
            shared.expect(region.right(page));
            region.rewrite(page);
        }
        shared
            .rewritten
            .fetch_add(rewrites_per_tick as u64, Ordering::Relaxed);
        // What was missed during a pause is not made up for.
        next = (next + TICK).max(Instant::now());
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

fn accept_for_ever(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming().flatten() {
        let shared = Arc::clone(shared);
        thread::spawn(move || {
            // A client that went away is no news.
            let _ = answer_for_ever(stream, &shared);
        });
    }
}

fn answer_for_ever(stream: TcpStream, shared: &Shared) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut out = stream.try_clone()?;
    let mut requests = BufReader::new(stream);
    let mut line = String::new();
    for served in 1.. {
        line.clear();
        let length = io::Read::take(&mut requests, REQUEST_BYTES_MAX as u64).read_line(&mut line)?;
        if length == 0 {
            break;
        }
        let reply = answer(line.trim_end(), served, shared);
        out.write_all((reply + "\n").as_bytes())?;
    }
    Ok(())
}

fn answer(request: &str, served: u64, shared: &Shared) -> String {
    if request == "check" {
        return shared.check_all();
    }
    let wrong = shared.wrong.load(Ordering::Relaxed);
    if wrong > 0 {
        return format!("BAD {wrong} pages were found with another content");
    }
    let looked = || {
        let mut words = request.strip_prefix("page ")?.split(' ');
        let (sequence, number, page) = (words.next()?, words.next()?, words.next()?);
        let (generation, digest) = shared.region(number.parse().ok()?)?.look(page.parse().ok()?)?;
        Some(format!(
            "{sequence} {served} {number} {page} {generation} {digest:016x}"
        ))
    };
    looked().unwrap_or_else(|| format!("BAD request: {request}"))
}

/// A line a second for the log.
fn report_for_ever(shared: &Shared) -> ! {
    let mut out = io::stdout();
    for second in 1_u64.. {
        thread::sleep(Duration::from_secs(1));
        let (rewritten, wrong) = (
            shared.rewritten.load(Ordering::Relaxed),
            shared.wrong.load(Ordering::Relaxed),
        );
        let verdict = if wrong == 0 { "ok" } else { "BAD" };
        // A log that cannot be written is no reason to stop serving.
        let _ = writeln!(
            out,
            "demo-server {second} {verdict} rewritten {rewritten} wrong {wrong}"
        );
    }
    unreachable!("2^64 seconds have passed")
}

/// xorshift64* (Marsaglia 2003, Vigna 2016): enough to choose pages.
pub struct Random(pub u64);

impl Random {
    /// A number below `limit`, 0 when the limit is 0.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        (number as usize).checked_rem(limit).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared() -> Shared {
        let regions = (0..2).map(|number| Mutex::new(Region::new(number, 8))).collect();
        Shared {
            regions,
            rewritten: AtomicU64::new(0),
            wrong: AtomicU64::new(0),
        }
    }

    #[test]
    fn answers_with_generation_and_digest() {
        let shared = shared();
        let digest = super::super::content::expected_digest(1, 3, 1);
        assert_eq!(
            answer("page 17 1 3", 5, &shared),
            format!("17 5 1 3 1 {digest:016x}")
        );
        assert_eq!(answer("check", 6, &shared), "ok 16");
        for wrong in [
            "",
            "page",
            "page 1 9 0",
            "page 1 0 99999999999999999999",
            "page x",
        ] {
            assert!(answer(wrong, 7, &shared).starts_with("BAD request"), "{wrong}");
        }
    }

    #[test]
    fn a_wrong_page_is_told_to_everybody() {
        let shared = shared();
        shared.expect(false);
        assert!(answer("page 1 0 0", 1, &shared).starts_with("BAD 1 "));
        assert!(answer("check", 1, &shared).starts_with("BAD 1 "));
    }
}
