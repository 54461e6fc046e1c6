//! Choosing tokens.

use crate::driver::Gpu;
use crate::error::CudaError;
use crate::memory::{Arena, Buf, Event, Pinned};
use crate::params::Params;
use crate::staging::Staging;
use std::collections::VecDeque;

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
struct FollowParams {
    tokens: u64,
    follows: u64,
    chosen: u64,
    rows: i32,
    vocab_size: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct ChooseParams {
    logits: u64,
    options: u64,
    chosen: u64,
    answers: u64,
    scratch: u64,
    width: i32,
    slice: i32,
    keeps: i32,
    unused: i32,
}

const _: () = assert!(size_of::<EditParams>() == 32);
const _: () = assert!(size_of::<MaskParams>() == 32);
const _: () = assert!(size_of::<FollowParams>() == 32);
const _: () = assert!(size_of::<ChooseParams>() == 56);

// SAFETY: `repr(C)`, and the fields are those of the structure in `cuda/sampling.cuh` in their order.
unsafe impl Params for EditParams {}
// SAFETY: as above.
unsafe impl Params for MaskParams {}
// SAFETY: as above.
unsafe impl Params for FollowParams {}
// SAFETY: as above.
unsafe impl Params for ChooseParams {}

/// Choices that can be on their way to the host at once.
const MOST_BEGUN: usize = 2;

/// Where choices come to the host.
struct Answer {
    words: Pinned,
    /// The stream has passed the copy.
    arrived: Event,
}

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
    staging: Staging,
    answers: [Answer; MOST_BEGUN],
    /// The answers that are on their way, each with its length, and where the next one goes.
    begun: VecDeque<(usize, usize)>,
    next: usize,
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
    pub fn new(gpu: &Gpu, arena: &mut Arena, most: usize, width: usize) -> Result<Self, CudaError> {
        let answer =
            || Ok(Answer { words: Pinned::new(gpu, 4 * most)?, arrived: Event::new(gpu)? });
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
            staging: Staging::new(gpu, most * size_of::<ChoiceOptions>(), 1)?,
            answers: [answer()?, answer()?],
            begun: VecDeque::new(),
            next: 0,
        })
    }

    /// Has the kernels loaded that are launched here.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn load(&self, gpu: &Gpu) -> Result<(), CudaError> {
        let kernels = ["edit_logits", "mask_logits", "choose", "follow_chosen", "unstage"];
        kernels.into_iter().try_for_each(|name| gpu.load(name))
    }

    /// Chooses a token for each of `options`, after `edits` and `masks`, which change `logits`: (rows, width). No choice has two
    /// edits of one token, and no row two choices where there are any edits of it. A mask is of a row, bit `t % 32` of word `t / 32`
    /// says whether token `t` may be chosen, and a token beyond the last word may not. [`Chooser::read`] waits for the tokens; twice as
    /// much may be on its way.
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
        assert!(self.begun.len() < MOST_BEGUN, "nobody has read what was chosen before");
        if options.is_empty() {
            self.begun.push_back((self.next, 0));
            return Ok(());
        }
        self.staging.begin()?;
        self.staging.write(&mut self.options, options)?;
        self.staging.end()?;
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
        self.launch(gpu, logits, options.len())?;
        self.answers[self.next].arrived.record()?;
        self.begun.push_back((self.next, options.len()));
        self.next = (self.next + 1) % MOST_BEGUN;
        Ok(())
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
            // Which the device sees at the same address; `read` waits before it looks there.
            answers: self.answers[self.next].words.bytes().as_ptr() as u64,
            scratch: self.scratch.address(),
            width: self.width as i32,
            slice: slice as i32,
            keeps: keeps.into(),
            unused: 0,
        };
        let shared = if keeps { 4 * slice } else { 0 };
        gpu.launch_clusters("choose", [slices, choices, 1], 1024, shared, &params)
    }

    /// What was chosen for each of the options, of the choices that were begun first.
    ///
    /// # Errors
    /// When the driver or anything launched before fails.
    pub fn read(&mut self) -> Result<Vec<Choice>, CudaError> {
        let (answer, count) = self.begun.pop_front().expect("a choice was begun");
        if count == 0 {
            return Ok(Vec::new());
        }
        let Answer { words, arrived } = &self.answers[answer];
        arrived.wait()?;
        let words = words.bytes()[..4 * count].as_chunks::<4>().0.iter();
        Ok(words.map(|word| Choice::from_word(u32::from_ne_bytes(*word))).collect())
    }

    /// `tokens[r] = chosen[follows[r]]`, by the choices that were begun last, for those of the first `rows` rows where `follows` is no
    /// [`FOLLOWS_NONE`]. Where there was none to choose, or it is not below `vocab_size`, it is token 0: nobody looks at what
    /// comes of it.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn follow(
        &self,
        gpu: &Gpu,
        tokens: &mut Buf<u32>,
        follows: &Buf<u32>,
        rows: usize,
        vocab_size: usize,
    ) -> Result<(), CudaError> {
        assert!(rows <= tokens.len() && rows <= follows.len());
        let params = FollowParams {
            tokens: tokens.address(),
            follows: follows.address(),
            chosen: self.chosen.address(),
            rows: rows as i32,
            vocab_size: vocab_size as i32,
        };
        gpu.launch("follow_chosen", [rows.div_ceil(128), 1, 1], 128, 0, &params)
    }
}

/// Of a row whose token is known; see [`Chooser::follow`].
pub const FOLLOWS_NONE: u32 = u32::MAX;
