//! The scoreboard against an oracle: one set of marks for each byte, every question answered by
//! counting as RFC 6675 words it.

use super::*;
use proptest::prelude::*;

const MSS: u32 = 10;
const WINDOW: u64 = 150;
const REO_WND_US: u32 = 2;

/// One step of a connection.
#[derive(Copy, Clone, Debug)]
enum Step {
    Sack { at: u64, len: u64 },
    Advance { by: u64 },
    MarkLost,
    Resend,
    ResendUnknown,
    Timeout,
    AllLost,
    CopiesLost,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (1..WINDOW, 1u64..25).prop_map(|(at, len)| Step::Sack { at, len }),
        2 => (1u64..60).prop_map(|by| Step::Advance { by }),
        2 => Just(Step::MarkLost),
        4 => Just(Step::Resend),
        1 => Just(Step::ResendUnknown),
        1 => Just(Step::Timeout),
        1 => Just(Step::AllLost),
        3 => Just(Step::CopiesLost),
    ];
    prop::collection::vec(step, 1..120)
}

/// The naive scoreboard: `una..nxt`, byte by byte.
struct Oracle {
    una: u64,
    nxt: u64,
    marks: Vec<Marks>,
    /// Sendings so far; each takes a microsecond, and the first is near the end of what 32 bits hold.
    clock_us: u32,
    delivered_us: Option<u32>,
}

impl Oracle {
    fn at(&mut self, offset: u64) -> &mut Marks {
        &mut self.marks[offset as usize]
    }

    fn flight(&self) -> impl DoubleEndedIterator<Item = (u64, Marks)> + '_ {
        (self.una..self.nxt).map(|offset| (offset, self.marks[offset as usize]))
    }

    /// IsLost of RFC 6675 section 4.
    fn is_lost(&self, offset: u64) -> bool {
        let above = offset + 1..self.nxt;
        let held: Vec<bool> = above.map(|at| self.marks[at as usize].sacked).collect();
        let bytes = held.iter().filter(|&&held| held).count();
        let runs = held.iter().enumerate().filter(|&(at, &h)| h && (at == 0 || !held[at - 1]));
        runs.count() >= 3 || bytes > 2 * MSS as usize
    }

    /// The copies of `start..end` have arrived.
    fn arrived(&mut self, start: u64, end: u64) {
        let times: Vec<u32> = self.marks[start as usize..end as usize]
            .iter()
            .filter(|marks| marks.resent)
            .map(|marks| marks.sent_us)
            .collect();
        let later =
            |one: u32, other: u32| if (one.wrapping_sub(other) as i32) > 0 { one } else { other };
        self.delivered_us = self.delivered_us.into_iter().chain(times).reduce(later);
    }

    /// SetPipe of RFC 6675 section 4, with the marks as they are.
    fn pipe(&self) -> u64 {
        self.flight()
            .filter(|(_, marks)| !marks.sacked)
            .map(|(_, marks)| u64::from(!marks.lost) + u64::from(marks.resent))
            .sum()
    }

    /// The first stretch of bytes for which `is` holds.
    fn first(&self, is: impl Fn(Marks) -> bool) -> Option<(u64, u64)> {
        let start = self.flight().find(|(_, marks)| is(*marks))?.0;
        let same = self.marks[start as usize];
        let end = (start..self.nxt).find(|&at| self.marks[at as usize] != same);
        Some((start, end.unwrap_or(self.nxt)))
    }

    fn high_sacked(&self) -> u64 {
        self.flight().rfind(|(_, marks)| marks.sacked).map_or(0, |(at, _)| at + 1)
    }
}

fn check(board: &Scoreboard, oracle: &Oracle) {
    assert_eq!(board.pipe(oracle.nxt - oracle.una), oracle.pipe());
    let count = |is: fn(Marks) -> bool| oracle.flight().filter(|(_, m)| is(*m)).count() as u64;
    assert_eq!(board.sacked(), count(|m| m.sacked));
    assert_eq!(board.lost(), count(|m| m.lost));
    assert_eq!(board.resent(), count(|m| m.resent));
    assert_eq!(board.next_lost(), oracle.first(Marks::waits));
    let unknown = oracle.first(|m| m == Marks::default());
    let below = unknown.filter(|unknown| unknown.0 < oracle.high_sacked());
    assert_eq!(board.next_unknown(), below);
    if !board.is_empty() {
        let bound = board.lost_bound(MSS);
        for (offset, marks) in oracle.flight().filter(|(_, marks)| !marks.sacked) {
            assert_eq!(offset < bound, oracle.is_lost(offset), "{offset} {marks:?}");
        }
        let untouched = oracle.flight().any(|(at, m)| at < bound && !m.sacked && !m.resent);
        assert_eq!(board.has_untouched_below(bound), untouched);
        let last = oracle.flight().rev().find(|(_, marks)| !marks.sacked);
        let last = last.filter(|(_, marks)| *marks == Marks::default());
        assert_eq!(
            board.last_unknown(oracle.una, oracle.nxt, 7).map(|last| last.1 - 1),
            last.map(|l| l.0)
        );
        assert_eq!(board.is_reneged(), oracle.marks[oracle.una as usize].sacked);
    }
    for pair in board.runs.iter().collect::<Vec<_>>().windows(2) {
        assert!(pair[0].end < pair[1].end && pair[0].marks != pair[1].marks);
    }
}

fn take(board: &mut Scoreboard, oracle: &mut Oracle, step: Step) {
    let (una, nxt) = (oracle.una, oracle.nxt);
    match step {
        Step::Sack { at, len } => {
            let (start, end) = ((una + at).min(nxt), (una + at + len).min(nxt));
            if start < end {
                let (news, _) = board.sack(una, start, end).expect("there is room");
                let expected = (start..end).filter(|&at| !oracle.at(at).sacked).count();
                assert_eq!(news, expected as u64);
                oracle.arrived(start, end);
                (start..end).for_each(|at| *oracle.at(at) = Marks::SACKED);
            }
        }
        Step::Advance { by } => {
            let _ = board.advance((una + by).min(nxt - 1));
            oracle.arrived(una, (una + by).min(nxt - 1));
            oracle.una = (una + by).min(nxt - 1);
            oracle.nxt = (nxt + by).min(oracle.marks.len() as u64);
        }
        Step::MarkLost if !board.is_empty() => {
            let bound = board.lost_bound(MSS);
            board.mark_lost_below(bound);
            (una..bound).for_each(|at| oracle.at(at).lost |= !oracle.at(at).sacked);
        }
        Step::Resend | Step::ResendUnknown => {
            let lost = matches!(step, Step::Resend);
            let next = if lost { board.next_lost() } else { board.next_unknown() };
            if let Some((start, end)) = next {
                let end = end.min(start + u64::from(MSS));
                oracle.clock_us = oracle.clock_us.wrapping_add(1);
                let now_us = oracle.clock_us;
                board.mark_resent(start, end, now_us, 1);
                (start..end).for_each(|at| {
                    oracle.at(at).resent = true;
                    oracle.at(at).sent_us = now_us;
                });
            }
        }
        Step::CopiesLost => {
            let _ = board.mark_copies_lost(REO_WND_US);
            let Some(delivered_us) = oracle.delivered_us.filter(|_| !board.is_empty()) else {
                return;
            };
            for marks in &mut oracle.marks[una as usize..nxt as usize] {
                let before_us = delivered_us.wrapping_sub(marks.sent_us) as i32;
                if marks.resent && before_us > REO_WND_US as i32 {
                    *marks = Marks { lost: true, ..Marks::default() };
                }
            }
        }
        Step::Timeout => {
            oracle.delivered_us = None;
            board.forget();
            board.mark_all_lost(una, nxt);
            let lost = Marks { lost: true, ..Marks::default() };
            (una..nxt).for_each(|at| *oracle.at(at) = lost);
        }
        Step::AllLost => {
            board.mark_all_lost(una, nxt);
            let lost = Marks { lost: true, ..Marks::default() };
            (una..nxt)
                .filter(|&at| !oracle.marks[at as usize].sacked)
                .collect::<Vec<_>>()
                .iter()
                .for_each(|&at| *oracle.at(at) = lost);
        }
        Step::MarkLost => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..Default::default() })]

    #[test]
    fn agrees_with_marks_for_each_byte(steps in steps()) {
        let mut board = Scoreboard::default();
        let marks = vec![Marks::default(); 4000];
        let mut oracle = Oracle {
            una: 100,
            nxt: 100 + WINDOW,
            marks,
            clock_us: u32::MAX - 3,
            delivered_us: None,
        };
        for step in steps {
            take(&mut board, &mut oracle, step);
            if board.is_empty() {
                oracle.delivered_us = None;
            }
            check(&board, &oracle);
        }
    }
}

#[test]
fn hostile_splitting_is_bounded_and_what_is_sent_again_is_not() {
    let mut board = Scoreboard::default();
    let mut refused = 0;
    for at in 0..500_000u64 {
        refused += u64::from(board.sack(1, 2 * at + 2, 2 * at + 3).is_err());
    }
    assert!(board.run_count() <= RUNS_MAX);
    assert!(refused > 490_000);
    board.mark_lost_below(board.lost_bound(1000));
    while let Some((start, end)) = board.next_lost() {
        board.mark_resent(start, end, 0, 10);
    }
    assert!(board.run_count() <= RUNS_MAX);
    assert_eq!(board.advance(2_000_000), Some(1019), "the last hole was not lost");
    assert!(board.is_empty() && board.runs.capacity() == 0, "memory is given back");
}

#[test]
fn late_arrival_of_what_was_not_sent_again_shows_reordering() {
    let mut board = Scoreboard::default();
    assert_eq!(board.sack(0, 70, 80), Ok((10, None)));
    assert_eq!(board.sack(0, 30, 40), Ok((10, Some(30))));
    board.mark_lost(0, 0, 10);
    board.mark_resent(0, 10, 0, 1);
    assert_eq!(board.advance(10), None);
    assert_eq!(board.advance(50), Some(10));
    assert_eq!(board.sack(50, 50, 60), Ok((10, Some(50))));
    assert!(board.is_reneged());
}

#[test]
fn copies_are_judged_by_what_was_sent_later_and_arrived() {
    let mut board = Scoreboard::default();
    board.mark_lost(0, 0, 20);
    board.mark_resent(0, 10, 100, 1);
    board.mark_resent(10, 20, 130, 1);
    // New data that went out later than both, as far as one can tell.
    board.note_sent(50, 180, 10);
    board.note_sent(60, 185, 10);
    board.note_sent(70, 190, 10);
    // An acknowledgement that is too early for the second copy.
    board.expect_sent_before(120);
    assert!(board.sack(0, 10, 20).is_ok());
    assert_eq!(board.mark_copies_lost(0), 0);
    board.expect_sent_before(195);
    assert!(board.sack(0, 60, 70).is_ok());
    assert_eq!(board.mark_copies_lost(80), 0, "both went out within the reordering window");
    assert!(board.sack(0, 70, 80).is_ok());
    assert_eq!(board.mark_copies_lost(80), 10);
    assert_eq!(board.next_lost(), Some((0, 10)));
}
