//! The orders of one talk, event by event.

use super::*;
use crate::pages::SpaceId;
use std::vec;

const A: ApplicationId = ApplicationId(1);
const B: ApplicationId = ApplicationId(2);
const LIMITS: AssistLimits = AssistLimits {
    answer_max: Duration::from_millis(100),
    prepare_max: Duration::from_millis(300),
};

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn run(first: u64, count: u64) -> PageRun {
    PageRun {
        space: SpaceId(0),
        first,
        count,
    }
}

fn claim(area: PageRun) -> Claim {
    Claim {
        areas: vec![area],
        owned: vec![area],
    }
}

fn areas(application: ApplicationId, area: PageRun) -> AssistEvent {
    AssistEvent::Areas {
        application,
        claim: claim(area),
    }
}

fn finally(application: ApplicationId, area: PageRun) -> AssistEvent {
    AssistEvent::Final {
        application,
        claim: claim(area),
    }
}

/// All orders until it waits, listens, pauses or ends; that last one too.
fn orders(assist: &mut Assist, now: Duration) -> Vec<AssistOrder> {
    let mut orders = Vec::new();
    loop {
        orders.push(assist.poll(now));
        if let Some(AssistOrder::Wait { .. } | AssistOrder::Listen | AssistOrder::Pause | AssistOrder::End) =
            orders.last()
        {
            return orders;
        }
    }
}

fn tell(application: ApplicationId, outcome: AssistOutcome) -> AssistOrder {
    AssistOrder::Tell { application, outcome }
}

/// Both asked; A has answered.
fn asked() -> Assist {
    let mut assist = Assist::new(LIMITS, &[A, B]);
    let asks = [A, B].map(|application| AssistOrder::Ask { application });
    assert_eq!(orders(&mut assist, ms(0))[..2], asks);
    assist.handle(ms(10), areas(A, run(0, 10)));
    assist
}

#[test]
fn the_whole_way() {
    let mut assist = asked();
    let runs = vec![run(0, 10)];
    let wait = AssistOrder::Wait { until: ms(100) };
    assert_eq!(orders(&mut assist, ms(10)), [AssistOrder::Mask { runs }, wait]);
    assist.handle(ms(20), areas(B, run(20, 10)));
    let runs = vec![run(20, 10)];
    assert_eq!(
        orders(&mut assist, ms(20)),
        [AssistOrder::Mask { runs }, AssistOrder::Listen]
    );
    assist.handle(
        ms(30),
        AssistEvent::Shrunk {
            application: A,
            runs: vec![run(8, 4)],
        },
    );
    let runs = vec![run(8, 2)];
    assert_eq!(
        orders(&mut assist, ms(30)),
        [AssistOrder::Unmask { runs }, AssistOrder::Listen]
    );
    assist.handle(ms(1000), AssistEvent::Suspending);
    let prepares = [A, B].map(|application| AssistOrder::Prepare { application });
    assert_eq!(orders(&mut assist, ms(1000))[..2], prepares);
    assist.handle(ms(1100), finally(A, run(0, 12)));
    assert_eq!(assist.poll(ms(1100)), AssistOrder::Wait { until: ms(1300) });
    assist.handle(ms(1200), finally(B, run(20, 5)));
    assert_eq!(orders(&mut assist, ms(1200)), [AssistOrder::Pause]);
    let skipped: Vec<PageRun> = assist.bitmap().skipped().runs().collect();
    assert_eq!(skipped, [run(0, 12), run(20, 5)]);
    assist.handle(ms(1500), AssistEvent::Ended(AssistOutcome::Resumed));
    let told = [A, B].map(|application| tell(application, AssistOutcome::Resumed));
    assert_eq!(orders(&mut assist, ms(1500))[..2], told);
    assert_eq!(assist.poll(ms(1500)), AssistOrder::End);
}

#[test]
fn who_is_late_with_the_first_answer_is_ignored_but_told_how_it_ended() {
    let mut assist = asked();
    assist.handle(ms(100), areas(B, run(20, 10)));
    assert_eq!(assist.phase(), AssistPhase::Live);
    assert_eq!(assist.bitmap().skipped().len(), 10, "A's");
    assert_eq!(assist.ignored_events(), 1);
    assist.handle(ms(200), AssistEvent::Suspending);
    assist.handle(ms(210), finally(B, run(20, 10)));
    assert_eq!(
        orders(&mut assist, ms(210))[0],
        AssistOrder::Prepare { application: A }
    );
    assist.handle(ms(220), AssistEvent::Ended(AssistOutcome::Abandoned));
    let told = [A, B].map(|application| tell(application, AssistOutcome::Abandoned));
    assert_eq!(orders(&mut assist, ms(220))[..2], told);
}

#[test]
fn who_is_late_with_final_areas_has_all_its_pages_sent() {
    let mut assist = asked();
    assist.handle(ms(20), areas(B, run(20, 10)));
    assist.handle(ms(200), AssistEvent::Suspending);
    orders(&mut assist, ms(200));
    // A first answer, repeated, is no final one.
    assist.handle(ms(210), areas(B, run(20, 10)));
    assist.handle(ms(220), finally(A, run(0, 10)));
    assert_eq!(orders(&mut assist, ms(500)), [AssistOrder::Pause]);
    assist.handle(ms(501), finally(B, run(20, 10)));
    let mut scan = Scan {
        present: Some(vec![run(0, 50)]),
        ..Scan::default()
    };
    assert_eq!(assist.final_scan(&mut scan), Ok(10));
    assert_eq!(scan.present, Some(vec![run(10, 40)]));
    assert_eq!(assist.ignored_events(), 2);
}

#[test]
fn one_that_goes_takes_its_skips_along_and_is_not_waited_for() {
    let mut assist = asked();
    orders(&mut assist, ms(10));
    assist.handle(ms(20), AssistEvent::Gone { application: B });
    assert_eq!(assist.phase(), AssistPhase::Live);
    assist.handle(ms(30), AssistEvent::Gone { application: A });
    let runs = vec![run(0, 10)];
    assert_eq!(orders(&mut assist, ms(30))[0], AssistOrder::Unmask { runs });
    assist.handle(ms(40), AssistEvent::Suspending);
    assert_eq!(orders(&mut assist, ms(40)), [AssistOrder::Pause]);
    assist.handle(ms(50), AssistEvent::Ended(AssistOutcome::Resumed));
    assert_eq!(orders(&mut assist, ms(50)), [AssistOrder::End]);
}

#[test]
fn a_mask_that_was_not_ordered_yet_is_not_ordered_after_the_area_shrank() {
    let mut assist = asked();
    assist.handle(
        ms(11),
        AssistEvent::Shrunk {
            application: A,
            runs: vec![run(0, 4)],
        },
    );
    let got = orders(&mut assist, ms(11));
    assert_eq!(
        got[0],
        AssistOrder::Unmask {
            runs: vec![run(0, 4)]
        }
    );
    assert_eq!(
        got[1],
        AssistOrder::Mask {
            runs: vec![run(4, 6)]
        }
    );
}

#[test]
fn the_last_scan_is_left_alone_while_areas_are_not_final() {
    let mut assist = asked();
    let whole = Scan {
        present: Some(vec![run(0, 50)]),
        ..Scan::default()
    };
    for event in [None, Some(AssistEvent::Suspending)] {
        event.into_iter().for_each(|event| assist.handle(ms(20), event));
        let mut scan = whole.clone();
        assert_eq!((assist.final_scan(&mut scan), &scan), (Ok(0), &whole));
    }
}
