//! Number formats by the names that specs and the command line use.

use std::fmt;

/// A number format that keys, values, states or arithmetic are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dtype {
    /// 4 bits.
    Fp4,
    /// 8-bit integers.
    Int8,
    /// 8-bit floats.
    Fp8,
    /// bfloat16, or IEEE half where that is as fast.
    Bf16,
    /// 32-bit floats.
    F32,
}

impl Dtype {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Fp4, Self::Int8, Self::Fp8, Self::Bf16, Self::F32];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp4 => "fp4",
            Self::Int8 => "int8",
            Self::Fp8 => "fp8",
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
        }
    }

    /// By its name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == name)
    }

    /// Bytes of one value.
    pub fn bytes(self) -> f64 {
        match self {
            Self::Fp4 => 0.5,
            Self::Int8 | Self::Fp8 => 1.0,
            Self::Bf16 => 2.0,
            Self::F32 => 4.0,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}
