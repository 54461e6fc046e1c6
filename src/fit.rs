//! What of a model fits into how much memory.

use crate::memory;
use oxgpt_engine::backend::cuda;
use oxgpt_engine::engine::{Device, EngineError, EngineOptions, MemoryPlan};
use oxgpt_engine::model::Model;
use serde::Serialize;

/// Sequences beyond which nobody asks.
const MOST_SEQUENCES: usize = 4096;

/// What fits into so many bytes.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Fit {
    /// The bytes.
    pub bytes: u64,
    /// Whether what was asked for does.
    pub fits: bool,
    /// The most positions of as many sequences as were asked for; null if not even one fits.
    pub largest_context: Option<usize>,
    /// The most sequences of as many positions as were asked for; null if not even one fits.
    pub largest_sequences: Option<usize>,
}

impl Fit {
    /// What of `model` fits into `bytes`, where `options` were asked for.
    ///
    /// # Errors
    /// When the context is not one that the model has.
    pub fn new(model: &Model, options: &EngineOptions, bytes: u64) -> Result<Self, EngineError> {
        let limit = model.description.decoder.context_length;
        let limit = options.kv_tokens.map_or(limit, |tokens| limit.min(tokens));
        let fits = |options: EngineOptions| {
            MemoryPlan::new(model, &options).map(|plan| plan.total() <= bytes)
        };
        Ok(Fit {
            bytes,
            fits: fits(options.clone())?,
            largest_context: largest(limit, |context| {
                fits(EngineOptions { context: Some(context), ..options.clone() })
            })?,
            largest_sequences: largest(MOST_SEQUENCES, |sequences| {
                fits(EngineOptions { sequences, ..options.clone() })
            })?,
        })
    }

    /// Whether it fits, and what would.
    pub fn in_words(&self, needed: u64, (sequences, context): (usize, usize)) -> String {
        let count = |count: usize, what: &str| match count {
            1 => format!("1 {what}"),
            _ => format!("{count} {what}s"),
        };
        let most = match self.largest_sequences {
            Some(MOST_SEQUENCES..) => format!("{MOST_SEQUENCES} sequences or more"),
            Some(sequences) => count(sequences, "sequence"),
            None => String::new(),
        };
        let sequences = count(sequences, "sequence");
        let by_context = self.largest_context.map(|context| {
            format!("{sequences} of up to {} (--ctx {context})", count(context, "position"))
        });
        let by_sequences =
            self.largest_sequences.map(|_| format!("{most} of {}", count(context, "position")));
        let would: Vec<String> = by_context.into_iter().chain(by_sequences).collect();
        match (self.fits, would.is_empty()) {
            (true, _) => format!("fits; so would {}", would.join(", or ")),
            (false, true) => "does not fit, with any context".to_string(),
            (false, false) => {
                format!("{needed} bytes do not fit; {} would", would.join(", or "))
            }
        }
    }
}

/// The largest number from 1 to `most` for which `fits` holds, where it holds up to some number.
fn largest<E>(most: usize, fits: impl Fn(usize) -> Result<bool, E>) -> Result<Option<usize>, E> {
    if most == 0 || !fits(1)? {
        return Ok(None);
    }
    // `low` fits; what is above `high` does not.
    let (mut low, mut high) = (1, most);
    while low < high {
        let middle = high - (high - low) / 2;
        if fits(middle)? {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    Ok(Some(low))
}

/// A device, its name, and what fits into what it has free.
#[derive(Debug, Serialize)]
pub struct DeviceFit {
    /// As `--device` takes it.
    pub device: String,
    /// What it is called.
    pub name: Option<String>,
    /// Null where the system does not say what is free.
    pub fit: Option<Fit>,
    /// What was asked for takes there.
    pub total: u64,
}

impl DeviceFit {
    /// What it takes, of what is free.
    pub fn in_words(&self) -> String {
        let free = match &self.fit {
            Some(fit) => {
                format!("{} into the {} that are free", verdict(fit.fits), size(fit.bytes))
            }
            None => "what is free is unknown".to_string(),
        };
        let name = self.name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
        format!("takes {}, {free}{name}", size(self.total))
    }
}

/// Whether something fits.
pub fn verdict(fits: bool) -> &'static str {
    if fits { "fits" } else { "does not fit" }
}

/// Bytes as people read them, in the decimal units of the other commands.
pub fn size(bytes: u64) -> String {
    let bytes = bytes as f64;
    match bytes {
        _ if bytes < 1e6 => format!("{:.1} kB", bytes / 1e3),
        _ if bytes < 1e9 => format!("{:.1} MB", bytes / 1e6),
        _ => format!("{:.2} GB", bytes / 1e9),
    }
}

/// The CPU and the GPUs of this machine, and what of a model fits there.
///
/// # Errors
/// When the context is not one that the model has.
pub fn devices(model: &Model, asked: &EngineOptions) -> Result<Vec<DeviceFit>, EngineError> {
    let gpus = (0..).map_while(|ordinal| {
        let gpu = cuda::device(ordinal).ok()?;
        Some((Device::Cuda(ordinal), Some(gpu.name)))
    });
    let all = std::iter::once((Device::Cpu, None)).chain(gpus);
    all.map(|(device, name)| {
        let options = EngineOptions { device, chunk: device.chunk(), ..asked.clone() };
        let fit = memory::available(device).map(|bytes| Fit::new(model, &options, bytes));
        Ok(DeviceFit {
            device: device.to_string(),
            name,
            fit: fit.transpose()?,
            total: MemoryPlan::new(model, &options)?.total(),
        })
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_is_found() {
        for most in [1, 2, 7, 4096] {
            for bound in [0, 1, 2, 5, 6, 7, 8, 4095, 4096, 5000] {
                let found = largest(most, |n| Ok::<_, ()>(n <= bound)).unwrap();
                assert_eq!(found, Some(bound.min(most)).filter(|n| *n > 0), "{bound} of {most}");
            }
        }
        assert_eq!(largest(0, |_| Ok::<_, ()>(true)), Ok(None));
        assert_eq!(largest(5, |_| Err(3)), Err(3));
    }

    #[test]
    fn words_say_what_would_fit() {
        let fit = |fits, largest_context, largest_sequences| {
            let bytes = 100;
            Fit { bytes, fits, largest_context, largest_sequences }.in_words(120, (1, 64))
        };
        assert_eq!(
            fit(true, Some(512), Some(4096)),
            "fits; so would 1 sequence of up to 512 positions (--ctx 512), or 4096 sequences or more of 64 positions"
        );
        assert_eq!(
            fit(false, Some(1), None),
            "120 bytes do not fit; 1 sequence of up to 1 position (--ctx 1) would"
        );
        assert_eq!(fit(false, None, None), "does not fit, with any context");
    }

    #[test]
    fn sizes_have_a_unit() {
        assert_eq!(size(36_864), "36.9 kB");
        assert_eq!(size(12_345_678), "12.3 MB");
        assert_eq!(size(80_000_000_000), "80.00 GB");
    }
}
