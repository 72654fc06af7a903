//! The demo's clients: lasting TCP connections that check and time every reply.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::content::expected_digest;
use super::server::Random;

/// Time between two requests of a client.
const PERIOD: Duration = Duration::from_millis(5);

/// A reply that takes longer counts as missing. Far more than a stop-copy of the sample server takes.
pub const REPLY_TIME_MAX: Duration = Duration::from_secs(30);

/// One reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// When the request was sent, since the demo began.
    pub sent_at: Duration,
    /// How long the reply took.
    pub latency: Duration,
}

/// What the server keeps, so that the clients ask for what exists.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Regions.
    pub regions: usize,
    /// Pages in each.
    pub pages: usize,
}

/// Clients at work.
pub struct Clients {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<(Vec<Reply>, Option<String>)>>,
}

/// What the clients saw.
#[derive(Debug, Default)]
pub struct Seen {
    /// All replies, by the time of their requests.
    pub replies: Vec<Reply>,
    /// One sentence for each client that got a wrong reply, none, or lost its connection.
    pub faults: Vec<String>,
}

impl Clients {
    /// One client for each connection; times count from `began`.
    pub fn start(connections: Vec<TcpStream>, shape: Shape, began: Instant) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let start = |(number, stream): (usize, TcpStream)| {
            let stop = Arc::clone(&stop);
            thread::spawn(move || {
                let mut replies = Vec::new();
                let fault = ask_until(&stop, stream, number, shape, began, &mut replies).err();
                (replies, fault.map(|fault| format!("client {number}: {fault:#}")))
            })
        };
        let threads = connections.into_iter().enumerate().map(start).collect();
        Self { stop, threads }
    }

    /// Whether none has given up.
    pub fn all_content(&self) -> bool {
        !self.threads.iter().any(JoinHandle::is_finished)
    }

    /// Ends the clients and gives what they saw.
    pub fn finish(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        let mut seen = Seen::default();
        for thread in self.threads {
            match thread.join() {
                Ok((replies, fault)) => {
                    seen.replies.extend(replies);
                    seen.faults.extend(fault);
                }
                Err(_) => seen.faults.push("a client's thread panicked".to_string()),
            }
        }
        seen.replies.sort_by_key(|reply| reply.sent_at);
        seen
    }
}

fn ask_until(
    stop: &AtomicBool,
    stream: TcpStream,
    number: usize,
    shape: Shape,
    began: Instant,
    replies: &mut Vec<Reply>,
) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(REPLY_TIME_MAX))?;
    let mut out = stream.try_clone()?;
    let mut incoming = BufReader::new(stream);
    let mut judge = Judge::default();
    let mut random = Random(number as u64 + 77);
    let mut line = String::new();
    while !stop.load(Ordering::Relaxed) {
        let asked = Asked {
            sequence: judge.served + 1,
            region: random.below(shape.regions),
            page: random.below(shape.pages),
        };
        let sent = Instant::now();
        out.write_all(format!("page {} {} {}\n", asked.sequence, asked.region, asked.page).as_bytes())?;
        line.clear();
        if incoming.read_line(&mut line)? == 0 {
            anyhow::bail!("the connection was closed");
        }
        let latency = sent.elapsed();
        judge.judge(asked, line.trim_end()).map_err(anyhow::Error::msg)?;
        replies.push(Reply {
            sent_at: sent - began,
            latency,
        });
        thread::sleep(PERIOD.saturating_sub(sent.elapsed()));
    }
    Ok(())
}

/// A request.
#[derive(Clone, Copy, Debug)]
struct Asked {
    sequence: u64,
    region: usize,
    page: usize,
}

/// Knows what has been answered so far on a connection.
#[derive(Debug, Default)]
struct Judge {
    served: u64,
    generations: HashMap<(usize, usize), u64>,
}

impl Judge {
    /// Whether the reply belongs to this request, none was lost, and the page is neither wrong nor older than it was.
    fn judge(&mut self, asked: Asked, reply: &str) -> Result<(), String> {
        self.served += 1;
        let Asked {
            sequence,
            region,
            page,
        } = asked;
        let start = format!("{sequence} {} {region} {page} ", self.served);
        let rest = reply
            .strip_prefix(&start)
            .ok_or(format!("expected \"{start}...\", got \"{reply}\""))?;
        let parsed = rest.split_once(' ').and_then(|(generation, digest)| {
            Some((
                generation.parse::<u64>().ok()?,
                u64::from_str_radix(digest, 16).ok()?,
            ))
        });
        let (generation, digest) = parsed.ok_or(format!("not understood: \"{reply}\""))?;
        if digest != expected_digest(region as u64, page as u64, generation) {
            return Err(format!(
                "page {page} of region {region} has a wrong content: \"{reply}\""
            ));
        }
        let before = self.generations.insert((region, page), generation).unwrap_or(0);
        if generation < before {
            return Err(format!(
                "page {page} of region {region} went from generation {before} back to {generation}"
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(sequence: u64, served: u64, generation: u64) -> String {
        format!(
            "{sequence} {served} 1 2 {generation} {:016x}",
            expected_digest(1, 2, generation)
        )
    }

    #[test]
    fn accepts_what_is_right_and_only_that() {
        let asked = |sequence| Asked {
            sequence,
            region: 1,
            page: 2,
        };
        let mut judge = Judge::default();
        assert_eq!(judge.judge(asked(1), &reply(1, 1, 5)), Ok(()));
        assert_eq!(judge.judge(asked(2), &reply(2, 2, 5)), Ok(()));
        assert!(judge
            .judge(asked(3), &reply(3, 3, 4))
            .unwrap_err()
            .contains("back to 4"));
        for wrong in [
            reply(3, 4, 6),
            reply(4, 3, 6),
            "BAD 1 pages".into(),
            String::new(),
            reply(4, 4, 6).replace(" 6 ", " 7 "),
        ] {
            let mut judge = Judge {
                served: 3,
                ..Judge::default()
            };
            assert!(judge.judge(asked(4), &wrong).is_err(), "{wrong}");
        }
    }
}
