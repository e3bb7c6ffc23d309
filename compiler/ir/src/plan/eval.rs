//! A plain interpreter of plans: the oracle for compiled kernels. Slow on purpose, checks every access.
//!
//! An element is an f64 that its buffer's type can represent: stores round, arithmetic between them does not. Packed weights are
//! plain row-major `[N, K]` here; packing is the runtime's business.

use half::{bf16, f16};

use super::{
    Access, Binary, BufferKind, Expr, ExprId, Kernel, Plan, Reduction, Rhs, Stage, Unary, WeightRecipe, sweep,
};
use crate::types::{DType, Size, Sizes};

/// Why a plan cannot run on this memory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvalError {
    #[error("no value was given for a symbol of {0}")]
    Unknown(Size),
    #[error("kernel {kernel}: element {index} of argument a{arg}, which has {len}")]
    OutOfBounds {
        kernel: String,
        arg: usize,
        index: i64,
        len: usize,
    },
    #[error("buffer {name} has {found} elements, its shape has {wanted}")]
    Length { name: String, found: usize, wanted: i64 },
}

/// Rounds a value to what `dtype` can represent.
pub fn round(x: f64, dtype: DType) -> f64 {
    match dtype {
        DType::F32 => x as f32 as f64,
        DType::BF16 => bf16::from_f32(x as f32).to_f64(),
        DType::F16 => f16::from_f32(x as f32).to_f64(),
        DType::I32 | DType::I1 => x,
    }
}

/// `[rows, dim / 2]`: cos or sin of `row * theta^(-2 i / dim)`, as the runtime makes it.
pub fn rope_table(rows: i64, dim: i64, theta: f64, sin: bool) -> Vec<f64> {
    let angle = |row: i64, i: i64| row as f64 * theta.powf(-2.0 * i as f64 / dim as f64);
    let at = |row, i| if sin { angle(row, i).sin() } else { angle(row, i).cos() };
    (0..rows)
        .flat_map(|row| (0..dim / 2).map(move |i| round(at(row, i), DType::F32)))
        .collect()
}

/// One zeroed vector per buffer of the plan; rotary tables are filled, the caller fills inputs, states and weights.
pub fn allocate(plan: &Plan, sizes: &Sizes) -> Result<Vec<Vec<f64>>, EvalError> {
    let one = |b: &super::Buffer| match &b.kind {
        BufferKind::Weight(WeightRecipe::RopeTable {
            rows,
            dim,
            theta_bits,
            sin,
        }) => Ok(rope_table(*rows, *dim, f64::from_bits(*theta_bits), *sin)),
        _ => Ok(vec![0.0; eval(&Size::product(&b.shape), sizes)? as usize]),
    };
    plan.buffers.iter().map(one).collect()
}

/// Runs all launches on `memory`, one vector per buffer (see `allocate`). Buffers of one slot share their memory, as in the
/// runtime: what a plan overwrites too early is wrong here too. Temporaries' own vectors are not touched.
pub fn run(plan: &Plan, sizes: &Sizes, memory: &mut [Vec<f64>]) -> Result<(), EvalError> {
    let mut lens = vec![];
    for (b, data) in plan.buffers.iter().zip(memory.iter()) {
        let wanted = eval(&Size::product(&b.shape), sizes)?;
        if data.len() as i64 != wanted {
            return Err(EvalError::Length {
                name: b.name.clone(),
                found: data.len(),
                wanted,
            });
        }
        lens.push(data.len());
    }
    let mut slots: Vec<Vec<f64>> = vec![];
    for launch in &plan.launches {
        let kernel = &plan.kernels[launch.kernel];
        let mut args: Vec<Vec<f64>> = vec![];
        for &b in &launch.args {
            args.push(match plan.buffers[b].kind {
                BufferKind::Temp { slot } => {
                    let slot = slot as usize;
                    slots.resize(slots.len().max(slot + 1), vec![]);
                    let mut data = std::mem::take(&mut slots[slot]);
                    data.resize(lens[b], f64::NAN);
                    data
                }
                _ => std::mem::take(&mut memory[b]),
            });
        }
        let result = run_kernel(kernel, sizes, &mut args);
        for (&b, data) in launch.args.iter().zip(args) {
            match plan.buffers[b].kind {
                BufferKind::Temp { slot } => slots[slot as usize] = data,
                _ => memory[b] = data,
            }
        }
        result?;
    }
    Ok(())
}

/// Runs one kernel on its arguments' memory.
pub fn run_kernel(kernel: &Kernel, sizes: &Sizes, args: &mut [Vec<f64>]) -> Result<(), EvalError> {
    if let Some(gradient) = &kernel.sweep_gradient {
        return super::sweep_gradient::run(kernel, gradient, sizes, args);
    }
    let resolve = |all: &[Size]| all.iter().map(|s| eval(s, sizes)).collect::<Result<Vec<_>, _>>();
    let outer = resolve(&kernel.outer)?;
    let cols = eval(&kernel.cols, sizes)?;
    let depends = kernel.column_dependent();
    let mut at = vec![0; outer.len() + 1];
    for point in 0..outer.iter().product::<i64>() {
        let mut rest = point;
        for d in (0..outer.len()).rev() {
            at[d] = rest % outer[d];
            rest /= outer[d];
        }
        let mut reduced = vec![f64::NAN; kernel.stages.len()];
        for (s, stage) in kernel.stages.iter().enumerate() {
            let per_column = match stage {
                Stage::Reduce { op, .. } => {
                    reduced[s] = if *op == Reduction::Sum { 0.0 } else { f64::NEG_INFINITY };
                    true
                }
                Stage::Store { to, .. } => to.strides.last().is_some_and(|s| s.coef != 0),
            };
            debug_assert!(per_column || stage.operands().iter().all(|&e| !depends[e]));
            for col in 0..if per_column { cols } else { 1 } {
                at[outer.len()] = col;
                let mut scalar = Scalar {
                    kernel,
                    sizes,
                    at: &at,
                    reduced: &reduced,
                    args,
                    memo: vec![None; kernel.exprs.len()],
                };
                match stage {
                    Stage::Reduce { op, value } => {
                        let x = scalar.get(*value)?;
                        let acc = &mut reduced[s];
                        *acc = match op {
                            Reduction::Sum => *acc + x,
                            Reduction::Max => acc.max(x),
                            Reduction::LogSumExp => {
                                let max = acc.max(x);
                                max + ((*acc - max).exp() + (x - max).exp()).ln()
                            }
                        };
                    }
                    Stage::Store { to, value, when } => {
                        if when.map_or(Ok(1.0), |c| scalar.get(c))? == 0.0 {
                            continue;
                        }
                        let x = round(scalar.get(*value)?, kernel.args[to.arg].dtype);
                        let index = scalar.index(to, &at)?;
                        args[to.arg][index] = x;
                    }
                }
            }
        }
    }
    Ok(())
}

pub(super) fn eval(size: &Size, sizes: &Sizes) -> Result<i64, EvalError> {
    size.eval(sizes).ok_or_else(|| EvalError::Unknown(size.clone()))
}

/// The expressions of a kernel at one point.
pub(super) struct Scalar<'a> {
    pub(super) kernel: &'a Kernel,
    pub(super) sizes: &'a Sizes,
    /// Position in each outer dimension, then the column.
    pub(super) at: &'a [i64],
    reduced: &'a [f64],
    pub(super) args: &'a [Vec<f64>],
    memo: Vec<Option<f64>>,
}

impl Scalar<'_> {
    pub(super) fn get(&mut self, id: ExprId) -> Result<f64, EvalError> {
        if let Some(x) = self.memo[id] {
            return Ok(x);
        }
        let truth = |b: bool| f64::from(u8::from(b));
        let kernel = self.kernel;
        let x = match &kernel.exprs[id] {
            Expr::Load(a) => {
                let index = self.index(a, self.at)?;
                self.args[a.arg][index]
            }
            Expr::Float(bits) => f64::from(f32::from_bits(*bits)),
            Expr::Int(n) => f64::from(*n),
            Expr::Index(d) => self.at[*d] as f64,
            Expr::SizeOf(s) => eval(s, self.sizes)? as f64,
            Expr::Reduced(s) => self.reduced[*s],
            Expr::Acc => self.contraction(false)?,
            Expr::AccAlso => self.contraction(true)?,
            Expr::RowSquares => self.row_squares()?,
            Expr::Swept(p) => sweep::swept(self, *p)?,
            Expr::Lse(p) => super::sweep::lse(self, *p)?,
            Expr::Unary(op, a) => {
                let x = self.get(*a)?;
                match op {
                    Unary::Neg => -x,
                    Unary::Exp => x.exp(),
                    Unary::Log => x.ln(),
                    Unary::Rsqrt => 1.0 / x.sqrt(),
                    Unary::Sigmoid => 1.0 / (1.0 + (-x).exp()),
                    Unary::Silu => x / (1.0 + (-x).exp()),
                    Unary::ToFloat => x,
                    Unary::RoundBf16 => round(x, DType::BF16),
                }
            }
            Expr::Binary(op, a, b) => {
                let (x, y) = (self.get(*a)?, self.get(*b)?);
                match op {
                    Binary::Add => x + y,
                    Binary::Sub => x - y,
                    Binary::Mul => x * y,
                    Binary::Div => x / y,
                    Binary::Max => x.max(y),
                    Binary::Rem => x % y,
                    Binary::Lt => truth(x < y),
                    Binary::Le => truth(x <= y),
                    Binary::Eq => truth(x == y),
                    Binary::And => truth(x != 0.0 && y != 0.0),
                }
            }
            // Both sides are computed, as vector code does: neither may leave its buffer.
            Expr::Select(c, a, b) => {
                let (c, x, y) = (self.get(*c)?, self.get(*a)?, self.get(*b)?);
                if c != 0.0 { x } else { y }
            }
        };
        self.memo[id] = Some(x);
        Ok(x)
    }

    /// The element an access names, checked; `at` gives the position (its last entry is the column, or k).
    pub(super) fn index(&mut self, a: &Access, at: &[i64]) -> Result<usize, EvalError> {
        let mut index = eval(&a.offset, self.sizes)?;
        for (stride, at) in a.strides.iter().zip(at) {
            index += eval(stride, self.sizes)? * at;
        }
        if let Some((e, stride)) = &a.indirect {
            index += self.get(*e)? as i64 * eval(stride, self.sizes)?;
        }
        self.checked(a.arg, index)
    }

    pub(super) fn checked(&self, arg: usize, index: i64) -> Result<usize, EvalError> {
        let len = self.args[arg].len();
        let inside = usize::try_from(index).ok().filter(|&i| i < len);
        inside.ok_or_else(|| EvalError::OutOfBounds {
            kernel: self.kernel.name.clone(),
            arg,
            index,
            len,
        })
    }

    fn contraction(&mut self, also: bool) -> Result<f64, EvalError> {
        let Some(c) = &self.kernel.contraction else {
            return Ok(f64::NAN);
        };
        let b = if also { c.also.as_ref().unwrap_or(&c.b) } else { &c.b };
        let ks = eval(&c.k, self.sizes)?;
        let mut position = self.at.to_vec();
        let n = position[position.len() - 1];
        let mut acc = 0.0;
        for k in 0..ks {
            *position.last_mut().expect("the column is always there") = k;
            let a = self.index(&c.a, &position)?;
            let a = self.args[c.a.arg][a];
            let (arg, index) = match b {
                Rhs::Packed { arg } => (*arg, n * ks + k),
                Rhs::KContiguous { arg, offset, strides } => (*arg, self.rhs(offset, strides, n)? + k),
                Rhs::NContiguous { arg, offset, strides } => (*arg, self.rhs(offset, strides, k)? + n),
            };
            let rounded = matches!(b, Rhs::Packed { .. }) && self.kernel.args[arg].dtype == DType::BF16;
            let a = if rounded { round(a, DType::BF16) } else { a };
            let at = self.checked(arg, index)?;
            acc += a * self.args[arg][at];
        }
        Ok(acc)
    }

    fn row_squares(&mut self) -> Result<f64, EvalError> {
        let Some(c) = &self.kernel.contraction else {
            return Ok(f64::NAN);
        };
        let mut at = self.at.to_vec();
        let mut sum = 0.0;
        for k in 0..eval(&c.k, self.sizes)? {
            *at.last_mut().expect("the column is always there") = k;
            let a = self.index(&c.a, &at)?;
            sum += self.args[c.a.arg][a].powi(2);
        }
        Ok(sum)
    }

    fn rhs(&self, offset: &Size, strides: &[Size], inner: i64) -> Result<i64, EvalError> {
        let mut index = eval(offset, self.sizes)?;
        let batch = strides.len() - 1;
        for (stride, at) in strides.iter().zip(self.at[..batch].iter().chain([&inner])) {
            index += eval(stride, self.sizes)? * at;
        }
        Ok(index)
    }
}
