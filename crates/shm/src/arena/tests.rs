//! The arena against a simple model; quotas, order, holes.

use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

#[test]
fn the_last_chunk_freed_comes_first() {
    let mut arena = Arena::new(10 * CHUNK_SIZE as u64 + 5);
    assert_eq!(arena.quota_chunks(), 10);
    let chunks: Vec<u32> = std::iter::from_fn(|| arena.allocate()).collect();
    assert_eq!(chunks.len(), 10);
    arena.free(chunks[3]);
    arena.free(chunks[7]);
    assert_eq!(arena.allocate(), Some(chunks[7]));
    assert_eq!(arena.allocate(), Some(chunks[3]));
    assert_eq!((arena.allocate(), arena.used_chunks()), (None, 10));
}

#[test]
fn more_segments_come_on_demand() {
    let mut arena = Arena::new(u64::MAX);
    let chunks: Vec<u32> = (0..ARENA_CHUNKS + 1).filter_map(|_| arena.allocate()).collect();
    assert_eq!(chunks.last().copied(), Some(ARENA_CHUNKS));
    assert_eq!(arena.segments(), 2);
    assert!(arena.write(ARENA_CHUNKS, CHUNK_SIZE - 3, b"end", false));
    assert!(!arena.write(ARENA_CHUNKS, CHUNK_SIZE - 2, b"end", false));
    let mut out = [0; 3];
    assert!(arena.read(ARENA_CHUNKS, CHUNK_SIZE - 3, &mut out));
    assert_eq!(&out, b"end");
    assert!(!arena.read(5 * ARENA_CHUNKS, 0, &mut out));
}

#[test]
fn the_next_segment_can_be_had_ahead_within_the_quota() {
    let mut arena = Arena::new(u64::from(ARENA_CHUNKS + 1) * CHUNK_SIZE as u64);
    assert!(arena.segment(0).is_none());
    assert!(arena.segment_ahead(1).is_none(), "it is not the next one");
    assert!(arena.segment_ahead(0).is_some() && arena.segment_ahead(0).is_some());
    assert_eq!(arena.segments(), 1);
    assert!(arena.segment_ahead(1).is_some());
    assert!(arena.segment_ahead(2).is_none(), "nothing will ever lie there");
    let chunks: Vec<u32> = std::iter::from_fn(|| arena.allocate()).collect();
    assert_eq!(chunks.last().copied(), Some(ARENA_CHUNKS));
    assert_eq!(arena.segments(), 2);
    assert!(arena.write(ARENA_CHUNKS, 0, b"x", false));
}

#[test]
fn only_cold_chunks_give_their_memory_back() {
    let mut arena = Arena::new(1 << 22);
    let chunks: Vec<u32> = (0..4).filter_map(|_| arena.allocate()).collect();
    for chunk in &chunks {
        assert!(arena.write(*chunk, 0, &[1; 64], false));
        arena.free(*chunk);
    }
    let first = |arena: &Arena, chunk: u32| {
        let mut out = [0; 1];
        assert!(arena.read(chunk, 0, &mut out));
        out[0]
    };
    assert_eq!(arena.trim(100), 0, "they have just come back");
    let hot = arena.allocate().unwrap();
    arena.free(hot);
    assert_eq!(arena.trim(2), 2);
    assert_eq!(arena.trim(100), 2, "the rest, the one used since with them by now");
    assert_eq!(arena.trim(100), 0);
    assert!(chunks.iter().all(|chunk| first(&arena, *chunk) == 0));
}

#[test]
#[should_panic(expected = "freed twice")]
fn freeing_twice_is_a_broken_invariant() {
    let mut arena = Arena::new(1 << 20);
    let chunk = arena.allocate().unwrap();
    arena.free(chunk);
    arena.free(chunk);
}

proptest! {
    #[test]
    fn no_chunk_is_out_twice_or_zeroed_in_use(steps in prop::collection::vec(0u8..5, 0..200)) {
        let mut arena = Arena::new(12 * CHUNK_SIZE as u64);
        let mut out: Vec<u32> = Vec::new();
        for step in steps {
            match step {
                0 | 1 => match arena.allocate() {
                    Some(chunk) => {
                        out.push(chunk);
                        prop_assert!(arena.write(chunk, 0, &[chunk as u8 + 1], false));
                    }
                    None => prop_assert_eq!(out.len(), 12),
                },
                2 | 3 => if let Some(chunk) = out.pop() { arena.free(chunk) },
                _ => { arena.trim(3); }
            }
            prop_assert_eq!(out.iter().collect::<HashSet<_>>().len(), out.len());
            prop_assert_eq!(arena.used_chunks() as usize, out.len());
            for chunk in &out {
                let mut byte = [0];
                prop_assert!(arena.read(*chunk, 0, &mut byte));
                prop_assert_eq!(byte[0], *chunk as u8 + 1);
            }
        }
    }
}
