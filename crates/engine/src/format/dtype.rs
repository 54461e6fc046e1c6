//! Element types of stored tensors.
//!
//! Ids, block sizes and block bytes of the ggml types are those of `enum ggml_type` in `ggml.h`, the
//! `block_*` structs in `ggml-common.h` and `GGML_QUANT_SIZES` in the `gguf` Python package; the
//! safetensors types are those of the `Dtype` enum of the `safetensors` crate. Every type is here so
//! that any file can be listed; which of them can be run is what [`crate::quant`] knows.

use std::fmt;

/// Declares the types once: variant, name in messages, ggml id, elements and bytes of a block.
macro_rules! dtypes {
    ($($variant:ident, $name:literal, $ggml:expr, $elements:literal, $bytes:literal;)*) => {
        /// The type of a tensor's elements: a plain number, or a block of quantized ones.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[allow(non_camel_case_types)] // the field's names, as the files and their authors spell them
        #[allow(missing_docs)] // what a type is stands in the macro's rows and in `quant`
        pub enum DType { $($variant,)* }

        impl DType {
            /// Every type, the ggml ones first, in the order of their ids.
            pub const ALL: &[DType] = &[$(DType::$variant,)*];

            /// The name that ggml or safetensors gives it.
            pub const fn name(self) -> &'static str {
                match self { $(DType::$variant => $name,)* }
            }

            /// The number that stands for the type in a GGUF file; `None` if only safetensors has it.
            pub const fn ggml_id(self) -> Option<u32> {
                match self { $(DType::$variant => $ggml,)* }
            }

            /// Elements in a block; 1 for types that are not in blocks.
            pub const fn block_size(self) -> usize {
                match self { $(DType::$variant => $elements,)* }
            }

            /// Bytes of a block.
            pub const fn block_bytes(self) -> usize {
                match self { $(DType::$variant => $bytes,)* }
            }
        }
    };
}

dtypes! {
    F32, "F32", Some(0), 1, 4;
    F16, "F16", Some(1), 1, 2;
    Q4_0, "Q4_0", Some(2), 32, 18;
    Q4_1, "Q4_1", Some(3), 32, 20;
    Q5_0, "Q5_0", Some(6), 32, 22;
    Q5_1, "Q5_1", Some(7), 32, 24;
    Q8_0, "Q8_0", Some(8), 32, 34;
    // Some versions of the `gguf` package say 40, from when scale and sum were F32 in ggml. The type is
    // for activations: files do not have it.
    Q8_1, "Q8_1", Some(9), 32, 36;
    Q2_K, "Q2_K", Some(10), 256, 84;
    Q3_K, "Q3_K", Some(11), 256, 110;
    Q4_K, "Q4_K", Some(12), 256, 144;
    Q5_K, "Q5_K", Some(13), 256, 176;
    Q6_K, "Q6_K", Some(14), 256, 210;
    Q8_K, "Q8_K", Some(15), 256, 292;
    IQ2_XXS, "IQ2_XXS", Some(16), 256, 66;
    IQ2_XS, "IQ2_XS", Some(17), 256, 74;
    IQ3_XXS, "IQ3_XXS", Some(18), 256, 98;
    IQ1_S, "IQ1_S", Some(19), 256, 50;
    IQ4_NL, "IQ4_NL", Some(20), 32, 18;
    IQ3_S, "IQ3_S", Some(21), 256, 110;
    IQ2_S, "IQ2_S", Some(22), 256, 82;
    IQ4_XS, "IQ4_XS", Some(23), 256, 136;
    I8, "I8", Some(24), 1, 1;
    I16, "I16", Some(25), 1, 2;
    I32, "I32", Some(26), 1, 4;
    I64, "I64", Some(27), 1, 8;
    F64, "F64", Some(28), 1, 8;
    IQ1_M, "IQ1_M", Some(29), 256, 56;
    BF16, "BF16", Some(30), 1, 2;
    TQ1_0, "TQ1_0", Some(34), 256, 54;
    TQ2_0, "TQ2_0", Some(35), 256, 66;
    MXFP4, "MXFP4", Some(39), 32, 17;
    NVFP4, "NVFP4", Some(40), 64, 36;
    Q1_0, "Q1_0", Some(41), 128, 18;
    Q2_0, "Q2_0", Some(42), 64, 18;
    U8, "U8", None, 1, 1;
    U16, "U16", None, 1, 2;
    U32, "U32", None, 1, 4;
    U64, "U64", None, 1, 8;
    BOOL, "BOOL", None, 1, 1;
    F8_E4M3, "F8_E4M3", None, 1, 1;
    F8_E5M2, "F8_E5M2", None, 1, 1;
    F8_E8M0, "F8_E8M0", None, 1, 1;
    F8_E4M3FNUZ, "F8_E4M3FNUZ", None, 1, 1;
    F8_E5M2FNUZ, "F8_E5M2FNUZ", None, 1, 1;
    C64, "C64", None, 1, 8;
    F4, "F4", None, 2, 1;
    F6_E2M3, "F6_E2M3", None, 4, 3;
    F6_E3M2, "F6_E3M2", None, 4, 3;
}

impl DType {
    /// The type that a GGUF file writes as `id`.
    pub fn from_ggml_id(id: u32) -> Option<Self> {
        Self::ALL.iter().copied().find(|dtype| dtype.ggml_id() == Some(id))
    }

    /// The type that a safetensors header calls `name`.
    pub fn from_safetensors_name(name: &str) -> Option<Self> {
        // The plain number types of ggml are safetensors types too; its blocks are not.
        Self::ALL.iter().copied().find(|dtype| {
            dtype.name() == name && (dtype.ggml_id().is_none() || dtype.block_size() == 1)
        })
    }

    /// Bytes of that many elements stored one after another; `None` if they do not fill whole
    /// blocks or the number does not fit. Blocks never cross rows: ask with a row's length first.
    pub fn bytes_for(self, elements: usize) -> Option<usize> {
        if !elements.is_multiple_of(self.block_size()) {
            return None;
        }
        (elements / self.block_size()).checked_mul(self.block_bytes())
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_names_are_unique_and_found_again() {
        for (index, &dtype) in DType::ALL.iter().enumerate() {
            for other in &DType::ALL[..index] {
                assert_ne!(dtype.name(), other.name());
                assert!(dtype.ggml_id().is_none() || dtype.ggml_id() != other.ggml_id());
            }
            if let Some(id) = dtype.ggml_id() {
                assert_eq!(DType::from_ggml_id(id), Some(dtype));
            } else {
                assert_eq!(DType::from_safetensors_name(dtype.name()), Some(dtype));
            }
        }
    }

    #[test]
    fn withdrawn_and_future_ids_are_unknown() {
        for id in [4, 5, 31, 32, 33, 36, 37, 38, 43, u32::MAX] {
            assert_eq!(DType::from_ggml_id(id), None, "{id}");
        }
        // The gaps are types that ggml has withdrawn.
        let listed = (0..=3).chain(6..=30).chain(34..=35).chain(39..=42);
        assert!(listed.clone().all(|id| DType::from_ggml_id(id).is_some()));
        assert_eq!(listed.count(), DType::ALL.iter().filter(|d| d.ggml_id().is_some()).count());
    }

    #[test]
    fn blocks_are_not_safetensors_types() {
        assert_eq!(DType::from_safetensors_name("Q8_0"), None);
        assert_eq!(DType::from_safetensors_name("BF16"), Some(DType::BF16));
        assert_eq!(DType::from_safetensors_name("bf16"), None);
    }

    #[test]
    fn bytes_are_those_of_whole_blocks() {
        assert_eq!(DType::F32.bytes_for(3), Some(12));
        assert_eq!(DType::Q8_0.bytes_for(64), Some(68));
        assert_eq!(DType::Q8_0.bytes_for(33), None);
        assert_eq!(DType::Q4_K.bytes_for(512), Some(288));
        assert_eq!(DType::F4.bytes_for(6), Some(3));
        assert_eq!(DType::F6_E2M3.bytes_for(8), Some(6));
        assert_eq!(DType::MXFP4.bytes_for(0), Some(0));
        assert_eq!(DType::F32.bytes_for(usize::MAX), None);
        assert_eq!(DType::Q8_0.bytes_for(usize::MAX - 31), None);
    }
}
