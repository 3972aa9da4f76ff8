//! CPU features that an image may need beyond the x86-64 baseline.

/// A set of CPU features. The compiler uses exactly those it is told to; the linker refuses an image that
/// needs one this machine lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct CpuFeatures(u64);

/// Rows: constant, bit, name in `is_x86_feature_detected!`, name of the Cranelift setting.
macro_rules! features {
    ($($konst:ident = $bit:literal, $detect:tt, $setting:literal;)+) => {
        impl CpuFeatures {
            $(#[doc = concat!("`", $detect, "`")] pub const $konst: CpuFeatures = CpuFeatures(1 << $bit);)+

            const KNOWN: u64 = $(1 << $bit)|+;

            /// The features of the machine this runs on.
            #[cfg(target_arch = "x86_64")]
            pub fn detect() -> CpuFeatures {
                let mut bits = 0;
                $(if std::arch::is_x86_feature_detected!($detect) { bits |= 1 << $bit; })+
                CpuFeatures(bits)
            }

            /// The compiler settings that switch these features on.
            #[cfg(feature = "jit")]
            pub(crate) fn settings(self) -> impl Iterator<Item = &'static str> {
                [$((bit($bit), $setting)),+]
                    .into_iter()
                    .filter(move |(bit, _)| self.0 & bit != 0)
                    .map(|(_, setting)| setting)
            }
        }
    };
}

#[cfg(feature = "jit")]
const fn bit(n: u32) -> u64 {
    1 << n
}

features! {
    SSE41  = 0, "sse4.1", "has_sse41";
    SSE42  = 1, "sse4.2", "has_sse42";
    POPCNT = 2, "popcnt", "has_popcnt";
    AVX    = 3, "avx",    "has_avx";
    AVX2   = 4, "avx2",   "has_avx2";
    BMI1   = 5, "bmi1",   "has_bmi1";
    BMI2   = 6, "bmi2",   "has_bmi2";
    LZCNT  = 7, "lzcnt",  "has_lzcnt";
}

impl CpuFeatures {
    /// Nothing beyond x86-64-v1.
    pub const BASELINE: CpuFeatures = CpuFeatures(0);

    /// As stored in an image.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// From an image; `None` when a bit is unknown to this version.
    pub const fn from_bits(bits: u64) -> Option<CpuFeatures> {
        if bits & !CpuFeatures::KNOWN == 0 { Some(CpuFeatures(bits)) } else { None }
    }

    /// Both sets together.
    pub const fn and(self, other: CpuFeatures) -> CpuFeatures {
        CpuFeatures(self.0 | other.0)
    }

    /// Those whose code leaves the upper halves of wide vector registers alone: AVX code clears them, so that
    /// whoever calls it would have to save them.
    pub const fn without_avx(self) -> CpuFeatures {
        CpuFeatures(self.0 & !(CpuFeatures::AVX.0 | CpuFeatures::AVX2.0))
    }

    /// Those of `self` that `available` lacks.
    pub const fn missing_from(self, available: CpuFeatures) -> CpuFeatures {
        CpuFeatures(self.0 & !available.0)
    }

    /// Elsewhere nothing is known; the architecture check refuses the image anyway.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn detect() -> CpuFeatures {
        CpuFeatures::BASELINE
    }
}
