//! Nothing per packet allocates: after warm-up the server's turns ask the system for no memory, in
//! any scenario of the cost table.

use std::cell::Cell;
use std::rc::Rc;

use haypile_cost::trace::{Scenario, Trace};

/// Operations counted in each scenario.
const OPERATIONS: usize = 960;

/// Operations before them, beside those of the trace's own warm-up: lists of what lives for a while, as TIME-WAIT,
/// have most of the room that they need.
const WARM_UP: usize = 2 * OPERATIONS;
/// Allocations allowed in `OPERATIONS` short connections: the lists of connections in TIME-WAIT, of claim deadlines and
/// of held writes grow with the connections of the last minute, by doubling.
const GROWTH_MAX: u64 = 4;

/// Allocations of the server's turns in so many operations.
fn allocations(scenario: Scenario) -> u64 {
    let mut trace = Trace::start(scenario);
    trace.run(WARM_UP);
    let count = Rc::new(Cell::new(0));
    let sum = Rc::clone(&count);
    trace.world.driver = Box::new(move |server, now, _| {
        let mut work = None;
        let info = allocation_counter::measure(|| work = Some(server.step(now)));
        sum.set(sum.get() + info.count_total);
        work.expect("measured").expect("the link holds")
    });
    trace.run(OPERATIONS);
    count.get()
}

#[test]
fn what_counts_sees_an_allocation() {
    let info = allocation_counter::measure(|| drop(std::hint::black_box(Box::new(7_u64))));
    assert_eq!(info.count_total, 1);
}

#[test]
fn no_turn_allocates_once_it_is_warm() {
    let all = Scenario::ALL.map(|scenario| (scenario.name(), allocations(scenario)));
    let allowed =
        |name: &str| if name.starts_with(Scenario::Short.name()) { GROWTH_MAX } else { 0 };
    let those_that_do: Vec<_> = all.iter().filter(|(name, count)| *count > allowed(name)).collect();
    println!("{all:?}");
    assert!(those_that_do.is_empty(), "allocations in {OPERATIONS} operations: {those_that_do:?}");
}
