//! `whimbrel receive`: takes workloads in.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use whimbrel_engine::destination::{Incoming, ReceiveOptions, Reception, ANSWER_FOR};
use whimbrel_engine::journal::FENCED_MAX;
use whimbrel_engine::Role;
use whimbrel_wire::{Key, MigrationId};

use crate::args::{End, ReceiveArgs};
use crate::exit::refused;
use crate::guardian::Guardian;
use crate::migrate::coded;
use crate::privilege::{require, require_kernel_of_destination, NET_ADMIN, SYS_ADMIN, SYS_PTRACE, SYS_TIME};
use crate::watch::Watch;
use crate::{guardian, host, interrupt};

/// Receives one workload, or one after the other.
pub fn run(args: &ReceiveArgs) -> anyhow::Result<()> {
    let cancel = interrupt::watch()?;
    require(&[SYS_PTRACE, SYS_ADMIN, NET_ADMIN, SYS_TIME])?;
    require_kernel_of_destination()?;
    host::tidy();
    let listener = listen(&args.listen)?;
    let mut watch = Watch::new(args.json.as_deref())?;
    let mut guardians = Guardians {
        args,
        listener: &listener,
        guardians: Vec::new(),
    };
    loop {
        let result = receive_one(&mut guardians, &cancel, &mut watch);
        let again = args.keep && !cancel.load(Ordering::Relaxed);
        match result {
            Err(error) if again => eprintln!("whimbrel: {error:#}"),
            Ok(()) if again => {}
            result => {
                watch.close();
                return result;
            }
        }
        guardians.dismiss_idle()?;
    }
}

/// One for each migration that is not settled. As long as we listen, we answer the questions about all of them; then they do.
struct Guardians<'a> {
    args: &'a ReceiveArgs,
    listener: &'a TcpListener,
    guardians: Vec<(MigrationId, Guardian)>,
}

impl Guardians<'_> {
    /// A migration can do without: what it leaves if we die is left to the next command then.
    fn start(&mut self, id: MigrationId) {
        match Guardian::start(id, End::Destination, self.args.link_timeout, Some(self.listener)) {
            Ok(guardian) => self.guardians.push((id, guardian)),
            Err(e) => eprintln!("whimbrel: {e:#}"),
        }
    }

    /// Those with nothing to do. A service may be the only command on its host for a long time.
    fn dismiss_idle(&mut self) -> anyhow::Result<()> {
        host::journals().forget_fenced(FENCED_MAX)?;
        for (id, guardian) in std::mem::take(&mut self.guardians) {
            match host::journals().read(id, Role::Destination)? {
                Some(_) => self.guardians.push((id, guardian)),
                None => guardian.release(),
            }
        }
        Ok(())
    }
}

impl Drop for Guardians<'_> {
    fn drop(&mut self) {
        self.guardians
            .drain(..)
            .for_each(|(_, guardian)| guardian.release());
    }
}

/// A guardian may still hold the address, to answer questions about an earlier migration.
fn listen(address: &str) -> anyhow::Result<TcpListener> {
    let mut bound = TcpListener::bind(address);
    let taken = bound.as_ref().is_err_and(|e| e.kind() == ErrorKind::AddrInUse);
    let port = address.rsplit(':').next().and_then(|port| port.parse().ok());
    if taken && port.map(guardian::make_room).transpose()?.unwrap_or(false) {
        bound = TcpListener::bind(address);
    }
    bound.map_err(|e| {
        refused(format!(
            "cannot listen on {address}: {e}; choose another address with --listen"
        ))
    })
}

/// With a key of its own.
fn receive_one(guardians: &mut Guardians, cancel: &Arc<AtomicBool>, watch: &mut Watch) -> anyhow::Result<()> {
    let args = guardians.args;
    let key = Key::random()?;
    let options = ReceiveOptions {
        key: key.clone(),
        journals: host::journals(),
        link_timeout: args.link_timeout,
        answer_for: ANSWER_FOR,
        cancel: Arc::clone(cancel),
    };
    let mut reception = Reception::open(guardians.listener, options)?;
    invite(reception.address(), &key);
    let make = |incoming: &Incoming| {
        guardians.start(incoming.id);
        Ok(host::replica(
            incoming.id,
            args.bridge.clone(),
            args.vm_command.clone(),
        ))
    };
    match reception.receive_one(&host::recover(), make, watch) {
        Ok(received) => {
            watch.received(&received);
            println!("{received}");
            Ok(())
        }
        Err(failure) => {
            watch.failed(&failure.to_string());
            Err(coded(failure))
        }
    }
}

/// Tells what to type at the source.
fn invite(address: SocketAddr, key: &Key) {
    println!("Listening on {address}. On the host where the workload runs now:");
    println!("    whimbrel migrate WORKLOAD {} --key {key}", reachable(address));
}

/// Who listens on all addresses is reached by his name.
fn reachable(address: SocketAddr) -> String {
    let everywhere = match address.ip() {
        IpAddr::V4(ip) => ip.is_unspecified(),
        IpAddr::V6(ip) => ip.is_unspecified(),
    };
    match whimbrel_kernel::namespace::hostname() {
        Ok(name) if everywhere => format!("{name}:{}", address.port()),
        _ => address.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_invitation_names_an_address_that_can_be_typed() {
        assert_eq!(reachable("10.0.0.2:7440".parse().unwrap()), "10.0.0.2:7440");
        let own = whimbrel_kernel::namespace::hostname().unwrap();
        assert_eq!(reachable("0.0.0.0:7440".parse().unwrap()), format!("{own}:7440"));
        assert_eq!(reachable("[::]:7440".parse().unwrap()), format!("{own}:7440"));
    }
}
