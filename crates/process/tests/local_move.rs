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
