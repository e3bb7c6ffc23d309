//! Views: a value as strided memory. Reshape, transpose and slice are arithmetic on strides here.

use ir::{DType, Dim, Size};

/// Memory of one buffer read as a tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    pub buffer: usize,
    pub dtype: DType,
    pub offset: Size,
    pub shape: Vec<Size>,
    /// In elements; 0 for dimensions of size 1 where nothing else is known.
    pub strides: Vec<Size>,
}

/// Row-major strides of a dense tensor.
pub fn dense(shape: &[Size]) -> Vec<Size> {
    let mut strides = vec![Size::one(); shape.len()];
    for i in (0..shape.len().saturating_sub(1)).rev() {
        strides[i] = &strides[i + 1] * &shape[i + 1];
    }
    strides
}

pub fn sizes(shape: &[Dim]) -> Vec<Size> {
    shape.iter().map(Dim::size).collect()
}

impl View {
    pub fn whole(buffer: usize, dtype: DType, shape: Vec<Size>) -> View {
        let strides = dense(&shape);
        View {
            buffer,
            dtype,
            offset: Size::from(0),
            shape,
            strides,
        }
    }

    pub fn is_dense(&self) -> bool {
        let wanted = dense(&self.shape);
        self.offset.coef == 0
            && self
                .strides
                .iter()
                .zip(&wanted)
                .zip(&self.shape)
                .all(|((s, w), n)| s == w || n.as_const() == Some(1))
    }

    pub fn transposed(&self, perm: &[i64]) -> View {
        let pick = |list: &[Size]| perm.iter().map(|p| list[*p as usize].clone()).collect();
        View {
            shape: pick(&self.shape),
            strides: pick(&self.strides),
            ..self.clone()
        }
    }

    /// `size` elements along `axis` from `begin`. `None` where the offset would be a sum of unlike terms.
    pub fn sliced(&self, axis: usize, begin: i64, size: Size) -> Option<View> {
        let mut view = self.clone();
        view.shape[axis] = size;
        let step = &self.strides[axis] * &Size::from(begin);
        if step.coef != 0 {
            view.offset = match view.offset.coef {
                0 => step,
                _ if view.offset.syms == step.syms => Size {
                    coef: view.offset.coef + step.coef,
                    syms: step.syms,
                },
                _ => return None,
            };
        }
        Some(view)
    }

    /// The strides under another shape, if there are some: groups of dimensions must be dense in themselves.
    pub fn reshaped(&self, shape: &[Size]) -> Option<View> {
        let real = |s: &Size| s.as_const() != Some(1);
        let from: Vec<(&Size, &Size)> = self.shape.iter().zip(&self.strides).filter(|(n, _)| real(n)).collect();
        let mut strides = vec![Size::from(0); shape.len()];
        let (mut i, mut j) = (from.len(), shape.len());
        while i > 0 || j > 0 {
            if j > 0 && !real(&shape[j - 1]) {
                j -= 1;
                continue;
            }
            if i == 0 || j == 0 {
                return None;
            }
            // The smallest groups, from the back, that hold equally many elements.
            let (mut old, mut new) = (from[i - 1].0.clone(), shape[j - 1].clone());
            let (old_end, new_end) = (i, j);
            i -= 1;
            j -= 1;
            while old != new {
                let old_divides = divides(&old, &new);
                if old_divides && i > 0 {
                    i -= 1;
                    if *from[i].1 != (from[i + 1].1 * from[i + 1].0) {
                        return None;
                    }
                    old = &old * from[i].0;
                } else if divides(&new, &old) && j > 0 {
                    j -= 1;
                    new = &new * &shape[j];
                } else {
                    return None;
                }
            }
            let mut stride = from[old_end - 1].1.clone();
            for d in (j..new_end).rev() {
                if real(&shape[d]) {
                    strides[d] = stride.clone();
                    stride = &stride * &shape[d];
                }
            }
        }
        Some(View {
            shape: shape.to_vec(),
            strides,
            ..self.clone()
        })
    }

    /// Strides for a larger shape by numpy's rule: 0 where this one has size 1 or no dimension.
    pub fn broadcast_strides(&self, rank: usize) -> Vec<Size> {
        let skip = rank - self.shape.len();
        let own = self.shape.iter().zip(&self.strides);
        let own = own.map(|(n, s)| {
            if n.as_const() == Some(1) {
                Size::from(0)
            } else {
                s.clone()
            }
        });
        std::iter::repeat_n(Size::from(0), skip).chain(own).collect()
    }
}

/// Does `a` divide `b`, whatever the symbols' values?
fn divides(a: &Size, b: &Size) -> bool {
    let mut rest = b.syms.clone();
    let contained = a
        .syms
        .iter()
        .all(|s| rest.iter().position(|r| r == s).map(|at| rest.remove(at)).is_some());
    contained && a.coef != 0 && b.coef % a.coef == 0
}
