//! The command line of a running QEMU: what it tells about the machine, and how the same machine is started at the
//! destination. All of it is text; nothing on the host is looked at.

mod destination;
mod needs;
mod opts;
#[cfg(test)]
mod tests;
mod unfit;

use std::io;
use std::path::PathBuf;

pub use destination::{Plan, MONITOR_ID};
pub use needs::{FileUse, NeededDevice, NeededFile};
pub use unfit::{Severity, Unfit};

use opts::{Keys, Opts};

/// The options of QEMU 7.2 that take no value (`-help`; `old-param` and `semihosting` are those of other targets).
/// Every other one has a value, and so has one that is not known here.
const WITHOUT_VALUE: [&str; 31] = [
    "S",
    "async-teardown",
    "audio-help",
    "daemonize",
    "enable-kvm",
    "enable-sync-profile",
    "full-screen",
    "h",
    "help",
    "mem-prealloc",
    "no-acpi",
    "no-fd-bootchk",
    "no-hpet",
    "no-reboot",
    "no-shutdown",
    "no-user-config",
    "nodefaults",
    "nographic",
    "old-param",
    "only-migratable",
    "portrait",
    "preconfig",
    "s",
    "semihosting",
    "singlestep",
    "snapshot",
    "usb",
    "version",
    "win2k-hack",
    "xen-attach",
    "xen-domid-restrict",
];

/// Options whose value is a character device in one string: `unix:PATH,server=on`, `chardev:ID`.
const LEGACY_CHARDEVS: [&str; 8] = [
    "serial",
    "parallel",
    "monitor",
    "qmp",
    "qmp-pretty",
    "debugcon",
    "gdb",
    "qtest",
];

/// The id by which [`Arguments::memory`] lists the option `-mem-path`, and by which a [`Plan`] replaces it. No object
/// can be called so.
pub const MEM_PATH: &str = "-mem-path";

/// A command line of QEMU, word by word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arguments {
    words: Vec<String>,
}

/// One option with its value, or a word that is no option.
#[derive(Clone, Copy, Debug)]
struct Item<'a> {
    /// Without dashes. QEMU takes a word that is no option for its first disk.
    name: Option<&'a str>,
    value: Option<&'a str>,
    /// As it is written.
    words: &'a [String],
}

impl<'a> Item<'a> {
    fn is(&self, name: &str) -> bool {
        self.name == Some(name)
    }

    /// What its value says. Nothing if it has none.
    fn keys(&self) -> Keys {
        let name = self.name.unwrap_or_default();
        self.value
            .map(|value| Keys::parse(value, implied(name)))
            .unwrap_or_default()
    }

    /// The socket's options if its value is a character device in one string.
    fn legacy_socket(&self) -> Option<(&'a str, Opts)> {
        let value = self
            .value
            .filter(|_| self.name.is_some_and(|name| LEGACY_CHARDEVS.contains(&name)))?;
        let bare = value.strip_prefix("mon:").unwrap_or(value);
        let end = ["unix:", "tcp:", "telnet:", "websocket:"]
            .iter()
            .find_map(|kind| bare.strip_prefix(kind))?
            .len();
        let (kind, rest) = value.split_at(value.len() - end);
        Some((kind, Opts::parse(rest, Some("path"))))
    }
}

/// Whether the word after an option is its value.
fn takes_value(option: &str) -> bool {
    !WITHOUT_VALUE.contains(&option)
}

/// The key of an option's value that may be left out if it is the first.
fn implied(option: &str) -> Option<&'static str> {
    Some(match option {
        "object" => "qom-type",
        "blockdev" | "device" => "driver",
        "netdev" | "net" | "nic" | "machine" | "M" | "tpmdev" | "display" => "type",
        "chardev" => "backend",
        "name" => "guest",
        "mon" => "chardev",
        "fsdev" | "virtfs" => "fsdriver",
        "vnc" => "vnc",
        "fw_cfg" => "name",
        "plugin" => "file",
        "m" => "size",
        _ => return None,
    })
}

/// What makes a machine's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendKind {
    /// `memory-backend-ram`: anonymous memory.
    Ram,
    /// `memory-backend-file`, or the option `-mem-path`.
    File,
    /// `memory-backend-memfd`: shared memory without a name.
    Memfd,
}

/// A piece of memory made by an option. A machine without any has the one that QEMU makes by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// The object's id, or [`MEM_PATH`].
    pub id: String,
    /// What it is made of.
    pub kind: BackendKind,
    /// As it is written, like `2G`; the option `-mem-path` has none.
    pub size: Option<String>,
    /// The file, or the directory for one without a name. It may lie on hugetlbfs.
    pub mem_path: Option<PathBuf>,
    /// Whether it is mapped shared.
    pub share: bool,
    /// Whether all of it is allocated at the start.
    pub prealloc: bool,
    /// Whether a memfd is made of huge pages.
    pub hugetlb: bool,
}

impl Arguments {
    /// A command line with the program as its first word. Whatever it is, it is taken.
    pub fn parse(words: Vec<String>) -> Arguments {
        Arguments { words }
    }

    /// The command line of a process.
    ///
    /// # Errors
    /// It has ended, may not be looked at, or has words that are no UTF-8.
    pub fn of_process(pid: i32) -> io::Result<Arguments> {
        let path = format!("/proc/{pid}/cmdline");
        let bytes = std::fs::read(&path)?;
        let text = String::from_utf8(bytes).map_err(|_| {
            let why = format!("{path} is no UTF-8: start the machine with names that are");
            io::Error::new(io::ErrorKind::InvalidData, why)
        })?;
        if text.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("{path} is empty: process {pid} has ended"),
            ));
        }
        let text = text.strip_suffix('\0').unwrap_or(&text);
        Ok(Arguments::parse(text.split('\0').map(str::to_owned).collect()))
    }

    /// All of it.
    pub fn words(&self) -> &[String] {
        &self.words
    }

    /// The program.
    pub fn program(&self) -> &str {
        self.words.first().map_or("", String::as_str)
    }

    /// What the user calls the machine.
    pub fn name(&self) -> Option<String> {
        let named = self.items().filter(|item| item.is("name"));
        named
            .filter_map(|item| item.keys().get("guest").map(str::to_owned))
            .last()
    }

    /// The unix sockets on which a monitor in control mode listens.
    pub fn monitors(&self) -> Vec<PathBuf> {
        let mut paths = Vec::new();
        for item in self.items() {
            let path = match item.name {
                Some("qmp" | "qmp-pretty") => {
                    match item.value.and_then(|value| value.strip_prefix("chardev:")) {
                        Some(id) => self.chardev_socket(id),
                        None => listening_socket(&item),
                    }
                }
                Some("mon") => {
                    let keys = item.keys();
                    let control = keys.get("mode") == Some("control");
                    keys.get("chardev")
                        .filter(|_| control)
                        .and_then(|id| self.chardev_socket(id))
                }
                _ => None,
            };
            paths.extend(path);
        }
        unique(paths)
    }

    /// The monitor that whimbrel added when it started the machine here.
    pub fn own_monitor(&self) -> Option<PathBuf> {
        self.chardev_socket(MONITOR_ID)
    }

    /// Whether it went into the background, and away from the directory in which it was started.
    pub fn daemonizes(&self) -> bool {
        self.items().any(|item| item.is("daemonize"))
    }

    /// Every unix socket that the machine makes.
    pub fn listening(&self) -> Vec<PathBuf> {
        unique(self.items().filter_map(|item| listening_socket(&item)).collect())
    }

    /// The memory that options make, in their order.
    pub fn memory(&self) -> Vec<Backend> {
        let prealloc = self.items().any(|item| item.is("mem-prealloc"));
        self.items()
            .filter_map(|item| match item.name {
                Some("object") => backend(&item.keys()),
                Some("mem-path") => Some(Backend {
                    id: MEM_PATH.to_owned(),
                    kind: BackendKind::File,
                    size: None,
                    mem_path: item.value.map(PathBuf::from),
                    share: false,
                    prealloc,
                    hugetlb: false,
                }),
                _ => None,
            })
            .collect()
    }

    fn items(&self) -> impl Iterator<Item = Item<'_>> {
        let mut rest = self.words.get(1..).unwrap_or_default();
        std::iter::from_fn(move || {
            let first = rest.first()?;
            let Some(name) = first.strip_prefix('-') else {
                let (words, after) = rest.split_at(1);
                rest = after;
                return Some(Item {
                    name: None,
                    value: Some(first),
                    words,
                });
            };
            let name = name.strip_prefix('-').unwrap_or(name);
            let value = rest.get(1).filter(|_| takes_value(name));
            let (words, after) = rest.split_at(if value.is_some() { 2 } else { 1 });
            rest = after;
            Some(Item {
                name: Some(name),
                value: value.map(String::as_str),
                words,
            })
        })
    }

    /// The socket on which a character device listens.
    fn chardev_socket(&self, id: &str) -> Option<PathBuf> {
        self.items()
            .filter(|item| item.is("chardev") && item.keys().get("id") == Some(id))
            .find_map(|item| listening_socket(&item))
    }
}

/// The unix socket that an option makes.
fn listening_socket(item: &Item<'_>) -> Option<PathBuf> {
    let keys = match item.legacy_socket() {
        Some((kind, opts)) if kind.ends_with("unix:") => opts.keys(),
        Some(_) => return None,
        None => item.keys(),
    };
    let key = match item.name? {
        name if LEGACY_CHARDEVS.contains(&name) && keys.is_on("server") => "path",
        "chardev" if keys.get("backend") == Some("socket") && keys.is_on("server") => "path",
        "netdev" if keys.get("type") == Some("stream") && keys.is_on("server") => "addr.path",
        "spice" if keys.is_on("unix") => "addr",
        "vnc" | "display" => {
            let display = keys.get("vnc")?;
            return display.strip_prefix("unix:").map(PathBuf::from);
        }
        _ => return None,
    };
    // An abstract socket has a name that is no path.
    let file = !keys.is_on("abstract") && !keys.is_on("addr.abstract");
    keys.get(key).filter(|_| file).map(PathBuf::from)
}

fn backend(keys: &Keys) -> Option<Backend> {
    let kind = match keys.get("qom-type")? {
        "memory-backend-ram" => BackendKind::Ram,
        "memory-backend-file" => BackendKind::File,
        "memory-backend-memfd" => BackendKind::Memfd,
        _ => return None,
    };
    Some(Backend {
        id: keys.get("id").unwrap_or_default().to_owned(),
        kind,
        size: keys.get("size").map(str::to_owned),
        mem_path: keys.get("mem-path").map(PathBuf::from),
        share: keys.switch("share").unwrap_or(kind == BackendKind::Memfd),
        prealloc: keys.is_on("prealloc"),
        hugetlb: keys.is_on("hugetlb"),
    })
}

/// Each one once, in the same order.
fn unique<T: PartialEq>(all: Vec<T>) -> Vec<T> {
    let mut once = Vec::with_capacity(all.len());
    for one in all {
        if !once.contains(&one) {
            once.push(one);
        }
    }
    once
}
