//! The scoreboard on its way to another server: its runs, from which the sums are made anew, and its times as ages.
//! Called by `tcp/carry.rs`.

use std::collections::VecDeque;

use super::{Delivered, Marks, RUNS_MAX, Run, SENT_MAX, Scoreboard, Sent, Sums};
use crate::carry::{Carry, Reader, Refusal, Writer, carried, demand, read_list, write_list};

/// Bits of a run's marks.
const SACKED: u8 = 1;
const LOST: u8 = 2;
const RESENT: u8 = 4;

impl Carry for Run {
    fn write(&self, out: &mut Writer) {
        self.end.write(out);
        let Marks { sacked, lost, resent, sent_us } = self.marks;
        let bit = |on: bool, bit: u8| if on { bit } else { 0 };
        (bit(sacked, SACKED) | bit(lost, LOST) | bit(resent, RESENT)).write(out);
        if resent {
            out.low_half(sent_us);
        }
    }

    fn read(input: &mut Reader<'_>) -> Result<Run, Refusal> {
        let end = u64::read(input)?;
        let bits = u8::read(input)?;
        demand(bits == SACKED || bits & !(LOST | RESENT) == 0, "marks of a run")?;
        let resent = bits & RESENT != 0;
        let sent_us = if resent { input.low_half()? } else { 0 };
        let marks = Marks { sacked: bits & SACKED != 0, lost: bits & LOST != 0, resent, sent_us };
        Ok(Run { end, marks })
    }
}

carried!(struct Sent { start, at_us: low_half });

/// An optional point in time, as its age.
fn write_time(out: &mut Writer, at_us: Option<u32>) {
    at_us.is_some().write(out);
    if let Some(at_us) = at_us {
        out.low_half(at_us);
    }
}

fn read_time(input: &mut Reader<'_>) -> Result<Option<u32>, Refusal> {
    Ok(if bool::read(input)? { Some(input.low_half()?) } else { None })
}

impl Carry for Scoreboard {
    fn write(&self, out: &mut Writer) {
        let Scoreboard {
            runs,
            sums: _,
            start,
            high_sacked,
            waiting_from,
            sent,
            delivered: Delivered { sent_us, latest_us },
            judged_us,
            resent_us,
        } = self;
        write_list(out, runs.iter());
        start.write(out);
        high_sacked.write(out);
        waiting_from.write(out);
        write_list(out, sent.iter());
        write_time(out, *sent_us);
        write_time(out, *latest_us);
        write_time(out, *judged_us);
        out.low_half(*resent_us);
    }

    fn read(input: &mut Reader<'_>) -> Result<Scoreboard, Refusal> {
        let mut board = Scoreboard {
            runs: read_list(input, RUNS_MAX)?,
            sums: Sums::default(),
            start: u64::read(input)?,
            high_sacked: u64::read(input)?,
            waiting_from: u64::read(input)?,
            sent: read_list::<Sent, VecDeque<_>>(input, SENT_MAX)?,
            delivered: Delivered { sent_us: read_time(input)?, latest_us: read_time(input)? },
            judged_us: read_time(input)?,
            resent_us: input.low_half()?,
        };
        let mut from = board.start;
        for run in &board.runs {
            demand(run.end > from, "runs of the scoreboard")?;
            board.sums.add(run.marks, run.end - from);
            from = run.end;
        }
        Ok(board)
    }
}

impl Scoreboard {
    /// That the marks are of a flight `una..nxt`, and nothing computed from them can go wrong.
    pub(in crate::tcp) fn check(&self, una: u64, nxt: u64) -> Result<(), Refusal> {
        let Some(last) = self.runs.back() else { return Ok(()) };
        demand(self.start == una && last.end <= nxt, "runs beside the flight")?;
        demand(self.high_sacked <= nxt, "what the peer holds")?;
        let first = self.runs.iter().position(|run| run.marks.waits());
        let passed_over = first.is_some_and(|first| self.runs[first].end <= self.waiting_from);
        demand(!passed_over, "what waits to be sent again")?;
        let ordered = self.sent.iter().is_sorted_by_key(|sent| sent.start);
        demand(ordered, "times of what was sent")
    }
}
