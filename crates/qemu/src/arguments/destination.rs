//! The command line of the same machine at the destination.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::opts::{json, Opts};
use super::{implied, takes_value, Arguments, Item, MEM_PATH};

/// The character device of the monitor that a [`Plan`] adds. By this id the next hop knows that it is not the user's.
pub const MONITOR_ID: &str = "whimbrel-monitor";

/// What is different at the destination.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The unix socket of the monitor that is added.
    pub monitor: PathBuf,
    /// Where QEMU writes its PID.
    pub pid_file: PathBuf,
    /// Backends (by id) of kind `memory-backend-file`, or [`MEM_PATH`], and the files that they have there.
    pub ram_files: BTreeMap<String, PathBuf>,
}

/// Options about how the machine was started the last time, not about what it is.
const OF_THE_START: [&str; 6] = ["incoming", "S", "daemonize", "pidfile", "loadvm", "preconfig"];

impl Arguments {
    /// The words that start the same machine so that it waits for its state. They are the same for a command line
    /// that was made by this before.
    ///
    /// Sockets that wait for their first client do not wait there: that client is connected to the source.
    pub fn for_destination(&self, plan: &Plan) -> Vec<String> {
        let mut words = vec![self.program().to_owned()];
        for item in self.items().filter(stays) {
            // An option of another QEMU that has no value, at the very end. It must not take one of our words for it.
            if item.name.is_some_and(takes_value) && item.value.is_none() {
                words.extend(own(plan));
                words.extend_from_slice(item.words);
                return words;
            }
            match changed(&item, plan) {
                Some(value) => words.extend([item.words[0].clone(), value]),
                None => words.extend_from_slice(item.words),
            }
        }
        words.extend(own(plan));
        words
    }
}

/// What whimbrel adds.
fn own(plan: &Plan) -> [String; 9] {
    let mut socket = Opts::parse("socket,server=on,wait=off", Some("backend"));
    socket.set("id", MONITOR_ID);
    socket.set("path", &text(&plan.monitor));
    [
        "-chardev".to_owned(),
        socket.print(),
        "-mon".to_owned(),
        format!("chardev={MONITOR_ID},mode=control"),
        "-pidfile".to_owned(),
        text(&plan.pid_file),
        "-S".to_owned(),
        "-incoming".to_owned(),
        "defer".to_owned(),
    ]
}

fn stays(item: &Item<'_>) -> bool {
    match item.name {
        Some(name) if OF_THE_START.contains(&name) => false,
        Some("chardev") => item.keys().get("id") != Some(MONITOR_ID),
        Some("mon") => item.keys().get("chardev") != Some(MONITOR_ID),
        _ => true,
    }
}

/// The value that an option has there, if it is another one.
fn changed(item: &Item<'_>, plan: &Plan) -> Option<String> {
    match item.name? {
        "object" => with_file(item, plan),
        "mem-path" => plan.ram_files.get(MEM_PATH).map(|path| text(path)),
        "chardev" => {
            let opts = Opts::parse(item.value?, implied("chardev"));
            without_waiting(opts).map(|opts| opts.print())
        }
        _ => {
            let (kind, opts) = item.legacy_socket()?;
            without_waiting(opts).map(|opts| kind.to_owned() + &opts.print())
        }
    }
}

fn with_file(item: &Item<'_>, plan: &Plan) -> Option<String> {
    let keys = item.keys();
    if keys.get("qom-type") != Some("memory-backend-file") {
        return None;
    }
    let path = text(plan.ram_files.get(keys.get("id")?)?);
    let value = item.value?;
    if let Some(mut object) = json(value) {
        object["mem-path"] = Value::String(path);
        return Some(object.to_string());
    }
    let mut opts = Opts::parse(value, implied("object"));
    opts.set("mem-path", &path);
    Some(opts.print())
}

fn without_waiting(mut opts: Opts) -> Option<Opts> {
    let keys = opts.keys();
    if !keys.is_on("server") || keys.switch("wait") == Some(false) {
        return None;
    }
    opts.set("wait", "off");
    Some(opts)
}

/// Paths come from command lines that are UTF-8, or from us.
fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
