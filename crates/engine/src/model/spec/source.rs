//! Where weights come from.

/// Where a weight comes from: tensors of the checkpoint, and the shape that the model needs them to have.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorSource {
    /// The tensor's name, or the pattern that several names have in common; see [`Layout`].
    pub name: String,
    /// Outputs, of all experts together; 1 for a vector.
    pub rows: usize,
    /// Inputs; the length of a vector, of all experts together.
    pub cols: usize,
    /// How the file stores it.
    pub layout: Layout,
    /// How many equal weights lie one after another, one for each expert; `None` where there is but one network.
    pub experts: Option<usize>,
    /// Which rows of the tensor (elements of a vector), in which order.
    pub order: Rows,
    /// Added to every element of a vector when it is loaded.
    pub plus: f32,
}

/// How a file stores a weight. With experts, what is said here is one expert's part of a tensor with one dimension more,
/// unless said otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// (cols)
    Vector,
    /// (rows, cols)
    RowMajor,
    /// (cols, rows), as the `Conv1D` module of GPT-2 in `transformers` has it.
    Transposed,
    /// (rows, cols), a tensor of its own for each expert: the expert's number stands in the place of `{}` in the name.
    TensorForEach,
    /// MXFP4 as two tensors of bytes, as gpt-oss is published: the numbers (rows, cols / 32, 16), element `2 i` in the
    /// low half of byte `i`, and the exponents (rows, cols / 32). Their names are the name and these endings.
    Mxfp4Pair {
        /// After the name for the numbers.
        blocks: &'static str,
        /// After the name for the exponents.
        scales: &'static str,
    },
}

/// Which rows of a tensor make a weight, in its order. What is said here holds for each expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// All as they are.
    All,
    /// Those from `start` on, of a tensor that has `of`.
    From {
        /// The first.
        start: usize,
        /// Rows of the tensor.
        of: usize,
    },
    /// Every `step`th from `start` on.
    Every {
        /// The first.
        start: usize,
        /// From one to the next.
        step: usize,
    },
    /// All, those of each head from [`super::RopeStyle::Halves`] brought in the order of [`super::RopeStyle::Pairs`].
    HalvesToPairs {
        /// Rows of a head.
        head_dim: usize,
    },
}

impl Rows {
    /// Rows that the tensor has, if the weight has `rows`.
    pub fn in_file(self, rows: usize) -> usize {
        match self {
            Rows::All | Rows::HalvesToPairs { .. } => rows,
            Rows::From { of, .. } => of,
            Rows::Every { step, .. } => rows.saturating_mul(step),
        }
    }

    /// The row of the tensor that is row `row` of the weight.
    pub fn source(self, row: usize) -> usize {
        match self {
            Rows::All => row,
            Rows::From { start, .. } => start + row,
            Rows::Every { start, step } => start + row * step,
            Rows::HalvesToPairs { head_dim } => {
                let (head, element) = (row / head_dim, row % head_dim);
                head * head_dim + element % 2 * (head_dim / 2) + element / 2
            }
        }
    }
}

impl TensorSource {
    /// A vector of `cols` elements.
    pub fn vector(name: impl Into<String>, cols: usize) -> Self {
        Self::matrix(name, 1, cols, Layout::Vector)
    }

    /// A matrix of `rows` outputs and `cols` inputs.
    pub fn matrix(name: impl Into<String>, rows: usize, cols: usize, layout: Layout) -> Self {
        let name = name.into();
        TensorSource { name, rows, cols, layout, experts: None, order: Rows::All, plus: 0.0 }
    }

    /// The same for each of `experts` experts.
    pub fn for_each_of(mut self, experts: usize) -> Self {
        match self.layout {
            Layout::Vector => self.cols = self.cols.saturating_mul(experts),
            _ => self.rows = self.rows.saturating_mul(experts),
        }
        self.experts = Some(experts);
        self
    }

    /// The same from these rows of the tensor.
    pub fn with_order(self, order: Rows) -> Self {
        TensorSource { order, ..self }
    }

    /// The same with `plus` added to every element of the vector.
    pub fn with_plus(self, plus: f32) -> Self {
        TensorSource { plus, ..self }
    }

    /// Elements of the weight.
    pub fn elements(&self) -> usize {
        self.rows.saturating_mul(self.cols)
    }

    /// Outputs of one expert (elements of its vector), or of the one network.
    pub fn rows_of_each(&self) -> usize {
        let all = if self.layout == Layout::Vector { self.cols } else { self.rows };
        all / self.experts.unwrap_or(1).max(1)
    }

    /// The shape that the tensor must have in the file, outermost dimension first; of the numbers for a pair.
    pub fn shape_in_file(&self) -> Vec<usize> {
        let rows = self.order.in_file(self.rows_of_each());
        let each = match self.layout {
            Layout::Vector => vec![rows],
            Layout::RowMajor | Layout::TensorForEach => vec![rows, self.cols],
            Layout::Transposed => vec![self.cols, rows],
            Layout::Mxfp4Pair { .. } => vec![rows, self.cols / 32, 16],
        };
        match self.experts {
            Some(experts) if self.layout != Layout::TensorForEach => [vec![experts], each].concat(),
            _ => each,
        }
    }

    /// The tensors that it comes from, with the shape of each.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let shape = self.shape_in_file();
        match self.layout {
            Layout::Vector | Layout::RowMajor | Layout::Transposed => {
                vec![(self.name.clone(), shape)]
            }
            Layout::TensorForEach => (0..self.experts.unwrap_or(1))
                .map(|expert| (self.name.replace("{}", &expert.to_string()), shape.clone()))
                .collect(),
            Layout::Mxfp4Pair { blocks, scales } => {
                let exponents = shape[..shape.len() - 1].to_vec();
                vec![
                    (format!("{}{blocks}", self.name), shape),
                    (format!("{}{scales}", self.name), exponents),
                ]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_in_the_file_are_those_of_the_layout() {
        let shape = |source: TensorSource| source.shape_in_file();
        assert_eq!(shape(TensorSource::vector("v", 5)), [5]);
        assert_eq!(shape(TensorSource::vector("v", 5).for_each_of(3)), [3, 5]);
        let matrix = |layout| TensorSource::matrix("m.{}", 4, 64, layout);
        assert_eq!(shape(matrix(Layout::Transposed)), [64, 4]);
        assert_eq!(shape(matrix(Layout::RowMajor).for_each_of(3)), [3, 4, 64]);
        let every = Rows::Every { start: 1, step: 2 };
        assert_eq!(shape(matrix(Layout::RowMajor).for_each_of(3).with_order(every)), [3, 8, 64]);
        let from = Rows::From { start: 2, of: 9 };
        assert_eq!(shape(matrix(Layout::RowMajor).with_order(from)), [9, 64]);
        let each = matrix(Layout::TensorForEach).for_each_of(2).tensors();
        assert_eq!(each, [("m.0".to_string(), vec![4, 64]), ("m.1".to_string(), vec![4, 64])]);
        let pair = Layout::Mxfp4Pair { blocks: "_b", scales: "_s" };
        let pair = TensorSource::matrix("m", 4, 64, pair).for_each_of(3).tensors();
        assert_eq!(
            pair,
            [("m_b".to_string(), vec![3, 4, 2, 16]), ("m_s".to_string(), vec![3, 4, 2])]
        );
    }

    #[test]
    fn halves_become_pairs_within_each_head() {
        let order = Rows::HalvesToPairs { head_dim: 6 };
        let rows: Vec<usize> = (0..12).map(|row| order.source(row)).collect();
        assert_eq!(rows, [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]);
    }
}
