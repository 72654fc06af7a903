//! Clients that check every reply.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use whimbrel_kernel::socket;
use whimbrel_testbed::Host;

use crate::rig::{ADDRESS, LONG};

/// A TCP connection with lines.
pub struct Lines {
    reader: BufReader<TcpStream>,
    writer: TcpStream,
}

impl Lines {
    /// Connects to the workload, which may still be starting.
    pub fn connect(from: &Host) -> Self {
        let deadline = Instant::now() + LONG;
        let stream = loop {
            match from.connect(ADDRESS, Duration::from_secs(5)) {
                Ok(stream) => break stream,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            thread::sleep(Duration::from_millis(50));
        };
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        Self {
            writer: stream.try_clone().unwrap(),
            reader: BufReader::new(stream),
        }
    }

    pub fn send(&mut self, text: &str) -> std::io::Result<()> {
        self.writer.write_all(text.as_bytes())
    }

    /// The next line without its end.
    pub fn line(&mut self) -> std::io::Result<String> {
        let mut line = String::new();
        match self.reader.read_line(&mut line)? {
            0 => Err(std::io::Error::new(
                std::io::ErrorKind::UnexpectedEof,
                "the connection was closed",
            )),
            _ => Ok(line.trim_end().to_string()),
        }
    }

    /// How many segments the client's kernel has sent again: `tcpi_total_retrans` of linux/tcp.h.
    pub fn retransmitted(&self) -> u32 {
        let info = socket::option(self.writer.as_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, 104).unwrap();
        u32::from_ne_bytes(info[100..104].try_into().unwrap())
    }

    /// One HTTP request over this connection; gives the body.
    pub fn get(&mut self, path: &str) -> std::io::Result<String> {
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: workload\r\n\r\n"))?;
        self.response()
    }

    /// The rest of an HTTP request that was sent already.
    pub fn response(&mut self) -> std::io::Result<String> {
        let status = self.line()?;
        // The words after the number are missing with some servers.
        if status.split(' ').nth(1) != Some("200") {
            return Err(std::io::Error::other(format!("the status is {status}")));
        }
        let mut length = 0;
        loop {
            let header = self.line()?.to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            if let Some(value) = header.strip_prefix("content-length:") {
                length = value.trim().parse().map_err(std::io::Error::other)?;
            }
        }
        let mut body = vec![0; length];
        self.reader.read_exact(&mut body)?;
        Ok(String::from_utf8_lossy(&body).trim_end().to_string())
    }
}

/// Clients that repeat an exchange on a lasting connection each, until they are told to end.
pub struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    threads: Vec<JoinHandle<std::io::Result<()>>>,
}

impl Load {
    /// Starts `count` clients. The exchange gets the connection and the number of the exchange on it, from 0.
    pub fn start(from: &Host, count: usize, exchange: fn(&mut Lines, u64) -> std::io::Result<()>) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let start = |_| {
            let mut lines = Lines::connect(from);
            let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
            thread::spawn(move || {
                for number in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    exchange(&mut lines, number)?;
                    done.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(Duration::from_millis(2));
                }
                Ok(())
            })
        };
        let threads = (0..count).map(start).collect();
        Self { stop, done, threads }
    }

    /// Waits for as many more exchanges.
    pub fn more(&self, count: u64) {
        let (goal, deadline) = (self.done.load(Ordering::Relaxed) + count, Instant::now() + LONG);
        while self.done.load(Ordering::Relaxed) < goal {
            let ended = self.threads.iter().filter(|thread| thread.is_finished()).count();
            assert!(ended == 0, "{ended} clients have given up");
            assert!(Instant::now() < deadline, "the clients get no replies");
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends the clients: none may have seen an error.
    pub fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads
            .into_iter()
            .for_each(|thread| thread.join().unwrap().unwrap());
    }
}

/// An exchange with the program `echo`.
pub fn echo(lines: &mut Lines, number: u64) -> std::io::Result<()> {
    // Some of many segments.
    let length = if number % 50 == 7 { 60_000 } else { 20 };
    let text = format!("{}-{number}", "x".repeat(length));
    lines.send(&format!("{text}\n"))?;
    same(&lines.line()?, &format!("{number} {text}"))
}

/// An exchange with a server whose page says "ok" first.
pub fn http(lines: &mut Lines, _: u64) -> std::io::Result<()> {
    let body = lines.get("/")?;
    match body.starts_with("ok") {
        true => Ok(()),
        false => Err(std::io::Error::other(body)),
    }
}

/// Fails if the reply is another than it should be.
pub fn same(reply: &str, expected: &str) -> std::io::Result<()> {
    let shorten = |text: &str| text.chars().take(60).collect::<String>();
    match reply == expected {
        true => Ok(()),
        false => Err(std::io::Error::other(format!(
            "got \"{}\", expected \"{}\"",
            shorten(reply),
            shorten(expected)
        ))),
    }
}
