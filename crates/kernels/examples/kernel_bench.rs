//! How fast each kernel is, beside what the memory of the device delivers.
//!
//!     cargo run -p oxgpt-kernels --example kernel_bench [product] [gemm] [attention] [choice]
//!
//! Launches are recorded and run as one graph, over so many buffers that none is still in the second-level cache when its turn
//! comes again. Times are medians of seven such graphs, in microseconds a launch.

use oxgpt_engine::format::DType;
use oxgpt_engine::quant;
use oxgpt_kernels::{
    Arena, AttentionShape, BLOCK_POSITIONS, Buf, ChoiceOptions, Chooser, CudaError, Ending, Gpu,
    KvElement, KvPool, Matrix, Outputs, Packed, PackedRoom, Partials, PartialsRoom, Place,
    Positions, Sums, Uploader, WeightType, attend, attend_prompt, gemm, product, read_bandwidth,
};
use std::time::Instant;

type Result<T> = std::result::Result<T, CudaError>;

/// Bytes that launches go through before any is read again: ten times the second-level cache of an H100.
const ROTATED: usize = 500 << 20;

/// SplitMix64 (Steele, Lea and Flood 2014).
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// The sum of four uniform numbers, of mean 0 and variance 1.
    fn normal(&mut self) -> f32 {
        let word = self.bits();
        let sum: u64 = (0..4).map(|i| word >> (16 * i) & 0xFFFF).sum();
        (sum as f32 / 65536.0 - 2.0) * 3f32.sqrt()
    }

    fn normals(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.normal()).collect()
    }
}

struct Bench {
    gpu: Gpu,
    bandwidth: f64,
    random: Random,
}

impl Bench {
    /// Seconds of one of `launches` launches, which are recorded.
    fn seconds(
        &self,
        arena: &Arena,
        launches: usize,
        mut launch: impl FnMut(usize) -> Result<()>,
    ) -> Result<f64> {
        // What is loaded when it is launched for the first time cannot be recorded.
        launch(0)?;
        self.gpu.synchronize()?;
        self.gpu.start_recording()?;
        let launched = (0..launches).try_for_each(&mut launch);
        let graph = self.gpu.finish_recording(arena)?;
        launched?;
        graph.launch()?;
        let times: Result<Vec<f64>> = (0..7).map(|_| self.gpu.time(|| graph.launch())).collect();
        let mut times = times?;
        times.sort_by(f64::total_cmp);
        Ok(times[times.len() / 2] / launches as f64)
    }

    fn print(&self, what: &str, seconds: f64, bytes: Option<usize>, operations: Option<f64>) {
        print!("{what:<52}{:>10.2} us", seconds * 1e6);
        if let Some(bytes) = bytes {
            let rate = bytes as f64 / seconds;
            print!("{:>9.0} GB/s{:>5.0} %", rate / 1e9, 100.0 * rate / self.bandwidth);
        }
        if let Some(operations) = operations {
            print!("{:>9.1} TFLOP/s", operations / seconds / 1e12);
        }
        println!();
    }

    /// As many copies of a matrix as are needed.
    fn matrices(
        &mut self,
        kind: WeightType,
        (rows, cols): (usize, usize),
    ) -> Result<(Arena, Vec<Matrix>)> {
        let bytes = bytes(kind, (rows, cols), &mut self.random);
        let each = kind.matrix_bytes(rows, cols);
        let copies = ROTATED.div_ceil(each as usize);
        let mut arena = Arena::new(&self.gpu, each * copies as u64)?;
        let mut uploader = Uploader::new(&self.gpu)?;
        let matrices: Result<Vec<Matrix>> =
            (0..copies).map(|_| uploader.matrix(&mut arena, kind, (rows, cols), &bytes)).collect();
        uploader.finish()?;
        Ok((arena, matrices?))
    }

    fn products(&mut self) -> Result<()> {
        let shape = (4096, 4096);
        for kind in WeightType::ALL {
            let (arena, matrices) = self.matrices(kind, shape)?;
            for tokens in [1, 8] {
                let x = Buf::from_slice(&self.gpu, &self.random.normals(tokens * shape.1))?;
                let mut out = Buf::new(&self.gpu, tokens * shape.0)?;
                let place = Place { start: 0, stride: shape.0 };
                let seconds = self.seconds(&arena, 2 * matrices.len(), |i| {
                    let weight = &matrices[i % matrices.len()];
                    product(&self.gpu, &mut out, place, &x, weight, None, tokens, false)
                })?;
                let what = format!("product {kind:?} {} x {}, {tokens} rows", shape.0, shape.1);
                let bytes = kind.row_bytes(shape.1) * shape.0;
                self.print(&what, seconds, Some(bytes), None);
            }
        }
        Ok(())
    }

    fn gemms(&mut self) -> Result<()> {
        let (shape, tokens) = ((4096, 4096), 2048);
        for kind in WeightType::ALL {
            let (arena, matrices) = self.matrices(kind, shape)?;
            let x = Buf::from_slice(&self.gpu, &self.random.normals(tokens * shape.1))?;
            let mut out = Buf::new(&self.gpu, tokens * shape.0)?;
            let room = PackedRoom::default().with(tokens, shape.1);
            let mut packed = Packed::new(&mut Arena::new(&self.gpu, room.bytes())?, room)?;
            packed.rows(&self.gpu, &x, &matrices[0], (0, tokens), None)?;
            let place = Place { start: 0, stride: shape.0 };
            let seconds = self.seconds(&arena, matrices.len().min(16), |i| {
                let outputs = [Outputs { weight: &matrices[i], bias: None }];
                let (ending, sums) = (Ending::Store, Sums::OfShape);
                gemm(&self.gpu, &mut out, place, &packed, &outputs, ending, sums)
            })?;
            let what = format!("gemm {kind:?} {} x {}, {tokens} rows", shape.0, shape.1);
            let operations = 2.0 * (shape.0 * shape.1 * tokens) as f64;
            self.print(&what, seconds, None, Some(operations));
        }
        Ok(())
    }

    /// Attention of gpt-oss (all positions) and of Llama 3 8B.
    fn attention(&mut self) -> Result<()> {
        let shape = |heads, head_dim| AttentionShape {
            heads,
            kv_heads: 8,
            head_dim,
            scale: 0.1,
            window: None,
            soft_cap: None,
        };
        for shape in [shape(64, 64), shape(32, 128)] {
            for (sequences, context) in [(1, 1024), (1, 8192), (1, 32_768), (32, 1024), (32, 8192)]
            {
                self.attend(&shape, sequences, context)?;
            }
            for context in [2048, 8192] {
                self.attend_prompt(&shape, context)?;
            }
        }
        Ok(())
    }

    fn pools(
        &mut self,
        shape: &AttentionShape,
        blocks: usize,
        bytes: usize,
    ) -> Result<(Arena, Vec<KvPool>)> {
        let each = KvPool::bytes(blocks, shape, KvElement::F16);
        let copies = ROTATED.div_ceil(bytes).min(64);
        let mut arena = Arena::new(&self.gpu, each * copies as u64)?;
        // Halves of about one hundredth.
        arena.fill_bytes(0x21)?;
        let pool = |_| KvPool::new(&mut arena, blocks, shape, KvElement::F16);
        let pools: Result<Vec<KvPool>> = (0..copies).map(pool).collect();
        Ok((arena, pools?))
    }

    fn attend(&mut self, shape: &AttentionShape, sequences: usize, context: usize) -> Result<()> {
        let blocks = context.div_ceil(BLOCK_POSITIONS);
        let bytes = 4 * sequences * context * shape.kv_heads * shape.head_dim;
        let (arena, pools) = self.pools(shape, sequences * blocks, bytes)?;
        let width = (shape.heads + 2 * shape.kv_heads) * shape.head_dim;
        let qkv = Buf::from_slice(&self.gpu, &self.random.normals(sequences * width))?;
        let mut out = Buf::new(&self.gpu, sequences * shape.heads * shape.head_dim)?;
        let multiprocessors = self.gpu.info().multiprocessors as usize;
        let (room, kind) = (PartialsRoom::default(), (shape, KvElement::F16));
        let room = room.with(multiprocessors, kind, sequences, context);
        let mut partials = Partials::new(&mut Arena::new(&self.gpu, room.bytes())?, room)?;
        let numbers = |count: usize, step: usize| -> Result<Buf<u32>> {
            let numbers: Vec<u32> = (0..count).map(|i| (i * step) as u32).collect();
            Buf::from_slice(&self.gpu, &numbers)
        };
        let positions = Buf::from_slice(&self.gpu, &vec![context as u32 - 1; sequences])?;
        let at = Positions {
            positions: &positions,
            sequences: &numbers(sequences, 1)?,
            table_offsets: &numbers(sequences + 1, blocks)?,
            blocks: &numbers(sequences * blocks, 1)?,
            rows: sequences,
            last: context - 1,
        };
        let seconds = self.seconds(&arena, 2 * pools.len(), |i| {
            let pool = &pools[i % pools.len()];
            attend(&self.gpu, &mut out, &qkv, pool, at, shape, None, &mut partials)
        })?;
        let what = format!(
            "attention {} heads of {}, {sequences} x {context} positions",
            shape.heads, shape.head_dim
        );
        self.print(&what, seconds, Some(bytes), None);
        Ok(())
    }

    /// The last 2,048 rows of a prompt of `context`.
    fn attend_prompt(&mut self, shape: &AttentionShape, context: usize) -> Result<()> {
        let rows = 2048;
        let blocks = context.div_ceil(BLOCK_POSITIONS);
        let (arena, pools) = self.pools(shape, blocks, ROTATED)?;
        let width = (shape.heads + 2 * shape.kv_heads) * shape.head_dim;
        let qkv = Buf::from_slice(&self.gpu, &self.random.normals(rows * width))?;
        let mut out = Buf::new(&self.gpu, rows * shape.heads * shape.head_dim)?;
        let numbers = |range: std::ops::Range<usize>| -> Result<Buf<u32>> {
            let numbers: Vec<u32> = range.map(|i| i as u32).collect();
            Buf::from_slice(&self.gpu, &numbers)
        };
        let at = Positions {
            positions: &numbers(context - rows..context)?,
            sequences: &Buf::from_slice(&self.gpu, &vec![0; rows])?,
            table_offsets: &Buf::from_slice(&self.gpu, &[0, blocks as u32])?,
            blocks: &numbers(0..blocks)?,
            rows,
            last: context - 1,
        };
        let seconds = self.seconds(&arena, 8, |_| {
            attend_prompt(&self.gpu, &mut out, &qkv, &pools[0], at, 0, shape, None)
        })?;
        // Two products of each query with what it sees.
        let seen = (context - rows..context).map(|position| position as f64 + 1.0).sum::<f64>();
        let operations = 4.0 * seen * (shape.heads * shape.head_dim) as f64;
        let what = format!(
            "attention {} heads of {}, rows of a prompt to {context}",
            shape.heads, shape.head_dim
        );
        self.print(&what, seconds, None, Some(operations));
        Ok(())
    }

    /// With the way there and back: the host gives the options, and waits for the tokens.
    fn choices(&mut self) -> Result<()> {
        let width = 201_088;
        let greedy = ChoiceOptions {
            seed: 1,
            position: 5,
            top_p: 1 << 32,
            temperature: 0.0,
            floor: f32::NEG_INFINITY,
            repeat_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            top_k: 0,
            choice: 0,
            row: 0,
        };
        let plain = ChoiceOptions { temperature: 1.0, ..greedy };
        let top_p = ChoiceOptions { top_p: 4_080_218_931, ..plain };
        let both = ChoiceOptions { top_k: 40, ..top_p };
        for rows in [1, 8, 64] {
            let all: Vec<f32> = self.random.normals(rows * width).iter().map(|x| 3.0 * x).collect();
            let mut logits = Buf::from_slice(&self.gpu, &all)?;
            let mut arena = Arena::new(&self.gpu, Chooser::bytes(rows, width))?;
            let mut chooser = Chooser::new(&self.gpu, &mut arena, rows, width)?;
            for (name, options) in
                [("greedy", greedy), ("plain", plain), ("top-p", top_p), ("top-k, top-p", both)]
            {
                let options: Vec<ChoiceOptions> =
                    (0..rows as u32).map(|row| ChoiceOptions { row, ..options }).collect();
                let mut times = Vec::new();
                for _ in 0..50 {
                    let start = Instant::now();
                    chooser.choose(&self.gpu, &mut logits, &options, &[], &[])?;
                    chooser.read()?;
                    times.push(start.elapsed().as_secs_f64());
                }
                times.sort_by(f64::total_cmp);
                let what = format!("choice of {rows} among {width}, {name}");
                self.print(&what, times[times.len() / 2], Some(4 * rows * width), None);
            }
        }
        Ok(())
    }
}

/// The bytes of a matrix: 64 rows of random weights, over and over.
fn bytes(kind: WeightType, (rows, cols): (usize, usize), random: &mut Random) -> Vec<u8> {
    let row_bytes = kind.row_bytes(cols);
    let dtype = quant::SUPPORTED.iter().find(|dtype| dtype.name() == format!("{kind:?}"));
    let dtype = *dtype.unwrap_or_else(|| panic!("the engine has {kind:?}"));
    let mut some = vec![0; 64 * row_bytes];
    if dtype == DType::IQ4_XS {
        // Cannot be quantized to; all bytes but the first scale mean something whatever they are.
        for block in some.chunks_mut(136) {
            block.fill_with(|| random.bits() as u8);
            block[..2].copy_from_slice(&half::f16::from_f32(0.001).to_le_bytes());
        }
    } else {
        let normals = random.normals(64 * cols);
        quant::quantize(dtype, &normals, &mut some).expect("rows are whole blocks");
    }
    some.iter().copied().cycle().take(rows * row_bytes).collect()
}

fn run() -> Result<()> {
    let asked: Vec<String> = std::env::args().skip(1).collect();
    let is_asked = |name: &str| asked.is_empty() || asked.iter().any(|asked| asked == name);
    let gpu = Gpu::open(0)?;
    let bandwidth = read_bandwidth(&gpu, &Buf::new(&gpu, 1 << 30)?, 9)?;
    println!("{}, read bandwidth {:.0} GB/s", gpu.info().name, bandwidth / 1e9);
    let mut bench = Bench { gpu, bandwidth, random: Random(1) };
    if is_asked("product") {
        bench.products()?;
    }
    if is_asked("gemm") {
        bench.gemms()?;
    }
    if is_asked("attention") {
        bench.attention()?;
    }
    if is_asked("choice") {
        bench.choices()?;
    }
    Ok(())
}

fn main() {
    if let Err(error) = run() {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}
