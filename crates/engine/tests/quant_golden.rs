//! Every weight type that we run, bit for bit against the `gguf` package.

mod common;

use common::testdata;
use oxgpt_engine::quant;
use safetensors::SafeTensors;

#[test]
fn dequantization_equals_the_gguf_package_bit_for_bit() {
    for dtype in quant::SUPPORTED {
        let path = testdata().join(format!("quant/{}.safetensors", dtype.name()));
        let file = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let file = SafeTensors::deserialize(&file).unwrap();
        let blocks = file.tensor("blocks").unwrap();
        let values = file.tensor("values").unwrap();
        let expected: Vec<u32> =
            values.data().as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
        let mut found = vec![0.0; expected.len()];
        quant::dequantize(*dtype, blocks.data(), &mut found).unwrap();
        assert!(found.len() >= 64);
        for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
            // Which NaN it is depends on the machine; that it is one does not.
            let both_nan = found.is_nan() && f32::from_bits(expected).is_nan();
            assert!(both_nan || found.to_bits() == expected, "{dtype} element {index}: {found}");
        }
    }
}
