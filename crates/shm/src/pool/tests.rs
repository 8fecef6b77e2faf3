//! The frame pool against a simple model.

use proptest::prelude::*;

use super::*;

#[test]
fn frames_are_aligned_apart_and_bounded() {
    for (size, align) in [(2048, 2048), (4096, 4096), (SUPERFRAME_SIZE, 4096)] {
        let mut pool = FramePool::new(8, size).unwrap();
        let mut frames: Vec<Frame> = std::iter::from_fn(|| pool.alloc()).collect();
        assert_eq!((frames.len(), pool.available()), (8, 0));
        for (number, frame) in frames.iter_mut().enumerate() {
            pool.bytes_mut(frame).fill(number as u8);
        }
        for (number, frame) in frames.iter().enumerate() {
            assert_eq!(pool.bytes(frame).as_ptr() as usize % align, 0);
            assert_eq!(pool.bytes(frame), vec![number as u8; size]);
        }
        assert_eq!(pool.mapped_len(), 8 * size);
    }
    assert!(FramePool::new(8, 1000).is_err());
    assert!(FramePool::new(0, 2048).is_err());
}

#[test]
fn frames_of_a_larger_pool_are_harmless() {
    let mut large = FramePool::new(8, 2048).unwrap();
    let mut small = FramePool::new(2, 2048).unwrap();
    let mut frame = std::iter::from_fn(|| large.alloc()).last().unwrap();
    assert!(small.bytes(&frame).is_empty() && small.bytes_mut(&mut frame).is_empty());
    small.free(frame);
    assert_eq!(small.available(), 2);
}

proptest! {
    #[test]
    fn every_frame_is_out_once(takes in prop::collection::vec(any::<bool>(), 0..200)) {
        let mut pool = FramePool::new(16, 2048).unwrap();
        let mut out: Vec<Frame> = Vec::new();
        for take in takes {
            if take {
                match pool.alloc() {
                    Some(frame) => {
                        prop_assert!(!out.contains(&frame));
                        out.push(frame);
                    }
                    None => prop_assert_eq!(out.len(), 16),
                }
            } else if let Some(frame) = out.pop() {
                pool.free(frame);
            }
            prop_assert_eq!(pool.available() + out.len(), 16);
        }
    }
}
