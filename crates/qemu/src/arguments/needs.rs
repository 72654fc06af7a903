//! What a machine needs of the host it is started on: files, devices, disks in the network.

use std::path::{Path, PathBuf};

use super::opts::{json, Keys};
use super::{unique, Arguments, Item};

/// What a file is to the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileUse {
    /// Read at the start: a kernel, firmware, a table, a configuration.
    Start,
    /// A disk. One that is written has to be the same file on both hosts.
    Disk {
        /// Whether the machine only reads it.
        read_only: bool,
    },
    /// The file of a memory backend, or the directory for it.
    Memory,
    /// A socket of another program, to which QEMU connects when it starts.
    Socket,
    /// A directory or a file that the machine uses while it runs.
    Shared,
}

/// A file, directory or socket that must be there at the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NeededFile {
    /// As it is written: QEMU looks from its working directory if it is relative.
    pub path: PathBuf,
    /// The option that names it, like `-drive`.
    pub option: String,
    /// What for.
    pub usage: FileUse,
}

/// A device of the host that must be there at the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NeededDevice {
    /// A network interface, like `tap0` or a bridge.
    Interface {
        /// Its name.
        name: String,
        /// Whether it is a bridge.
        bridge: bool,
    },
    /// A file in `/dev`.
    Node {
        /// Where.
        path: PathBuf,
        /// The option that names it.
        option: String,
        /// What for.
        usage: FileUse,
    },
}

/// Drivers of block devices that lie on other hosts.
const NETWORK: [&str; 11] = [
    "nbd", "ssh", "http", "https", "ftp", "ftps", "rbd", "iscsi", "gluster", "nfs", "sheepdog",
];
/// What every host has.
const EVERYWHERE: [&str; 5] = [
    "/dev/null",
    "/dev/zero",
    "/dev/random",
    "/dev/urandom",
    "/dev/kvm",
];
/// Directories below `/dev` with plain files in them.
const NO_DEVICES: [&str; 3] = ["/dev/shm", "/dev/hugepages", "/dev/mqueue"];

#[derive(Default)]
struct Needs {
    files: Vec<NeededFile>,
    devices: Vec<NeededDevice>,
    network: Vec<String>,
}

impl Arguments {
    /// What must exist at the destination, as far as the command line tells: the files below a disk image (its
    /// backing files) stand in the image. Firmware that is named without a directory comes with QEMU.
    pub fn files(&self) -> Vec<NeededFile> {
        unique(self.needs().files)
    }

    /// The host's devices that must exist at the destination.
    pub fn devices(&self) -> Vec<NeededDevice> {
        unique(self.needs().devices)
    }

    /// Disks that both hosts reach through the network, each in a few words.
    pub fn network_disks(&self) -> Vec<String> {
        unique(self.needs().network)
    }

    fn needs(&self) -> Needs {
        let mut needs = Needs::default();
        for item in self.items() {
            needs.take(&item);
        }
        needs
    }
}

impl Needs {
    fn take(&mut self, item: &Item<'_>) {
        let Some(value) = item.value else { return };
        let Some(name) = item.name else {
            return self.disk("the first word", value, false);
        };
        let option = &format!("-{name}");
        match name {
            "kernel" | "initrd" | "dtb" | "readconfig" | "L" => self.file(option, value, FileUse::Start),
            "bios" | "option-rom" => self.firmware(option, value),
            "hda" | "hdb" | "hdc" | "hdd" | "fda" | "fdb" | "sd" | "mtdblock" | "pflash" => {
                self.disk(option, value, false);
            }
            "cdrom" => self.disk(option, value, true),
            "drive" => {
                let keys = item.keys();
                if let Some(file) = keys.get("file") {
                    self.disk(option, file, read_only(&keys, ""));
                }
                self.nodes(option, &keys);
            }
            "blockdev" => self.nodes(option, &item.keys()),
            "mem-path" => self.file(option, value, FileUse::Memory),
            "netdev" | "net" | "nic" => self.network(option, &item.keys()),
            "chardev" => self.chardev(option, &item.keys()),
            "serial" | "parallel" if value.starts_with("/dev/") => {
                self.file(option, value, FileUse::Shared);
            }
            "serial" | "parallel" | "monitor" | "qmp" | "qmp-pretty" | "debugcon" => {
                if let Some(("unix:" | "mon:unix:", opts)) = item.legacy_socket() {
                    self.client(option, &opts.keys(), "path");
                }
            }
            _ => self.by_key(option, name, &item.keys()),
        }
    }

    /// Options with a few keys that name files.
    fn by_key(&mut self, option: &str, name: &str, keys: &Keys) {
        let (start, shared): (&[&str], &[&str]) = match name {
            "device" => (&["file"], &["hostdevice", "evdev"]),
            "object" => (&["file", "dir", "filename"], &["evdev"]),
            "machine" | "M" => (&["kernel", "initrd", "dtb"], &[]),
            "fw_cfg" | "plugin" => (&["file"], &[]),
            "smbios" => (&["file", "path"], &[]),
            "spice" => (&["x509-dir"], &[]),
            "trace" => (&["events"], &[]),
            "fsdev" | "virtfs" => (&[], &["path"]),
            "acpitable" => (&[], &[]),
            _ => return,
        };
        let mut all = |names: &[&str], usage| {
            for path in names.iter().filter_map(|key| keys.get(key)) {
                self.file(option, path, usage);
            }
        };
        all(start, FileUse::Start);
        all(shared, FileUse::Shared);
        all(&["mem-path"], FileUse::Memory);
        all(&["socket"], FileUse::Socket);
        let tables = ["file", "data"].iter().filter_map(|key| keys.get(key));
        for path in tables
            .filter(|_| name == "acpitable")
            .flat_map(|list| list.split(':'))
        {
            self.file(option, path, FileUse::Start);
        }
        for path in ["romfile", "firmware"].iter().filter_map(|key| keys.get(key)) {
            self.firmware(option, path);
        }
    }

    fn firmware(&mut self, option: &str, path: &str) {
        if path.contains('/') {
            self.file(option, path, FileUse::Start);
        }
    }

    fn file(&mut self, option: &str, path: &str, usage: FileUse) {
        // Descriptors by number are said to be unfit.
        if path.is_empty() || path.starts_with("/dev/fdset/") || EVERYWHERE.contains(&path) {
            return;
        }
        let option = option.to_owned();
        let path = PathBuf::from(path);
        if is_device(&path) {
            self.devices.push(NeededDevice::Node { path, option, usage });
        } else {
            self.files.push(NeededFile { path, option, usage });
        }
    }

    /// A disk by what QEMU calls its file name.
    fn disk(&mut self, option: &str, name: &str, read_only: bool) {
        let usage = FileUse::Disk { read_only };
        let end = name.find([':', '/']).unwrap_or(name.len());
        let Some(rest) = name[end..].strip_prefix(':') else {
            return self.file(option, name, usage);
        };
        match &name[..end] {
            "file" | "host_device" | "host_cdrom" => self.file(option, rest, usage),
            "fat" => {
                let bare = rest.trim_start_matches("floppy:").trim_start_matches("rw:");
                self.file(option, bare, usage);
            }
            "json" => {
                if let Some(value) = json(rest) {
                    self.nodes(option, &Keys::of_json(&value));
                }
            }
            "null-co" | "null-aio" | "nvme" => {}
            "blkdebug" | "blkverify" => {
                if let Some((_, path)) = rest.split_once(':') {
                    self.disk(option, path, read_only);
                }
            }
            _ => self.network.push(name.to_owned()),
        }
    }

    /// The nodes of a block device, each with a driver and perhaps a file name.
    fn nodes(&mut self, option: &str, keys: &Keys) {
        for (key, value) in keys.iter() {
            let (prefix, last) = key.rfind('.').map_or(("", key), |at| key.split_at(at + 1));
            let driver = keys.get(&format!("{prefix}driver")).unwrap_or_default();
            let read_only = read_only(keys, prefix);
            match last {
                "driver" if NETWORK.contains(&value) => self.network.push(on_the_network(keys, prefix)),
                "filename" if !NETWORK.contains(&driver) => self.disk(option, value, read_only),
                "dir" if driver == "vvfat" => self.file(option, value, FileUse::Disk { read_only }),
                _ => {}
            }
        }
    }

    fn network(&mut self, option: &str, keys: &Keys) {
        let mut interface = |name: &str, bridge| {
            let name = name.to_owned();
            self.devices.push(NeededDevice::Interface { name, bridge });
        };
        match keys.get("type") {
            Some("tap") => {
                // A name with a pattern is one that QEMU makes up.
                if let Some(name) = keys.get("ifname").filter(|name| !name.contains('%')) {
                    interface(name, false);
                }
                if let Some(bridge) = keys.get("br") {
                    interface(bridge, true);
                }
            }
            Some("bridge") => interface(keys.get("br").unwrap_or("br0"), true),
            Some("stream") => self.client(option, keys, "addr.path"),
            _ => {}
        }
        for key in ["script", "downscript", "helper"] {
            if let Some(path) = keys.get(key).filter(|path| *path != "no") {
                self.file(option, path, FileUse::Shared);
            }
        }
        for key in ["vhostdev", "sock"] {
            if let Some(path) = keys.get(key) {
                self.file(option, path, FileUse::Shared);
            }
        }
    }

    fn chardev(&mut self, option: &str, keys: &Keys) {
        let path = keys.get("path").unwrap_or_default();
        match keys.get("backend") {
            Some("socket") => self.client(option, keys, "path"),
            Some("tty" | "serial" | "parallel" | "parport" | "pipe") => {
                self.file(option, path, FileUse::Shared);
            }
            _ => {}
        }
        if let Some(path) = keys.get("input-path") {
            self.file(option, path, FileUse::Shared);
        }
    }

    /// A socket to which QEMU connects.
    fn client(&mut self, option: &str, keys: &Keys, key: &str) {
        if keys.is_on("server") || keys.is_on("abstract") || keys.is_on("addr.abstract") {
            return;
        }
        if let Some(path) = keys.get(key) {
            self.file(option, path, FileUse::Socket);
        }
    }
}

fn is_device(path: &Path) -> bool {
    path.starts_with("/dev") && !NO_DEVICES.iter().any(|directory| path.starts_with(directory))
}

/// Whether the node at `prefix` is only read. The switch of the whole device counts for the nodes below it.
fn read_only(keys: &Keys, prefix: &str) -> bool {
    let own = keys.switch(&format!("{prefix}read-only"));
    let whole = keys.is_on("readonly") || keys.is_on("read-only") || keys.get("media") == Some("cdrom");
    own.unwrap_or(whole)
}

/// `nbd 10.0.0.9:10809`, as far as the node tells.
fn on_the_network(keys: &Keys, prefix: &str) -> String {
    let of = |key: &str| keys.get(&format!("{prefix}{key}"));
    let host = of("server.host").or(of("host"));
    let port = of("server.port").or(of("port"));
    let place = match (host, port) {
        (Some(host), Some(port)) => Some(format!("{host}:{port}")),
        (Some(host), None) => Some(host.to_owned()),
        _ => None,
    };
    let named = ["url", "filename", "server.path", "path", "portal"]
        .iter()
        .find_map(|key| of(key));
    let image = ["export", "image", "target", "volume"]
        .iter()
        .find_map(|key| of(key));
    let words = [
        of("driver").map(str::to_owned),
        place,
        named.map(str::to_owned),
        image.map(str::to_owned),
    ];
    words.into_iter().flatten().collect::<Vec<_>>().join(" ")
}
