//! Segments: bounds, seals, sharing, holes.

use core::sync::atomic::Ordering;

use super::*;

fn passed_on(segment: &Segment) -> Fd {
    sys::dup_at_least(segment.fd().unwrap(), 3).unwrap()
}

#[test]
fn two_mappings_are_one_memory() {
    let ours = Segment::create("test", 8192).unwrap();
    let theirs = Segment::from_fd(passed_on(&ours), 8192, false).unwrap();
    assert_eq!((theirs.fd(), theirs.len()), (None, 8192));
    ours.atomic_u64(4096).unwrap().store(77, Ordering::Release);
    assert_eq!(theirs.atomic_u64(4096).unwrap().load(Ordering::Acquire), 77);
    assert!(theirs.copy_in(5000, b"hello"));
    let mut out = [0; 5];
    assert!(ours.copy_out(5000, &mut out));
    assert_eq!(&out, b"hello");
    assert!(theirs.zero(5000, 5) && ours.copy_out(5000, &mut out));
    assert_eq!(out, [0; 5]);
}

#[test]
fn everything_is_bounded() {
    let segment = Segment::create("test", 4096).unwrap();
    for offset in [4096, 4093, usize::MAX, usize::MAX - 3] {
        assert!(segment.atomic_u32(offset).is_none());
        assert!(!segment.copy_in(offset, &[0; 4]) && !segment.copy_out(offset, &mut [0; 4]));
        assert!(!segment.zero(offset, 4));
        assert!(segment.punch_hole(offset, 4).is_err());
    }
    assert!(segment.atomic_u32(2).is_none() && segment.atomic_u64(4).is_none());
    assert!(segment.atomic_u32(4092).is_some());
    assert!(segment.copy_in(4096, &[]) && segment.copy_in(4092, &[1; 4]));
}

#[test]
fn wrong_files_are_refused() {
    let segment = Segment::create("test", 8192).unwrap();
    assert_eq!(Segment::from_fd(passed_on(&segment), 4096, false).unwrap_err(), Errno::EINVAL);
    let unsealed = memory_file("test", 8192).unwrap();
    assert_eq!(Segment::from_fd(unsealed, 8192, false).unwrap_err(), Errno::EINVAL);
    let (socket, _other) = sys::socketpair_stream().unwrap();
    assert!(Segment::from_fd(socket, 8192, false).is_err());
}

#[test]
fn readers_cannot_write() {
    let ours = Segment::create_for_readers("test", 4096).unwrap();
    assert!(ours.copy_in(0, b"service"));
    assert_eq!(Segment::from_fd(passed_on(&ours), 4096, false).unwrap_err(), Errno::EPERM);
    let theirs = Segment::from_fd_read_only(passed_on(&ours), 4096).unwrap();
    let mut out = [0; 7];
    assert!(theirs.copy_out(0, &mut out));
    assert_eq!(&out, b"service");
    assert!(!theirs.copy_in(0, b"x") && !theirs.zero(0, 1));
    assert!(theirs.punch_hole(0, 4096).is_err());
    assert!(sys::write(ours.fd().unwrap(), b"x").is_err());
}

#[test]
fn holes_read_as_zero() {
    let segment = Segment::create("test", 3 * 4096).unwrap();
    assert!(segment.copy_in(0, &[9; 3 * 4096]));
    segment.punch_hole(4096, 4096).unwrap();
    let mut out = vec![1; 3 * 4096];
    assert!(segment.copy_out(0, &mut out));
    assert!(out[..4096].iter().all(|byte| *byte == 9));
    assert!(out[4096..8192].iter().all(|byte| *byte == 0));
    assert!(out[8192..].iter().all(|byte| *byte == 9));
}

#[test]
fn copies_past_the_caches_are_copies() {
    let segment = Segment::create("test", 8192).unwrap();
    let data: Vec<u8> = (0..4000u32).map(|at| (at * 7 + at / 256) as u8).collect();
    for (start, len) in [(0, 0), (3, 1), (5, 63), (64, 64), (1, 130), (63, 129), (17, 4000)] {
        assert!(segment.zero(0, 8192));
        assert!(segment.copy_in_past_caches(start, &data[..len]));
        let mut out = vec![0; 8192];
        assert!(segment.copy_out(0, &mut out));
        assert_eq!(&out[start..start + len], &data[..len], "{len} bytes at {start}");
        let others = out[..start].iter().chain(&out[start + len..]);
        assert!(others.into_iter().all(|byte| *byte == 0), "{len} bytes at {start}");
    }
    assert!(!segment.copy_in_past_caches(8192 - 3999, &data));
    assert!(!segment.copy_in_past_caches(usize::MAX, &data));
}
