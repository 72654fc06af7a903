//! `whimbrel demo`: two hosts made of namespaces on this machine, a server that is moved between them by every strategy while
//! clients use it, and what they saw of it. Runs the very commands that a user types.

mod client;
mod content;
mod moves;
mod plot;
pub mod server;
mod table;

use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context};
use clap::Args;
use whimbrel_testbed::TwoHosts;

use client::{Clients, Seen, Shape, REPLY_TIME_MAX};
use moves::{Move, Moved};
use plot::{Span, Style};
use table::Row;
use whimbrel_engine::Summary;

/// Where the sample server can be reached, on whichever host it runs.
const SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 77, 0, 50)), 7000);

/// The name under which it runs.
const NAME: &str = "demo";

/// How long the server may take to fill its memory and listen.
const START_MAX: Duration = Duration::from_secs(30);

/// Columns of the plot where nobody says how many there are.
const COLUMNS: usize = 100;

/// Options of the demo. The defaults run for less than a minute.
#[derive(Args, Clone, Debug)]
pub struct DemoArgs {
    /// Memory of the sample server, in MiB.
    #[arg(long, default_value_t = 192)]
    memory_mib: usize,
    /// Memory that it rewrites every second, in MiB.
    #[arg(long, default_value_t = 24)]
    rewrite_mib: usize,
    /// Clients, with one lasting TCP connection each.
    #[arg(long, default_value_t = 4)]
    clients: usize,
    /// Rate of the link between the hosts, as tc(8) writes it.
    #[arg(long, default_value = "1gbit")]
    rate: String,
    /// Quiet time before and after each move, in milliseconds.
    #[arg(long, default_value_t = 1500)]
    pause_ms: u64,
}

/// Threads of the sample server that rewrite memory.
const SERVER_THREADS: usize = 4;

/// Runs the demo. Exit code 1 if a move failed or a client saw anything but a pause.
pub fn run(args: &DemoArgs) -> anyhow::Result<ExitCode> {
    println!(
        "Two hosts made of namespaces, a link of {} between them, {} clients.",
        args.rate, args.clients
    );
    let binary = std::env::current_exe().context("cannot find the program's own file")?;
    let hosts = TwoHosts::builder().rate(&args.rate).program(&binary).build()?;
    let program = binary
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    start_server(&hosts, &program, args)?;

    let began = Instant::now();
    let connections: Vec<_> = (0..args.clients.max(1))
        .map(|_| connect(&hosts))
        .collect::<Result<_, _>>()?;
    let shape = Shape {
        regions: SERVER_THREADS,
        pages: args.memory_mib * 256 / SERVER_THREADS,
    };
    let clients = Clients::start(connections, shape, began);
    let moved = move_around(&hosts, &program, &clients, args, began);
    let checked = check(&hosts);
    let seen = clients.finish();
    let (moved, failure) = moved;
    show(&moved, &seen);
    judge(&seen, [failure, checked.err()])
}

/// Starts the sample server on host alpha and waits until it answers.
fn start_server(hosts: &TwoHosts, program: &str, args: &DemoArgs) -> anyhow::Result<()> {
    let (memory, rewrite) = (args.memory_mib, args.rewrite_mib);
    let address = SERVER.ip();
    let line = format!(
        "{program} run --name {NAME} --ip {address}/24 -- {program} demo-server --memory-mib {memory} \
         --rewrite-mib {rewrite} --threads {SERVER_THREADS}"
    );
    println!("\nalpha$ {line}");
    let started = hosts.alpha.run(line.split(' '))?;
    print!("{}", started.output);
    let deadline = Instant::now() + START_MAX;
    while connect(hosts).is_err() {
        ensure!(
            Instant::now() < deadline,
            "the sample server does not answer at {SERVER} after {START_MAX:?}"
        );
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn connect(hosts: &TwoHosts) -> whimbrel_testbed::Result<TcpStream> {
    hosts.client.connect(SERVER, Duration::from_secs(5))
}

/// There and back by each strategy, until something fails.
fn move_around(
    hosts: &TwoHosts,
    program: &str,
    clients: &Clients,
    args: &DemoArgs,
    began: Instant,
) -> (Vec<Moved>, Option<anyhow::Error>) {
    let pause = Duration::from_millis(args.pause_ms);
    let mut done = Vec::new();
    for strategy in ["precopy", "postcopy", "hybrid", "stopcopy"] {
        for back in [false, true] {
            thread::sleep(pause);
            let one = Move {
                hosts,
                program,
                name: NAME,
                strategy,
                back,
            };
            match one.carry_out(began) {
                Ok(moved) => done.push(moved),
                Err(error) => return (done, Some(error)),
            }
            if !clients.all_content() {
                return (done, None);
            }
        }
    }
    thread::sleep(pause);
    (done, None)
}

/// Asks the server to compare all of its memory, over a new connection.
fn check(hosts: &TwoHosts) -> anyhow::Result<()> {
    let mut stream = connect(hosts)?;
    stream.set_read_timeout(Some(REPLY_TIME_MAX))?;
    stream.write_all(b"check\n")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    if !line.starts_with("ok ") {
        bail!(
            "the server's memory is wrong after the moves: \"{}\"",
            line.trim_end()
        );
    }
    println!(
        "\nThe server compared all of its memory: {} pages are right.",
        line.trim_start_matches("ok ").trim_end()
    );
    Ok(())
}

/// The plot and the table.
fn show(moved: &[Moved], seen: &Seen) {
    let terminal = std::io::stdout().is_terminal();
    let columns = std::env::var("COLUMNS")
        .ok()
        .and_then(|columns| columns.parse().ok());
    let known = terminal.then(|| console::Term::stdout().size().1.into());
    let style = Style {
        width: known.or(columns).unwrap_or(COLUMNS),
        unicode: terminal,
    };
    let span = |(number, one): (usize, &Moved)| Span {
        name: (number + 1).to_string(),
        start: one.start,
        end: one.end,
    };
    let spans: Vec<_> = moved.iter().enumerate().map(span).collect();
    println!(
        "\nLatency of {} replies, the slowest of each column:\n",
        seen.replies.len()
    );
    println!("{}", plot::plot(&seen.replies, &spans, style));
    let row = |(number, one): (usize, &Moved)| Row {
        number: number + 1,
        strategy: one.strategy.clone(),
        direction: one.direction.clone(),
        total: Duration::from_micros(one.summary.total_us),
        downtime: Duration::from_micros(one.summary.downtime_us),
        gap: longest_gap(seen, one),
        bytes: one.summary.bulk_bytes + followed(&one.summary),
        faults: one
            .summary
            .residual
            .as_ref()
            .map(|residual| residual.network_faults),
        rounds: one.summary.rounds.iter().filter(|round| !round.frozen).count(),
    };
    println!(
        "{}",
        table::table(&moved.iter().enumerate().map(row).collect::<Vec<_>>())
    );
}

/// Bytes that followed after the switch-over.
fn followed(summary: &Summary) -> u64 {
    let residual = summary.residual.as_ref();
    residual.map_or(0, |residual| residual.bytes_pushed + residual.bytes_replied)
}

/// The slowest reply that was awaited at some time during the move.
fn longest_gap(seen: &Seen, moved: &Moved) -> Duration {
    let during = seen
        .replies
        .iter()
        .filter(|reply| reply.sent_at <= moved.end && reply.sent_at + reply.latency >= moved.start);
    during.map(|reply| reply.latency).max().unwrap_or_default()
}

/// The last word.
fn judge(seen: &Seen, failures: [Option<anyhow::Error>; 2]) -> anyhow::Result<ExitCode> {
    let failures = failures
        .into_iter()
        .flatten()
        .map(|failure| format!("{failure:#}"));
    let faults: Vec<String> = failures.chain(seen.faults.iter().cloned()).collect();
    if faults.is_empty() && !seen.replies.is_empty() {
        println!("No reply was wrong or missing, and no connection broke.");
        return Ok(ExitCode::SUCCESS);
    }
    println!("The demo FAILED:");
    faults.iter().for_each(|fault| println!("  {fault}"));
    Ok(ExitCode::FAILURE)
}
