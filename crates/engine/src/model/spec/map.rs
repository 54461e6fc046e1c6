//! One decoder to another with other weights.

use super::{Attention, Decoder, Embedding, FeedForward, Head, Layer, Linear, Norm, Router};

/// Turns one kind of weight into another: names into checked names, names into a backend's matrices.
pub trait MapWeights<M, V> {
    /// The new matrix.
    type Matrix;
    /// The new vector.
    type Vector;
    /// Why a weight could not be turned.
    type Error;

    /// Turns a matrix.
    fn matrix(&mut self, matrix: &M) -> Result<Self::Matrix, Self::Error>;
    /// Turns a vector.
    fn vector(&mut self, vector: &V) -> Result<Self::Vector, Self::Error>;
}

impl<M, V> Decoder<M, V> {
    /// The same decoder with every weight turned by `map`, in the order in which the forward pass uses them.
    pub fn map<F: MapWeights<M, V>>(
        &self,
        map: &mut F,
    ) -> Result<Decoder<F::Matrix, F::Vector>, F::Error> {
        let embedding = Embedding {
            tokens: map.matrix(&self.embedding.tokens)?,
            vocab_size: self.embedding.vocab_size,
            scale: self.embedding.scale,
            positions: self.embedding.positions.as_ref().map(|m| map.matrix(m)).transpose()?,
        };
        let layers = self.layers.iter().map(|layer| layer.map(map)).collect::<Result<_, _>>()?;
        let final_norm = self.final_norm.map(map)?;
        let head = Head {
            weight: self.head.weight.as_ref().map(|m| map.matrix(m)).transpose()?,
            rows: self.head.rows,
            soft_cap: self.head.soft_cap,
        };
        Ok(Decoder {
            hidden: self.hidden,
            context_length: self.context_length,
            embedding,
            ropes: self.ropes.clone(),
            layers,
            final_norm,
            head,
        })
    }
}

impl<M, V> Layer<M, V> {
    fn map<F: MapWeights<M, V>>(
        &self,
        map: &mut F,
    ) -> Result<Layer<F::Matrix, F::Vector>, F::Error> {
        Ok(Layer { attention: self.attention.map(map)?, feed_forward: self.feed_forward.map(map)? })
    }
}

impl<M, V> Attention<M, V> {
    fn map<F: MapWeights<M, V>>(
        &self,
        map: &mut F,
    ) -> Result<Attention<F::Matrix, F::Vector>, F::Error> {
        Ok(Attention {
            norm: self.norm.map(map)?,
            qkv: self.qkv.iter().map(|linear| linear.map(map)).collect::<Result<_, _>>()?,
            query_norm: map_optional(&self.query_norm, map)?,
            key_norm: map_optional(&self.key_norm, map)?,
            rope: self.rope,
            sinks: self.sinks.as_ref().map(|sinks| map.vector(sinks)).transpose()?,
            output: self.output.map(map)?,
            post_norm: map_optional(&self.post_norm, map)?,
            shape: self.shape,
        })
    }
}

impl<M, V> FeedForward<M, V> {
    fn map<F: MapWeights<M, V>>(
        &self,
        map: &mut F,
    ) -> Result<FeedForward<F::Matrix, F::Vector>, F::Error> {
        let norm = self.norm.map(map)?;
        let router = match &self.router {
            Some(Router { linear, experts, choice }) => {
                Some(Router { linear: linear.map(map)?, experts: *experts, choice: *choice })
            }
            None => None,
        };
        Ok(FeedForward {
            norm,
            router,
            up: self.up.iter().map(|linear| linear.map(map)).collect::<Result<_, _>>()?,
            nonlinearity: self.nonlinearity,
            down: self.down.map(map)?,
            post_norm: map_optional(&self.post_norm, map)?,
            intermediate: self.intermediate,
        })
    }
}

impl<M, V> Linear<M, V> {
    fn map<F: MapWeights<M, V>>(
        &self,
        map: &mut F,
    ) -> Result<Linear<F::Matrix, F::Vector>, F::Error> {
        let weight = map.matrix(&self.weight)?;
        let bias = self.bias.as_ref().map(|bias| map.vector(bias)).transpose()?;
        Ok(Linear { weight, bias })
    }
}

impl<V> Norm<V> {
    fn map<M, F: MapWeights<M, V>>(&self, map: &mut F) -> Result<Norm<F::Vector>, F::Error> {
        let weight = map.vector(&self.weight)?;
        let bias = self.bias.as_ref().map(|bias| map.vector(bias)).transpose()?;
        Ok(Norm { kind: self.kind, weight, bias, eps: self.eps })
    }
}

fn map_optional<M, V, F: MapWeights<M, V>>(
    norm: &Option<Norm<V>>,
    map: &mut F,
) -> Result<Option<Norm<F::Vector>>, F::Error> {
    norm.as_ref().map(|norm| norm.map(map)).transpose()
}
