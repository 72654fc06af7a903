//! `whimbrel run`: starts a workload in a container.

use anyhow::Context;
use whimbrel_process::container::{
    self, Address, Command, Container, ContainerSpec, NetworkSpec, Options, Plan, Route,
};

use crate::args::RunArgs;
use crate::exit::refused;
use crate::host;
use crate::privilege::{require, NET_ADMIN, SYS_ADMIN};

/// Starts the command and prints the workload's name and PID.
pub fn run(args: &RunArgs) -> anyhow::Result<()> {
    require(if args.ip.is_empty() {
        &[SYS_ADMIN]
    } else {
        &[SYS_ADMIN, NET_ADMIN]
    })?;
    host::tidy();
    let words: Vec<String> = args
        .command
        .iter()
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let mut spec = ContainerSpec::new(args.name.as_deref(), &words).map_err(refused)?;
    spec.network = network(args).map_err(refused)?;
    let options = Options {
        bridge: args.bridge.clone(),
        ..Options::default()
    };
    let plan = Plan::new(&spec, &options).map_err(refused)?;
    let mut container = Container::create(plan, None)?;
    match start(&mut container, args) {
        Ok(pid) => {
            println!("{} {pid}", spec.name);
            Ok(())
        }
        Err(error) => match container::end(container.resources()) {
            Ok(()) => Err(error),
            Err(e) => Err(error.context(e.to_string())),
        },
    }
}

fn network(args: &RunArgs) -> container::Result<Option<NetworkSpec>> {
    if args.ip.is_empty() {
        return Ok(None);
    }
    let mut network = NetworkSpec::new(args.ip.clone(), args.bridge.as_deref())?;
    if !args.gateway.is_empty() {
        let unreachable =
            |gateway: &&std::net::IpAddr| !args.ip.iter().any(|ip: &Address| ip.contains(**gateway));
        if let Some(gateway) = args.gateway.iter().find(unreachable) {
            return Err(container::Error::Refused(format!(
                "the gateway {gateway} is not in the network of any --ip; give one that the workload can reach"
            )));
        }
        let over = |gateway| Route {
            destination: None,
            gateway: Some(gateway),
        };
        network.routes = args.gateway.iter().copied().map(over).collect();
    }
    Ok(Some(network))
}

fn start(container: &mut Container, args: &RunArgs) -> anyhow::Result<i32> {
    let command = Command {
        arguments: args.command.clone(),
        environment: std::env::vars_os().collect(),
        directory: std::env::current_dir().context("cannot find the working directory")?,
    };
    let started = container.run(&command)?;
    // Once init survives us it reaps, and a command that ends at once has no number any more.
    container.note_running(started.pid)?;
    container.survive()?;
    Ok(started.pid)
}
