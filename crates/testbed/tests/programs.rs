//! The sample workloads find nothing wrong with themselves when nobody moves them.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use whimbrel_testbed::{programs, Host, TwoHosts};

const LIMIT: Duration = Duration::from_secs(60);

/// Runs a program until it has written its tenth line.
fn ten_steps(host: &Host, words: &[&str], name: &str) {
    let program = host.command(words).spawn().unwrap();
    program.line_with(&format!("{name} 10 ok"), LIMIT).unwrap();
    assert!(!program.output().contains("BAD"), "{}", program.output());
}

#[test]
fn c_programs_check_themselves() {
    let names = [
        "counter",
        "machinery",
        "torture",
        "growing",
        "hugepages",
        "echo",
        "shuffle",
        "late",
        "unsupported",
        "paging",
    ];
    let hosts = names.into_iter().fold(TwoHosts::builder(), |hosts, name| {
        hosts.program(programs::c(name).unwrap())
    });
    let hosts = hosts.build().unwrap();
    for name in &names[..7] {
        ten_steps(&hosts.alpha, &[name], name);
    }
    for pattern in "sequential strided hotcold uniform writer idle".split(' ') {
        ten_steps(&hosts.alpha, &["paging", "16", pattern, "2"], "paging");
    }
    let kinds = "io_uring inotify tty deleted-file sysv-shm file-lock raw-socket netlink child traced";
    for kind in kinds.split(' ') {
        ten_steps(&hosts.alpha, &["unsupported", kind], "unsupported");
    }
}

#[test]
fn the_java_program_checks_itself() {
    let hosts = TwoHosts::builder()
        .program(programs::java("HttpServer").unwrap())
        .build()
        .unwrap();
    let words = [
        "java",
        "-cp",
        "/usr/local/bin/HttpServer.jar",
        "HttpServer",
        "7000",
        "32",
        "10",
    ];
    ten_steps(&hosts.alpha, &words, "http");
}
