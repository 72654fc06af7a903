//! What a container leaves in the system, and how to remove it knowing nothing else.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use whimbrel_kernel::freezer::Group;
use whimbrel_kernel::netlink::{Mac, Netlink};

use super::{network, registry, Address, Error, Identity, Result};

/// How long killed processes may take to be gone.
const DEATH_WAIT_MAX: Duration = Duration::from_secs(5);

/// Everything that a container consists of outside of its processes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// The workload's name.
    pub name: String,
    /// The directory with its log and its entry.
    pub directory: PathBuf,
    /// The directory of its control group.
    pub group: PathBuf,
    /// PID 1 of its namespace; `None` before it was made (then it ends with the controller by itself).
    pub init: Option<Identity>,
    /// Its network, if it has one of its own.
    pub network: Option<NetworkResources>,
}

/// The network of a container as seen from outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkResources {
    /// The interface on the host, a port of `bridge`.
    pub port: String,
    /// The bridge.
    pub bridge: String,
    /// The interface inside.
    pub interface: String,
    /// Its MAC address.
    pub mac: Mac,
    /// Its addresses.
    pub addresses: Vec<Address>,
}

/// Ends a container and leaves nothing behind: whatever still runs in it is killed without a word to its peers. For a
/// replica that is given up as well as for the copy of a workload that has moved. Idempotent.
pub fn end(resources: &Resources) -> Result<()> {
    // The network first: sockets of dying processes would close their connections, which live on elsewhere.
    if let Some(network) = &resources.network {
        remove_port(&network.port)?;
    }
    let group = Group::at(&resources.group);
    let mut doomed = Vec::new();
    for pid in group.processes()? {
        doomed.extend(Identity::of(pid)); // an error: it has ended
    }
    doomed.extend(resources.init.filter(Identity::is_alive));
    doomed.iter().for_each(kill);
    // Version 1 of the freezer keeps killed processes frozen.
    group.thaw()?;
    await_death(&doomed)?;
    group.remove()?;
    remove_directory(&resources.directory)
}

/// Tells the neighbours of a workload that was started where it is now, and lists it as running here. Idempotent.
pub fn note_started(resources: &Resources) -> Result<()> {
    // It runs: what fails here is no reason to say that it does not, and no reason to leave the other undone.
    let announced = network::announce(resources);
    let noted = registry::note_running(&resources.directory);
    announced.and(noted)
}

fn kill(process: &Identity) {
    whimbrel_kernel::namespace::kill(process.pid);
}

fn await_death(doomed: &[Identity]) -> Result<()> {
    let deadline = Instant::now() + DEATH_WAIT_MAX;
    while let Some(process) = doomed.iter().find(|process| process.is_alive()) {
        if Instant::now() > deadline {
            return Err(Error::refused(format!(
                "process {} was killed but did not end within {} s; it hangs in the kernel",
                process.pid,
                DEATH_WAIT_MAX.as_secs()
            )));
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn remove_port(name: &str) -> Result<()> {
    let mut net = Netlink::open()?;
    if let Some(link) = net.link(name)? {
        net.delete_link(link.index)?;
    }
    Ok(())
}

fn remove_directory(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::file("remove", directory, e)),
        _ => {}
    }
    // The last one takes the directories above along; they are not empty otherwise.
    let parents = directory.ancestors().skip(1).take(2);
    let _ = parents.map(fs::remove_dir).take_while(io::Result::is_ok).count();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_not_that_of_a_later_process() {
        let me = Identity::of(std::process::id() as i32).unwrap();
        assert!(me.is_alive());
        assert!(!Identity {
            start_time: me.start_time + 1,
            ..me
        }
        .is_alive());
    }
}
