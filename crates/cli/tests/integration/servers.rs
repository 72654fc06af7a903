//! Servers that people really run move under load.

use std::time::{Duration, Instant};

use whimbrel_testbed::programs::{self, JAVA_HOME};

use crate::clients::{http, same, Lines, Load};
use crate::rig::{How, Rig, Side, ADDRESS, LONG};

/// Keys that nobody but the test writes.
const KEYS: usize = 20_000;

pub const REDIS: &str = "redis-server --port 7000 --bind 0.0.0.0 --protected-mode no --appendonly no --dir /tmp --enable-debug-command yes";

/// The value of a key: its length differs, so that many size classes are in use.
fn value(key: usize) -> String {
    format!("{key}-{}", "v".repeat(key % 400))
}

pub fn write_keys(redis: &mut Lines) {
    for key in 0..KEYS {
        redis.send(&format!("SET own:{key} {}\r\n", value(key))).unwrap();
        // Replies are awaited in batches: neither side's buffers fill up.
        if key % 100 == 99 {
            (0..100).for_each(|_| same(&redis.line().unwrap(), "+OK").unwrap());
        }
    }
}

pub fn check_keys(redis: &mut Lines) {
    for key in 0..KEYS {
        redis.send(&format!("GET own:{key}\r\n")).unwrap();
        let (length, got) = (redis.line().unwrap(), redis.line().unwrap());
        same(&length, &format!("${}", value(key).len())).unwrap();
        same(&got, &value(key)).unwrap();
    }
}

/// Asks for one line, such as `PING`.
fn ask(redis: &mut Lines, command: &str) -> String {
    redis.send(&format!("{command}\r\n")).unwrap();
    redis.line().unwrap()
}

/// Moves it by these arguments of `migrate`, one after the other, while others use it. No client sees an error or has to connect again.
pub fn redis_under_load(moves: &[&str]) {
    let rig = Rig::new(&[]);
    rig.serve(&format!("{REDIS} --save \"\""));
    let mut redis = Lines::connect(&rig.hosts.client);
    write_keys(&mut redis);
    let line = format!(
        "redis-benchmark -h {} -p 7000 -c 20 -r 100000 -d 200 -t set,get,incr,lpush,lpop -l -q",
        ADDRESS.ip()
    );
    let mut load = rig.hosts.client.command(line.split(' ')).spawn().unwrap();
    load.line_with("SET", LONG).unwrap();
    let mut side = Side::Alpha;
    for arguments in moves {
        rig.moved(side, &How::with(arguments));
        side = side.other();
        // The same connection as from the beginning on.
        check_keys(&mut redis);
        assert!(!load.ended(), "redis-benchmark gave up: {}", load.output());
    }
    load.kill().unwrap();
    assert!(
        !load.output().to_lowercase().contains("error"),
        "{}",
        load.output()
    );
    assert_eq!(ask(&mut Lines::connect(&rig.hosts.beta), "PING"), "+PONG");
    drop(redis);
    rig.finish(side);
}

#[test]
fn redis_keeps_its_data_under_benchmark_load() {
    redis_under_load(&["", "", "--strategy stopcopy"]);
}

#[test]
fn redis_that_is_saving_is_moved_later_or_refused() {
    let rig = Rig::new(&[]);
    // About two seconds for the save.
    rig.serve(&format!("{REDIS} --save \"\" --rdb-key-save-delay 100"));
    let mut redis = Lines::connect(&rig.hosts.client);
    write_keys(&mut redis);
    same(&ask(&mut redis, "BGSAVE"), "+Background saving started").unwrap();
    let mut moving = rig.begin_move(Side::Alpha, &How::default());
    let finished = moving.migrate.wait(LONG).unwrap();
    let side = match finished.code {
        Some(0) => {
            moving.receive.wait_success(LONG).unwrap();
            Side::Beta
        }
        Some(3) => {
            assert!(
                finished.output.contains("process"),
                "a refusal says why: {}",
                finished.output
            );
            moving.receive.kill().unwrap();
            Side::Alpha
        }
        _ => panic!("{finished:?}"),
    };
    check_keys(&mut redis);
    wait_for_save(&mut redis);
    drop(redis);
    // The dump is a file of the host where the save ended.
    rig.hosts.alpha.run(["rm", "-f", "/tmp/dump.rdb"]).unwrap();
    rig.finish(side);
}

/// Waits until no save is running; the last one must have been successful.
fn wait_for_save(redis: &mut Lines) {
    let deadline = Instant::now() + LONG;
    loop {
        let size = ask(redis, "INFO persistence");
        let length: usize = size.trim_start_matches('$').parse().unwrap();
        let mut text = String::new();
        while text.len() < length {
            text += &redis.line().unwrap();
            text += "\r\n";
        }
        redis.line().unwrap();
        if text.contains("rdb_bgsave_in_progress:0") {
            assert!(text.contains("rdb_last_bgsave_status:ok"), "{text}");
            return;
        }
        assert!(Instant::now() < deadline, "{text}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn python_serves_files_and_finishes_a_request_that_was_half_sent() {
    let rig = Rig::new(&[]);
    rig.serve("/usr/bin/python3 -m http.server 7000 --directory /usr/share/common-licenses");
    let expected = std::fs::read_to_string("/usr/share/common-licenses/GPL-3").unwrap();
    let mut side = Side::Alpha;
    for _ in 0..2 {
        same(
            &Lines::connect(&rig.hosts.client).get("/GPL-3").unwrap(),
            expected.trim_end(),
        )
        .unwrap();
        let mut half = Lines::connect(&rig.hosts.client);
        half.send("GET /GPL-3 HTTP/1.0\r\nHost: ").unwrap();
        rig.moved(side, &How::default());
        side = side.other();
        half.send("workload\r\n\r\n").unwrap();
        same(&half.response().unwrap(), expected.trim_end()).unwrap();
    }
    same(
        &Lines::connect(&rig.hosts.client).get("/GPL-3").unwrap(),
        expected.trim_end(),
    )
    .unwrap();
    rig.finish(side);
}

/// A JVM with these options under HTTP and allocation load, moved by these arguments of `migrate`, one after the other.
pub fn java(options: &str, moves: &[&str]) {
    let rig = Rig::new(&[programs::java("HttpServer").unwrap()]);
    let jar = "/usr/local/bin/HttpServer.jar";
    rig.serve(&format!(
        "{JAVA_HOME}/bin/java {options} -Xmx384m -cp {jar} HttpServer 7000 96 20"
    ));
    let load = Load::start(&rig.hosts.client, 6, http);
    let mut control = Lines::connect(&rig.hosts.client);
    let mut side = Side::Alpha;
    for arguments in moves {
        load.more(200);
        rig.moved(side, &How::with(arguments));
        side = side.other();
        for path in ["/check", "/gc", "/classes", "/threads", "/exec"] {
            let body = control.get(path).unwrap();
            assert!(body.starts_with("ok"), "{path}: {body}");
        }
    }
    load.more(200);
    load.finish();
    rig.more_steps(side, 5);
    drop(control);
    rig.finish(side);
}

#[test]
fn java_with_g1() {
    java("-XX:+UseG1GC", &[""; 2]);
}

#[test]
fn java_with_parallel() {
    java("-XX:+UseParallelGC", &[""; 2]);
}

#[test]
fn java_with_serial() {
    java("-XX:+UseSerialGC", &[""; 2]);
}

#[test]
fn java_ten_moves_there_and_back() {
    java("-XX:+UseG1GC", &[""; 10]);
}
