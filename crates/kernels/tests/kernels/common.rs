//! What the tests share: the device, seeded numbers, guarded outputs, comparing.

use oxgpt_engine::format::DType;
use oxgpt_engine::quant;
use oxgpt_kernels::{Arena, Buf, CudaError, Gpu, Matrix, Uploader, WeightType};
use std::sync::OnceLock;

/// The device, or `None` with a word on why, where there is none and none is required.
pub fn gpu() -> Option<Gpu> {
    static GPU: OnceLock<Result<Gpu, CudaError>> = OnceLock::new();
    match GPU.get_or_init(|| Gpu::open(0)) {
        Ok(gpu) => Some(gpu.clone()),
        Err(error) if std::env::var_os("OXGPT_REQUIRE_GPU").is_some_and(|value| value == "1") => {
            panic!("OXGPT_REQUIRE_GPU=1, but {error}")
        }
        Err(CudaError::NoDriver) => {
            println!("skipped: no CUDA driver");
            None
        }
        Err(error) => {
            println!("skipped: {error}");
            None
        }
    }
}

/// Seeded numbers (SplitMix64).
pub struct Random(pub u64);

impl Random {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in 0 to below 1.
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// About normal, never zero to speak of.
    pub fn normal(&mut self) -> f32 {
        ((0..12).map(|_| self.uniform()).sum::<f64>() - 6.0) as f32
    }

    pub fn normals(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.normal()).collect()
    }
}

/// Elements of the bands around an output.
const GUARD: usize = 64;

/// Runs `kernel` twice on an output of `len` floats that starts as `start`, or as NaN, and returns what it wrote. Fails when
/// the runs differ in a bit, when an element stayed NaN, or when anything outside was touched.
pub fn run(
    gpu: &Gpu,
    len: usize,
    start: Option<&[f32]>,
    mut kernel: impl FnMut(&mut Buf<f32>) -> Result<(), CudaError>,
) -> Vec<f32> {
    let mut results = Vec::new();
    for _ in 0..2 {
        let bytes = Arena::padded(4 * GUARD as u64) + Arena::padded(4 * (len + GUARD) as u64);
        let mut arena = Arena::new(gpu, bytes).unwrap();
        let mut before = arena.buffer::<f32>(GUARD).unwrap();
        let mut out = arena.buffer::<f32>(len + GUARD).unwrap();
        before.fill_bytes(0xFF).unwrap();
        out.fill_bytes(0xFF).unwrap();
        if let Some(start) = start {
            out.write(start).unwrap();
        }
        kernel(&mut out).unwrap();
        let (mut front, mut found) = (vec![0.0; GUARD], vec![0.0; len + GUARD]);
        before.read(&mut front).unwrap();
        out.read(&mut found).unwrap();
        let behind = found.split_off(len);
        for (band, name) in [(front, "before"), (behind, "behind")] {
            assert!(band.iter().all(|x| x.to_bits() == u32::MAX), "wrote {name} the output");
        }
        let untouched = found.iter().position(|x| x.to_bits() == u32::MAX);
        assert_eq!(untouched, None, "an element of {len} was not written");
        results.push(found);
    }
    let second = results.pop().unwrap();
    let first = results.pop().unwrap();
    assert_eq!(bits(&first), bits(&second), "two runs differ");
    first
}

pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// `|found - expected| / |expected|`; NaN is infinitely far.
pub fn distance(found: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let difference: f64 =
        found.iter().zip(expected).map(|(f, e)| (f64::from(*f) - e).powi(2)).sum();
    let norm: f64 = expected.iter().map(|e| e.powi(2)).sum();
    let distance = (difference / norm).sqrt();
    if distance.is_nan() { f64::INFINITY } else { distance }
}

#[track_caller]
pub fn assert_near(found: &[f32], expected: &[f64], tolerance: f64, what: &str) {
    let distance = distance(found, expected);
    assert!(distance <= tolerance, "{what}: {distance:.2e} from f64, more than {tolerance:.0e}");
}

/// The engine's name for a type.
pub fn dtype(kind: WeightType) -> DType {
    let all = [
        DType::F32,
        DType::F16,
        DType::BF16,
        DType::Q8_0,
        DType::Q4_0,
        DType::Q4_1,
        DType::Q5_0,
        DType::Q5_1,
        DType::Q2_K,
        DType::Q3_K,
        DType::Q4_K,
        DType::Q5_K,
        DType::Q6_K,
        DType::IQ4_NL,
        DType::IQ4_XS,
        DType::MXFP4,
    ];
    let dtype = all[WeightType::ALL.iter().position(|other| *other == kind).unwrap()];
    assert_eq!(format!("{kind:?}"), dtype.name());
    dtype
}

/// Stored weights of a type, and their exact values.
pub struct Stored {
    pub kind: WeightType,
    /// Rows (of all experts together) and columns.
    pub shape: [usize; 2],
    pub bytes: Vec<u8>,
    pub values: Vec<f32>,
}

impl Stored {
    /// Random weights.
    pub fn random(kind: WeightType, shape: [usize; 2], random: &mut Random) -> Self {
        Self::scaled(kind, shape, 1.0, random)
    }

    /// Random weights about as large as `scale`.
    pub fn scaled(kind: WeightType, shape: [usize; 2], scale: f32, random: &mut Random) -> Self {
        let [rows, cols] = shape;
        let count = rows * cols;
        let mut bytes = vec![0; rows * kind.row_bytes(cols)];
        if kind == WeightType::IQ4_XS {
            // Cannot be quantized to; all bytes but the scale of scales mean something whatever they are.
            for block in bytes.chunks_mut(136) {
                block.fill_with(|| random.bits() as u8);
                let d = half::f16::from_f32(0.0005 + 0.001 * random.uniform() as f32);
                block[..2].copy_from_slice(&d.to_le_bytes());
            }
        } else {
            let normals: Vec<f32> = random.normals(count).iter().map(|x| x * scale).collect();
            quant::quantize(dtype(kind), &normals, &mut bytes).unwrap();
        }
        let mut values = vec![0.0; count];
        quant::dequantize(dtype(kind), &bytes, &mut values).unwrap();
        Stored { kind, shape, bytes, values }
    }

    /// Brings them to the device.
    pub fn upload(&self, gpu: &Gpu) -> Matrix {
        let [rows, cols] = self.shape;
        let mut arena = Arena::new(gpu, self.kind.matrix_bytes(rows, cols)).unwrap();
        let mut uploader = Uploader::new(gpu).unwrap();
        let matrix = uploader.matrix(&mut arena, self.kind, (rows, cols), &self.bytes).unwrap();
        uploader.finish().unwrap();
        matrix
    }

    pub fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.shape[1]..][..self.shape[1]]
    }
}

/// Columns that every type can have.
pub fn cols(kind: WeightType, about: usize) -> usize {
    use WeightType::*;
    match kind {
        // Which products by way of a ring take.
        F16 if about.is_multiple_of(64) => about,
        // Odd on purpose: rows of plain numbers are padded.
        F32 | F16 | BF16 => about | 1,
        Q2_K | Q3_K | Q4_K | Q5_K | Q6_K | IQ4_XS => about.next_multiple_of(256),
        _ => about.next_multiple_of(32),
    }
}
