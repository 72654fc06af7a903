use std::fs;
use std::io::Read;
use std::net::{IpAddr, TcpListener};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use whimbrel_kernel::namespace::{unshare, Kinds};
use whimbrel_kernel::netlink::{Netlink, Port};

use super::*;
use crate::recover;
use crate::replica::ReplicaResources;

/// A directory of workloads that goes with the test.
struct Home {
    registry: Registry,
    root: PathBuf,
}

impl Home {
    fn new(test: &str) -> Self {
        let root = std::env::temp_dir().join(format!("whimbrel-{test}-{}", std::process::id()));
        fs::create_dir_all(&root).unwrap();
        Self {
            registry: Registry::at(&root),
            root,
        }
    }

    fn options(&self) -> Options {
        Options {
            program: init_program(),
            registry: self.registry.clone(),
            ..Options::default()
        }
    }

    fn create(&self, spec: &ContainerSpec) -> Container {
        Container::create(Plan::new(spec, &self.options()).unwrap(), None).unwrap()
    }

    fn log(&self, name: &str) -> String {
        fs::read_to_string(self.registry.log(name)).unwrap()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        for entry in self.registry.list().unwrap_or_default() {
            let _ = end(&entry.resources);
        }
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// Cargo builds the examples beside the tests.
fn init_program() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test.ancestors().nth(2).unwrap().join("examples/init");
    assert!(
        program.exists(),
        "{} is missing; build it with: cargo build -p whimbrel-process --examples",
        program.display()
    );
    program
}

fn spec(name: &str) -> ContainerSpec {
    ContainerSpec::new(Some(name), &["test".to_owned()]).unwrap()
}

fn shell(script: &str) -> Command {
    Command {
        arguments: ["/bin/bash", "-c", script].map(Into::into).to_vec(),
        environment: vec![
            ("PATH".into(), "/usr/sbin:/usr/bin:/sbin:/bin".into()),
            ("WORD".into(), "bird".into()),
        ],
        directory: "/".into(),
    }
}

/// Waits for something that another process does.
fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_workload_runs_in_namespaces_of_its_own_and_its_end_is_noted() {
    let home = Home::new("run");
    let mut spec = spec("first");
    spec.hostname = "elsewhere".to_owned();
    let mut container = home.create(&spec);
    let script = "echo $WORD $$ $(readlink /proc/self/ns/pid) $(uname -n); ls -d /proc/[0-9]* | wc -l; echo oops >&2; exit 7";
    let started = container.run(&shell(script)).unwrap();
    container.note_running(started.pid).unwrap();
    container.survive().unwrap();
    let init = container.resources().init.unwrap();
    wait_for("the end of init", || !init.is_alive());
    let entry = home.registry.get("first").unwrap().unwrap();
    assert_eq!((entry.phase, entry.exit), (Phase::Ended, Some(Exit::Exited(7))));
    let log = home.log("first");
    let own = fs::read_link("/proc/self/ns/pid").unwrap();
    assert!(
        log.starts_with(&format!("bird {} ", started.namespace_pid)) && log.contains("elsewhere"),
        "{log}"
    );
    assert!(!log.contains(own.to_str().unwrap()), "{log}");
    assert!(log.ends_with("oops\n"), "{log}");
    assert!(!container.group().path().exists());
    end(container.resources()).unwrap();
    assert!(home.registry.list().unwrap().is_empty());
}

#[test]
fn without_survive_everything_ends_with_the_controller() {
    let home = Home::new("drop");
    let mut container = home.create(&spec("mortal"));
    let started = container.run(&shell("while :; do sleep 1000; done")).unwrap();
    let workload = Identity::of(started.pid).unwrap();
    let resources = container.resources().clone();
    drop(container);
    wait_for("the end of the workload", || !workload.is_alive());
    end(&resources).unwrap();
    assert!(!resources.group.exists() && !resources.directory.exists());
}

#[test]
fn after_survive_it_runs_on_until_it_is_ended_even_when_frozen() {
    let home = Home::new("survive");
    let mut container = home.create(&spec("lasting"));
    let started = container.run(&shell("while :; do sleep 1000; done")).unwrap();
    container.survive().unwrap();
    container.note_running(started.pid).unwrap();
    drop(container);
    let entry = home.registry.find(&started.pid.to_string()).unwrap().unwrap();
    assert_eq!(
        (entry.spec.name.as_str(), entry.phase),
        ("lasting", Phase::Running)
    );
    assert!(entry.process.unwrap().is_alive() && entry.resources.init.unwrap().is_alive());
    whimbrel_kernel::freezer::Group::at(&entry.resources.group)
        .freeze()
        .unwrap();
    end(&entry.resources).unwrap();
    assert!(!entry.process.unwrap().is_alive() && !entry.resources.init.unwrap().is_alive());
    assert!(!entry.resources.group.exists() && !entry.resources.directory.exists());
    end(&entry.resources).unwrap();
}

#[test]
fn a_stub_has_its_number_and_nothing_else() {
    let home = Home::new("stub");
    let mut container = home.create(&spec("stub"));
    let stub = container.spawn_stub(4711).unwrap();
    assert_eq!(stub.namespace_pid, 4711);
    assert_eq!(container.group().processes().unwrap(), [stub.pid]);
    let descriptors = format!("/proc/{}/fd", stub.pid);
    wait_for("closing all descriptors", || {
        fs::read_dir(&descriptors).unwrap().count() == 0
    });
    let status = fs::read_to_string(format!("/proc/{}/status", stub.pid)).unwrap();
    let blocked = status
        .lines()
        .find_map(|line| line.strip_prefix("SigBlk:"))
        .unwrap();
    // All but SIGKILL and SIGSTOP.
    assert_eq!(blocked.trim(), "fffffffffffbfeff");
    assert!(container.spawn_stub(1).is_err() && container.spawn_stub(4712).is_err());
}

#[test]
fn a_workload_begins_with_no_signal_of_inits_blocked_or_ignored() {
    let home = Home::new("signals");
    let mut container = home.create(&spec("signals"));
    let mut command = shell("");
    command.arguments = ["/bin/grep", "-E", "Sig(Blk|Ign)", "/proc/self/status"]
        .map(Into::into)
        .to_vec();
    container.run(&command).unwrap();
    wait_for("two lines", || home.log("signals").lines().count() == 2);
    let log = home.log("signals");
    let masks: Vec<u64> = log
        .lines()
        .map(|line| u64::from_str_radix(&line[8..], 16).unwrap())
        .collect();
    let pipe_signal = 1 << (13 - 1);
    assert_eq!((masks[0], masks[1] & pipe_signal), (0, 0), "{log}");
}

#[test]
fn a_workload_has_no_descriptors_of_whoever_started_it() {
    let home = Home::new("descriptors");
    let (_reading, writing) = whimbrel_kernel::spawn::pipe().unwrap();
    // Not closed on exec, like those that a careless shell passes on.
    let careless = rustix::io::dup(&writing).unwrap();
    rustix::io::fcntl_setfd(&careless, rustix::io::FdFlags::empty()).unwrap();
    let mut container = home.create(&spec("descriptors"));
    let mut command = shell("");
    command.arguments = ["/bin/ls", "/proc/self/fd"].map(Into::into).to_vec();
    container.run(&command).unwrap();
    // The fourth is the directory that ls reads.
    wait_for("the list", || home.log("descriptors").lines().count() >= 4);
    assert_eq!(home.log("descriptors"), "0\n1\n2\n3\n");
}

#[test]
fn clocks_go_on_from_where_they_were() {
    let home = Home::new("clocks");
    let day_ns = 86_400_000_000_000;
    let me = Clocks::of(std::process::id() as i32).unwrap();
    let source = Clocks {
        monotonic_ns: me.monotonic_ns + day_ns,
        boottime_ns: me.boottime_ns + 2 * day_ns,
    };
    let slack = Duration::from_secs(3);
    let plan = Plan::new(&spec("clock"), &home.options()).unwrap();
    let mut container = Container::create(plan, Some(source.offsets_to_continue(slack).unwrap())).unwrap();
    let started = container.run(&shell("cat /proc/uptime; sleep 1000")).unwrap();
    let here = Clocks::of(started.pid).unwrap();
    assert!(here.monotonic_ns >= source.monotonic_ns + 3_000_000_000);
    assert!(here.boottime_ns >= source.boottime_ns + 3_000_000_000);
    wait_for("the first line", || home.log("clock").ends_with('\n'));
    let uptime: f64 = home
        .log("clock")
        .split_whitespace()
        .next()
        .unwrap()
        .parse()
        .unwrap();
    assert!(
        uptime * 1e9 > source.boottime_ns as f64,
        "/proc/uptime shows {uptime} s"
    );
}

#[test]
fn a_frozen_workload_that_is_cut_off_runs_and_is_joined_after_its_start() {
    let home = Home::new("network");
    // The host of this test is a network namespace that goes with this thread.
    unshare(Kinds::NETWORK).unwrap();
    let mut net = Netlink::open().unwrap();
    net.add_bridge("br0").unwrap();
    let bridge = net.link("br0").unwrap().unwrap().index;
    net.set_up(bridge, true).unwrap();
    let gateway: IpAddr = "10.8.0.1".parse().unwrap();
    net.add_address(bridge, gateway, 24).unwrap();
    let mut spec = spec("joined");
    let addresses = vec!["10.8.0.2/24".parse().unwrap(), "fd08::2/64".parse().unwrap()];
    let network = NetworkSpec::new(addresses, None).unwrap();
    assert_eq!(
        network.routes,
        [Route {
            destination: None,
            gateway: Some(gateway)
        }]
    );
    spec.network = Some(network);

    let listener = TcpListener::bind((gateway, 5000)).unwrap();
    let options = Options {
        locked: true,
        ..home.options()
    };
    let mut container = Container::create(Plan::new(&spec, &options).unwrap(), None).unwrap();
    let resources = container.resources().clone();
    let port = resources.network.as_ref().unwrap().port.clone();
    assert_eq!(net.link(&port).unwrap().unwrap().port, Some(Port::Disabled));
    container
        .run(&shell(
            "until exec 3<>/dev/tcp/10.8.0.1/5000; do sleep 0.1; done; echo hello >&3; exec 3>&-; sleep 1000",
        ))
        .unwrap();
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err());
    container.group().freeze().unwrap();
    let arrived = ReplicaResources {
        container: resources.clone(),
        process: None,
        repaired: Vec::new(),
        carried: Vec::new(),
        pager: None,
    };
    recover::start(&arrived).unwrap();
    assert_eq!(
        home.registry.get("joined").unwrap().unwrap().phase,
        Phase::Running
    );
    recover::start(&arrived).unwrap();
    assert_eq!(net.link(&port).unwrap().unwrap().port, Some(Port::Forwarding));
    listener.set_nonblocking(false).unwrap();
    let (mut stream, from) = listener.accept().unwrap();
    assert_eq!(from.ip().to_string(), "10.8.0.2");
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello\n");
    Lock::prepare(&resources).unwrap().unwrap().close().unwrap();
    assert_eq!(net.link(&port).unwrap().unwrap().port, Some(Port::Disabled));
    end(&resources).unwrap();
    assert_eq!(net.link(&port).unwrap(), None);
}

#[test]
fn what_cannot_be_made_is_refused_in_one_sentence() {
    let home = Home::new("refuse");
    let mut container = home.create(&spec("taken"));
    let sentence = Plan::new(&spec("taken"), &home.options())
        .unwrap_err()
        .to_string();
    assert!(sentence.contains("called taken is here already"), "{sentence}");
    let mut missing = shell("");
    missing.arguments[0] = "/no/such/program".into();
    let sentence = container.run(&missing).unwrap_err().to_string();
    assert!(
        sentence.contains("start /no/such/program: No such file"),
        "{sentence}"
    );
    for name in ["", "a b", "../x", "-x", "123", &"x".repeat(65)] {
        let sentence = ContainerSpec::new(Some(name), &[]).unwrap_err().to_string();
        assert!(
            sentence.contains("cannot be the name of a workload"),
            "{sentence}"
        );
    }
    for address in ["10.0.0.2", "10.0.0.2/33", "fd00::1/129", "x/24"] {
        assert!(address.parse::<Address>().is_err(), "{address}");
    }
}

#[test]
fn the_name_of_an_ended_workload_is_free_again() {
    let home = Home::new("again");
    let mut container = home.create(&spec("again"));
    let started = container
        .run(&shell("read < /dev/null; exec sleep 1000"))
        .unwrap();
    container.note_running(started.pid).unwrap();
    container.survive().unwrap();
    whimbrel_kernel::namespace::kill(started.pid);
    let init = container.resources().init.unwrap();
    wait_for("the end of init", || !init.is_alive());
    assert_eq!(
        home.registry.get("again").unwrap().unwrap().exit,
        Some(Exit::Killed(9))
    );
    assert_eq!(home.registry.find(&started.pid.to_string()).unwrap(), None);
    home.create(&spec("again"));
}

#[test]
fn what_a_dead_controller_had_begun_is_swept_away() {
    let home = Home::new("sweep");
    let mut container = home.create(&spec("begun"));
    let started = container.run(&shell("exec sleep 1000")).unwrap();
    let resources = container.resources().clone();
    home.registry.sweep().unwrap();
    assert!(Identity::of(started.pid).unwrap().is_alive());
    // As if the controller had died: init ends by itself.
    drop(container);
    wait_for("the end of init", || !resources.init.unwrap().is_alive());
    home.registry.sweep().unwrap();
    assert!(!resources.group.exists() && !resources.directory.exists());
}

#[test]
fn a_container_that_was_only_planned_is_swept_away_with_its_creator() {
    let home = Home::new("planned");
    let mut entry = {
        home.create(&spec("planned"));
        home.registry.get("planned").unwrap().unwrap()
    };
    entry.resources.init = None;
    entry.phase = Phase::Arriving;
    entry.creator = Identity::of(std::process::id() as i32).unwrap();
    home.registry.put(&entry).unwrap();
    home.registry.sweep().unwrap();
    assert_eq!(
        home.registry.get("planned").unwrap().unwrap().phase,
        Phase::Arriving
    );
    entry.creator.start_time += 1;
    home.registry.put(&entry).unwrap();
    home.registry.sweep().unwrap();
    assert!(!entry.resources.directory.exists() && !entry.resources.group.exists());
}

#[test]
fn a_failed_creation_leaves_nothing() {
    let home = Home::new("nothing");
    let mut options = home.options();
    options.program = "/bin/false".into();
    let plan = Plan::new(&spec("broken"), &options).unwrap();
    let resources = plan.resources().clone();
    let sentence = Container::create(plan, None).unwrap_err().to_string();
    assert!(sentence.contains("it has ended"), "{sentence}");
    assert!(!resources.group.exists() && !resources.directory.exists());
}

#[test]
fn hostile_specs_are_refused() {
    let network = NetworkSpec {
        interface: "eth0".to_owned(),
        mac: [2, 0, 0, 0, 0, 1],
        mtu: 1500,
        addresses: vec!["10.0.0.2/24".parse().unwrap()],
        routes: Vec::new(),
    };
    let good = ContainerSpec {
        network: Some(network.clone()),
        ..spec("good")
    };
    good.validate().unwrap();
    let address = network.addresses[0];
    let bad = [
        NetworkSpec {
            interface: "../../x".to_owned(),
            ..network.clone()
        },
        NetworkSpec {
            interface: "lo".to_owned(),
            ..network.clone()
        },
        NetworkSpec {
            interface: "x".repeat(16),
            ..network.clone()
        },
        NetworkSpec {
            mac: [1, 0, 0, 0, 0, 1],
            ..network.clone()
        },
        NetworkSpec {
            mtu: 0,
            ..network.clone()
        },
        NetworkSpec {
            addresses: Vec::new(),
            ..network.clone()
        },
        NetworkSpec {
            addresses: vec![address; 65],
            ..network.clone()
        },
        NetworkSpec {
            addresses: vec![Address {
                prefix: 33,
                ..address
            }],
            ..network.clone()
        },
    ];
    for network in bad {
        assert!(
            ContainerSpec {
                network: Some(network.clone()),
                ..good.clone()
            }
            .validate()
            .is_err(),
            "{network:?}"
        );
    }
    assert!(ContainerSpec {
        id: "../x".to_owned(),
        ..good.clone()
    }
    .validate()
    .is_err());
    assert!(ContainerSpec {
        name: "a/b".to_owned(),
        ..good
    }
    .validate()
    .is_err());
}

#[test]
fn addresses_know_their_network() {
    let contains =
        |network: &str, ip: &str| network.parse::<Address>().unwrap().contains(ip.parse().unwrap());
    assert!(contains("10.1.2.3/24", "10.1.2.255") && !contains("10.1.2.3/24", "10.1.3.1"));
    assert!(contains("10.1.2.3/0", "200.1.1.1") && contains("10.1.2.3/32", "10.1.2.3"));
    assert!(!contains("10.1.2.3/32", "10.1.2.2") && !contains("10.1.2.3/0", "::1"));
    assert!(contains("fd00::1/64", "fd00::ffff") && !contains("fd00::1/64", "fd00:0:0:1::1"));
}

#[test]
fn a_log_moves_in_pieces_and_tells_what_was_cut() {
    let home = Home::new("log");
    let (source, destination) = (home.root.join("source"), home.root.join("destination"));
    fs::write(&source, "one\ntwo\n").unwrap();
    let early = log::read(&source, 0, 100).unwrap();
    assert_eq!((early.cut, early.next), (0, 8));
    fs::write(&source, "one\ntwo\nthree\n").unwrap();
    let late = log::read(&source, early.next, 4).unwrap();
    assert_eq!(
        (late.cut, late.bytes.as_slice(), late.next),
        (2, b"ree\n".as_slice(), 14)
    );
    log::append(&destination, &early).unwrap();
    log::append(&destination, &late).unwrap();
    let text = fs::read_to_string(&destination).unwrap();
    assert!(
        text.starts_with("one\ntwo\n[whimbrel: 2 bytes") && text.ends_with("\nree\n"),
        "{text}"
    );
    fs::write(&source, "new\n").unwrap();
    assert_eq!(log::read(&source, late.next, 100).unwrap().bytes, b"new\n");
}

/// What somebody else can still read of a pipe whose only writing end init keeps: whether it does.
fn is_open(reading: &mut std::io::PipeReader) -> bool {
    let ready = whimbrel_kernel::fd::poll_now(reading.as_fd(), libc::POLLIN).unwrap();
    ready & libc::POLLHUP == 0
}

#[test]
fn init_keeps_descriptors_until_somebody_outside_lets_them_go() {
    let home = Home::new("keep");
    let mut container = home.create(&spec("keeping"));
    let script = "while :; do kill -40 1; echo asked; sleep 0.01; done";
    container.run(&shell(script)).unwrap();
    let keeper = container.keeper().unwrap();
    let (mut first, writing) = std::io::pipe().unwrap();
    let dropped = keeper.keep(writing.as_fd()).unwrap().unwrap();
    drop(writing);
    let (mut second, writing) = std::io::pipe().unwrap();
    let kept = keeper.keep(writing.as_fd()).unwrap().unwrap();
    drop(writing);
    keeper.drop_one(dropped).unwrap();
    assert!(!is_open(&mut first) && is_open(&mut second) && dropped != kept);
    container.survive().unwrap();
    let resources = container.resources().clone();
    drop((container, keeper));
    let asked = home.log("keeping").len();
    wait_for("the workload's signal", || home.log("keeping").len() > asked + 30);
    let later = Keeper::of(resources.init.unwrap());
    assert_eq!(later.keep(first.as_fd()).unwrap(), None, "nobody can be asked");
    let again = later.fetch(kept).unwrap();
    assert!(later.fetch(dropped).is_err());
    drop(again);
    assert!(
        is_open(&mut second),
        "a process of the workload has asked for that"
    );
    later.drop_all().unwrap();
    wait_for("the end of the pipe", || !is_open(&mut second));
    end(&resources).unwrap();
    later.drop_all().unwrap();
}
