//! The testbed itself: what the other tests rely on.

use std::io::{Read, Write};
use std::thread;
use std::time::Duration;

use whimbrel_testbed::{at, Error, TwoHosts, BETA};

const LIMIT: Duration = Duration::from_secs(20);

#[test]
fn each_host_has_a_tree_processes_and_temporary_files_of_its_own() {
    let hosts = TwoHosts::builder().program("/bin/true").build().unwrap();
    hosts
        .alpha
        .run([
            "sh",
            "-c",
            "echo mine > /etc/whimbrel-test; echo mine > /tmp/x; echo mine > /run/x",
        ])
        .unwrap();
    for file in ["/etc/whimbrel-test", "/tmp/x", "/run/x"] {
        assert!(hosts.alpha.path(file).exists(), "{file} on alpha");
        assert!(!hosts.beta.path(file).exists(), "{file} on beta");
    }
    assert!(!std::path::Path::new("/etc/whimbrel-test").exists());
    let names = hosts.alpha.run(["hostname"]).unwrap().output + &hosts.beta.run(["hostname"]).unwrap().output;
    assert_eq!(names, "alpha\nbeta\n");
    let seen = hosts
        .alpha
        .run(["sh", "-c", "ls -d /proc/[0-9]* | wc -l"])
        .unwrap()
        .output;
    assert!(seen.trim().parse::<u32>().unwrap() < 8, "{seen} processes");
    let device = |host: &whimbrel_testbed::Host| {
        host.run(["stat", "-c", "%d", "/usr/local/bin/true"])
            .unwrap()
            .output
    };
    assert_ne!(device(&hosts.alpha), device(&hosts.beta));
}

#[test]
fn a_connection_survives_a_cut_and_a_mended_cable() {
    let hosts = TwoHosts::builder().build().unwrap();
    let listener = hosts.beta.listen(at(BETA, 7000)).unwrap();
    let mut near = hosts.client.connect(at(BETA, 7000), LIMIT).unwrap();
    let (mut far, _) = listener.accept().unwrap();
    hosts.cut(&hosts.beta).unwrap();
    assert!(
        hosts
            .client
            .connect(at(BETA, 7000), Duration::from_millis(300))
            .is_err(),
        "the cable is cut"
    );
    near.write_all(b"hello").unwrap();
    hosts.mend(&hosts.beta).unwrap();
    let mut heard = [0; 5];
    far.set_read_timeout(Some(LIMIT)).unwrap();
    far.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"hello");
}

#[test]
fn counts_what_a_cable_carries() {
    const LENGTH: usize = 30_000_000;
    let hosts = TwoHosts::builder().build().unwrap();
    let listener = hosts.beta.listen(at(BETA, 7000)).unwrap();
    let mut near = hosts.alpha.connect(at(BETA, 7000), LIMIT).unwrap();
    let (mut far, _) = listener.accept().unwrap();
    let before = hosts.traffic(&hosts.beta).unwrap();
    let reader = thread::spawn(move || std::io::copy(&mut far, &mut std::io::sink()).unwrap());
    near.write_all(&vec![7; LENGTH]).unwrap();
    drop(near);
    assert_eq!(reader.join().unwrap(), LENGTH as u64);
    let received = hosts.traffic(&hosts.beta).unwrap().received - before.received;
    assert!(
        (LENGTH as u64..LENGTH as u64 * 11 / 10).contains(&received),
        "{received}"
    );
}

#[test]
fn an_inventory_shows_what_is_left_behind() {
    let hosts = TwoHosts::builder().build().unwrap();
    let before = hosts.inventory().unwrap();
    hosts.wait_as_before(&before, LIMIT).unwrap();
    let script = "sleep 1000 & mkdir /run/left; ip link add left type veth peer name left2; ip addr add 10.77.0.9/24 dev br0;
        for h in /sys/fs/cgroup/*/; do mkdir $h/left; done; mount -t tmpfs tmpfs /opt";
    let mut command = hosts.beta.command(["sh", "-c", script]).spawn().unwrap();
    command.wait_success(LIMIT).unwrap();
    let Err(Error::NotAsBefore(changes)) = hosts.wait_as_before(&before, Duration::ZERO) else {
        panic!("nothing was noticed")
    };
    for left in [
        "process sleep 1000",
        "file /run/left",
        "link left",
        "address 3: br0",
        "cgroup v",
        "mount /opt",
    ] {
        assert!(
            changes.contains(&format!("beta: + {left}")),
            "{left} is missing in:\n{changes}"
        );
    }
    assert!(!changes.contains("alpha"), "{changes}");
}

#[test]
fn orphans_are_reaped() {
    let hosts = TwoHosts::builder().build().unwrap();
    let before = hosts.inventory().unwrap();
    hosts
        .alpha
        .run(["sh", "-c", "for i in 1 2 3; do (sleep 0.05 &); done"])
        .unwrap();
    hosts.wait_as_before(&before, LIMIT).unwrap();
}

#[test]
fn commands_can_be_stopped_continued_and_killed() {
    let hosts = TwoHosts::builder().build().unwrap();
    let script = "kill -STOP $$; echo on; kill -STOP $$; echo never";
    let mut command = hosts.alpha.command(["sh", "-c", script]).spawn().unwrap();
    command.wait_stopped(LIMIT).unwrap();
    command.go_on().unwrap();
    command.line_with("on", LIMIT).unwrap();
    command.wait_stopped(LIMIT).unwrap();
    let finished = command.kill().unwrap();
    assert_eq!((finished.code, finished.output.as_str()), (None, "on\n"));
}

#[test]
fn nothing_of_a_testbed_stays_on_the_machine() {
    let hosts = TwoHosts::builder().build().unwrap();
    let script =
        "mkdir /sys/fs/cgroup/freezer/stuck && sleep 1000 & echo $! > /sys/fs/cgroup/freezer/stuck/tasks
        echo FROZEN > /sys/fs/cgroup/freezer/stuck/freezer.state";
    let sleeper = hosts.alpha.command(["sh", "-c", script]).spawn().unwrap();
    let own = format!("testbed-{}-", std::process::id());
    drop((sleeper, hosts));
    for hierarchy in [
        "/sys/fs/cgroup/freezer",
        "/sys/fs/cgroup/unified",
        "/sys/fs/cgroup",
    ] {
        let Ok(entries) = std::fs::read_dir(hierarchy) else {
            continue;
        };
        for entry in entries.flatten() {
            assert!(
                !entry.file_name().to_string_lossy().starts_with(&own),
                "{:?}",
                entry.path()
            );
        }
    }
}

#[test]
fn two_hosts_can_share_a_network_but_nothing_else() {
    let hosts = TwoHosts::builder().one_network().build().unwrap();
    let names = |host: &whimbrel_testbed::Host| {
        host.run(["readlink", "/proc/1/ns/net", "/proc/1/ns/mnt"])
            .unwrap()
            .output
    };
    let (alpha, beta) = (names(&hosts.alpha), names(&hosts.beta));
    assert_eq!(alpha.lines().next(), beta.lines().next());
    assert_ne!(alpha.lines().last(), beta.lines().last());
}
