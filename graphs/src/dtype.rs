//! The element types a checkpoint or a graph can hold.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Element type of a tensor, in memory and in ONNX.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// bfloat16: the upper half of an `f32`.
    BF16,
    /// Signed 64-bit integer.
    I64,
    /// Signed 32-bit integer.
    I32,
    /// Unsigned byte.
    U8,
    /// Signed byte.
    I8,
    /// One byte per truth value.
    Bool,
    /// Signed four-bit integer, two to a byte, the first in the lower half.
    I4,
    /// Eight-bit floating point: sign, four bits of exponent, three of mantissa; no infinities.
    F8E4M3,
}

impl DType {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::I64,
        Self::I32,
        Self::U8,
        Self::I8,
        Self::Bool,
        Self::I4,
        Self::F8E4M3,
    ];

    /// Bytes of one element; of [`Self::I4`], of two.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::U8 | Self::I8 | Self::Bool | Self::I4 | Self::F8E4M3 => 1,
        }
    }

    /// Bytes of so many elements.
    #[must_use]
    pub const fn bytes(self, elements: u64) -> u64 {
        match self {
            Self::I4 => elements.div_ceil(2),
            _ => elements * self.size() as u64,
        }
    }

    /// Whether these are floating-point numbers.
    #[must_use]
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::BF16)
    }

    /// The code in ONNX's `TensorProto.DataType`.
    #[must_use]
    pub const fn onnx(self) -> i32 {
        match self {
            Self::F32 => 1,
            Self::U8 => 2,
            Self::I8 => 3,
            Self::I32 => 6,
            Self::I64 => 7,
            Self::Bool => 9,
            Self::F16 => 10,
            Self::BF16 => 16,
            Self::F8E4M3 => 17,
            Self::I4 => 22,
        }
    }

    /// The type of this code in ONNX's `TensorProto.DataType`, if cogvx can use it.
    #[must_use]
    pub fn from_onnx(code: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.onnx() == code)
    }

    /// The type a safetensors header calls `name`, if cogvx can use it.
    #[must_use]
    pub fn from_safetensors(name: &str) -> Option<Self> {
        Some(match name {
            "F32" => Self::F32,
            "F16" => Self::F16,
            "BF16" => Self::BF16,
            "I64" => Self::I64,
            "I32" => Self::I32,
            "U8" => Self::U8,
            "I8" => Self::I8,
            "BOOL" => Self::Bool,
            _ => return None,
        })
    }

    /// What a safetensors header calls this type; it has no four-bit type, so those are bytes.
    #[must_use]
    pub const fn safetensors(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::I64 => "I64",
            Self::I32 => "I32",
            Self::U8 | Self::I4 => "U8",
            Self::I8 => "I8",
            Self::Bool => "BOOL",
            Self::F8E4M3 => "F8_E4M3",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::I64 => "i64",
            Self::I32 => "i32",
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::Bool => "bool",
            Self::I4 => "i4",
            Self::F8E4M3 => "f8e4m3",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::DType;

    #[test]
    fn safetensors_names_round_trip() {
        for dtype in DType::ALL.into_iter().filter(|dtype| !matches!(dtype, DType::I4 | DType::F8E4M3)) {
            assert_eq!(DType::from_safetensors(dtype.safetensors()), Some(dtype));
        }
        // What quantization makes is not read from checkpoints.
        assert_eq!(DType::from_safetensors("F8_E4M3"), None);
        assert_eq!(DType::from_safetensors("F64"), None);
    }

    #[test]
    fn onnx_codes_are_those_of_the_independent_reader() {
        use onnx_protobuf::tensor_proto::DataType;
        use protobuf::Enum as _;
        let theirs = [
            DataType::FLOAT,
            DataType::FLOAT16,
            DataType::BFLOAT16,
            DataType::INT64,
            DataType::INT32,
            DataType::UINT8,
            DataType::INT8,
            DataType::BOOL,
            DataType::INT4,
            DataType::FLOAT8E4M3FN,
        ];
        for (ours, theirs) in DType::ALL.into_iter().zip(theirs) {
            assert_eq!(ours.onnx(), theirs.value(), "{ours}");
            assert_eq!(DType::from_onnx(ours.onnx()), Some(ours));
        }
    }
}
