//! What exists in a host: taken before and after, it shows what was left behind.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::error::{Doing, Result};
use crate::host::Host;

/// Trees in which everything is listed. They belong to the host alone.
const TREES: [&str; 3] = ["/run", "/tmp", "/dev/shm"];

/// A limit for trees that somebody fills; far above what any test makes.
const FILES_MAX: usize = 10_000;

/// Every process, link, address, route, neighbour rule, cgroup, mount and temporary file of a host, each as a line,
/// with the number of times that it is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    lines: BTreeMap<String, usize>,
}

impl Inventory {
    /// Takes stock, from outside: nothing runs in the host for it.
    pub(crate) fn take(host: &Host) -> Result<Self> {
        let mut inventory = Self::default();
        inventory.add("cgroup", host.cgroups());
        for tree in TREES {
            inventory.add(
                "file",
                files(&host.path(tree))
                    .into_iter()
                    .map(|name| format!("{tree}/{name}")),
            );
        }
        inventory.add("mount", mounts(host)?);
        for (what, command) in [
            ("link", "ip -o -brief link"),
            ("address", "ip -o address"),
            ("route", "ip route show table all"),
            ("route", "ip -6 route show table all"),
            ("rule", "ip rule"),
            ("shaper", "tc qdisc"),
            ("port", "bridge -o link"),
        ] {
            let text = host.network_tool(command)?;
            inventory.add(
                what,
                text.lines().filter(|line| !line.contains("fe80:")).map(stable),
            );
        }
        inventory.add("process", processes(host));
        Ok(inventory)
    }

    /// What is here and was not `before` ("+"), and what has gone ("-"); empty when nothing has changed.
    pub fn changes_since(&self, before: &Self) -> Vec<String> {
        let count = |lines: &BTreeMap<String, usize>, line: &String| lines.get(line).copied().unwrap_or(0);
        let mut changes = Vec::new();
        for (line, &there) in &self.lines {
            if there > count(&before.lines, line) {
                changes.push(format!("+ {line}"));
            }
        }
        for (line, &was_there) in &before.lines {
            if was_there > count(&self.lines, line) {
                changes.push(format!("- {line}"));
            }
        }
        changes
    }

    fn add(&mut self, what: &str, names: impl IntoIterator<Item = String>) {
        for name in names {
            *self.lines.entry(format!("{what} {name}")).or_insert(0) += 1;
        }
    }
}

/// Leaves out what changes by itself: the expiry of routes. (Link-local addresses are left out altogether: the kernel gives
/// every link one, a second later. The link itself is listed.)
fn stable(line: &str) -> String {
    let mut words: Vec<&str> = line.split_whitespace().collect();
    if let Some(at) = words.iter().position(|&word| word == "expires") {
        words.drain(at..words.len().min(at + 2));
    }
    words.join(" ")
}

/// Names of all files and directories below `tree`, relative to it. Whatever vanishes meanwhile is left out.
fn files(tree: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut to_read = vec![tree.to_path_buf()];
    while let Some(directory) = to_read.pop() {
        let Ok(entries) = fs::read_dir(&directory) else {
            continue;
        };
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                to_read.push(entry.path());
            }
            if let Ok(name) = entry.path().strip_prefix(tree) {
                found.push(name.display().to_string());
            }
            if found.len() >= FILES_MAX {
                return found;
            }
        }
    }
    found
}

/// Mount points of the host.
fn mounts(host: &Host) -> Result<Vec<String>> {
    let path = format!("/proc/{}/mountinfo", host.pid());
    let text = fs::read_to_string(&path).doing(|| format!("cannot read {path}"))?;
    Ok(text
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(str::to_string)
        .collect())
}

/// Command lines of all processes that the host can see, those in namespaces below included. A zombie counts.
fn processes(host: &Host) -> Vec<String> {
    let Ok(entries) = fs::read_dir(host.path("/proc")) else {
        return Vec::new();
    };
    let pids = entries.flatten().map(|entry| entry.path());
    let pids = pids.filter(|path| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().parse::<u32>().is_ok())
    });
    pids.filter_map(|path| describe_process(&path)).collect()
}

fn describe_process(path: &Path) -> Option<String> {
    let words = fs::read(path.join("cmdline")).ok()?;
    let line = String::from_utf8_lossy(&words).replace('\0', " ");
    if !line.is_empty() {
        return Some(line);
    }
    let name = fs::read_to_string(path.join("comm")).ok()?;
    Some(format!(
        "[{}] (no command line: a zombie, or being built)",
        name.trim_end()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(lines: &[&str]) -> Inventory {
        let mut inventory = Inventory::default();
        inventory.add("file", lines.iter().map(|line| line.to_string()));
        inventory
    }

    #[test]
    fn tells_what_came_and_what_went() {
        let (before, after) = (of(&["a", "b"]), of(&["b", "b", "c"]));
        assert_eq!(after.changes_since(&before), ["+ file b", "+ file c", "- file a"]);
        assert!(after.changes_since(&after).is_empty());
    }

    #[test]
    fn leaves_out_lifetimes() {
        assert_eq!(
            stable("fe80::/64 dev br0 proto ra expires 1791sec pref medium"),
            "fe80::/64 dev br0 proto ra pref medium"
        );
    }
}
