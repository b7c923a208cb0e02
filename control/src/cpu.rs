//! What the CPU can do and how fast its clock counts, by the `cpuid` instruction itself: `is_x86_feature_detected` is
//! folded to `true` at build time for what the target already asks for.

use raw_cpuid::{CpuId, CpuIdReader};

/// Checks that this CPU runs what Sluice is built for: x86-64-v3 and AES.
///
/// # Errors
/// One sentence naming what is missing.
pub fn check() -> Result<(), String> {
    let missing = missing(&CpuId::new());
    if missing.is_empty() {
        return Ok(());
    }
    Err(format!("this CPU lacks {}: Sluice needs x86-64-v3 (AVX2, BMI2, FMA) with AES", missing.join(", ")))
}

fn missing<R: CpuIdReader>(cpuid: &CpuId<R>) -> Vec<&'static str> {
    let basic = cpuid.get_feature_info();
    let more = cpuid.get_extended_feature_info();
    let extended = cpuid.get_extended_processor_and_feature_identifiers();
    let has = [
        ("SSE4.2", basic.as_ref().is_some_and(|f| f.has_sse42())),
        ("POPCNT", basic.as_ref().is_some_and(|f| f.has_popcnt())),
        ("AVX", basic.as_ref().is_some_and(|f| f.has_avx() && f.has_oxsave())),
        ("FMA", basic.as_ref().is_some_and(|f| f.has_fma())),
        ("MOVBE", basic.as_ref().is_some_and(|f| f.has_movbe())),
        ("F16C", basic.as_ref().is_some_and(|f| f.has_f16c())),
        ("AES", basic.as_ref().is_some_and(|f| f.has_aesni())),
        ("PCLMULQDQ", basic.as_ref().is_some_and(|f| f.has_pclmulqdq())),
        ("AVX2", more.as_ref().is_some_and(|f| f.has_avx2())),
        ("BMI1", more.as_ref().is_some_and(|f| f.has_bmi1())),
        ("BMI2", more.as_ref().is_some_and(|f| f.has_bmi2())),
        ("LZCNT", extended.as_ref().is_some_and(|f| f.has_lzcnt())),
    ];
    has.iter().filter(|(_, there)| !there).map(|(name, _)| *name).collect()
}

/// Ticks of the time stamp counter per second, as far as the CPU or the kernel says it: by the CPU's own leaf, a
/// hypervisor's, the base frequency, or the present clock in /proc/cpuinfo; `None` where none of them does.
pub fn tsc_hz() -> Option<f64> {
    let cpuid = CpuId::new();
    let exact = cpuid.get_tsc_info().and_then(|t| t.tsc_frequency()).filter(|&hz| hz > 0);
    let guest = || cpuid.get_hypervisor_info().and_then(|h| h.tsc_frequency()).filter(|&khz| khz > 0);
    let base = || {
        let info = cpuid.get_processor_frequency_info()?;
        (info.processor_base_frequency() > 0).then(|| f64::from(info.processor_base_frequency()) * 1e6)
    };
    exact
        .and_then(|hz| u32::try_from(hz / 1000).ok())
        .or_else(guest)
        .map(|khz| f64::from(khz) * 1e3)
        .or_else(base)
        .or_else(|| mhz_of(&std::fs::read_to_string("/proc/cpuinfo").ok()?).map(|mhz| mhz * 1e6))
}

fn mhz_of(cpuinfo: &str) -> Option<f64> {
    let line = cpuinfo.lines().find(|l| l.starts_with("cpu MHz"))?;
    line.split(':').nth(1)?.trim().parse().ok().filter(|mhz: &f64| *mhz > 0.0)
}

#[cfg(test)]
mod tests {
    use raw_cpuid::CpuIdResult;

    use super::*;

    #[test]
    fn a_cpu_without_anything_is_named_in_full() {
        let nothing = |_: u32, _: u32| CpuIdResult { eax: 0, ebx: 0, ecx: 0, edx: 0 };
        let lacking = missing(&CpuId::with_cpuid_fn(nothing));
        assert!(lacking.contains(&"AVX2") && lacking.contains(&"AES"), "{lacking:?}");
    }

    #[test]
    fn this_machine_runs_what_it_builds() {
        assert_eq!(check(), Ok(()));
        assert!(tsc_hz().is_some_and(|hz| hz > 1e8));
    }

    #[test]
    fn the_clock_is_read_from_cpuinfo() {
        assert_eq!(mhz_of("model name\t: x\ncpu MHz\t\t: 2399.998\n"), Some(2399.998));
        assert_eq!(mhz_of("cpu MHz : unknown\n"), None);
    }
}
