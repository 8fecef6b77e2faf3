//! Nanoseconds for each part of the server's turns. One clock is read at the end of each part; what
//! a reading costs is measured first and taken off.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Instant;

use haypile_service::server::Part;

use crate::trace::Trace;

/// The parts of a turn, in their order, with their names.
pub const PARTS: [(Part, &str); 8] = [
    (Part::Receive, "receive"),
    (Part::Requests, "requests"),
    (Part::Timers, "timers"),
    (Part::Events, "events"),
    (Part::Manager, "manager"),
    (Part::Datagrams, "datagrams"),
    (Part::Transmit, "transmit"),
    (Part::Notices, "notices"),
];

/// Readings by which one reading is measured.
const READINGS: u32 = 1000;

/// Time spent in each part of turns that had something to do.
pub type Laps = [u64; PARTS.len()];

/// Times the turns of a trace from now on; the sums grow in what is returned.
pub fn attach(trace: &mut Trace) -> Rc<RefCell<Laps>> {
    let laps = Rc::new(RefCell::new(Laps::default()));
    let sums = Rc::clone(&laps);
    let own_ns = reading_ns();
    trace.world.driver = Box::new(move |server, now, busy| {
        if !busy {
            return server.step(now).expect("the link holds");
        }
        let mut turn = Laps::default();
        let mut last = Instant::now();
        let work = server.step_with(now, |part| {
            let reading = Instant::now();
            let index = PARTS.iter().position(|(one, _)| *one == part).unwrap_or_default();
            turn[index] = (reading - last).as_nanos() as u64;
            last = Instant::now();
        });
        for (sum, lap) in sums.borrow_mut().iter_mut().zip(turn) {
            *sum += lap.saturating_sub(own_ns);
        }
        work.expect("the link holds")
    });
    laps
}

/// What the clock says of nothing at all.
fn reading_ns() -> u64 {
    let mut readings: Vec<u64> = (0..READINGS)
        .map(|_| {
            let before = Instant::now();
            before.elapsed().as_nanos() as u64
        })
        .collect();
    readings.sort_unstable();
    readings[readings.len() / 2]
}
