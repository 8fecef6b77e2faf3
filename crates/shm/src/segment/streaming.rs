//! Copies that leave the caches alone, where the processor has stores for that. Called by
//! `Segment::copy_in_past_caches`.

/// Copies `len` bytes. Whoever sees a later release store sees them, too.
///
/// # Safety
/// Both places hold `len` bytes and do not overlap; others may read the target meanwhile, as
/// with every copy into shared memory.
#[cfg(target_arch = "x86_64")]
pub(super) unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    use core::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_sfence, _mm_stream_si128};
    use core::ptr::copy_nonoverlapping;

    const LINE: usize = 64;
    // Whole lines only: a part of one would be written twice.
    let head = to.align_offset(LINE).min(len);
    let lines = (len - head) / LINE;
    let tail = head + lines * LINE;
    // SAFETY: all three parts lie within the `len` bytes; the stores of the middle one are aligned,
    // because it starts at a line of the target.
    unsafe {
        copy_nonoverlapping(from, to, head);
        for at in (head..tail).step_by(LINE) {
            let source = from.add(at).cast::<__m128i>();
            let target = to.add(at).cast::<__m128i>();
            let line = [0, 1, 2, 3].map(|part| _mm_loadu_si128(source.add(part)));
            for (part, value) in line.into_iter().enumerate() {
                _mm_stream_si128(target.add(part), value);
            }
        }
        copy_nonoverlapping(from.add(tail), to.add(tail), len - tail);
        // These stores are ordered with nothing, not even with a release store.
        _mm_sfence();
    }
}

/// As above; an ordinary copy.
///
/// # Safety
/// As above.
#[cfg(not(target_arch = "x86_64"))]
pub(super) unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: the caller's.
    unsafe { core::ptr::copy_nonoverlapping(from, to, len) };
}
