//! Huge pages stay huge: after a move, and after a move that was given up.

use whimbrel_testbed::programs;

use crate::rig::{How, Rig, Side, LONG};

/// MiB of huge pages and MiB in all, from a line of the program `hugepages`.
fn huge(step: &str) -> (u64, u64) {
    let words: Vec<&str> = step.split(' ').collect();
    assert_eq!((words[3], words[5]), ("huge", "of"), "{step}");
    (words[4].parse().unwrap(), words[6].parse().unwrap())
}

/// Waits until all of the memory is huge again: mending may go on for a moment after the move.
fn wait_until_huge(rig: &Rig, side: Side) {
    let mut last = String::new();
    for _ in 0..50 {
        last = rig.more_steps(side, 1);
        let (huge, all) = huge(&last);
        if huge == all {
            return;
        }
    }
    panic!("not all of the memory is huge: {last}");
}

#[test]
fn huge_pages_are_huge_after_a_move() {
    let rig = Rig::new(&[programs::c("hugepages").unwrap()]);
    rig.run("hugepages 64");
    wait_until_huge(&rig, Side::Alpha);
    rig.moved(Side::Alpha, &How::default());
    wait_until_huge(&rig, Side::Beta);
    rig.moved(Side::Beta, &How::with("--strategy stopcopy"));
    wait_until_huge(&rig, Side::Alpha);
    rig.finish(Side::Alpha);
}

#[test]
fn huge_pages_are_huge_after_a_rollback() {
    let rig = Rig::new(&[programs::c("hugepages").unwrap()]);
    rig.run("hugepages 64");
    wait_until_huge(&rig, Side::Alpha);
    let how = How {
        pause_source_at: Some("last-pages"),
        ..How::default()
    };
    let mut moving = rig.begin_move(Side::Alpha, &how);
    moving.migrate.wait_stopped(LONG).unwrap();
    moving.receive.kill().unwrap();
    moving.migrate.go_on().unwrap();
    let finished = moving.migrate.wait(LONG).unwrap();
    assert_eq!(finished.code, Some(1), "{finished:?}");
    wait_until_huge(&rig, Side::Alpha);
    rig.nothing_left(&[Side::Beta]).unwrap();
    rig.finish(Side::Alpha);
}
