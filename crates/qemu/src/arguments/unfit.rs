//! Options that stand in the way of a move.

use super::opts::Keys;
use super::{Arguments, Item};

/// How much an option stands in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The machine can move, but its destination cannot be started from this command line: the user gives another.
    Starts,
    /// The machine cannot be moved at all.
    Moves,
}

/// An option that stands in the way.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{option} {what}: {cure}")]
pub struct Unfit {
    /// How much.
    pub severity: Severity,
    /// The option, with what tells it from others like it: `-netdev hostnet0`.
    pub option: String,
    /// What is wrong with it, a phrase that begins with a verb.
    pub what: String,
    /// What the operator can do.
    pub cure: String,
}

/// A command for the destination, where a command line cannot be carried over.
const GIVE_A_COMMAND: &str = "give the command that starts the machine at the destination";
/// Keys whose value is the number of a descriptor, or several.
const NUMBERS: [&str; 5] = ["fd", "fds", "vhostfd", "vhostfds", "sock_fd"];
/// Objects that keep the machine's memory from everybody else.
const SECRET_MEMORY: [&str; 5] = [
    "sev-guest",
    "sev-snp-guest",
    "tdx-guest",
    "s390-pv-guest",
    "memory-backend-epc",
];
/// Drivers of block devices that reach into the machine's memory past QEMU.
const FOREIGN_BLOCK: [&str; 4] = [
    "nvme",
    "virtio-blk-vfio-pci",
    "virtio-blk-vhost-user",
    "virtio-blk-vhost-vdpa",
];

impl Arguments {
    /// The options that cannot be carried over as they are, those that forbid the move first.
    pub fn unfit(&self) -> Vec<Unfit> {
        let mut all: Vec<Unfit> = self.items().flat_map(|item| of_item(&item)).collect();
        all.extend(self.lost_directory());
        all.sort_by_key(|unfit| std::cmp::Reverse(unfit.severity));
        all
    }

    /// A daemon has left the directory in which its relative paths began.
    fn lost_directory(&self) -> Option<Unfit> {
        if !self.daemonizes() {
            return None;
        }
        let files = self.files();
        let file = files.iter().find(|file| file.path.is_relative())?;
        Some(starts(
            file.option.clone(),
            format!(
                "names {} without its directory, which a machine with -daemonize has left",
                file.path.display()
            ),
        ))
    }
}

fn starts(option: String, what: impl Into<String>) -> Unfit {
    Unfit {
        severity: Severity::Starts,
        option,
        what: what.into(),
        cure: GIVE_A_COMMAND.to_owned(),
    }
}

fn moves(option: String, what: impl Into<String>, cure: &str) -> Unfit {
    Unfit {
        severity: Severity::Moves,
        option,
        what: what.into(),
        cure: cure.to_owned(),
    }
}

fn of_item(item: &Item<'_>) -> Vec<Unfit> {
    let Some(name) = item.name else {
        return Vec::new();
    };
    let keys = item.keys();
    let label = label(name, &keys);
    // Neither the user's words for the kernel nor what is left out at the destination.
    if matches!(name, "append" | "incoming" | "pidfile" | "name") {
        return Vec::new();
    }
    let numbers = descriptors(name, item.value.unwrap_or_default(), &keys);
    let numbers = numbers.map(|what| starts(label.clone(), what));
    foreign(name, &keys, label).into_iter().chain(numbers).collect()
}

/// Options that forbid the move, and those that need this host's directories.
fn foreign(name: &str, keys: &Keys, label: String) -> Option<Unfit> {
    let kind = ["driver", "qom-type", "type", "backend"]
        .iter()
        .find_map(|key| keys.get(key));
    let kind = kind.unwrap_or_default();
    match name {
        "chroot" => Some(starts(label, "hides the files that the machine needs")),
        "snapshot" => Some(temporary(label)),
        "drive" if keys.is_on("snapshot") => Some(temporary(label)),
        "device" => device(kind, label),
        "netdev" | "net" | "nic" if matches!(kind, "vhost-user" | "vhost-vdpa") => Some(moves(
            label,
            format!("lets another program or a device write the machine's memory ({kind})"),
            "use a network of type tap",
        )),
        "object" if SECRET_MEMORY.contains(&kind) => Some(moves(
            label,
            format!("keeps the machine's memory secret ({kind})"),
            "start the machine without it",
        )),
        "tpmdev" if kind == "passthrough" => Some(moves(
            label,
            "is the host's own TPM, which cannot move",
            "use -tpmdev emulator",
        )),
        "blockdev" | "drive" => {
            let mut drivers = keys
                .iter()
                .filter(|(key, _)| key.rsplit('.').next() == Some("driver"));
            let nvme = keys.iter().any(|(_, value)| value.starts_with("nvme://"));
            let (_, driver) = drivers
                .find(|(_, driver)| FOREIGN_BLOCK.contains(driver))
                .or(nvme.then_some(("", "nvme")))?;
            Some(moves(
                label,
                format!("lets a device or another program write the machine's memory (driver {driver})"),
                "use a disk that QEMU itself reads and writes",
            ))
        }
        _ => None,
    }
}

fn device(driver: &str, label: String) -> Option<Unfit> {
    let (what, cure) = match driver {
        _ if driver.starts_with("vfio-") || driver.starts_with("vhost-vdpa-") => (
            "is a device of this host that writes the machine's memory past QEMU",
            "unplug it before the move (device_del), or use an emulated one",
        ),
        _ if driver.starts_with("vhost-user-") => (
            "is served by another program that writes the machine's memory and keeps state",
            "unplug it before the move (device_del), or use one that QEMU serves",
        ),
        _ if driver.starts_with("ivshmem") => (
            "shares memory with other machines of this host",
            "unplug it before the move (device_del)",
        ),
        _ => return None,
    };
    Some(moves(label, what, cure))
}

fn temporary(label: String) -> Unfit {
    moves(
        label,
        "keeps what was written to the disks in a temporary file of this host",
        "start the machine with an overlay image that both hosts reach",
    )
}

/// Descriptors by number: whoever started QEMU opened them.
fn descriptors(name: &str, value: &str, keys: &Keys) -> Option<String> {
    if name == "add-fd" || value.contains("/dev/fdset/") {
        return Some("takes a descriptor that was open when QEMU was started".to_owned());
    }
    if !matches!(
        name,
        "chardev"
            | "netdev"
            | "net"
            | "nic"
            | "fsdev"
            | "virtfs"
            | "device"
            | "object"
            | "blockdev"
            | "drive"
    ) {
        return None;
    }
    let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
    let (key, value) = keys.iter().find(|(key, value)| {
        NUMBERS.contains(&last(key).as_str()) || (key.contains('.') && last(key) == "type" && *value == "fd")
    })?;
    let what = match value {
        "fd" => String::new(),
        value => format!(" ({key}={value})"),
    };
    Some(format!(
        "takes a descriptor that was open when QEMU was started{what}"
    ))
}

/// The option and what tells it from others.
fn label(name: &str, keys: &Keys) -> String {
    let which = ["id", "node-name", "driver", "type", "qom-type", "backend", "file"];
    match which
        .iter()
        .find_map(|key| keys.get(key))
        .filter(|_| name != "machine")
    {
        Some(which) => format!("-{name} {which}"),
        None => format!("-{name}"),
    }
}
