//! Which layers have a window.

use super::super::ModelError;
use super::json::Json;
use super::keys::Keys;
use crate::format::gguf::{Array, Value};

/// What `layer_types` says about each of `layers` layers: whether it has a window. `None` where there is no such list.
///
/// # Errors
/// Another number of layers; a kind of layer that we do not have.
pub fn layer_types(config: &Json, layers: usize) -> Result<Option<Vec<bool>>, ModelError> {
    let key = "layer_types";
    let Some(kinds) = config.strings(key)? else { return Ok(None) };
    if kinds.len() != layers {
        return Err(config.error(key, &format!("{layers} kinds, one for each layer"), kinds.len()));
    }
    let is_windowed = |kind: &&str| match *kind {
        "sliding_attention" => Ok(true),
        "full_attention" => Ok(false),
        other => Err(config.error(key, "sliding_attention or full_attention", other)),
    };
    kinds.iter().map(is_windowed).collect::<Result<_, _>>().map(Some)
}

/// What `attention.sliding_window_pattern` says about each of `layers` layers: a list of them, or every how many layers one
/// has no window, the last of each group, `default` where there is no such key.
///
/// # Errors
/// A value that is neither; a list of another length.
pub fn pattern(keys: &Keys, layers: usize, default: usize) -> Result<Vec<bool>, ModelError> {
    let key = "attention.sliding_window_pattern";
    if let Some(Value::Array(Array::Bool(windowed))) = keys.value(key) {
        if windowed.len() != layers {
            let expected = format!("{layers} values, one for each layer");
            return Err(keys.error(key, &expected, windowed.len()));
        }
        return Ok(windowed.clone());
    }
    let every = keys.size(key)?.unwrap_or(default);
    Ok((0..layers).map(|layer| layer % every < every - 1).collect())
}
