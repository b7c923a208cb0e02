//! The one fenced file of unsafe code outside `dpdk`: what the CPU can do and safe Rust cannot say.

#![allow(unsafe_code)]

/// Asks the CPU to bring the cache line of `value`'s first byte closer. A hint without effect on meaning.
#[inline(always)]
pub fn prefetch<T>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: prefetch does not access memory in a way that can fault, and the pointer comes from a reference.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(value).cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}

/// Bit `i` is set where byte `i` of `tags` is `tag`.
#[inline(always)]
pub fn matching_bytes(tags: [u8; 16], tag: u8) -> u32 {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_mm_cmpeq_epi8, _mm_loadu_si128, _mm_movemask_epi8, _mm_set1_epi8};
        // SAFETY: the pointer is to 16 readable bytes, unaligned loads need no more; SSE2 is part of x86-64.
        let tags = unsafe { _mm_loadu_si128(tags.as_ptr().cast()) };
        // SAFETY: SSE2 is part of x86-64.
        let tag = unsafe { _mm_set1_epi8(tag.cast_signed()) };
        // SAFETY: SSE2 is part of x86-64.
        let equal = unsafe { _mm_cmpeq_epi8(tags, tag) };
        // SAFETY: SSE2 is part of x86-64.
        unsafe { _mm_movemask_epi8(equal) }.cast_unsigned()
    }
    #[cfg(not(target_arch = "x86_64"))]
    tags.iter().enumerate().fold(0, |mask, (i, &t)| mask | u32::from(t == tag) << i)
}

/// Asks the kernel to back `memory` with huge pages (`madvise(2)`, MADV_HUGEPAGE): the entries of a large table lie at
/// random places, and each small page costs a miss of its own. A hint: where it is refused, ordinary pages serve.
pub fn prefer_huge_pages<T>(memory: &mut [std::mem::MaybeUninit<T>]) {
    const HUGE: usize = 2 << 20;
    let range = memory.as_mut_ptr_range();
    let start = range.start.addr().next_multiple_of(HUGE);
    let end = range.end.addr() / HUGE * HUGE;
    if start < end {
        let offset = start - range.start.addr();
        let inner = range.start.cast::<u8>().wrapping_add(offset);
        // SAFETY: the range lies within `memory`, and the advice changes neither contents nor validity of any page.
        unsafe { libc::madvise(inner.cast(), end - start, libc::MADV_HUGEPAGE) };
    }
}
