//! The one fenced file of unsafe code outside `dpdk`: cache hints.

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
