//! A program moves into a new PID namespace on the same machine: stopped, captured, rebuilt; and the program itself
//! checks that nothing but time has passed. The rebuilt process is captured again before it runs: both states must agree.

mod common;

use common::{move_on, Journey, Program};
use whimbrel_process::capture::RestartMemo;

#[test]
fn every_mechanism_goes_on_over_ten_moves() {
    let mut program = Program::start("machinery", &[]);
    program.goes_on(3);
    let mut place = None;
    let mut memo = RestartMemo::default();
    for _ in 0..10 {
        place = Some(move_on(
            &mut program,
            place.take(),
            &mut memo,
            &Journey::default(),
        ));
        program.goes_on(3);
    }
    program.goes_on(10);
}

/// The comparison of both states is the test.
#[test]
fn who_it_is_and_what_it_may_do_moves_along() {
    // PR_SET_PDEATHSIG 1, PR_SET_NAME 15, PR_SET_TIMERSLACK 29, PR_SET_CHILD_SUBREAPER 36, PR_SET_NO_NEW_PRIVS 38,
    // PR_SET_THP_DISABLE 41, PR_CAPBSET_DROP 24, setrlimit 160 of RLIMIT_CORE 4 and RLIMIT_NOFILE 7
    let script = r#"
        chdir '/tmp'; umask 0027; POSIX::nice(5); my $name = "other name\0";
        open(my $o, '>', '/proc/self/oom_score_adj'); print $o 77; close $o;
        my ($c, $f) = (pack('QQ', 1000, 2000), pack('QQ', 100, 200)); syscall(160, 4, $c); syscall(160, 7, $f);
        syscall(157, 15, $name); syscall(157, 29, 12345); syscall(157, 36, 1); syscall(157, 41, 1, 0, 0, 0);
        syscall(157, 24, 21) == 0 or die;
        $) = "65534 65534 1000 1001"; $( = 65534; POSIX::setuid(65534) or die;
        syscall(157, 38, 1, 0, 0, 0); syscall(157, 1, 10); $SIG{HUP} = 'IGNORE'; $SIG{USR1} = sub { };
        while (1) { print "$>\n"; select(undef, undef, undef, 0.02) }"#;
    let mut program = Program::perl(script, std::process::Stdio::null());
    program.has_written(5);
    let place = move_on(
        &mut program,
        None,
        &mut RestartMemo::default(),
        &Journey::default(),
    );
    program.goes_on(5);
    let process = &place.state.as_ref().unwrap().processes[0];
    let credentials = &process.credentials;
    assert_eq!(
        (credentials.uids, credentials.groups.as_slice()),
        ([65534; 4], &[1000, 1001, 65534][..])
    );
    assert!(credentials.no_new_privs && credentials.bounding & 1 << 21 == 0 && credentials.effective == 0);
    assert!(process.attributes.child_subreaper && process.attributes.thp_disabled);
    assert_eq!(
        (process.filesystem.umask, process.attributes.oom_score_adj),
        (0o027, 77)
    );
    let leader = &process.threads[0];
    assert_eq!(
        (leader.name.as_slice(), leader.timer_slack_ns),
        (&b"other name"[..], 12345)
    );
    assert_eq!((leader.scheduling.nice, leader.parent_death_signal), (5, 10));
    assert_eq!(process.resource_limits[7], (100, 200));
}
