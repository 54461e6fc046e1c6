//! The numbers of the decoders that came after GPT-2, and reading them from either format.

use super::super::ModelError;
use super::super::spec::{Activation, Choice, ChoiceWeights, Nonlinearity};
use super::Factors;
use super::json::Json;
use super::keys::Keys;
use super::rope::{RopeNumbers, Scaling};
use crate::format::Checkpoint;
use crate::format::gguf::Metadata;

/// The numbers of a decoder with RMSNorm, rotary positions and a gated feed-forward part, whichever file they come from.
#[derive(Clone, Debug)]
pub struct Numbers {
    /// Rows of the token embedding.
    pub vocab_size: usize,
    /// The most positions a sequence can have.
    pub context_length: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width between the products of the feed-forward part, of one expert if there are several.
    pub intermediate: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Added to the mean square.
    pub eps: f32,
    /// What a query times a key is multiplied with.
    pub scale: f32,
    /// What a token's row of the embedding is multiplied with.
    pub embedding_scale: f32,
    /// Between the products of the feed-forward part.
    pub nonlinearity: Nonlinearity,
    /// Which products have biases.
    pub biases: Biases,
    /// The experts of every layer; `None` where there is one network.
    pub experts: Option<Experts>,
    /// The rotations; [`LayerNumbers::rope`] is a place in this list.
    pub ropes: Vec<RopeNumbers>,
    /// One for each layer.
    pub layers: Vec<LayerNumbers>,
    /// `cap * tanh(logit / cap)` takes the place of each logit.
    pub soft_cap: Option<f32>,
    /// Rows of a head of its own; `None` where the token embedding serves.
    pub head_rows: Option<usize>,
}

/// What may differ from layer to layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerNumbers {
    /// How many of the latest positions a query sees, its own included; all of them if `None`.
    pub window: Option<usize>,
    /// Its rotation, by its place in [`Numbers::ropes`].
    pub rope: usize,
}

/// Which products have biases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Biases {
    /// Queries, keys and values.
    pub qkv: bool,
    /// The output of attention.
    pub attention_output: bool,
    /// Gate, up and down.
    pub feed_forward: bool,
    /// The router.
    pub router: bool,
}

/// The experts of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Experts {
    /// How many there are.
    pub count: usize,
    /// Which compute a row.
    pub choice: Choice,
}

/// What a family takes for granted where `config.json` says nothing; `None` where it has to say it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Defaults {
    /// `vocab_size`
    pub vocab_size: Option<usize>,
    /// `max_position_embeddings`
    pub context_length: Option<usize>,
    /// `num_attention_heads`
    pub heads: Option<usize>,
    /// `num_key_value_heads`; as many as heads if `None`.
    pub kv_heads: Option<usize>,
    /// `head_dim`; the hidden size divided by the heads if `None`.
    pub head_dim: Option<usize>,
    /// `rms_norm_eps`
    pub eps: f32,
    /// `tie_word_embeddings`
    pub tied: bool,
}

/// The most elements that the queries of a row have together: far beyond any model, far from overflow.
const MAX_WIDTH: usize = 1 << 30;

impl Numbers {
    /// The numbers that most families have in `config.json`. Rotations, windows and experts are for the family to add; all
    /// layers have no window and the first rotation. `activation` is that of the gate.
    ///
    /// # Errors
    /// What is missing, contradicts itself, or asks for more layers than there are tensors.
    pub fn from_hugging_face(
        checkpoint: &Checkpoint,
        config: &Json,
        defaults: &Defaults,
        activation: Activation,
    ) -> Result<Self, ModelError> {
        let size = |key: &str, default: Option<usize>| match config.size(key)?.or(default) {
            Some(size) => Ok(size),
            None => Err(config.missing(key, "a positive integer")),
        };
        let hidden = size("hidden_size", None)?;
        let heads = size("num_attention_heads", defaults.heads)?;
        // `null` means as many as heads, whatever the default.
        let kv_default =
            if config.is_null("num_key_value_heads") { None } else { defaults.kv_heads };
        let kv_heads = config.size("num_key_value_heads")?.or(kv_default).unwrap_or(heads);
        let head_dim = match config.size("head_dim")?.or(defaults.head_dim) {
            Some(head_dim) => head_dim,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                let expected = format!("a divisor of the hidden size {hidden}");
                return Err(config.error("num_attention_heads", &expected, heads));
            }
        };
        let layers = size("num_hidden_layers", None)?;
        let numbers = Numbers {
            vocab_size: size("vocab_size", defaults.vocab_size)?,
            context_length: size("max_position_embeddings", defaults.context_length)?,
            hidden,
            intermediate: size("intermediate_size", None)?,
            heads,
            kv_heads,
            head_dim,
            eps: config.f32("rms_norm_eps")?.unwrap_or(defaults.eps),
            scale: (head_dim as f64).powf(-0.5) as f32,
            embedding_scale: 1.0,
            nonlinearity: Nonlinearity::Gated(activation),
            biases: Biases::default(),
            experts: None,
            ropes: Vec::new(),
            layers: layers_of(checkpoint, layers)
                .map_err(|(expected, found)| config.error("num_hidden_layers", &expected, found))?,
            soft_cap: None,
            head_rows: None,
        };
        numbers.check(&HUGGING_FACE_KEYS, &|key, expected, found| {
            config.error(key, expected, found)
        })?;
        Ok(numbers)
    }

    /// The numbers that most architectures have in GGUF metadata; with biases where the first layer has them. Rotations,
    /// windows and experts are for the family to add; all layers have no window and the first rotation.
    ///
    /// # Errors
    /// What is missing, contradicts itself, or asks for more layers than there are tensors.
    pub fn from_gguf(keys: &Keys, activation: Activation) -> Result<Self, ModelError> {
        let tensor = |name: &str| keys.checkpoint.tensor(name);
        let rows = |name: &str| tensor(name).and_then(|tensor| tensor.shape.first().copied());
        let hidden = keys.required_size("embedding_length")?;
        let heads = keys.required_size("attention.head_count")?;
        let kv_heads = keys.size("attention.head_count_kv")?.unwrap_or(heads);
        let head_dim = match keys.size("attention.key_length")? {
            Some(head_dim) => head_dim,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                let expected = format!("a divisor of the embedding length {hidden}");
                return Err(keys.error("attention.head_count", &expected, heads));
            }
        };
        if let Some(value_length) = keys.size("attention.value_length")?
            && value_length != head_dim
        {
            let expected = format!("{head_dim}, the width of the keys");
            return Err(keys.error("attention.value_length", &expected, value_length));
        }
        let eps = keys.f32("attention.layer_norm_rms_epsilon")?;
        let layers = keys.required_size("block_count")?;
        let has = |part: &str| tensor(&format!("blk.0.{part}.bias")).is_some();
        let numbers = Numbers {
            // A missing embedding is reported by name when the weights are checked.
            vocab_size: rows("token_embd.weight").unwrap_or(0),
            context_length: keys.required_size("context_length")?,
            hidden,
            intermediate: keys.required_size("feed_forward_length")?,
            heads,
            kv_heads,
            head_dim,
            eps: eps.ok_or_else(|| {
                keys.error("attention.layer_norm_rms_epsilon", "a number", "nothing")
            })?,
            scale: (head_dim as f64).powf(-0.5) as f32,
            embedding_scale: 1.0,
            nonlinearity: Nonlinearity::Gated(activation),
            biases: Biases {
                qkv: has("attn_q") || has("attn_qkv"),
                attention_output: has("attn_output"),
                feed_forward: has("ffn_up") || has("ffn_up_exps"),
                router: has("ffn_gate_inp"),
            },
            experts: None,
            ropes: Vec::new(),
            layers: layers_of(keys.checkpoint, layers)
                .map_err(|(expected, found)| keys.error("block_count", &expected, found))?,
            soft_cap: None,
            head_rows: rows("output.weight"),
        };
        numbers.check(&GGUF_KEYS, &|key, expected, found| keys.error(key, expected, found))?;
        Ok(numbers)
    }

    /// The numbers of a published size in the manner of Llama 2, with a head of its own: layers, width, width of the
    /// feed-forward part, heads with KV heads and their width, and vocabulary.
    pub fn of_shape(
        layers: usize,
        hidden: usize,
        intermediate: usize,
        (heads, kv_heads, head_dim): (usize, usize, usize),
        vocab_size: usize,
    ) -> Self {
        Numbers {
            vocab_size,
            context_length: 2048,
            hidden,
            intermediate,
            heads,
            kv_heads,
            head_dim,
            eps: 1e-5,
            scale: (head_dim as f64).powf(-0.5) as f32,
            embedding_scale: 1.0,
            nonlinearity: Nonlinearity::Gated(Activation::Silu),
            biases: Biases::default(),
            experts: None,
            ropes: vec![RopeNumbers { base: 1e4, dims: head_dim, scaling: Scaling::None }],
            layers: vec![LayerNumbers { window: None, rope: 0 }; layers],
            soft_cap: None,
            head_rows: Some(vocab_size),
        }
    }

    fn check(
        &self,
        keys: &CheckedKeys,
        error: &dyn Fn(&str, &str, String) -> ModelError,
    ) -> Result<(), ModelError> {
        let Numbers { heads, kv_heads, head_dim, eps, .. } = *self;
        if heads.checked_mul(head_dim).is_none_or(|width| width > MAX_WIDTH) {
            let expected = format!("at most {} for {heads} heads", MAX_WIDTH / heads);
            return Err(error(keys.head_dim, &expected, head_dim.to_string()));
        }
        if !heads.is_multiple_of(kv_heads) {
            let expected = format!("a divisor of the {heads} heads");
            return Err(error(keys.kv_heads, &expected, kv_heads.to_string()));
        }
        if !(eps.is_finite() && eps >= 0.0) {
            return Err(error(keys.eps, "a number that is not negative", eps.to_string()));
        }
        Ok(())
    }

    /// Refuses rotations of a part of the head, which the family does not have.
    ///
    /// # Errors
    /// `partial_rotary_factor`, where it is not 1.
    pub fn refuse_partial_rotation(&self, config: &Json) -> Result<(), ModelError> {
        match self.ropes.iter().find(|rope| rope.dims != self.head_dim) {
            Some(rope) => {
                let found = rope.dims as f64 / self.head_dim as f64;
                Err(config.error("partial_rotary_factor", "1, the whole head", found))
            }
            None => Ok(()),
        }
    }

    /// Gives every layer a window, unless there is none or it is 0.
    pub fn set_window(&mut self, window: Option<usize>) {
        self.layers.iter_mut().for_each(|layer| layer.window = window.filter(|window| *window > 0));
    }

    /// Refuses what GGUF has no key for; `yarn_truncates` is what the family's GGUF files take for granted.
    ///
    /// # Errors
    /// `truncate`, where YaRN's bounds are otherwise.
    pub fn refuse_what_gguf_has_no_key_for(
        &self,
        config: &Json,
        yarn_truncates: bool,
    ) -> Result<(), ModelError> {
        let truncates = self.ropes.iter().find_map(|rope| match rope.scaling {
            Scaling::Yarn { truncate, .. } => Some(truncate),
            _ => None,
        });
        match truncates.filter(|truncates| *truncates != yarn_truncates) {
            Some(found) => {
                let expected = format!("{yarn_truncates}, the only one that GGUF files have");
                Err(config.error("truncate", &expected, found))
            }
            None => Ok(()),
        }
    }

    /// The metadata of `architecture` with the keys of [`Numbers::from_gguf`], the window and the experts, and those of
    /// the first rotation; and the tensors of factors that belong in the file too.
    pub fn to_gguf(&self, architecture: &str) -> (Metadata, Vec<Factors>) {
        let mut metadata = Metadata::new(architecture.to_string());
        metadata.set("general.architecture", architecture);
        metadata.set("general.type", "model");
        let key = |name: &str| format!("{architecture}.{name}");
        // Sizes in config.json were read as u32.
        let mut set = |name: &str, number: usize| {
            metadata.set(&key(name), u32::try_from(number).unwrap_or(u32::MAX));
        };
        for (name, number) in [
            ("block_count", self.layers.len()),
            ("context_length", self.context_length),
            ("embedding_length", self.hidden),
            ("feed_forward_length", self.intermediate),
            ("attention.head_count", self.heads),
            ("attention.head_count_kv", self.kv_heads),
            ("attention.key_length", self.head_dim),
            ("attention.value_length", self.head_dim),
        ] {
            set(name, number);
        }
        if let Some(window) = self.layers.iter().find_map(|layer| layer.window) {
            set("attention.sliding_window", window);
        }
        if let Some(experts) = self.experts {
            set("expert_count", experts.count);
            set("expert_used_count", experts.choice.count);
            set("expert_feed_forward_length", self.intermediate);
        }
        metadata.set(&key("attention.layer_norm_rms_epsilon"), self.eps);
        if let Some(cap) = self.soft_cap {
            metadata.set(&key("final_logit_softcapping"), cap);
        }
        let rope = self.ropes.first();
        let factors = rope.map(|rope| rope.to_gguf(architecture, &mut metadata));
        (metadata, factors.unwrap_or_default())
    }
}

impl Experts {
    /// From `config.json`, where they have these keys.
    ///
    /// # Errors
    /// What is missing; more chosen experts than there are.
    pub fn from_hugging_face(
        config: &Json,
        count_key: &str,
        chosen_key: &str,
        weights: ChoiceWeights,
    ) -> Result<Self, ModelError> {
        let (count, chosen) = (config.required_size(count_key)?, config.required_size(chosen_key)?);
        check_experts(count, chosen).map_err(|(is_chosen, expected)| {
            let (key, found) = if is_chosen { (chosen_key, chosen) } else { (count_key, count) };
            config.error(key, &expected, found)
        })?;
        Ok(Experts { count, choice: Choice { count: chosen, weights } })
    }

    /// From `expert_count` and `expert_used_count`.
    ///
    /// # Errors
    /// What is missing; more chosen experts than there are.
    pub fn from_gguf(keys: &Keys, weights: ChoiceWeights) -> Result<Self, ModelError> {
        let (count_key, chosen_key) = ("expert_count", "expert_used_count");
        let (count, chosen) = (keys.required_size(count_key)?, keys.required_size(chosen_key)?);
        check_experts(count, chosen).map_err(|(is_chosen, expected)| {
            let (key, found) = if is_chosen { (chosen_key, chosen) } else { (count_key, count) };
            keys.error(key, &expected, found)
        })?;
        Ok(Experts { count, choice: Choice { count: chosen, weights } })
    }
}

/// More experts than any model has, few enough to list them.
const MAX_EXPERTS: usize = 1 << 16;

/// Whether the chosen ones are wrong, and what was expected.
fn check_experts(count: usize, chosen: usize) -> Result<(), (bool, String)> {
    if count > MAX_EXPERTS {
        return Err((false, format!("at most {MAX_EXPERTS}")));
    }
    if chosen > count {
        return Err((true, format!("at most the {count} experts that there are")));
    }
    Ok(())
}

/// So many layers, unless there cannot be so many: what was expected then, and what was found.
fn layers_of(
    checkpoint: &Checkpoint,
    layers: usize,
) -> Result<Vec<LayerNumbers>, (String, String)> {
    // Before a list of that many layers is built from an untrusted number.
    let tensors = checkpoint.tensors().len();
    if layers > tensors {
        return Err((format!("no more than its {tensors} tensors allow"), layers.to_string()));
    }
    Ok(vec![LayerNumbers { window: None, rope: 0 }; layers])
}

/// What a format calls the numbers that are checked.
struct CheckedKeys {
    kv_heads: &'static str,
    head_dim: &'static str,
    eps: &'static str,
}

const HUGGING_FACE_KEYS: CheckedKeys =
    CheckedKeys { kv_heads: "num_key_value_heads", head_dim: "head_dim", eps: "rms_norm_eps" };

const GGUF_KEYS: CheckedKeys = CheckedKeys {
    kv_heads: "attention.head_count_kv",
    head_dim: "attention.key_length",
    eps: "attention.layer_norm_rms_epsilon",
};

/// The activation at `key`, by the names that `transformers` has for those we know.
///
/// # Errors
/// Another name.
pub fn activation(config: &Json, key: &str, default: &str) -> Result<Activation, ModelError> {
    Ok(match config.string(key)?.unwrap_or(default) {
        "gelu" | "gelu_python" => Activation::GeluErf,
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_python_tanh" | "gelu_fast" | "gelu_accurate" => {
            Activation::GeluTanh
        }
        "quick_gelu" => Activation::GeluSigmoid,
        "relu" => Activation::Relu,
        "silu" | "swish" => Activation::Silu,
        "tanh" => Activation::Tanh,
        other => {
            let known =
                "gelu, gelu_new, gelu_pytorch_tanh, gelu_fast, quick_gelu, relu, silu or tanh";
            return Err(config.error(key, known, other));
        }
    })
}
