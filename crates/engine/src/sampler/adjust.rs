//! What happens to single logits before a token is chosen, as a list: for a device that keeps the logits.

use super::Sampler;

/// What happens to the logit of one token.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Adjustment {
    /// Whose logit.
    pub token: u32,
    /// Added first.
    pub bias: Option<f32>,
    /// How often the token is in the answer, if it is in that or in the prompt and there are penalties.
    pub generated: Option<u32>,
    /// It becomes -inf.
    pub forbidden: bool,
}

impl Sampler {
    /// What happens to logits beside masks, ascending by token and once for each; the tokens of `except` must not be chosen.
    pub fn adjustments(&self, except: &[u32]) -> Vec<Adjustment> {
        let biases = self.options.logit_bias.iter();
        let biases = biases.map(|&(token, bias)| Adjustment {
            token,
            bias: Some(bias),
            ..Default::default()
        });
        let seen = self.counts.seen().iter().map(|&(token, generated)| Adjustment {
            token,
            generated: Some(generated),
            ..Default::default()
        });
        let except =
            except.iter().map(|&token| Adjustment { token, forbidden: true, ..Default::default() });
        let all = biases.chain(seen).chain(except);
        // Tokens beyond the logits have nothing to adjust.
        let mut all: Vec<Adjustment> =
            all.filter(|adjustment| (adjustment.token as usize) < self.vocab_size).collect();
        all.sort_by_key(|adjustment| adjustment.token);
        all.dedup_by(|next, kept| {
            let same = next.token == kept.token;
            if same {
                kept.bias = kept.bias.or(next.bias);
                kept.generated = kept.generated.or(next.generated);
                kept.forbidden |= next.forbidden;
            }
            same
        });
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler::SamplingOptions;

    #[test]
    fn a_token_is_named_once() {
        let logit_bias = vec![(7, 1.5), (2, -3.0)];
        let options =
            SamplingOptions { presence_penalty: 1.0, logit_bias, ..SamplingOptions::default() };
        let mut sampler = Sampler::new(options, 10, &[7, 3, 40]).unwrap();
        sampler.accept(3);
        sampler.accept(3);
        let none = Adjustment::default();
        assert_eq!(
            sampler.adjustments(&[9, 3, 9, 12]),
            [
                Adjustment { token: 2, bias: Some(-3.0), ..none },
                Adjustment { token: 3, generated: Some(2), forbidden: true, ..none },
                Adjustment { token: 7, bias: Some(1.5), generated: Some(0), ..none },
                Adjustment { token: 9, forbidden: true, ..none },
            ]
        );
    }

    #[test]
    fn without_penalties_nothing_is_counted() {
        let mut sampler = Sampler::new(SamplingOptions::default(), 10, &[1, 2]).unwrap();
        sampler.accept(3);
        assert_eq!(sampler.adjustments(&[]), []);
    }
}
