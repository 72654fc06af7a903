//! Bytes from a hostile peer, at every entry point: arbitrary ones, and good streams with a few bits changed.
//! The fuzz targets in `fuzz/` use the same entry points for longer.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use whimbrel_wire::{
    hostile, write_message, write_wishes, BulkWriter, DestinationTimes, FaultTimes, Latency, Message, Run,
    Sentence, Wish,
};

fn good_control() -> Vec<u8> {
    let mut bytes = Vec::new();
    for message in [
        Message::Ping,
        Message::Spec(vec![1; 3000]),
        Message::BarrierAck { stream: 0, number: 7 },
        Message::Started(DestinationTimes::default()),
        Message::Abort(Sentence::new("the disk is full")),
    ] {
        write_message(&mut bytes, &message).unwrap();
    }
    bytes
}

fn good_bulk() -> Vec<u8> {
    let mut writer = BulkWriter::new(Vec::new());
    let run = |first, count| Run {
        space: 1,
        first,
        count,
    };
    let pages = vec![9; 5 * 4096];
    writer.layout(&[4; 500]).unwrap();
    writer.state(&[2; 700]).unwrap();
    writer
        .pages([(run(0, 1), &pages[..4096]), (run(7, 4), &pages[4096..])])
        .unwrap();
    writer.zeros(&[run(100, 1 << 30), run(20, 1)]).unwrap();
    writer.drops(&[run(200, 1 << 30)]).unwrap();
    writer.barrier(3).unwrap();
    writer.missing(&[run(300, 1 << 20)]).unwrap();
    writer.settled(&[run(1, 1)]).unwrap();
    writer.refused(&[run(2, 1)]).unwrap();
    writer.hurry().unwrap();
    writer.alive().unwrap();
    writer.stream().clone()
}

fn good_wishes() -> Vec<u8> {
    let run = Run {
        space: 0,
        first: 9,
        count: 1 << 20,
    };
    let fault = Wish::Fault {
        space: 0,
        page: 7,
        thread: 3,
        repeated: true,
    };
    let times = Wish::Times(FaultTimes {
        threads: vec![(1, Latency::default()); 9],
        ..FaultTimes::default()
    });
    let wishes = [
        fault,
        Wish::Acked(2),
        Wish::Gone(run),
        Wish::Missing(run),
        Wish::Listed,
        times,
        Wish::Ended,
    ];
    let mut bytes = Vec::new();
    write_wishes(&mut bytes, &wishes).unwrap();
    bytes
}

/// Flips some bits of `bytes`, most of them near the frame headers at the start.
fn damaged(bytes: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let at = prop_oneof![0..bytes.len().min(600), 0..bytes.len()];
    let flips = proptest::collection::vec((at, 0u8..8), 1..5);
    (Just(bytes), flips).prop_map(|(mut bytes, flips)| {
        flips.into_iter().for_each(|(at, bit)| bytes[at] ^= 1 << bit);
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn arbitrary_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..400), piece in 1usize..50) {
        hostile::control(&bytes, piece);
        hostile::bulk(&bytes);
        hostile::wishes(&bytes);
        prop_assert!(!hostile::greeting(&bytes));
    }

    #[test]
    fn wishes_with_damage(bytes in damaged(good_wishes())) {
        hostile::wishes(&bytes);
    }

    #[test]
    fn a_right_first_word_and_arbitrary_bytes(bytes in proptest::collection::vec(any::<u8>(), 56..200)) {
        let greeting = [b"WHIMBREL\x01\x00\x01\x00".as_slice(), &bytes].concat();
        prop_assert!(!hostile::greeting(&greeting));
    }

    #[test]
    fn damaged_messages(bytes in damaged(good_control()), piece in 100usize..100_000) {
        prop_assert!(hostile::control(&bytes, piece) <= 100);
    }

    #[test]
    fn damaged_pages(bytes in damaged(good_bulk())) {
        prop_assert!(hostile::bulk(&bytes) <= 100);
    }
}

#[test]
fn good_streams_are_understood() {
    assert_eq!(hostile::control(&good_control(), 1000), 5);
    assert_eq!(hostile::bulk(&good_bulk()), 13);
    assert_eq!(hostile::wishes(&good_wishes()), 7);
}
