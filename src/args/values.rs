//! Values of options, and how they are typed.

use oxgpt_engine::format::DType;
use oxgpt_engine::kv::KvType;
use oxgpt_engine::quant;
use oxgpt_engine::quantize::Target;
use std::str::FromStr;

/// Where a model should run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceArg {
    Auto,
    Cpu,
    Reference,
    Cuda(usize),
}

impl FromStr for DeviceArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(DeviceArg::Auto),
            "cpu" => Ok(DeviceArg::Cpu),
            "reference" => Ok(DeviceArg::Reference),
            "cuda" => Ok(DeviceArg::Cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|index| index.parse().ok())
                .map(DeviceArg::Cuda)
                .ok_or_else(|| "expected auto, cpu, reference or cuda[:N]".to_string()),
        }
    }
}

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum KvArg {
    /// F32 on the CPU, F16 on a GPU
    Full,
    /// 8 bits, and a scale for each 32
    Q8,
}

impl From<KvArg> for KvType {
    fn from(arg: KvArg) -> Self {
        match arg {
            KvArg::Full => KvType::Full,
            KvArg::Q8 => KvType::Q8,
        }
    }
}

/// Token ids, separated by commas or spaces, with or without the brackets of a JSON array.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenList(pub Vec<u32>);

impl FromStr for TokenList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let inner = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        let ids = inner.split([',', ' ', '\n']).map(str::trim).filter(|id| !id.is_empty());
        ids.map(|id| id.parse().map_err(|_| format!("`{id}` is not a token id")))
            .collect::<Result<_, _>>()
            .map(TokenList)
    }
}

/// A token and what is added to its logit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogitBias(pub u32, pub f32);

impl FromStr for LogitBias {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (id, bias) = text.split_once('=').ok_or("expected ID=BIAS")?;
        let id = id.parse().map_err(|_| format!("`{id}` is not a token id"))?;
        let bias = bias.parse().map_err(|_| format!("`{bias}` is not a number"))?;
        Ok(LogitBias(id, bias))
    }
}

/// A weight type that we can run, whichever case its name is in.
pub(super) fn parse_dtype(text: &str) -> Result<DType, String> {
    let known = quant::SUPPORTED.iter().copied();
    known.clone().find(|dtype| dtype.name().eq_ignore_ascii_case(text)).ok_or_else(|| {
        format!("expected one of {}", known.map(DType::name).collect::<Vec<_>>().join(", "))
    })
}

pub(super) fn parse_target(text: &str) -> Result<Target, String> {
    Target::from_name(text).ok_or_else(|| format!("expected one of {}", Target::names().join(", ")))
}

pub(super) fn parse_positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err("expected a positive integer".to_string()),
    }
}

pub(super) fn parse_threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if (1..=1024).contains(&number) => Ok(number),
        _ => Err("expected an integer from 1 to 1024".to_string()),
    }
}

/// Bytes, with a decimal (kB, MB, GB) or binary (KiB, MiB, GiB, or K, M, G) unit.
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1000,
        "mb" => 1000 * 1000,
        "gb" => 1000 * 1000 * 1000,
        "tb" => 1000 * 1000 * 1000 * 1000,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        _ => return Err("expected a number with a unit such as MiB or GiB".to_string()),
    };
    let number: f64 = number.parse().map_err(|_| "expected a number first".to_string())?;
    let bytes = number * factor as f64;
    if bytes >= 2f64.powi(63) {
        return Err("expected less than 8 EiB".to_string());
    }
    Ok(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read() {
        assert_eq!("cuda:3".parse(), Ok(DeviceArg::Cuda(3)));
        assert_eq!("cuda".parse(), Ok(DeviceArg::Cuda(0)));
        assert!("cuda:".parse::<DeviceArg>().is_err());
        assert!("gpu".parse::<DeviceArg>().is_err());
    }

    #[test]
    fn token_lists_are_read() {
        assert_eq!("1,2,3".parse(), Ok(TokenList(vec![1, 2, 3])));
        assert_eq!("[1, 2]\n".parse(), Ok(TokenList(vec![1, 2])));
        assert_eq!("".parse(), Ok(TokenList(vec![])));
        assert!("1,x".parse::<TokenList>().is_err());
        assert!("-1".parse::<TokenList>().is_err());
    }

    #[test]
    fn sizes_are_read() {
        assert_eq!(parse_size("16GiB"), Ok(16 << 30));
        assert_eq!(parse_size("1.5 GB"), Ok(1_500_000_000));
        assert_eq!(parse_size("512"), Ok(512));
        for wrong in ["", "GiB", "1 parsec", "-1", "NaN", "9EiB", "99999999999TiB"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }
}
