//! The cgroups of a host: one group per hierarchy in which processes can be frozen, so that several testbeds
//! do not see each other's groups.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Doing, Result};

/// Where a hierarchy is mounted, and which kind it is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Hierarchy {
    version: &'static str,
    mounted_at: PathBuf,
}

/// All of our groups are called this, then the PID of their owner, then a dash.
const PREFIX: &str = "testbed-";

/// The groups of one host. Dropping it thaws and removes them.
#[derive(Debug)]
pub(crate) struct Groups {
    groups: Vec<(Hierarchy, PathBuf)>,
}

impl Groups {
    /// Makes a group in every hierarchy; `name` need only differ within this process.
    pub(crate) fn create(name: &str) -> Result<Self> {
        let name = format!("{PREFIX}{}-{name}", std::process::id());
        let mounts = fs::read_to_string("/proc/self/mountinfo")
            .doing(|| "cannot read /proc/self/mountinfo".to_string())?;
        let mut groups = Self { groups: Vec::new() };
        for hierarchy in hierarchies(&mounts) {
            sweep(&hierarchy.mounted_at);
            let path = hierarchy.mounted_at.join(&name);
            fs::create_dir(&path).doing(|| format!("cannot make the cgroup {}", path.display()))?;
            groups.groups.push((hierarchy, path));
        }
        Ok(groups)
    }

    /// The files that take a process in.
    pub(crate) fn entrances(&self) -> impl Iterator<Item = PathBuf> + '_ {
        self.groups.iter().map(|(_, path)| path.join("cgroup.procs"))
    }

    /// What `host.sh` reads: a line with version and place for each hierarchy.
    pub(crate) fn describe(&self) -> String {
        let line = |(h, _): &(Hierarchy, PathBuf)| format!("{} {}\n", h.version, h.mounted_at.display());
        self.groups.iter().map(line).collect()
    }

    /// The names of all groups below ours.
    pub(crate) fn below(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (hierarchy, path) in &self.groups {
            for group in groups_below(path) {
                let name = group.strip_prefix(path).unwrap_or(&group);
                found.push(format!("{} {}", hierarchy.version, name.display()));
            }
        }
        found
    }

    /// Lets everything below run again: a process that cgroup v1 has frozen cannot even be killed.
    pub(crate) fn thaw(&self) {
        for (_, path) in &self.groups {
            thaw_tree(path);
        }
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        for (_, path) in &self.groups {
            remove_tree(path);
        }
    }
}

/// Removes what a killed owner left in a hierarchy.
fn sweep(mounted_at: &Path) {
    let Ok(entries) = fs::read_dir(mounted_at) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let owner = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX))
            .and_then(|name| name.split_once('-'));
        if owner.is_some_and(|(pid, _)| !Path::new("/proc").join(pid).exists()) {
            remove_tree(&entry.path());
        }
    }
}

/// Thaws and removes a group and all below it.
fn remove_tree(group: &Path) {
    thaw_tree(group);
    for group in groups_below(group).iter().rev().chain([&group.to_path_buf()]) {
        remove_group(group);
    }
}

/// Lets everything in a group and below it run again.
fn thaw_tree(group: &Path) {
    for group in groups_below(group).iter().chain([&group.to_path_buf()]) {
        // Which file exists depends on the version; a group may vanish meanwhile.
        let _ = fs::write(group.join("freezer.state"), "THAWED");
        let _ = fs::write(group.join("cgroup.freeze"), "0");
    }
}

/// Groups are busy until their last process has been reaped, which may take a moment after its death.
fn remove_group(group: &Path) {
    for _ in 0..100 {
        match fs::remove_dir(group) {
            Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            _ => return,
        }
    }
}

/// All groups below `group`, parents first.
fn groups_below(group: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut to_read = vec![group.to_path_buf()];
    while let Some(parent) = to_read.pop() {
        let Ok(entries) = fs::read_dir(&parent) else {
            continue;
        };
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                found.push(entry.path());
                to_read.push(entry.path());
            }
        }
    }
    found
}

/// The hierarchies that can freeze, from the text of `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
fn hierarchies(mountinfo: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let Some((before, after)) = line.split_once(" - ") else {
            continue;
        };
        let Some(place) = before.split(' ').nth(4) else {
            continue;
        };
        let mut after = after.split(' ');
        let kind = after.next().unwrap_or_default();
        let options = after.nth(1).unwrap_or_default();
        let version = match kind {
            "cgroup2" => "v2",
            "cgroup" if options.split(',').any(|option| option == "freezer") => "v1",
            _ => continue,
        };
        if !found.iter().any(|known| known.version == version) {
            found.push(Hierarchy {
                version,
                mounted_at: PathBuf::from(place),
            });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_both_versions_and_nothing_else() {
        let text = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
37 31 0:34 / /sys/fs/cgroup/freezer rw,relatime - cgroup cgroup rw,freezer
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:7 - cgroup2 cgroup2 rw
";
        let expected =
            [("v1", "/sys/fs/cgroup/freezer"), ("v2", "/sys/fs/cgroup/unified")].map(|(version, place)| {
                Hierarchy {
                    version,
                    mounted_at: PathBuf::from(place),
                }
            });
        assert_eq!(hierarchies(text), expected);
    }
}
