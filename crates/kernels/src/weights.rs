//! Weight types, the planes that they lie in on the device, and the way there.
//!
//! A block type's fields are in arrays of their own ([`Planes`]), so that kernels read aligned pieces of 16 bytes; the bytes
//! are as many as in the file. Within a group of 32 values, nibbles have element `j` in the low half of byte `j` and `j + 16`
//! above it, pairs of bits have elements `j`, `j + 8`, `j + 16` and `j + 24` in byte `j`, and single bits are bit `j` of a word.
//!
//! | type | low | high | scales | super |
//! | --- | --- | --- | --- | --- |
//! | F32, F16, BF16 | the numbers | | | |
//! | Q8_0 | 32 signed bytes | | d | |
//! | Q4_0, IQ4_NL | nibbles | | d | |
//! | Q4_1 | nibbles | | d, m | |
//! | Q5_0 | nibbles | fifth bits | d | |
//! | Q5_1 | nibbles | fifth bits | d, m | |
//! | MXFP4 | nibbles | | e | |
//! | Q2_K | pairs | | 2 scales and minima of 4 bits | d, dmin |
//! | Q3_K | pairs | third bits | 12 bytes of 6-bit scales (256) | d |
//! | Q4_K | nibbles | | d, dmin, 12 bytes of 6-bit scales and minima (256) | |
//! | Q5_K | nibbles | fifth bits | as Q4_K | |
//! | Q6_K | nibbles | pairs | 2 signed bytes | d |
//! | IQ4_XS | nibbles | | d, 6 bytes of 6-bit scales (256) | |

use crate::driver::Gpu;
use crate::error::CudaError;
use crate::memory::{Arena, Buf, Event, Pinned};
use crate::params::{LargestParams, Planes, RepackParams};

/// Bytes that go to the device at once.
const PIECE: usize = 16 << 20;

/// The type of stored weights.
#[allow(missing_docs, non_camel_case_types)] // the names that GGUF gives them
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightType {
    F32,
    F16,
    BF16,
    Q8_0,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    IQ4_NL,
    IQ4_XS,
    MXFP4,
}

/// The names of one kernel for all weight types, in the order of [`WeightType`].
macro_rules! kernel_names {
    ($prefix:literal, $suffix:literal) => {
        [
            concat!($prefix, "f32", $suffix),
            concat!($prefix, "f16", $suffix),
            concat!($prefix, "bf16", $suffix),
            concat!($prefix, "q8_0", $suffix),
            concat!($prefix, "q4_0", $suffix),
            concat!($prefix, "q4_1", $suffix),
            concat!($prefix, "q5_0", $suffix),
            concat!($prefix, "q5_1", $suffix),
            concat!($prefix, "q2_k", $suffix),
            concat!($prefix, "q3_k", $suffix),
            concat!($prefix, "q4_k", $suffix),
            concat!($prefix, "q5_k", $suffix),
            concat!($prefix, "q6_k", $suffix),
            concat!($prefix, "iq4_nl", $suffix),
            concat!($prefix, "iq4_xs", $suffix),
            concat!($prefix, "mxfp4", $suffix),
        ]
    };
}
pub(crate) use kernel_names;

const REPACK: [&str; 16] = kernel_names!("repack_", "");
const LARGEST: [&str; 16] = kernel_names!("largest_", "");

impl WeightType {
    /// All types.
    pub const ALL: [WeightType; 16] = [
        WeightType::F32,
        WeightType::F16,
        WeightType::BF16,
        WeightType::Q8_0,
        WeightType::Q4_0,
        WeightType::Q4_1,
        WeightType::Q5_0,
        WeightType::Q5_1,
        WeightType::Q2_K,
        WeightType::Q3_K,
        WeightType::Q4_K,
        WeightType::Q5_K,
        WeightType::Q6_K,
        WeightType::IQ4_NL,
        WeightType::IQ4_XS,
        WeightType::MXFP4,
    ];

    /// Values of one block in the file, and bytes of each plane for them: low, high, scales, super.
    fn block(self) -> (usize, [usize; 4]) {
        match self {
            WeightType::F32 => (1, [4, 0, 0, 0]),
            WeightType::F16 | WeightType::BF16 => (1, [2, 0, 0, 0]),
            WeightType::Q8_0 => (32, [32, 0, 2, 0]),
            WeightType::Q4_0 | WeightType::IQ4_NL => (32, [16, 0, 2, 0]),
            WeightType::Q4_1 => (32, [16, 0, 4, 0]),
            WeightType::Q5_0 => (32, [16, 4, 2, 0]),
            WeightType::Q5_1 => (32, [16, 4, 4, 0]),
            WeightType::MXFP4 => (32, [16, 0, 1, 0]),
            WeightType::Q2_K => (256, [64, 0, 16, 4]),
            WeightType::Q3_K => (256, [64, 32, 12, 2]),
            WeightType::Q4_K => (256, [128, 0, 16, 0]),
            WeightType::Q5_K => (256, [128, 32, 16, 0]),
            WeightType::Q6_K => (256, [128, 64, 16, 2]),
            WeightType::IQ4_XS => (256, [128, 0, 8, 0]),
        }
    }

    /// Whether the file's bytes are used as they are.
    fn is_plain(self) -> bool {
        matches!(self, WeightType::F32 | WeightType::F16 | WeightType::BF16)
    }

    /// Values that a kernel reads at once; rows of plain numbers are padded to them.
    fn chunk_values(self) -> usize {
        match self {
            WeightType::F32 => 4,
            WeightType::F16 | WeightType::BF16 => 8,
            WeightType::Q8_0 => 16,
            _ => 32,
        }
    }

    /// Bytes of a row of `cols` values in the file.
    ///
    /// # Panics
    /// When the blocks do not divide a row.
    pub fn row_bytes(self, cols: usize) -> usize {
        let (values, planes) = self.block();
        assert!(cols.is_multiple_of(values), "rows of {cols} values in blocks of {values}");
        cols / values * planes.iter().sum::<usize>()
    }

    /// The bytes of each plane of a matrix.
    fn plane_bytes(self, rows: usize, cols: usize) -> [usize; 4] {
        let (values, planes) = self.block();
        let cols = if self.is_plain() { cols.next_multiple_of(self.chunk_values()) } else { cols };
        planes.map(|bytes| rows * (cols / values) * bytes)
    }

    /// Bytes that a matrix takes up in an arena.
    pub fn matrix_bytes(self, rows: usize, cols: usize) -> u64 {
        let planes = self.plane_bytes(rows, cols).map(|bytes| Arena::padded(bytes as u64));
        planes.iter().sum::<u64>() + Arena::padded(4)
    }
}

/// A matrix of weights on the device. Those of several experts lie one after another in one matrix.
pub struct Matrix {
    kind: WeightType,
    rows: usize,
    cols: usize,
    planes: [Buf<u8>; 4],
    /// Bits of the largest magnitude.
    largest: Buf<u32>,
}

impl Matrix {
    /// Its type.
    pub fn kind(&self) -> WeightType {
        self.kind
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Values that a kernel reads at once.
    pub(crate) fn piece(&self) -> usize {
        self.kind.chunk_values()
    }

    /// Chunks of a row.
    pub(crate) fn chunks(&self) -> usize {
        self.cols.div_ceil(self.kind.chunk_values())
    }

    pub(crate) fn chunk_values(&self) -> usize {
        self.kind.chunk_values()
    }

    pub(crate) fn planes(&self) -> Planes {
        let [low, high, scales, super_scales] = &self.planes;
        Planes {
            low: low.address(),
            high: high.address(),
            scales: scales.address(),
            super_scales: super_scales.address(),
        }
    }

    /// Where the bits of the largest magnitude are.
    pub(crate) fn largest(&self) -> u64 {
        self.largest.address()
    }

    /// Where the planes go on from value `values`, which is a multiple of a block.
    fn planes_from(&self, values: usize) -> Planes {
        let (block, bytes) = self.kind.block();
        let offset = bytes.map(|bytes| (values / block * bytes) as u64);
        let start = self.planes();
        Planes {
            low: start.low + offset[0],
            high: start.high + offset[1],
            scales: start.scales + offset[2],
            super_scales: start.super_scales + offset[3],
        }
    }
}

/// Brings weights to the device through page-locked memory, piece by piece: while one piece is copied and repacked, the next
/// is read from the file.
pub struct Uploader {
    gpu: Gpu,
    pieces: [Piece; 2],
    next: usize,
}

struct Piece {
    host: Pinned,
    device: Buf<u8>,
    done: Event,
}

impl Uploader {
    /// Device memory that an uploader takes while it lives.
    pub const DEVICE_BYTES: u64 = 2 * PIECE as u64;

    /// An uploader with its buffers.
    ///
    /// # Errors
    /// When there is not enough memory.
    pub fn new(gpu: &Gpu) -> Result<Self, CudaError> {
        let piece = || -> Result<Piece, CudaError> {
            Ok(Piece {
                host: Pinned::new(gpu, PIECE)?,
                device: Buf::new(gpu, PIECE)?,
                done: Event::new(gpu)?,
            })
        };
        Ok(Uploader { gpu: gpu.clone(), pieces: [piece()?, piece()?], next: 0 })
    }

    /// Brings a matrix of `rows` times `cols` to the device. `bytes` has it as in the file, row after row.
    ///
    /// # Errors
    /// When the arena is full or the driver fails.
    pub fn matrix(
        &mut self,
        arena: &mut Arena,
        kind: WeightType,
        (rows, cols): (usize, usize),
        bytes: &[u8],
    ) -> Result<Matrix, CudaError> {
        let row_bytes = kind.row_bytes(cols);
        assert_eq!(bytes.len(), rows * row_bytes, "{kind:?} of {rows} x {cols}");
        let sizes = kind.plane_bytes(rows, cols);
        let mut plane = |index: usize| arena.buffer::<u8>(sizes[index]);
        let planes = [plane(0)?, plane(1)?, plane(2)?, plane(3)?];
        let mut largest = arena.buffer(1)?;
        largest.fill_bytes(0)?;
        let matrix = Matrix { kind, rows, cols, planes, largest };
        if kind.is_plain() {
            let padded = sizes[0] / rows.max(1);
            self.plain(&matrix, bytes, row_bytes, padded)?;
        } else {
            self.blocks(&matrix, bytes)?;
        }
        let pieces = rows * matrix.chunks();
        let params = LargestParams {
            weight: matrix.planes(),
            largest: matrix.largest(),
            pieces: pieces as i64,
        };
        let blocks = pieces.div_ceil(256).min(8 * self.gpu.info().multiprocessors as usize);
        self.gpu.launch(LARGEST[kind as usize], [blocks, 1, 1], 256, 0, &params)?;
        Ok(matrix)
    }

    /// Brings numbers to the device, exactly.
    ///
    /// # Errors
    /// When the arena is full or the driver fails.
    pub fn vector(&mut self, arena: &mut Arena, vector: &[f32]) -> Result<Buf<f32>, CudaError> {
        let mut buffer = arena.buffer(vector.len())?;
        buffer.write(vector)?;
        Ok(buffer)
    }

    /// Waits for everything that is on its way.
    ///
    /// # Errors
    /// When any of it failed.
    pub fn finish(self) -> Result<(), CudaError> {
        self.gpu.synchronize()
    }

    /// The next piece, once its last use is over.
    fn piece(&mut self) -> Result<&mut Piece, CudaError> {
        let piece = &mut self.pieces[self.next];
        self.next = 1 - self.next;
        piece.done.wait()?;
        Ok(piece)
    }

    fn plain(
        &mut self,
        matrix: &Matrix,
        bytes: &[u8],
        row_bytes: usize,
        padded: usize,
    ) -> Result<(), CudaError> {
        let mut to = matrix.planes[0].address();
        if row_bytes == padded {
            for part in bytes.chunks(PIECE) {
                let piece = self.piece()?;
                piece.host.bytes_mut()[..part.len()].copy_from_slice(part);
                // SAFETY: the plane is as long as `bytes`; the piece is left alone until `done` has passed.
                unsafe { piece.host.copy_to(to, part.len())? };
                piece.done.record()?;
                to += part.len() as u64;
            }
            return Ok(());
        }
        for rows in bytes.chunks(PIECE / padded * row_bytes) {
            let piece = self.piece()?;
            let count = rows.len() / row_bytes;
            let host = &mut piece.host.bytes_mut()[..count * padded];
            for (row, host) in rows.chunks(row_bytes).zip(host.chunks_mut(padded)) {
                host[..row_bytes].copy_from_slice(row);
                host[row_bytes..].fill(0);
            }
            // SAFETY: the plane has room for every padded row; the piece is left alone until `done` has passed.
            unsafe { piece.host.copy_to(to, count * padded)? };
            piece.done.record()?;
            to += (count * padded) as u64;
        }
        Ok(())
    }

    fn blocks(&mut self, matrix: &Matrix, bytes: &[u8]) -> Result<(), CudaError> {
        let (values, planes) = matrix.kind.block();
        let block_bytes: usize = planes.iter().sum();
        let mut first = 0;
        for part in bytes.chunks(PIECE / block_bytes * block_bytes) {
            let gpu = self.gpu.clone();
            let piece = self.piece()?;
            let count = part.len() / block_bytes * values;
            piece.host.bytes_mut()[..part.len()].copy_from_slice(part);
            // SAFETY: the device's piece is as large as the host's; both are left alone until `done` has passed.
            unsafe { piece.host.copy_to(piece.device.address(), part.len())? };
            let groups = count / 32;
            let params = RepackParams {
                blocks: piece.device.address(),
                planes: matrix.planes_from(first),
                groups: groups as i64,
            };
            gpu.launch(
                REPACK[matrix.kind as usize],
                [groups.div_ceil(256), 1, 1],
                256,
                0,
                &params,
            )?;
            piece.done.record()?;
            first += count;
        }
        Ok(())
    }
}
