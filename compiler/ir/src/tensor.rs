//! Concrete tensors for the evaluator: f64 elements that the tensor's type can represent.

use crate::plan::eval::round;
use crate::types::DType;

#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub shape: Vec<usize>,
    pub dtype: DType,
    /// Row-major.
    pub data: Vec<f64>,
}

impl Tensor {
    pub fn new(shape: &[usize], dtype: DType, data: Vec<f64>) -> Tensor {
        assert_eq!(
            shape.iter().product::<usize>(),
            data.len(),
            "shape {shape:?} against {} elements",
            data.len()
        );
        Tensor {
            shape: shape.to_vec(),
            dtype,
            data,
        }
    }

    /// One value per index.
    pub fn from_fn(shape: &[usize], dtype: DType, mut f: impl FnMut(&[usize]) -> f64) -> Tensor {
        let mut data = Vec::with_capacity(shape.iter().product());
        let mut index = vec![0; shape.len()];
        for _ in 0..shape.iter().product() {
            data.push(f(&index));
            advance(&mut index, shape);
        }
        Tensor {
            shape: shape.to_vec(),
            dtype,
            data,
        }
    }

    pub fn at(&self, index: &[usize]) -> f64 {
        self.data[self.offset(index)]
    }

    pub fn offset(&self, index: &[usize]) -> usize {
        debug_assert_eq!(index.len(), self.shape.len());
        index.iter().zip(&self.shape).fold(0, |acc, (i, n)| acc * n + i)
    }

    /// The element that numpy's broadcasting reads at `index` of a larger shape.
    pub fn broadcast_at(&self, index: &[usize]) -> f64 {
        let skip = index.len() - self.shape.len();
        let offset = self
            .shape
            .iter()
            .zip(&index[skip..])
            .fold(0, |acc, (n, i)| acc * n + if *n == 1 { 0 } else { *i });
        self.data[offset]
    }

    /// Every element rounded to the tensor's type.
    pub fn rounded(mut self) -> Tensor {
        let dtype = self.dtype;
        self.data.iter_mut().for_each(|x| *x = round(*x, dtype));
        self
    }
}

/// The next index in row-major order.
pub fn advance(index: &mut [usize], shape: &[usize]) {
    for (i, n) in index.iter_mut().zip(shape).rev() {
        *i += 1;
        if *i < *n {
            return;
        }
        *i = 0;
    }
}
