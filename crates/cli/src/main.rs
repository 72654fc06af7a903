//! The command `whimbrel`.
#![forbid(unsafe_code)]

mod args;
mod check;
mod demo;
mod exit;
mod guardian;
mod host;
mod interrupt;
mod kinds;
mod logs;
mod migrate;
mod plan;
mod privilege;
mod ps;
mod receive;
mod resume;
mod run;
mod screen;
mod stop;
mod subject;
mod units;
mod watch;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};
use exit::report;

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run(args) => report(run::run(&args)),
        Command::Ps(args) => report(ps::run(&args)),
        Command::Logs(args) => report(logs::run(&args)),
        Command::Stop(args) => report(stop::run(&args)),
        Command::Demo(args) => demo::run(&args).unwrap_or_else(|error| report(Err(error))),
        Command::DemoServer(args) => report(demo::server::serve(&args)),
        Command::Check(args) => report(check::run(&args)),
        Command::Plan(args) => report(plan::run(&args)),
        Command::Migrate(args) => report(migrate::run(&args)),
        Command::Receive(args) => report(receive::run(&args)),
        Command::Resume(args) => report(resume::run(&args)),
        Command::Guardian(args) => report(guardian::run(&args)),
        Command::Init(args) => ExitCode::from(whimbrel_process::container::init::main(args.control) as u8),
    }
}
