use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::*;

/// A process that counts as fast as it can in memory shared with the test. Killed and reaped on drop.
struct Counter {
    pid: i32,
    page: &'static AtomicU64,
}

impl Counter {
    fn start() -> Self {
        // SAFETY: the child touches nothing but the shared page, so that the test's other threads do not matter; the page
        // is never unmapped.
        unsafe {
            let page = libc::mmap(
                std::ptr::null_mut(),
                4096,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            assert_ne!(page, libc::MAP_FAILED);
            let page: &'static AtomicU64 = &*page.cast_const().cast();
            let pid = libc::fork();
            assert!(pid >= 0);
            if pid == 0 {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                loop {
                    page.fetch_add(1, Relaxed);
                }
            }
            Self { pid, page }
        }
    }

    fn count(&self) -> u64 {
        self.page.load(Relaxed)
    }

    /// Returns when it has counted on.
    fn wait_for_progress(&self) {
        let goal = self.count() + 1_000_000;
        while self.count() < goal {
            thread::yield_now();
        }
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        // SAFETY: the child is ours and was not reaped yet.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            libc::waitpid(self.pid, std::ptr::null_mut(), 0);
        }
    }
}

fn group(version: Version, pid: i32, test: &str) -> Group {
    let name = format!("whimbrel-test-{test}-{}", std::process::id());
    let group = Group::plan_version(version, pid, &name)
        .unwrap()
        .unwrap_or_else(|| panic!("this test needs the control group hierarchy {version:?}; mount it"));
    group.create().unwrap();
    group
}

/// What another process does meanwhile shows that time passes; the frozen one must not have moved.
fn assert_still(frozen: &Counter) {
    let other = Counter::start();
    let before = frozen.count();
    other.wait_for_progress();
    assert_eq!(
        frozen.count(),
        before,
        "an instruction ran while the process was frozen"
    );
}

#[test]
fn a_frozen_process_stands_still_until_thawed() {
    for version in Version::ALL {
        let counter = Counter::start();
        counter.wait_for_progress();
        let group = group(version, counter.pid, "still");
        group.add(counter.pid).unwrap();
        assert_eq!(group.processes().unwrap(), [counter.pid]);
        counter.wait_for_progress();
        group.freeze().unwrap();
        assert_still(&counter);
        group.thaw().unwrap();
        counter.wait_for_progress();
        group.dismiss().unwrap();
        assert!(!group.path().exists());
        counter.wait_for_progress();
    }
}

#[test]
fn frozen_in_a_ptrace_stop_it_stands_still_after_its_tracer_went() {
    for version in Version::ALL {
        let counter = Counter::start();
        counter.wait_for_progress();
        let group = group(version, counter.pid, "traced");
        group.add(counter.pid).unwrap();
        // SAFETY: ptrace requests without pointers, on our own child, from the thread that seized it.
        let request = |request| unsafe { libc::ptrace(request, counter.pid, 0usize, 0usize) };
        assert_eq!(request(libc::PTRACE_SEIZE), 0);
        assert_eq!(request(libc::PTRACE_INTERRUPT), 0);
        // SAFETY: the status is not asked for.
        unsafe { libc::waitpid(counter.pid, std::ptr::null_mut(), libc::__WALL) };
        group.freeze().unwrap();
        let before = counter.count();
        assert_eq!(request(libc::PTRACE_DETACH), 0);
        assert_still(&counter);
        assert_eq!(counter.count(), before, "{version:?}");
        group.thaw().unwrap();
        counter.wait_for_progress();
        drop(counter);
        group.remove().unwrap();
    }
}

#[test]
fn killed_while_frozen_it_dies_and_the_group_can_be_removed() {
    for version in Version::ALL {
        let counter = Counter::start();
        let group = group(version, counter.pid, "killed");
        group.add(counter.pid).unwrap();
        group.freeze().unwrap();
        // SAFETY: our own child.
        unsafe { libc::kill(counter.pid, libc::SIGKILL) };
        let reaped = thread::spawn(move || drop(counter));
        group.remove().unwrap();
        reaped.join().unwrap();
        assert!(!group.path().exists());
    }
}

#[test]
fn a_group_is_found_again_by_its_path() {
    for version in Version::ALL {
        let counter = Counter::start();
        let group = group(version, counter.pid, "path");
        assert_eq!(Group::at(group.path()), group);
        group.add(counter.pid).unwrap();
        group.freeze().unwrap();
        Group::at(group.path()).dismiss().unwrap();
        assert_eq!(
            Group::at(group.path()).version,
            group.version,
            "known by its path even when it is gone"
        );
        counter.wait_for_progress();
    }
}

#[test]
fn a_group_that_is_gone_is_no_error_for_who_cleans_up() {
    for version in Version::ALL {
        let group = group(version, std::process::id() as i32, "gone");
        group.remove().unwrap();
        group.thaw().unwrap();
        group.remove().unwrap();
        group.dismiss().unwrap();
        assert!(group.processes().unwrap().is_empty());
        assert!(group.freeze().is_err());
    }
}

#[test]
fn mounts_and_memberships_are_parsed() {
    let v1 = "37 31 0:34 / /sys/fs/cgroup/freezer rw,relatime - cgroup cgroup rw,freezer";
    let v2 = "41 31 0:38 /docker/1 /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate";
    assert_eq!(
        parse_mount(v1, Version::V1),
        Some(Mount {
            root: "/",
            point: "/sys/fs/cgroup/freezer"
        })
    );
    assert_eq!(parse_mount(v1, Version::V2), None);
    let mount = parse_mount(v2, Version::V2).unwrap();
    assert_eq!(mount.directory("/docker/1/x"), Path::new("/sys/fs/cgroup/x"));
    assert_eq!(mount.directory("/elsewhere"), Path::new("/sys/fs/cgroup/"));
    assert_eq!(mount.directory("/../up"), Path::new("/sys/fs/cgroup/"));
    assert_eq!(parse_mount("1 2 3", Version::V2), None);
    assert_eq!(parse_member("6:freezer,cpu:/a:b", Version::V1), Some("/a:b"));
    assert_eq!(parse_member("0::/user.slice", Version::V2), Some("/user.slice"));
    assert_eq!(parse_member("1:name=systemd:/x", Version::V2), None);
    assert_eq!(parse_member("nonsense", Version::V1), None);
}
