//! Choosing tokens.

use crate::driver::Gpu;
use crate::error::CudaError;
use crate::memory::{Arena, Buf, Landing};
use crate::params::Params;

/// How one token is chosen, as `docs/sampling.md` has it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ChoiceOptions {
    /// Of the random numbers.
    pub seed: u64,
    /// Of the token that is chosen.
    pub position: u64,
    /// In units of 2^-32, rounded up; 2^32 is off.
    pub top_p: u64,
    /// 0 takes the highest logit.
    pub temperature: f32,
    /// ln(min-p): the lowest scaled logit that is kept; -inf is off.
    pub floor: f32,
    /// Divides positive and multiplies negative logits of tokens that occurred.
    pub repeat_penalty: f32,
    /// Subtracted for each time that a token is in the answer.
    pub frequency_penalty: f32,
    /// Subtracted where a token is in the answer.
    pub presence_penalty: f32,
    /// 0 is off.
    pub top_k: u32,
    /// Which of several answers.
    pub choice: u32,
    /// Of the logits.
    pub row: u32,
}

const _: () = assert!(size_of::<ChoiceOptions>() == 56);

/// What happens to a logit before a token is chosen.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogitEdit {
    /// Which of the options it is for.
    pub choice: u32,
    /// Whose logit.
    pub token: u32,
    /// Added first, with [`LogitEdit::BIAS`].
    pub bias: f32,
    /// How often the token is in the answer; it is looked at with [`LogitEdit::OCCURRED`].
    pub generated: u32,
    /// Bits of what is to be done.
    pub what: u32,
}

const _: () = assert!(size_of::<LogitEdit>() == 20);

impl LogitEdit {
    /// The bias is added.
    pub const BIAS: u32 = 1;
    /// The token is in the prompt or in the answer, for which there are penalties.
    pub const OCCURRED: u32 = 2;
    /// The token must not be chosen.
    pub const FORBIDDEN: u32 = 4;
}

/// What was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// This token.
    Token(u32),
    /// None: the logit of this token, the first such, is NaN.
    NotANumber(u32),
    /// None: all logits are -inf.
    NoCandidate,
}

impl Choice {
    fn from_word(word: u32) -> Self {
        match word {
            NO_CANDIDATE => Choice::NoCandidate,
            word if word & NOT_A_NUMBER != 0 => Choice::NotANumber(word & !NOT_A_NUMBER),
            token => Choice::Token(token),
        }
    }
}

// As in `cuda/sampling.cuh`.
const NOT_A_NUMBER: u32 = 1 << 31;
const NO_CANDIDATE: u32 = u32::MAX;
const MOST_SLICES: usize = 8;
const SCRATCH_WORDS: usize = 3 * 2048 + 2 * MOST_SLICES;

/// Logits that a block should have at least.
const LEAST_SLICE: usize = 4096;

/// Edits that are brought to the device at once, and masks.
const EDITS_AT_ONCE: usize = 1 << 14;
const MASKS_AT_ONCE: usize = 16;

#[repr(C)]
#[derive(Clone, Copy)]
struct EditParams {
    logits: u64,
    options: u64,
    edits: u64,
    width: i32,
    count: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct MaskParams {
    logits: u64,
    rows: u64,
    words: u64,
    width: i32,
    words_each: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct ChooseParams {
    logits: u64,
    options: u64,
    chosen: u64,
    scratch: u64,
    width: i32,
    slice: i32,
    keeps: i32,
    unused: i32,
}

const _: () = assert!(size_of::<EditParams>() == 32);
const _: () = assert!(size_of::<MaskParams>() == 32);
const _: () = assert!(size_of::<ChooseParams>() == 48);

// SAFETY: `repr(C)`, and the fields are those of the structure in `cuda/sampling.cuh` in their order.
unsafe impl Params for EditParams {}
// SAFETY: as above.
unsafe impl Params for MaskParams {}
// SAFETY: as above.
unsafe impl Params for ChooseParams {}

/// Room for choosing tokens on the device.
pub struct Chooser {
    width: usize,
    most: usize,
    options: Buf<ChoiceOptions>,
    edits: Buf<LogitEdit>,
    mask_rows: Buf<u32>,
    masks: Buf<u32>,
    chosen: Buf<u32>,
    scratch: Buf<u64>,
}

/// The lengths of the buffers for at most `most` choices among `width` tokens, with the bytes of an element: those of
/// [`Chooser`], in order.
fn lengths(most: usize, width: usize) -> [(usize, usize); 6] {
    let masks = MASKS_AT_ONCE.min(most);
    [
        (most, size_of::<ChoiceOptions>()),
        (EDITS_AT_ONCE, size_of::<LogitEdit>()),
        (masks, 4),
        (masks * width.div_ceil(32), 4),
        (most, 4),
        (most * SCRATCH_WORDS, 8),
    ]
}

impl Chooser {
    /// Bytes that the room takes up in an arena, for at most `most` choices at once among `width` tokens.
    pub fn bytes(most: usize, width: usize) -> u64 {
        let bytes = lengths(most, width).map(|(len, each)| Arena::padded((len * each) as u64));
        bytes.into_iter().fold(0, u64::saturating_add)
    }

    /// Takes the room.
    ///
    /// # Errors
    /// When the arena is full.
    pub fn new(arena: &mut Arena, most: usize, width: usize) -> Result<Self, CudaError> {
        let [options, edits, mask_rows, masks, chosen, scratch] =
            lengths(most, width).map(|(len, _)| len);
        Ok(Chooser {
            width,
            most,
            options: arena.buffer(options)?,
            edits: arena.buffer(edits)?,
            mask_rows: arena.buffer(mask_rows)?,
            masks: arena.buffer(masks)?,
            chosen: arena.buffer(chosen)?,
            scratch: arena.buffer(scratch)?,
        })
    }

    /// Chooses a token for each of `options`, after `edits` and `masks`, which change `logits`: (rows, width). No choice has two
    /// edits of one token, and no row two choices where there are any edits of it. A mask is of a row, bit `t % 32` of word `t / 32`
    /// says whether token `t` may be chosen, and a token beyond the last word may not. [`Chooser::read`] waits for the tokens.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn choose(
        &mut self,
        gpu: &Gpu,
        logits: &mut Buf<f32>,
        options: &[ChoiceOptions],
        edits: &[LogitEdit],
        masks: &[(u32, &[u32])],
    ) -> Result<(), CudaError> {
        let width = self.width;
        assert!(options.len() <= self.most, "{} choices, room for {}", options.len(), self.most);
        let rows = logits.len() / width;
        assert!(options.iter().all(|options| (options.row as usize) < rows), "no such row");
        self.options.write(options)?;
        for edits in edits.chunks(EDITS_AT_ONCE) {
            let known = |edit: &LogitEdit| {
                (edit.choice as usize) < options.len() && (edit.token as usize) < width
            };
            assert!(edits.iter().all(known), "an edit of what is not there");
            self.edits.write(edits)?;
            let params = EditParams {
                logits: logits.address(),
                options: self.options.address(),
                edits: self.edits.address(),
                width: width as i32,
                count: edits.len() as i32,
            };
            gpu.launch("edit_logits", [edits.len().div_ceil(256), 1, 1], 256, 0, &params)?;
        }
        for masks in masks.chunks(MASKS_AT_ONCE) {
            self.mask(gpu, logits, masks)?;
        }
        self.launch(gpu, logits, options.len())
    }

    fn mask(
        &mut self,
        gpu: &Gpu,
        logits: &mut Buf<f32>,
        masks: &[(u32, &[u32])],
    ) -> Result<(), CudaError> {
        let (width, words_each) = (self.width, self.width.div_ceil(32));
        let rows: Vec<u32> = masks.iter().map(|(row, _)| *row).collect();
        assert!(rows.iter().all(|row| (*row as usize) < logits.len() / width), "no such row");
        let mut words = vec![0; masks.len() * words_each];
        for (to, (_, from)) in words.chunks_mut(words_each).zip(masks) {
            to.iter_mut().zip(*from).for_each(|(to, from)| *to = *from);
        }
        self.mask_rows.write(&rows)?;
        self.masks.write(&words)?;
        let params = MaskParams {
            logits: logits.address(),
            rows: self.mask_rows.address(),
            words: self.masks.address(),
            width: width as i32,
            words_each: words_each as i32,
        };
        gpu.launch("mask_logits", [width.div_ceil(256), masks.len(), 1], 256, 0, &params)
    }

    fn launch(&self, gpu: &Gpu, logits: &Buf<f32>, choices: usize) -> Result<(), CudaError> {
        // Blocks that wait for one another are a cluster, which older devices do not have.
        let most = if gpu.info().capability >= (9, 0) { MOST_SLICES } else { 1 };
        let slices = (self.width / LEAST_SLICE).next_power_of_two().min(most);
        let slice = self.width.div_ceil(slices).next_multiple_of(4);
        // The kernel has some for itself.
        let keeps = 4 * slice + (20 << 10) <= gpu.info().shared_bytes;
        let params = ChooseParams {
            logits: logits.address(),
            options: self.options.address(),
            chosen: self.chosen.address(),
            scratch: self.scratch.address(),
            width: self.width as i32,
            slice: slice as i32,
            keeps: keeps.into(),
            unused: 0,
        };
        let shared = if keeps { 4 * slice } else { 0 };
        gpu.launch_clusters("choose", [slices, choices, 1], 1024, shared, &params)
    }

    /// What was chosen for the first `count` of the options, after everything that was launched.
    ///
    /// # Errors
    /// When the driver or anything launched before fails.
    pub fn read(&self, landing: &mut Landing, count: usize) -> Result<Vec<Choice>, CudaError> {
        let mut words = vec![0; count];
        landing.read(&self.chosen, &mut words)?;
        Ok(words.into_iter().map(Choice::from_word).collect())
    }
}
