//! What is written down of events and orders is read again as it was.
#![allow(clippy::unwrap_used)]

use std::borrow::Cow;
use std::time::Duration;

use proptest::prelude::*;
use whimbrel_policy::fact::{Expiry, Fact, Knowledge};
use whimbrel_policy::pages::RUN_PAGES_MAX;
use whimbrel_policy::postcopy::{Answer, Fault, Path, PieceId, ThreadId};
use whimbrel_policy::predict::{Costs, Goals};
use whimbrel_policy::trace::{Head, Line, Step, FORMAT};
use whimbrel_policy::{
    migration, postcopy, strategy, Event, Hints, Limits, Order, Page, PageRun, Pages, Passes, Scan, Sent,
    SpaceId,
};

fn page() -> impl Strategy<Value = Page> {
    (any::<u32>(), any::<u64>()).prop_map(Page::from)
}

fn runs() -> impl Strategy<Value = Vec<PageRun>> {
    prop::collection::vec(
        (any::<u32>(), any::<u64>(), any::<u64>()).prop_map(PageRun::from),
        0..6,
    )
}

fn pages() -> impl Strategy<Value = Pages> {
    let run = (0u32..3, 0u64..1 << 40, 1u64..2000).prop_map(PageRun::from);
    prop::collection::vec(run, 0..9).prop_map(|runs| Pages::from_runs(&runs).unwrap())
}

fn fact() -> impl Strategy<Value = Fact> {
    let knowledge = prop_oneof![
        Just(Knowledge::Zero),
        Just(Knowledge::Free),
        Just(Knowledge::Garbage),
        Just(Knowledge::FileBacked),
        page().prop_map(Knowledge::SameAs),
        any::<u64>().prop_map(Knowledge::OnStorage),
    ];
    let expiry = prop_oneof![
        Just(Expiry::WhenWritten),
        any::<u64>().prop_map(Expiry::WhenLayoutChanges)
    ];
    let run = (any::<u32>(), any::<u64>(), any::<u64>()).prop_map(PageRun::from);
    (run, knowledge, expiry).prop_map(|(run, knowledge, expiry)| Fact {
        run,
        knowledge,
        expiry,
    })
}

fn scan() -> impl Strategy<Value = Scan> {
    (runs(), runs(), prop::option::of(runs()), runs()).prop_map(|(written, lost, present, urgent)| Scan {
        written,
        lost,
        present,
        urgent,
    })
}

fn sent() -> impl Strategy<Value = Sent> {
    (runs(), runs(), runs(), any::<(u64, u64, Duration)>()).prop_map(|(zero, rewritten, failed, counts)| {
        Sent {
            zero,
            rewritten,
            failed,
            wire_bytes: counts.0,
            page_bytes: counts.1,
            busy: counts.2,
        }
    })
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        scan().prop_map(Event::Scanned),
        sent().prop_map(Event::Sent),
        Just(Event::Frozen),
        any::<u64>().prop_map(|state_bytes| Event::Captured { state_bytes }),
        prop::collection::vec(fact(), 0..4).prop_map(Event::Facts),
        runs().prop_map(Event::Forgotten),
        runs().prop_map(Event::Fetched),
        any::<u64>().prop_map(|written_pages| Event::Sampled { written_pages }),
        any::<u64>().prop_map(|generation| Event::LayoutIs { generation }),
    ]
}

fn order() -> impl Strategy<Value = Order> {
    prop_oneof![
        Just(Order::Scan),
        (runs(), any::<bool>()).prop_map(|(runs, skip_rewritten)| Order::Send { runs, skip_rewritten }),
        Just(Order::Sample),
        runs().prop_map(|runs| Order::Drop { runs }),
        Just(Order::Freeze),
        Just(Order::Capture),
        Just(Order::ScanLast),
        any::<Duration>().prop_map(|until| Order::Wait { until }),
        Just(Order::HandOver),
    ]
}

fn fault() -> impl Strategy<Value = Fault> {
    (page(), any::<u32>(), any::<bool>()).prop_map(|(page, thread, repeated)| Fault {
        page,
        thread: ThreadId(thread),
        repeated,
    })
}

fn answer() -> impl Strategy<Value = Answer> {
    prop::sample::select(vec![
        Answer::Queued,
        Answer::OnItsWay,
        Answer::Settled,
        Answer::Unknown,
        Answer::Unreadable,
        Answer::Busy,
    ])
}

fn told() -> impl Strategy<Value = postcopy::Event> {
    use postcopy::Event;
    let sent =
        (any::<(u64, u64, u64)>(), runs()).prop_map(|((piece, wire_bytes, zero_pages), unreadable)| {
            Event::Sent {
                piece: PieceId(piece),
                wire_bytes,
                zero_pages,
                unreadable,
            }
        });
    prop_oneof![
        sent,
        any::<u64>().prop_map(|piece| Event::Acked {
            piece: PieceId(piece)
        }),
        runs().prop_map(|runs| Event::Gone { runs }),
        Just(Event::LinkLost),
        pages().prop_map(|missing| Event::LinkBack { missing }),
    ]
}

fn ordered() -> impl Strategy<Value = postcopy::Order> {
    use postcopy::Order;
    let run = (any::<u32>(), any::<u64>(), any::<u64>()).prop_map(PageRun::from);
    prop_oneof![
        (any::<u64>(), run, fault()).prop_map(|(piece, run, fault)| Order::Reply {
            piece: PieceId(piece),
            run,
            fault
        }),
        (any::<u64>(), runs()).prop_map(|(piece, runs)| Order::Push {
            piece: PieceId(piece),
            runs
        }),
        any::<Option<Duration>>().prop_map(|until| Order::Wait { until }),
        Just(Order::Done),
    ]
}

fn path() -> impl Strategy<Value = Path> {
    any::<(Option<Duration>, Option<u64>)>().prop_map(|(round_trip, bandwidth)| Path {
        round_trip,
        bandwidth,
    })
}

fn step() -> impl Strategy<Value = Step<'static>> {
    prop_oneof![
        event().prop_map(|event| Step::Event(Cow::Owned(event))),
        ".*".prop_map(|why| Step::Refused(why.into())),
        order().prop_map(|order| Step::Order(Cow::Owned(order))),
        (pages(), path()).prop_map(|(pages, path)| Step::Serve {
            pages: Cow::Owned(pages),
            path
        }),
        (any::<u32>(), page()).prop_map(|(thread, page)| Step::Aim {
            thread: ThreadId(thread),
            page
        }),
        Just(Step::Hurry),
        (fault(), answer()).prop_map(|(fault, answer)| Step::Fault { fault, answer }),
        told().prop_map(|event| Step::Told(Cow::Owned(event))),
        ordered().prop_map(|order| Step::Ordered(Cow::Owned(order))),
        Just(Step::End),
        Just(Step::Cut),
    ]
}

fn head() -> impl Strategy<Value = Head> {
    use strategy::Named;
    let strategy = prop_oneof![
        Just(Named::PreCopy),
        Just(Named::StopCopy),
        Just(Named::PostCopy),
        Just(Named::Hybrid(Passes::WhileProgress)),
        any::<u32>().prop_map(|passes| Named::Hybrid(Passes::Exactly(passes))),
    ];
    let auto = any::<[Duration; 7]>().prop_map(|times| Named::Auto {
        goals: Goals {
            downtime_max: times[0],
            min: None,
        },
        costs: Costs {
            before: times[1],
            scan: times[2],
            stop: times[3],
            arm: times[4],
            drop: times[4],
            after: times[5],
        },
        round_trip: times[6],
    });
    let strategy = prop_oneof![4 => strategy, 1 => auto];
    let limits = any::<(Duration, u32, u32, Option<u64>)>().prop_map(|limits| Limits {
        downtime_max: limits.0,
        rounds_max: limits.1,
        traffic_percent_max: limits.2,
        bandwidth_max: limits.3,
    });
    let hints = any::<(u64, u64, Duration, Option<u64>)>().prop_map(|hints| Hints {
        memory_pages: hints.0,
        state_bytes: hints.1,
        fixed_cost: hints.2,
        bandwidth: hints.3,
    });
    let prepaging = prop_oneof![
        Just(postcopy::Named::Demand),
        Just(postcopy::Named::Push),
        any::<usize>().prop_map(|pivots_max| postcopy::Named::Bubbling { pivots_max }),
    ];
    let residual = any::<(Option<u64>, u64, u64)>().prop_map(|limits| postcopy::Limits {
        bandwidth_max: limits.0,
        reply_pages_max: limits.1,
        window_max: limits.2,
    });
    (".*", strategy, limits, hints, prepaging, residual).prop_map(
        |(whimbrel, strategy, limits, hints, prepaging, residual_limits)| Head {
            format: FORMAT,
            whimbrel,
            strategy,
            limits,
            hints,
            prepaging,
            residual_limits,
        },
    )
}

proptest! {
    #[test]
    fn a_line_is_read_as_it_was_written(at_ns in any::<u64>(), step in step()) {
        let line = Line { at_ns, step };
        let text = serde_json::to_string(&line).unwrap();
        prop_assert!(!text.contains('\n'));
        prop_assert_eq!(serde_json::from_str::<Line>(&text).unwrap(), line);
    }

    #[test]
    fn the_first_line_is_read_as_it_was_written(head in head()) {
        let text = serde_json::to_string(&head).unwrap();
        prop_assert!(!text.contains('\n'));
        prop_assert_eq!(serde_json::from_str::<Head>(&text).unwrap(), head);
    }
}

/// By hand: whoever reads traces with other programs relies on this form.
#[test]
fn the_form_is_this() {
    let order = migration::Order::Send {
        runs: vec![PageRun {
            space: SpaceId(3),
            first: 16,
            count: 2,
        }],
        skip_rewritten: true,
    };
    let line = Line {
        at_ns: 1500,
        step: Step::Order(Cow::Owned(order)),
    };
    assert_eq!(
        serde_json::to_string(&line).unwrap(),
        r#"{"at_ns":1500,"step":{"order":{"send":{"runs":[[3,16,2]],"skip_rewritten":true}}}}"#
    );
}

#[test]
fn a_set_is_a_list_of_short_lists() {
    let pages: Pages = serde_json::from_str("[[1,600,3],[0,5,2],[1,602,9]]").unwrap();
    assert_eq!(serde_json::to_string(&pages).unwrap(), "[[0,5,2],[1,600,11]]");
}

#[test]
fn what_no_set_holds_is_refused() {
    let read = |text: &str| serde_json::from_str::<Pages>(text).map_err(|error| error.to_string());
    let too_long = format!("[[0,0,{}]]", RUN_PAGES_MAX + 1);
    assert!(read(&too_long).unwrap_err().contains("longer than"));
    assert!(read("[[0,18446744073709551615,1]]").is_err());
    // 16 TiB and a page.
    let too_many = format!("[[0,0,1],[1,0,{}]]", 1u64 << 32);
    assert!(read(&too_many).unwrap_err().contains("any host"));
    assert!(read("[[0,-1,1]]").is_err() && read("[[0,1]]").is_err() && read("7").is_err());
}
