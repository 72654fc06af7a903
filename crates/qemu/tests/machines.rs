//! With a real QEMU, without a guest. They pass where none is installed.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use whimbrel_qemu::arguments::{Arguments, Plan};
use whimbrel_qemu::qmp::Qmp;
use whimbrel_qemu::running;

/// How long QEMU may take until its monitor is there.
const START_MAX: Duration = Duration::from_secs(20);

/// A machine that ends with the test.
struct Machine {
    child: Child,
    directory: PathBuf,
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn directory(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("whimbrel-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&path).expect("a directory for the test");
    path
}

/// None if there is no QEMU here.
fn start(directory: &Path, words: &[String]) -> Option<Machine> {
    let spawned = Command::new(&words[0])
        .args(&words[1..])
        .stdin(Stdio::null())
        .spawn();
    match spawned {
        Ok(child) => Some(Machine {
            child,
            directory: directory.to_owned(),
        }),
        Err(e) if e.kind() == ErrorKind::NotFound => {
            eprintln!("no QEMU here");
            let _ = std::fs::remove_dir_all(directory);
            None
        }
        Err(e) => panic!("{e}"),
    }
}

fn connect(path: &Path) -> Qmp {
    let deadline = Instant::now() + START_MAX;
    loop {
        match Qmp::connect(path) {
            Ok(qmp) => return qmp,
            Err(e) if Instant::now() > deadline => panic!("{e}"),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn a_machine_that_runs_here_is_found() {
    let directory = directory("found");
    let socket = directory.join("a,b.qmp");
    let name = format!("whimbrel-test-{}", std::process::id());
    let escaped = socket.to_str().unwrap().replace(',', ",,");
    let line = format!(
        "qemu-system-x86_64 -accel tcg -machine none -display none -S -name {name} -qmp unix:{escaped},server=on,wait=off"
    );
    let Some(machine) = start(&directory, &words(&line)) else {
        return;
    };
    let mut qmp = connect(&socket);
    let listed = running::list();
    let found = listed.iter().find(|running| running.name == name).unwrap();
    assert_eq!(found.pid, machine.child.id() as i32);
    assert_eq!(found.monitors, [socket]);
    assert_eq!(found.unfit, None);
    qmp.post("quit", json!({})).unwrap();
}

#[test]
fn the_words_for_the_destination_start_a_machine_that_waits() {
    let directory = directory("waits");
    let path = |name: &str| directory.join(name);
    let shown = directory.to_str().unwrap();
    let line = format!(
        "qemu-system-x86_64 -accel tcg -display none -nodefaults --daemonize -snapshot -m 16M -S -loadvm x \
         -machine pc,memory-backend=ram -object memory-backend-file,id=ram,size=16M,mem-path={shown}/none/x,share=on \
         -qmp unix:path={shown}/theirs=1,server -serial unix:{shown}/serial,server -pidfile {shown}/none/pid -incoming fd:9"
    );
    let plan = Plan {
        monitor: path("our,own.qmp"),
        pid_file: path("pid"),
        ram_files: [("ram".to_owned(), path("ram,=file"))].into(),
    };
    let there = Arguments::parse(words(&line)).for_destination(&plan);
    let Some(machine) = start(&directory, &there) else {
        return;
    };
    let mut qmp = connect(&plan.monitor);
    let status = qmp.execute("query-status", json!({})).unwrap();
    assert_eq!(status["status"], "inmigrate");
    let pid = std::fs::read_to_string(&plan.pid_file).unwrap();
    assert_eq!(pid.trim(), machine.child.id().to_string());
    assert_eq!(std::fs::metadata(&plan.ram_files["ram"]).unwrap().len(), 16 << 20);
    assert!(path("theirs=1").exists() && path("serial").exists());
    let own = Arguments::of_process(machine.child.id() as i32).unwrap();
    assert_eq!(own.words(), there);
    assert_eq!(own.own_monitor(), Some(plan.monitor.clone()));
    qmp.post("quit", json!({})).unwrap();
}
