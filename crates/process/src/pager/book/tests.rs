use super::*;
use proptest::prelude::*;

/// Three mappings of 16 pages with all of their pages missing, at 0x100, 0x200 and 0x300.
const MAPPINGS: [u64; 3] = [0x100, 0x200, 0x300];

fn pages(first: u64, count: u64) -> Span {
    span_at(first * PAGE_SIZE, count * PAGE_SIZE)
}

fn begin() -> Record {
    Record::Begin {
        missing: MAPPINGS.iter().map(|first| (*first, 16)).collect(),
        spans: MAPPINGS.iter().map(|first| pages(*first, 16)).collect(),
        kept: Some(9),
    }
}

fn moved(from: u64, to: u64, count: u64) -> Record {
    Record::Moved {
        space: FIRST,
        from: from * PAGE_SIZE,
        to: to * PAGE_SIZE,
        bytes: count * PAGE_SIZE,
    }
}

fn unmapped(first: u64, count: u64) -> Record {
    Record::Unmapped {
        space: FIRST,
        span: pages(first, count),
    }
}

fn settled() -> Record {
    Record::Settled { space: FIRST }
}

fn after(records: &[Record]) -> (Book, Vec<PageRun>) {
    let mut book = Book::default();
    let mut gone = book.apply(&begin()).unwrap();
    for record in records {
        gone.extend(book.apply(record).unwrap());
    }
    (book, gone)
}

/// Where the first page of the mapping is now, by its number at the source.
fn place(book: &Book, first: u64) -> Option<u64> {
    let place = book.spaces()[&FIRST].lineage.place_of(first * PAGE_SIZE);
    place.map(|address| address / PAGE_SIZE)
}

/// The first thread moves 0x100 away, the kernel gives its place to what the second one moves, and tells of the first one's old place last.
#[test]
fn an_unmapping_that_belongs_to_a_move_takes_nothing_that_came_since() {
    let (book, gone) = after(&[
        moved(0x100, 0x500, 16),
        moved(0x200, 0x100, 16),
        unmapped(0x100, 16),
    ]);
    assert_eq!(
        (place(&book, 0x100), place(&book, 0x200)),
        (Some(0x500), Some(0x100))
    );
    assert!(gone.is_empty() && book.spaces()[&FIRST].doubts().is_empty());
    // and it went on before
    let on = [
        moved(0x200, 0x100, 16),
        moved(0x100, 0x600, 16),
        unmapped(0x100, 16),
    ];
    let (book, _) = after(&[&[moved(0x100, 0x500, 16)], &on[..]].concat());
    assert_eq!(
        (place(&book, 0x100), place(&book, 0x200)),
        (Some(0x500), Some(0x600))
    );
}

/// The same, and the second move is told before the first one.
#[test]
fn what_was_displaced_is_found_where_it_went() {
    let (book, _) = after(&[
        moved(0x200, 0x100, 16),
        moved(0x100, 0x500, 16),
        unmapped(0x100, 16),
    ]);
    assert_eq!(
        (place(&book, 0x100), place(&book, 0x200)),
        (Some(0x500), Some(0x100))
    );
    let (book, gone) = after(&[moved(0x200, 0x100, 16), unmapped(0x100, 16)]);
    assert_eq!((place(&book, 0x100), place(&book, 0x200)), (None, Some(0x100)));
    assert_eq!(gone, [pages(0x100, 16).run(PRIVATE)], "it was unmapped");
}

/// Something came to where nothing of the source's was, and an unmapping of that place is told: only the kernel knows.
#[test]
fn an_unmapping_of_what_has_just_come_is_doubtful_until_the_kernel_is_asked() {
    let records = [moved(0x200, 0x500, 16), unmapped(0x500, 16)];
    let (book, gone) = after(&records);
    assert_eq!((place(&book, 0x200), gone.len()), (Some(0x500), 0));
    let addresses = &book.spaces()[&FIRST];
    assert_eq!(
        addresses.doubts(),
        [(0x500 * PAGE_SIZE, 0x200 * PAGE_SIZE, 16 * PAGE_SIZE)]
    );
    assert!(!addresses.is_settled());
    let (book, _) = after(&[&records[..], &[settled(), unmapped(0x500, 4)]].concat());
    assert_eq!(
        place(&book, 0x200),
        None,
        "nothing was under way when this was told"
    );
    assert_eq!(book.missing().len(), 44);
}

#[test]
fn what_a_child_wants_is_not_gone() {
    let fork = Record::Forked {
        space: FIRST,
        child: 1,
        kept: None,
    };
    let forgot = |space| Record::Forgot {
        space,
        span: pages(0x104, 100),
    };
    let (book, gone) = after(&[fork.clone(), forgot(FIRST)]);
    assert_eq!((gone.len(), book.missing().len()), (0, 48));
    let (book, gone) = after(&[fork.clone(), forgot(FIRST), forgot(1)]);
    assert_eq!(
        (gone, book.missing().len()),
        (vec![pages(0x104, 12).run(PRIVATE)], 36)
    );
    let ended = Record::Ended { space: 1 };
    let (book, gone) = after(&[fork, forgot(FIRST), ended]);
    assert_eq!(
        (gone, book.missing().len()),
        (vec![pages(0x104, 12).run(PRIVATE)], 36)
    );
    assert!(book.missing_of(0x100, 200) == [pages(0x100, 4).run(PRIVATE)]);
}

/// One address space as the kernel has it: which page of the source lies at which page.
#[derive(Clone, Debug, Default)]
struct Truth(BTreeMap<u64, u64>);

/// What a thread does: the mappings of 16 pages are moved to the lowest free place or unmapped.
#[derive(Clone, Copy, Debug)]
enum Act {
    Move,
    Unmap,
}

impl Truth {
    /// Does it to the mapping at `place`; the records that its thread will tell, in order.
    fn act(&mut self, act: Act, mappings: &mut Vec<u64>, index: usize) -> Vec<Record> {
        let place = mappings.swap_remove(index);
        let content: Vec<(u64, u64)> = (place..place + 16)
            .filter_map(|page| Some((page, self.0.remove(&page)?)))
            .collect();
        match act {
            Act::Unmap => vec![unmapped(place, 16)],
            Act::Move => {
                // As the kernel does: the old place is not free yet.
                let to = (0x100..)
                    .step_by(16)
                    .find(|to| *to != place && !mappings.contains(to));
                let to = to.unwrap();
                mappings.push(to);
                self.0.extend(
                    content
                        .into_iter()
                        .map(|(page, source)| (page - place + to, source)),
                );
                vec![moved(place, to, 16), unmapped(place, 16)]
            }
        }
    }
}

proptest! {
    /// Two threads; each tells what it has done some time later, and does the next thing after that. One of them may overtake the other
    /// by one step, which is as far as a thread falls behind that is about to tell.
    #[test]
    fn the_book_is_right_when_nothing_is_under_way(
        steps in proptest::collection::vec((0..2usize, any::<bool>(), 0..9usize, any::<bool>()), 1..60)
    ) {
        let mut truth = Truth(MAPPINGS.iter().flat_map(|first| (*first..first + 16).map(|page| (page, page))).collect());
        let mut mappings = MAPPINGS.to_vec();
        let mut book = Book::default();
        let mut records = vec![begin()];
        book.apply(&begin()).unwrap();
        let mut late: Vec<Record> = Vec::new();
        let mut busy: Vec<u64> = Vec::new();
        for (said, is_move, index, overtaken) in steps {
            if mappings.is_empty() {
                break;
            }
            let act = if is_move { Act::Move } else { Act::Unmap };
            let index = index % mappings.len();
            if !late.is_empty() && busy.contains(&mappings[index]) {
                continue; // nobody knows that it is there before its thread has told
            }
            let mut told = truth.act(act, &mut mappings, index);
            if overtaken && late.is_empty() {
                busy = mappings.last().copied().into_iter().filter(|_| is_move).collect();
                late = told.split_off(said.min(told.len()));
                for record in told {
                    book.apply(&record).unwrap();
                    records.push(record);
                }
                continue;
            }
            // The other one tells all of its own first.
            for record in told.into_iter().chain(late.drain(..)) {
                book.apply(&record).unwrap();
                records.push(record);
            }
            for (here, _, bytes) in book.spaces()[&FIRST].doubts() {
                for page in here / PAGE_SIZE..(here + bytes) / PAGE_SIZE {
                    if !mappings.iter().any(|place| (*place..place + 16).contains(&page)) {
                        let record = Record::Forgot { space: FIRST, span: pages(page, 1) };
                        book.apply(&record).unwrap();
                        records.push(record);
                    }
                }
            }
            book.apply(&settled()).unwrap();
            records.push(settled());
            let known: BTreeMap<u64, u64> = book.spaces()[&FIRST].lineage.pieces(pages(0, 1 << 20)).into_iter()
                .flat_map(|(here, source, bytes)| (0..bytes / PAGE_SIZE).map(move |i| (here / PAGE_SIZE + i, source / PAGE_SIZE + i)))
                .collect();
            prop_assert_eq!(&known, &truth.0);
            let missing: std::collections::BTreeSet<u64> = book.missing().runs().flat_map(|run| run.first..run.first + run.count).collect();
            prop_assert_eq!(missing, truth.0.values().copied().collect());
        }
        // Whoever reads the records has the same book.
        let mut again = Book::default();
        for record in &records {
            again.apply(record).unwrap();
        }
        prop_assert_eq!(again, book);
    }
}
