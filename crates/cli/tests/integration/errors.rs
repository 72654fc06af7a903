//! Wrong input: one sentence, an exit code, and a workload that never noticed.

use std::io::{Read, Write};
use std::thread;
use std::time::Duration;

use whimbrel_testbed::{at, programs, Finished, BETA};

use crate::rig::{How, Rig, Side, LONG, NAME};

/// Exit codes that the manual promises.
const FAILED: i32 = 1;
const USAGE: i32 = 2;
const REFUSED: i32 = 3;

/// A key as nobody gets one.
const WRONG_KEY: &str = "00000-00000-00000-00000-000000";

/// The last line of output must be one sentence that holds all of `parts`.
#[track_caller]
pub fn one_sentence(finished: &Finished, code: i32, parts: &[&str]) {
    assert_eq!(finished.code, Some(code), "{finished:?}");
    let last = finished.output.lines().last().unwrap_or_default();
    for part in parts {
        assert!(
            last.to_lowercase().contains(&part.to_lowercase()),
            "\"{part}\" is missing in: {}",
            finished.output
        );
    }
    for noise in ["panicked", "backtrace", "Caused by", "Error {", "Os {", "Some("] {
        assert!(
            !finished.output.contains(noise),
            "{noise} in: {}",
            finished.output
        );
    }
}

#[test]
fn workloads_that_do_not_exist() {
    let rig = Rig::new(&[]);
    for (workload, parts) in [("999999", ["999999", "no"]), ("nobody", ["nobody", "no"])] {
        let finished = rig.whimbrel(
            Side::Alpha,
            &format!("migrate {workload} 10.77.0.2:7440 --key {WRONG_KEY}"),
        );
        assert!(
            finished.code == Some(REFUSED) || finished.code == Some(USAGE),
            "{finished:?}"
        );
        one_sentence(&finished, finished.code.unwrap(), &parts);
    }
    let finished = rig.whimbrel(Side::Alpha, "logs nobody");
    assert!(!finished.success());
    one_sentence(&finished, finished.code.unwrap(), &["nobody"]);
}

#[test]
fn nobody_can_migrate_himself() {
    let rig = Rig::new(&[]);
    // The shell that becomes the controller names its own PID.
    let script = format!("exec whimbrel migrate $$ 10.77.0.2:7440 --key {WRONG_KEY}");
    let finished = rig
        .hosts
        .alpha
        .command(["sh", "-c", &script])
        .finish(LONG)
        .unwrap();
    assert!(!finished.success(), "{finished:?}");
    assert!(
        finished.code == Some(REFUSED) || finished.code == Some(USAGE),
        "{finished:?}"
    );
}

#[test]
fn wrong_words_on_the_command_line() {
    let rig = Rig::new(&[]);
    for line in [
        "migrate",
        "migrate w nowhere --key X",
        "migrate w 10.77.0.2:7440 --key X --strategy teleport",
        "migrate w 10.77.0.2:7440 --key X --max-downtime soon",
        "migrate w 10.77.0.2:7440 --key X --max-bandwidth -1",
        "receive --listen here",
        "run --ip 10.77.0.999/24 -- true",
        "run",
        "frobnicate",
    ] {
        let finished = rig.whimbrel(Side::Alpha, line);
        assert_eq!(finished.code, Some(USAGE), "`{line}`: {finished:?}");
    }
}

#[test]
fn wrong_key_and_unreachable_destination() {
    let rig = Rig::new(&[programs::c("counter").unwrap()]);
    rig.run("counter 8");
    let nobody = rig.whimbrel(
        Side::Alpha,
        &format!("migrate {NAME} 10.77.0.2:7440 --key {WRONG_KEY}"),
    );
    assert!(!nobody.success());

    let receive = rig
        .hosts
        .beta
        .command(["whimbrel", "receive", "--listen", "10.77.0.2:7440"])
        .spawn()
        .unwrap();
    let line = receive.line_with("--key ", LONG).unwrap();
    let key = line
        .split_once("--key ")
        .unwrap()
        .1
        .split_whitespace()
        .next()
        .unwrap();
    let finished = rig.whimbrel(
        Side::Alpha,
        &format!("migrate {NAME} 10.77.0.2:7440 --key {WRONG_KEY}"),
    );
    one_sentence(&finished, FAILED, &["key"]);
    drop(receive);

    let absent = rig.whimbrel(Side::Alpha, &format!("migrate {NAME} 10.77.0.9:7440 --key {key}"));
    one_sentence(&absent, FAILED, &["10.77.0.9"]);
    rig.more_steps(Side::Alpha, 3);
    rig.nothing_left(&[Side::Beta]).unwrap();
    rig.finish(Side::Alpha);
}

#[test]
fn what_cannot_move_is_refused_by_name_before_anything_is_touched() {
    let rig = Rig::new(&[programs::c("unsupported").unwrap()]);
    for (kind, part) in [
        ("io_uring", "io_uring"),
        ("inotify", "inotify"),
        ("tty", "terminal"),
        ("deleted-file", "/tmp/whimbrel-deleted"),
        ("sysv-shm", "SysV"),
        ("file-lock", "lock"),
        ("raw-socket", "raw"),
        ("netlink", "netlink"),
        ("child", "process"),
        ("traced", "trace"),
    ] {
        rig.run(&format!("unsupported {kind}"));
        rig.more_steps(Side::Alpha, 1);
        let mut moving = rig.begin_move(Side::Alpha, &How::default());
        let finished = moving.migrate.wait(LONG).unwrap();
        let last = finished.output.lines().last().unwrap_or_default();
        println!("{kind}: {last}");
        assert_eq!(finished.code, Some(REFUSED), "{kind}: {finished:?}");
        assert!(
            last.to_lowercase().contains(&part.to_lowercase()),
            "{kind}: {}",
            finished.output
        );
        drop(moving);
        rig.more_steps(Side::Alpha, 3);
        rig.hosts.alpha.run(["rm", "-f", "/tmp/whimbrel-locked"]).unwrap();
        rig.finish(Side::Alpha);
    }
}

#[test]
fn a_missing_capability_is_named() {
    let rig = Rig::new(&[programs::c("counter").unwrap()]);
    rig.run("counter 8");
    // setpriv(1) is part of util-linux.
    let line = format!(
        "setpriv --bounding-set -sys_ptrace --inh-caps -sys_ptrace whimbrel migrate {NAME} 10.77.0.2:7440 \
         --key {WRONG_KEY}"
    );
    let finished = rig
        .hosts
        .alpha
        .command(line.split_whitespace())
        .finish(LONG)
        .unwrap();
    one_sentence(&finished, REFUSED, &["CAP_SYS_PTRACE"]);
    rig.more_steps(Side::Alpha, 3);
    rig.finish(Side::Alpha);
}

#[test]
fn a_kernel_that_is_too_old_is_named_at_both_ends() {
    let rig = Rig::new(&[programs::c("counter").unwrap(), programs::c("oldkernel").unwrap()]);
    rig.run("counter 8");
    let away = format!("migrate {NAME} 10.77.0.2:7440 --key {WRONG_KEY}");
    for (side, words) in [
        (Side::Alpha, away.as_str()),
        (Side::Beta, "receive --listen 10.77.0.2:7440"),
    ] {
        let line = format!("oldkernel whimbrel {words}");
        let host = rig.host(side);
        let finished = host.command(line.split_whitespace()).finish(LONG).unwrap();
        one_sentence(
            &finished,
            REFUSED,
            &["PAGEMAP_SCAN", "Linux 6.7 or newer is needed"],
        );
    }
    rig.more_steps(Side::Alpha, 3);
    rig.finish(Side::Alpha);
}

#[test]
fn a_name_that_is_taken_is_refused_at_the_destination() {
    let rig = Rig::new(&[programs::c("counter").unwrap()]);
    rig.run("counter 8");
    let second = rig.whimbrel(Side::Beta, &format!("run --name {NAME} -- counter 8"));
    assert!(second.success(), "{second:?}");
    let mut moving = rig.begin_move(Side::Alpha, &How::default());
    let finished = moving.migrate.wait(LONG).unwrap();
    one_sentence(&finished, REFUSED, &[NAME]);
    drop(moving);
    rig.more_steps(Side::Alpha, 3);
    rig.more_steps(Side::Beta, 3);
    assert!(rig.whimbrel(Side::Beta, &format!("stop {NAME}")).success());
    rig.finish(Side::Alpha);
}

/// A destination that answers the first 64 bytes with `answer`: what does `migrate` say?
fn migrate_to(rig: &Rig, answer: Vec<u8>) -> Finished {
    let listener = rig.hosts.beta.listen(at(BETA, 7440)).unwrap();
    let serving = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut hello = [0; 64];
        // Until the other end has had enough, which may be at any time.
        let _ = stream.read_exact(&mut hello);
        let _ = stream.write_all(&answer);
        let _ = stream.read(&mut hello);
    });
    let line = format!("migrate {NAME} 10.77.0.2:7440 --key {WRONG_KEY} --link-timeout 2s");
    let finished = rig.whimbrel(Side::Alpha, &line);
    // If nobody has come, the thread still waits.
    drop(rig.hosts.client.connect(at(BETA, 7440), LONG));
    serving.join().unwrap();
    finished
}

#[test]
fn another_version_a_stranger_and_silence_at_the_other_end() {
    let rig = Rig::new(&[programs::c("counter").unwrap()]);
    rig.run("counter 8");
    // The layout of a greeting is promised for every version: magic, lowest and highest version.
    let mut newer = vec![0; 64];
    newer[..8].copy_from_slice(b"WHIMBREL");
    newer[8..12].copy_from_slice(&[7, 0, 8, 0]);
    one_sentence(&migrate_to(&rig, newer), FAILED, &["version", "7 to 8"]);
    let web = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    one_sentence(&migrate_to(&rig, web.to_vec()), FAILED, &["whimbrel"]);
    one_sentence(&migrate_to(&rig, Vec::new()), FAILED, &["10.77.0.2:7440"]);
    rig.more_steps(Side::Alpha, 3);
    rig.finish(Side::Alpha);
}

#[test]
fn strangers_do_not_disturb_a_destination_that_waits() {
    let rig = Rig::new(&[programs::c("counter").unwrap()]);
    rig.run("counter 8");
    let mut moving = rig.begin_move(
        Side::Alpha,
        &How {
            pause_source_at: Some("connect"),
            ..How::default()
        },
    );
    moving.migrate.wait_stopped(LONG).unwrap();
    let connect = || rig.hosts.client.connect(at(BETA, 7440), LONG).unwrap();
    drop(connect());
    let silent = connect();
    let mut garbage = connect();
    garbage.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
    // Refused at some point; a broken connection is what a stranger deserves.
    let _ = garbage.write_all(&[0x41; 1 << 20]);
    moving.migrate.go_on().unwrap();
    moving.migrate.wait_success(LONG).unwrap();
    moving.receive.wait_success(LONG).unwrap();
    drop(silent);
    rig.more_steps(Side::Beta, 3);
    rig.finish(Side::Beta);
}
