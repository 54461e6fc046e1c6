//! Passes of generated tokens alone, which are recorded when they come up for the second time.

use oxgpt_kernels::Graph;

/// What the launches of a pass depend on, beside the arrays of its batch.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct PassShape {
    pub rows: usize,
    pub logit_rows: usize,
    /// Parts that the longest context is cut into.
    pub parts: usize,
}

struct Pass {
    shape: PassShape,
    graph: Option<Graph>,
}

/// Recorded passes that are kept; a context grows out of one every few hundred tokens.
const MOST_PASSES: usize = 16;

/// Rows of the largest pass that is recorded: with more, the launches take less time than what is launched.
pub(super) const MOST_RECORDED_ROWS: usize = 64;

/// The passes that came up.
#[derive(Default)]
pub(super) struct Passes {
    passes: Vec<Pass>,
}

/// What is to be done about a pass.
pub(super) enum Known<'a> {
    /// Computed as it comes. Passes are not recorded when they come up for the first time: many come up only once, and the
    /// first launch of a kernel may load it.
    No,
    /// Recorded while it is computed.
    Again,
    /// Run as it was recorded.
    Recorded(&'a Graph),
}

impl Passes {
    /// Looks a pass up, and remembers it.
    pub fn look_up(&mut self, shape: PassShape) -> Known<'_> {
        let Some(index) = self.passes.iter().position(|pass| pass.shape == shape) else {
            if self.passes.len() == MOST_PASSES {
                self.passes.remove(0);
            }
            self.passes.push(Pass { shape, graph: None });
            return Known::No;
        };
        match &self.passes[index].graph {
            None => Known::Again,
            Some(graph) => Known::Recorded(graph),
        }
    }

    /// Keeps what was recorded.
    pub fn keep(&mut self, shape: PassShape, graph: Graph) {
        if let Some(pass) = self.passes.iter_mut().find(|pass| pass.shape == shape) {
            pass.graph = Some(graph);
        }
    }
}
