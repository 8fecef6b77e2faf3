//! The socket tables: slots, generations, quota.

use super::*;

#[test]
fn slots_are_used_again_with_another_generation() {
    let mut table = SocketTable::new(2);
    let first = table.allocate().unwrap();
    let second = table.allocate().unwrap();
    assert_ne!(first.slot, second.slot);
    assert!(table.allocate().is_none());
    table.free(first.slot);
    assert!(!table.is_current(first.slot, first.generation));
    let again = table.allocate().unwrap();
    assert_eq!(again.slot, first.slot);
    assert_ne!(again.generation, first.generation);
    assert!(table.is_current(again.slot, again.generation));
    assert!(!table.is_current(again.slot, first.generation));
    assert!(!table.is_current(u32::MAX, 0) && !table.is_current(5, 0));
    assert_eq!(table.used(), 2);
}

#[test]
fn the_first_table_is_there_before_any_socket() {
    let mut table = SocketTable::new(10);
    assert!(table.segment(1).is_none());
    assert_eq!(table.segment(0).map(|segment| segment.len()), Some(TABLE_SIZE));
    assert_eq!(table.segments(), 1);
    table.allocate().unwrap();
    assert_eq!(table.segments(), 1);
}

#[test]
fn more_tables_come_on_demand() {
    let mut table = SocketTable::new(u32::MAX);
    for _ in 0..=TABLE_BLOCKS {
        table.allocate().unwrap();
    }
    assert_eq!(table.segments(), 2);
}

#[test]
#[should_panic(expected = "freed twice")]
fn freeing_twice_is_a_broken_invariant() {
    let mut table = SocketTable::new(2);
    let place = table.allocate().unwrap();
    table.free(place.slot);
    table.free(place.slot);
}
