//! How fast the data path is over loopback, one stream: `cargo run --release -p whimbrel-engine --example loopback [GiB]`.
//!
//! The workload is one piece of memory, so that reading and writing cost a copy and no system call. All of it counts: reading,
//! looking for zeros, framing, sockets, writing to its place.

use std::convert::Infallible;
use std::error::Error;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use whimbrel_engine::contract::{Captured, Scanned};
use whimbrel_engine::{
    migrate, Journals, Left, Mode, Never, Outcome, Phase, ReceiveOptions, Reception, Recover, Replica,
    SourceOptions, Workload,
};
use whimbrel_policy::{Hints, Limits, Migration, PageRun, Scan, SpaceId, StopCopy};
use whimbrel_wire::{Key, MigrationId};

const PAGE: usize = 4096;

struct Memory(Vec<u8>);

impl Memory {
    fn part(&mut self, run: PageRun) -> &mut [u8] {
        &mut self.0[run.first as usize * PAGE..][..run.count as usize * PAGE]
    }

    fn all(&self) -> PageRun {
        PageRun {
            space: SpaceId(0),
            first: 0,
            count: (self.0.len() / PAGE) as u64,
        }
    }
}

impl Workload for Memory {
    type Error = Infallible;
    type Store = Never;

    fn store(&mut self) -> Result<Never, Infallible> {
        unreachable!("nothing is left behind")
    }

    fn describe(&mut self) -> Result<Vec<u8>, Infallible> {
        Ok((self.0.len() as u64).to_le_bytes().to_vec())
    }

    fn resources(&self) -> Vec<u8> {
        Vec::new()
    }

    fn begin(&mut self, _: Mode) -> Result<(), Infallible> {
        Ok(())
    }

    fn scan(&mut self) -> Result<Scanned, Infallible> {
        Ok(Scanned::default())
    }

    fn rewritten(&mut self, _: &[PageRun], _: &mut Vec<PageRun>) -> Result<(), Infallible> {
        Ok(())
    }

    fn read(&mut self, runs: &[PageRun], buffer: &mut [u8], _: &mut Vec<PageRun>) -> Result<(), Infallible> {
        let mut rest = buffer;
        for &run in runs {
            let (here, after) = rest.split_at_mut(run.count as usize * PAGE);
            here.copy_from_slice(self.part(run));
            rest = after;
        }
        Ok(())
    }

    fn freeze(&mut self) -> Result<(), Infallible> {
        Ok(())
    }

    fn layout_frozen(&mut self) -> Result<Option<Vec<u8>>, Infallible> {
        Ok(Some(Vec::new()))
    }

    fn capture(&mut self) -> Result<Captured, Infallible> {
        Ok(Captured::default())
    }

    fn scan_frozen(&mut self) -> Result<Scanned, Infallible> {
        let present = Some(vec![self.all()]);
        Ok(Scanned {
            scan: Scan {
                present,
                ..Scan::default()
            },
            layout: None,
            pages_total: self.all().count,
        })
    }

    fn hold(&mut self) -> Result<(), Infallible> {
        Ok(())
    }

    fn release(&mut self, _: Outcome) -> Result<(), Infallible> {
        Ok(())
    }
}

impl Replica for Memory {
    type Error = Infallible;
    type Pager = Never;

    fn arm(&mut self, _: &[PageRun]) -> Result<Never, Infallible> {
        unreachable!("nothing is left behind")
    }

    fn prepare(&mut self, spec: &[u8]) -> Result<(), Infallible> {
        let bytes = spec
            .iter()
            .rev()
            .fold(0, |all, &byte| all << 8 | usize::from(byte));
        self.0 = vec![1; bytes];
        Ok(())
    }

    fn resources(&self) -> Vec<u8> {
        Vec::new()
    }

    fn follow(&mut self, _: &[u8]) -> Result<(), Infallible> {
        Ok(())
    }

    fn write(&mut self, run: PageRun, data: &[u8]) -> Result<(), Infallible> {
        self.part(run).copy_from_slice(data);
        Ok(())
    }

    fn zero(&mut self, run: PageRun) -> Result<(), Infallible> {
        self.part(run).fill(0);
        Ok(())
    }

    fn forget(&mut self, _: PageRun) -> Result<(), Infallible> {
        Ok(())
    }

    fn load(&mut self, _: &[u8]) -> Result<(), Infallible> {
        Ok(())
    }

    fn complete(&mut self) -> Result<(), Infallible> {
        Ok(())
    }

    fn start(&mut self) -> Result<(), Infallible> {
        Ok(())
    }

    fn settle(&mut self) -> Result<(), Infallible> {
        Ok(())
    }

    fn discard(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}

struct Nothing;

impl Recover for Nothing {
    type Error = Infallible;
    type Store = Never;
    type Pager = Never;

    fn store(&self, _: &[u8]) -> Result<Never, Infallible> {
        unreachable!("nothing is left behind")
    }

    fn pager(&self, _: &[u8]) -> Result<Left<Never>, Infallible> {
        Ok(Left::Nothing)
    }

    fn stays(&self, _: &[u8]) -> Result<(), Infallible> {
        Ok(())
    }

    fn moved(&self, _: &[u8]) -> Result<(), Infallible> {
        Ok(())
    }

    fn discard(&self, _: &[u8]) -> Result<(), Infallible> {
        Ok(())
    }

    fn start(&self, _: &[u8]) -> Result<(), Infallible> {
        Ok(())
    }
}

/// What the socket alone gives: a megabyte written and read again and again, in GB/s.
fn socket_alone(bytes: usize) -> Result<f64, Box<dyn Error>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut near = TcpStream::connect(listener.local_addr()?)?;
    let (mut far, _) = listener.accept()?;
    let reader = thread::spawn(move || {
        let mut buffer = vec![0; 1 << 20];
        while far.read(&mut buffer).is_ok_and(|n| n > 0) {}
    });
    let begun = Instant::now();
    let piece = vec![1; 1 << 20];
    for _ in 0..bytes >> 20 {
        near.write_all(&piece)?;
    }
    drop(near);
    reader.join().map_err(|_| "the reader panicked")?;
    Ok(bytes as f64 / begun.elapsed().as_secs_f64() / 1e9)
}

fn main() -> Result<(), Box<dyn Error>> {
    let gib: usize = std::env::args().nth(1).map_or(Ok(2), |text| text.parse())?;
    let journals =
        Journals::new(std::env::temp_dir().join(format!("whimbrel-loopback-{}", std::process::id())));
    let key = Key::random()?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut memory = Memory(vec![0x5a; gib << 30]);
    for round in 0..3 {
        let alone = socket_alone(gib << 30)?;
        let options = ReceiveOptions {
            key: key.clone(),
            journals: journals.clone(),
            link_timeout: Duration::from_secs(10),
            answer_for: Duration::ZERO,
            cancel: Arc::default(),
        };
        let mut reception = Reception::open(&listener, options)?;
        let options = SourceOptions {
            id: MigrationId::random()?,
            key: key.clone(),
            destination: reception.address().to_string(),
            workload_name: "memory".into(),
            migration: Migration::new(Box::new(StopCopy), Limits::default(), Hints::default()),
            link_timeout: Duration::from_secs(10),
            residual: Default::default(),
            trace: None,
            followed: false,
            ask_for: Duration::ZERO,
            journals: journals.clone(),
            cancel: Arc::default(),
        };
        let receiver =
            thread::spawn(move || reception.receive_one(&Nothing, |_| Ok(Memory(Vec::new())), &mut ()));
        let summary = migrate(&mut memory, options, &mut ())?;
        receiver.join().map_err(|_| "the receiver panicked")??;
        let pages = summary
            .phases
            .iter()
            .find(|p| p.phase == Phase::LastPages)
            .map_or(1, |p| p.duration_us.max(1));
        let rate = summary.bulk_bytes as f64 / pages as f64 / 1e3;
        println!("run {round}: {summary}: {rate:.2} GB/s; the socket alone {alone:.2} GB/s");
    }
    std::fs::remove_dir_all(journals.directory())?;
    Ok(())
}
