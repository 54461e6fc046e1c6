//! Appending to blocks of keys and values, and attention over them.

use crate::common::{Random, assert_near, bits, distance, gpu, run};
use oxgpt_kernels::{
    Arena, AttentionShape, BLOCK_POSITIONS, Buf, Gpu, KvElement, KvPool, Partials, PartialsRoom,
    Positions, Rope, Turn, append, attend, attend_fresh, attend_prompt, rotate, rotations,
};

/// Rotary positions, as the tests have them.
#[derive(Clone)]
pub struct Rotation {
    frequencies: Vec<f32>,
    magnitude: f32,
    interleaved: bool,
}

/// Sequences whose rows so far are all in `qkv`, one after another, and of which the last `new` are the batch.
pub struct Case {
    pub shape: AttentionShape,
    pub contexts: Vec<usize>,
    pub new: Vec<usize>,
    pub qkv: Vec<Vec<f32>>,
    pub sinks: Option<Vec<f32>>,
    rotation: Option<Rotation>,
}

impl Case {
    pub fn new(
        shape: AttentionShape,
        contexts: &[usize],
        new: &[usize],
        random: &mut Random,
    ) -> Self {
        let width = (shape.heads + 2 * shape.kv_heads) * shape.head_dim;
        let qkv = contexts
            .iter()
            .map(|context| {
                // Numbers that F16 has, so that storing them loses nothing.
                let x = random.normals(context * width).into_iter();
                x.map(|x| half::f16::from_f32(x).to_f32()).collect()
            })
            .collect();
        Case { shape, contexts: contexts.into(), new: new.into(), qkv, sinks: None, rotation: None }
    }

    /// The keys and values as they are stored in 8 bits: each 32 of a head have the scale with which the largest is 127.
    fn in_8_bits(&self) -> Self {
        let AttentionShape { heads, kv_heads, head_dim, .. } = self.shape;
        let round = |row: &mut [f32]| {
            for head in row[heads * head_dim..].chunks_mut(head_dim) {
                for part in head.chunks_mut(32) {
                    let most = part.iter().fold(0.0f32, |most, x| most.max(x.abs()));
                    let scale = half::f16::from_f32((most / 127.0).min(515.5)).to_f32();
                    let code = |x: f32| (x / scale).round().clamp(-127.0, 127.0);
                    part.iter_mut()
                        .for_each(|x| *x = if scale == 0.0 { 0.0 } else { scale * code(*x) });
                }
            }
        };
        assert!(kv_heads > 0 && self.rotation.is_none());
        let mut rounded = Case {
            qkv: self.qkv.clone(),
            contexts: self.contexts.clone(),
            new: self.new.clone(),
            sinks: self.sinks.clone(),
            rotation: None,
            ..*self
        };
        let width = self.width();
        rounded.qkv.iter_mut().flat_map(|rows| rows.chunks_mut(width)).for_each(round);
        rounded
    }

    pub fn width(&self) -> usize {
        (self.shape.heads + 2 * self.shape.kv_heads) * self.shape.head_dim
    }

    /// The rows of sequence `s`, turned.
    fn turned(&self, s: usize) -> Vec<Vec<f64>> {
        let dim = self.shape.head_dim;
        let rows = self.qkv[s].chunks(self.width()).enumerate();
        rows.map(|(position, row)| {
            let mut row: Vec<f64> = row.iter().map(|x| f64::from(*x)).collect();
            let Some(rotation) = &self.rotation else { return row };
            for head in row.chunks_mut(dim).take(self.shape.heads + self.shape.kv_heads) {
                let half = rotation.frequencies.len();
                for (pair, frequency) in rotation.frequencies.iter().enumerate() {
                    let (i, j) = match rotation.interleaved {
                        true => (2 * pair, 2 * pair + 1),
                        false => (pair, pair + half),
                    };
                    // As transformers does, the angle is rounded to f32.
                    let angle = f64::from(position as f32 * frequency);
                    let (sine, cosine) = angle.sin_cos();
                    let magnitude = f64::from(rotation.magnitude);
                    let (a, b) = (head[i], head[j]);
                    head[i] = magnitude * (a * cosine - b * sine);
                    head[j] = magnitude * (b * cosine + a * sine);
                }
            }
            row
        })
        .collect()
    }

    /// Attention of the new rows.
    pub fn expected(&self) -> Vec<f64> {
        let AttentionShape { heads, kv_heads, head_dim: dim, scale, window, soft_cap } = self.shape;
        let mut out = Vec::new();
        for (s, (context, new)) in self.contexts.iter().zip(&self.new).enumerate() {
            let rows = self.turned(s);
            for position in context - new..*context {
                let first = window.map_or(0, |window| (position + 1).saturating_sub(window));
                for head in 0..heads {
                    let kv_head = head / (heads / kv_heads);
                    let query = &rows[position][head * dim..][..dim];
                    let key = |p: usize| &rows[p][(heads + kv_head) * dim..][..dim];
                    let value = |p: usize| &rows[p][(heads + kv_heads + kv_head) * dim..][..dim];
                    let scores: Vec<f64> = (first..=position)
                        .map(|p| {
                            let dot: f64 = query.iter().zip(key(p)).map(|(q, k)| q * k).sum();
                            let score = dot * f64::from(scale);
                            soft_cap.map_or(score, |cap| {
                                f64::from(cap) * (score / f64::from(cap)).tanh()
                            })
                        })
                        .collect();
                    let sink = self.sinks.as_ref().map(|sinks| f64::from(sinks[head]));
                    let most = scores.iter().copied().fold(sink.unwrap_or(f64::MIN), f64::max);
                    let weights: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
                    let sum: f64 =
                        weights.iter().sum::<f64>() + sink.map_or(0.0, |sink| (sink - most).exp());
                    for d in 0..dim {
                        let weighted = weights.iter().enumerate();
                        let weighted: f64 = weighted.map(|(i, w)| w * value(first + i)[d]).sum();
                        out.push(weighted / sum);
                    }
                }
            }
        }
        out
    }

    /// Appends all rows, and attends for the new ones in one batch, as for generated rows.
    fn found(&self, gpu: &Gpu, element: KvElement, random: &mut Random) -> Vec<f32> {
        self.found_as(gpu, element, false, random)
    }

    /// As [`Case::found`], for generated rows or for those of prompts.
    pub fn found_as(
        &self,
        gpu: &Gpu,
        element: KvElement,
        prompt: bool,
        random: &mut Random,
    ) -> Vec<f32> {
        let (shape, width) = (&self.shape, self.width());
        let blocks: usize = self.contexts.iter().map(|c| c.div_ceil(BLOCK_POSITIONS)).sum();
        let pool_blocks = blocks + 3;
        // Blocks in any order.
        let mut free: Vec<u32> = (0..pool_blocks as u32).collect();
        for i in (1..free.len()).rev() {
            free.swap(i, random.below(i + 1));
        }
        let mut arena = Arena::new(gpu, KvPool::bytes(pool_blocks, shape, element)).unwrap();
        let mut pool = KvPool::new(&mut arena, pool_blocks, shape, element).unwrap();
        // What was never written must not matter, so it is NaN.
        pool.fill_bytes(0xFF).unwrap();
        let device_u32 = |values: &[u32]| Buf::from_slice(gpu, values).unwrap();
        let (mut offsets, mut table) = (vec![0], Vec::new());
        for context in &self.contexts {
            table.extend(free.drain(..context.div_ceil(BLOCK_POSITIONS)));
            offsets.push(table.len() as u32);
        }
        // When the new rows come, a window has given back what it left behind.
        let mut left = table.clone();
        for (s, (context, count)) in self.contexts.iter().zip(&self.new).enumerate() {
            let first =
                shape.window.map_or(0, |window| (context - count + 1).saturating_sub(window));
            left[offsets[s] as usize..][..first / BLOCK_POSITIONS].fill(u32::MAX);
        }
        let (offsets, table, left) = (device_u32(&offsets), device_u32(&table), device_u32(&left));
        let (mut old, mut new) = (Vec::new(), Vec::new());
        for (s, (context, count)) in self.contexts.iter().zip(&self.new).enumerate() {
            old.extend((0..context - count).map(|p| (s, p)));
            new.extend((context - count..*context).map(|p| (s, p)));
        }
        let frequencies = self
            .rotation
            .as_ref()
            .map(|rotation| Buf::from_slice(gpu, &rotation.frequencies).unwrap());
        let sinks = self.sinks.as_ref().map(|sinks| Buf::from_slice(gpu, sinks).unwrap());
        // Where new rows are stored by attention itself.
        let mut other_arena = Arena::new(gpu, KvPool::bytes(pool_blocks, shape, element)).unwrap();
        let mut other = KvPool::new(&mut other_arena, pool_blocks, shape, element).unwrap();
        other.fill_bytes(0xFF).unwrap();
        let mut result = Vec::new();
        for (rows, wanted) in [(old, false), (new, true)] {
            if rows.is_empty() {
                continue;
            }
            let positions: Vec<u32> = rows.iter().map(|(_, p)| *p as u32).collect();
            let sequences: Vec<u32> = rows.iter().map(|(s, _)| *s as u32).collect();
            let last = *positions.iter().max().unwrap() as usize;
            let (positions, sequences) = (device_u32(&positions), device_u32(&sequences));
            let at = Positions {
                positions: &positions,
                sequences: &sequences,
                table_offsets: &offsets,
                blocks: if wanted { &left } else { &table },
                rows: rows.len(),
                last,
            };
            let qkv: Vec<f32> = rows
                .iter()
                .flat_map(|(s, p)| &self.qkv[*s][p * width..][..width])
                .copied()
                .collect();
            let as_computed = Buf::from_slice(gpu, &qkv).unwrap();
            let mut qkv = Buf::from_slice(gpu, &qkv).unwrap();
            let mut turns_device = None;
            if let (Some(rotation), Some(frequencies)) = (&self.rotation, &frequencies) {
                let rope =
                    Rope { frequencies, long_frequencies: None, magnitude: rotation.magnitude };
                let pairs = rotation.frequencies.len();
                let is_long = device_u32(&vec![0; rows.len()]);
                let turns = run(gpu, rows.len() * 2 * pairs, None, |out| {
                    rotations(gpu, out, rope, &positions, &is_long, rows.len())
                });
                let turns = Buf::from_slice(gpu, &turns).unwrap();
                let heads = (shape.heads + shape.kv_heads, shape.head_dim);
                let interleaved = rotation.interleaved;
                rotate(gpu, &mut qkv, &turns, rows.len(), width, heads, pairs, interleaved)
                    .unwrap();
                turns_device = Some((turns, pairs, interleaved));
            }
            append(gpu, &mut pool, &qkv, at, shape).unwrap();
            if !wanted {
                append(gpu, &mut other, &qkv, at, shape).unwrap();
            }
            if wanted {
                // Launches for longer contexts than there are must not change a bit.
                let longer = Positions { last: 3 * last + 700, ..at };
                let room = PartialsRoom::default().with(
                    gpu.info().multiprocessors as usize,
                    (shape, element),
                    rows.len(),
                    longer.last + 1,
                );
                let mut room_arena = Arena::new(gpu, room.bytes()).unwrap();
                let mut partials = Partials::new(&mut room_arena, room).unwrap();
                partials.fill_bytes(0xFF).unwrap();
                let len = rows.len() * shape.heads * shape.head_dim;
                result = run(gpu, len, None, |out| match prompt {
                    true => attend_prompt(gpu, out, &qkv, &pool, at, 0, shape, sinks.as_ref()),
                    false => {
                        attend(gpu, out, &qkv, &pool, at, shape, sinks.as_ref(), &mut partials)
                    }
                });
                if !prompt && self.new.iter().all(|new| *new == 1) {
                    let turn = turns_device.as_ref().map(|(rotations, pairs, interleaved)| Turn {
                        rotations,
                        pairs: *pairs,
                        interleaved: *interleaved,
                    });
                    let (qkv, sinks, partials) = (&as_computed, sinks.as_ref(), &mut partials);
                    for at in [at, longer] {
                        let at_once = run(gpu, len, None, |out| {
                            attend_fresh(
                                gpu, out, qkv, &mut other, at, shape, sinks, partials, turn,
                            )
                        });
                        assert_eq!(bits(&at_once), bits(&result), "all at once to {}", at.last);
                    }
                }
            }
        }
        result
    }
}

#[test]
fn rows_of_long_sequences_turn_otherwise() {
    let Some(gpu) = gpu() else { return };
    let device = |values: &[f32]| Buf::from_slice(&gpu, values).unwrap();
    let (short, long) = (device(&[1.0, 0.1, 0.01]), device(&[0.5, 0.05, 0.005]));
    let rope = Rope { frequencies: &short, long_frequencies: Some(&long), magnitude: 2.0 };
    let positions = Buf::from_slice(&gpu, &[3u32, 100_000]).unwrap();
    let is_long = Buf::from_slice(&gpu, &[0u32, 1]).unwrap();
    let found = run(&gpu, 12, None, |out| rotations(&gpu, out, rope, &positions, &is_long, 2));
    let far = 100_000.0f32;
    let mut exact = Vec::new();
    for angles in [[3.0f32, 3.0 * 0.1, 3.0 * 0.01], [far * 0.5, far * 0.05, far * 0.005]] {
        exact.extend(angles.iter().map(|angle| 2.0 * f64::from(*angle).cos()));
        exact.extend(angles.iter().map(|angle| 2.0 * f64::from(*angle).sin()));
    }
    assert_near(&found, &exact, 1e-6, "rotations");
}

pub fn shape(heads: usize, kv_heads: usize, head_dim: usize) -> AttentionShape {
    let scale = 1.0 / (head_dim as f32).sqrt();
    AttentionShape { heads, kv_heads, head_dim, scale, window: None, soft_cap: None }
}

pub const SHAPES: [(usize, usize, usize); 9] = [
    (3, 3, 5),
    (4, 2, 20),
    (12, 12, 64),
    (64, 8, 64),
    (9, 3, 64),
    (4, 4, 128),
    (8, 1, 128),
    (4, 1, 256),
    (11, 1, 80),
];

#[test]
fn every_shape_of_heads() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random(41);
    for (heads, kv_heads, dim) in SHAPES {
        for element in [KvElement::F32, KvElement::F16] {
            let case = Case::new(
                shape(heads, kv_heads, dim),
                &[1, 33, 300, 700],
                &[1, 2, 5, 1],
                &mut random,
            );
            let found = case.found(&gpu, element, &mut random);
            let what = format!("{heads} heads, {kv_heads} of keys, {dim} wide, {element:?}");
            assert_near(&found, &case.expected(), 2e-6, &what);
        }
    }
}

#[test]
fn windows_sinks_and_soft_caps() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random(42);
    for window in [None, Some(1), Some(7), Some(128), Some(300), Some(5000)] {
        for soft_cap in [None, Some(3.0)] {
            for with_sinks in [false, true] {
                let shape = AttentionShape { window, soft_cap, ..shape(8, 2, 64) };
                let mut case = Case::new(shape, &[5, 270, 1000], &[5, 20, 1], &mut random);
                case.sinks = with_sinks.then(|| random.normals(8));
                let found = case.found(&gpu, KvElement::F16, &mut random);
                let what = format!("window {window:?}, cap {soft_cap:?}, sinks {with_sinks}");
                assert_near(&found, &case.expected(), 2e-6, &what);
            }
        }
    }
}

#[test]
fn rotary_positions_of_both_orders() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random(43);
    for (dim, turned) in [(64, 64), (20, 20), (80, 32)] {
        for interleaved in [false, true] {
            let mut case = Case::new(shape(4, 2, dim), &[600, 40], &[3, 40], &mut random);
            let half = turned / 2;
            let frequencies =
                (0..half).map(|i| 10000f64.powf(-(i as f64) / half as f64) as f32).collect();
            case.rotation = Some(Rotation { frequencies, magnitude: 1.25, interleaved });
            let what = format!("{turned} of {dim}, interleaved {interleaved}");
            let found = case.found(&gpu, KvElement::F32, &mut random);
            assert_near(&found, &case.expected(), 5e-6, &what);
            // Turned keys are no F16 numbers any more.
            let found = case.found(&gpu, KvElement::F16, &mut random);
            assert_near(&found, &case.expected(), 1e-3, &what);
            // The other order is another model.
            if turned > 2 {
                case.rotation.as_mut().unwrap().interleaved = !interleaved;
                assert!(distance(&found, &case.expected()) > 1e-2, "{what}: order is not seen");
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_every_batch() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random(44);
    for (window, with_sinks) in [(None, false), (Some(128), true), (None, true)] {
        let shape = AttentionShape { window, ..shape(16, 2, 64) };
        // Alone, the last row is computed split by split on its own; with 300 rows, one block does all splits.
        let mut case = Case::new(shape, &[1300], &[1], &mut random);
        case.sinks = with_sinks.then(|| random.normals(16));
        let alone = case.found(&gpu, KvElement::F16, &mut random);
        case.new = vec![300];
        let together = case.found(&gpu, KvElement::F16, &mut random);
        let last = &together[together.len() - alone.len()..];
        assert_eq!(bits(last), bits(&alone), "window {window:?}, sinks {with_sinks}");
        assert_near(&together, &case.expected(), 2e-6, "300 rows");
    }
}

/// What was merged is merged with more of that.
#[test]
fn a_long_context_has_the_same_bits_in_every_batch() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random(46);
    for (heads, kv_heads, dim, window) in
        [(8, 1, 64, None), (8, 1, 64, Some(3000)), (3, 1, 128, None), (9, 1, 72, Some(4200))]
    {
        let shape = AttentionShape { window, ..shape(heads, kv_heads, dim) };
        let mut case = Case::new(shape, &[4700], &[1], &mut random);
        let alone = case.found(&gpu, KvElement::F16, &mut random);
        let what = format!("{heads} heads of {dim}, window {window:?}");
        assert_near(&alone, &case.expected(), 2e-6, &what);
        // More rows than are worth splitting, on any device that there is.
        case.new = vec![700];
        let together = case.found(&gpu, KvElement::F16, &mut random);
        assert_eq!(bits(&together[together.len() - alone.len()..]), bits(&alone), "{what}");
    }
}

/// Queries become halves only after they were scaled, head by head.
#[test]
fn large_and_small_queries() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random(47);
    for dim in [64, 128] {
        let mut case = Case::new(shape(8, 2, dim), &[300, 40], &[1, 1], &mut random);
        case.shape.scale = 1.0;
        let (width, query) = (case.width(), 8 * dim);
        for rows in &mut case.qkv {
            for row in rows.chunks_mut(width) {
                for (head, x) in row[..query].chunks_mut(dim).enumerate() {
                    let factor = [1e6, 1e-9, 1.0, 0.0, 3e20, 1e-30, 1e-3, 70_000.0][head];
                    x.iter_mut().for_each(|x| *x *= factor);
                }
            }
        }
        // A softmax of large scores is the value of one key, or all but one.
        let found = case.found(&gpu, KvElement::F16, &mut random);
        assert_near(&found, &case.expected(), 2e-6, &format!("{dim} wide"));
    }
}

/// In 8 bits too, whatever the magnitudes are.
#[test]
fn keys_and_values_in_8_bits() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random(48);
    let wide = [(3, 1, 100), (2, 2, 200), (8, 1, 33)];
    for (heads, kv_heads, dim) in SHAPES.into_iter().chain(wide) {
        for (window, soft_cap, with_sinks) in
            [(None, None, false), (Some(40), Some(3.0), true), (Some(600), None, true)]
        {
            let shape = AttentionShape { window, soft_cap, ..shape(heads, kv_heads, dim) };
            for new in [[1, 1, 1, 1], [1, 2, 5, 1]] {
                let mut case = Case::new(shape, &[1, 33, 300, 1300], &new, &mut random);
                case.sinks = with_sinks.then(|| random.normals(heads));
                let found = case.found(&gpu, KvElement::Q8, &mut random);
                let expected = case.in_8_bits().expected();
                let what = format!("{heads} heads of {dim}, window {window:?}, {new:?}");
                assert_near(&found, &expected, 2e-6, &what);
                // What was rounded is seen.
                assert!(distance(&found, &case.expected()) > 1e-3, "{what}");
                let found = case.found_as(&gpu, KvElement::Q8, true, &mut random);
                assert_near(&found, &expected, 6e-4, &format!("{what}, as prompts"));
            }
        }
    }
    for factor in [1e-5, 1e-4, 3e-3, 30.0, 50_000.0, 1e9] {
        for dim in [64, 128, 160] {
            let mut case = Case::new(shape(4, 2, dim), &[300, 1], &[1, 1], &mut random);
            let width = case.width();
            // Of values, so that the softmax stays as it is.
            for row in case.qkv.iter_mut().flat_map(|rows| rows.chunks_mut(width)) {
                row[6 * dim..].iter_mut().for_each(|x| *x *= factor);
            }
            let found = case.found(&gpu, KvElement::Q8, &mut random);
            let expected = case.in_8_bits().expected();
            assert_near(&found, &expected, 2e-6, &format!("{dim} wide, values of {factor}"));
        }
    }
}

#[test]
fn in_8_bits_a_row_has_the_same_bits_in_every_batch() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random(49);
    for (dim, window) in [(64, None), (128, None), (80, Some(128)), (192, None)] {
        let shape = AttentionShape { window, ..shape(16, 2, dim) };
        let mut case = Case::new(shape, &[1300], &[1], &mut random);
        for prompt in [false, true] {
            case.new = vec![1];
            let alone = case.found_as(&gpu, KvElement::Q8, prompt, &mut random);
            case.new = vec![300];
            let together = case.found_as(&gpu, KvElement::Q8, prompt, &mut random);
            let last = &together[together.len() - alone.len()..];
            assert_eq!(bits(last), bits(&alone), "{dim} wide, window {window:?}, prompt {prompt}");
        }
    }
}

#[test]
fn one_wrong_key_is_seen() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random(45);
    let mut case = Case::new(shape(2, 2, 16), &[100], &[1], &mut random);
    let found = case.found(&gpu, KvElement::F32, &mut random);
    let width = case.width();
    case.qkv[0][50 * width + 40] += 0.5;
    assert!(distance(&found, &case.expected()) > 2e-6);
}
