//! The command `whimbrel`.
#![forbid(unsafe_code)]

#[allow(dead_code)] // until migrate is here
mod args;
mod demo;
#[allow(dead_code)] // until migrate is here
mod exit;
mod logs;
mod ps;
mod run;
mod stop;
mod units;

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
        Command::Migrate(_) | Command::Receive(_) | Command::Resume(_) | Command::Guardian(_) => {
            report(Err(exit::refused("this release cannot move workloads yet")))
        }
        Command::Init(args) => ExitCode::from(whimbrel_process::container::init::main(args.control) as u8),
    }
}
