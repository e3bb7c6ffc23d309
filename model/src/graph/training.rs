//! The graph of a training step: forward, backward and optimizer in one entry point.
//!
//! Trained tensors are states (`param.{tensor}`, f32 masters, cast where the model computes in bf16), and so are AdamW's moments
//! (`m.`, `v.`) and, where micro-batches are accumulated, the gradients' sums (`sum.`). Schedules are the caller's: they are numbers in
//! `hyper`, so that a learning rate is no reason to compile.

use ir::gradient::GRAD;
use ir::{DType, Function, Module, Param, TensorType, ValueId};

use super::{GraphError, Objective, Options, Phase, check, differentiate, entry, input, layer, loss_of_rows};
use crate::config::Config;

/// Groups of tensors with a learning rate and a weight decay of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Group {
    Gates,
    Norms,
    Rest,
}

impl Group {
    pub const ALL: [Group; 3] = [Group::Gates, Group::Norms, Group::Rest];

    pub fn of(tensor: &str) -> Group {
        if tensor.starts_with("model.gate_projections.") {
            Group::Gates
        } else if tensor.ends_with("norm.weight") {
            Group::Norms
        } else {
            Group::Rest
        }
    }
}

/// What `hyper` [Hyper::LEN] f32 says, in this order.
///
/// AdamW (Loshchilov and Hutter, arXiv 1711.05101): m = beta1 m + (1 - beta1) g, v = beta2 v + (1 - beta2) g^2,
/// w -= lr (c1 m / (sqrt(c2 v) + eps) + decay w).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hyper {
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    /// Gradients are scaled to at most this global norm; infinity: not at all.
    pub clip: f64,
    /// Steps taken, this one included: what the moments' bias is corrected by.
    pub step: u64,
    /// By group.
    pub rate: [f64; 3],
    pub decay: [f64; 3],
}

impl Hyper {
    pub const LEN: usize = 14;

    pub fn values(&self) -> [f32; Hyper::LEN] {
        let corrected = |beta: f64| 1.0 / (1.0 - beta.powf(self.step as f64));
        let [r0, r1, r2] = self.rate;
        let [d0, d1, d2] = self.decay;
        [
            self.beta1,
            1.0 - self.beta1,
            self.beta2,
            1.0 - self.beta2,
            self.eps,
            self.clip.min(1e30),
            corrected(self.beta1),
            corrected(self.beta2),
            r0,
            r1,
            r2,
            d0,
            d1,
            d2,
        ]
        .map(|x| x as f32)
    }

    /// Of a step that changes nothing, and only tells its loss and norm.
    pub fn still(&self) -> [f32; Hyper::LEN] {
        let mut values = self.values();
        values[..4].copy_from_slice(&[1.0, 0.0, 1.0, 0.0]);
        values[8..].fill(0.0);
        values
    }
}

/// Prefix of the states that are trained tensors.
pub const PARAM: &str = "param.";

/// The module with `train_step(tokens, targets, weights, hyper)` → `loss`, `norm` (of the gradients, before clipping), [1, 1] f32;
/// with `loss(tokens, targets)` → `nll` [B, T] for validation; and, if micro-batches are accumulated, `accumulate(tokens, targets,
/// weights)` → `loss`, whose gradients the next `train_step` adds to its own. All are for the objective's batch and context.
pub fn training(
    config: &Config,
    options: &Options,
    objective: &Objective,
    accumulated: bool,
) -> Result<Module, GraphError> {
    check(options)?;
    let layers = layer::functions(config, options, Phase::Full);
    let mut module = Module {
        functions: layers.clone(),
    };
    module
        .functions
        .push(entry("loss", config, options, Phase::Full, &layers));
    module.functions.push(loss_of_rows(config, options, objective, &layers));
    let trained = |name: &str| (0..config.layers).any(|i| (objective.wanted)(&name.replace("{i}", &i.to_string())));
    module.functions.iter_mut().for_each(|f| masters(f, &trained));
    let is_master = |name: &str| name.strip_prefix(PARAM).is_some_and(objective.wanted);
    let mut module = differentiate(module, objective, &is_master, options.dtype)?;
    let gradients = module.functions.pop().unwrap_or_else(|| Function::new("gradients"));
    module.functions.retain(|f| f.name != "objective");
    if accumulated {
        module.functions.push(accumulate(gradients.clone()));
    }
    module.functions.push(train_step(gradients, accumulated));
    Ok(module)
}

/// Turns the trained weights of a function into states, and casts them to the type that the function knows them in.
fn masters(f: &mut Function, trained: &dyn Fn(&str) -> bool) {
    let ops = std::mem::take(&mut f.ops);
    let mut renamed = vec![];
    let mut known: Vec<(String, ValueId)> = vec![];
    for (v, kind) in std::mem::take(&mut f.params) {
        let name = match kind {
            Param::Weight(name) if trained(&name) => name,
            kind => {
                f.params.push((v, kind));
                continue;
            }
        };
        let dtype = f.ty(v).dtype;
        // A tied embedding is two parameters and one state.
        let master = known.iter().find(|k| k.0 == name).map_or(v, |k| k.1);
        if master == v {
            f.params.push((v, Param::State(format!("{PARAM}{name}"))));
            f.values[v.0 as usize].ty.dtype = DType::F32;
            known.push((name, v));
        }
        renamed.push((v, f.cast(master, dtype)));
    }
    for mut op in ops {
        for operand in &mut op.operands {
            if let Some((_, cast)) = renamed.iter().find(|(v, _)| v == operand) {
                *operand = *cast;
            }
        }
        f.ops.push(op);
    }
}

/// The gradients that the function returns, and their tensors' names; it returns them no longer.
fn take_gradients(f: &mut Function) -> Vec<(String, ValueId)> {
    let named = |r: &(String, ValueId)| Some((r.0.strip_prefix(GRAD)?.strip_prefix(PARAM)?.to_string(), r.1));
    let gradients = f.returns.iter().filter_map(named).collect();
    f.returns.retain(|r| !r.0.starts_with(GRAD));
    gradients
}

/// The state of this name; the function may know it already.
fn state(f: &mut Function, name: String, ty: &TensorType) -> ValueId {
    let kind = Param::State(name.clone());
    match f.params.iter().find(|p| p.1 == kind) {
        Some(known) => known.0,
        None => f.param(&name.replace(['.', '-'], "_"), ty.clone(), kind),
    }
}

fn accumulate(mut f: Function) -> Function {
    f.name = "accumulate".to_string();
    for (name, g) in take_gradients(&mut f) {
        let ty = f.ty(g).clone();
        let sum = state(&mut f, format!("sum.{name}"), &ty);
        let more = f.add(sum, g);
        f.update(sum, more);
    }
    f
}

fn train_step(mut f: Function, accumulated: bool) -> Function {
    f.name = "train_step".to_string();
    let mut gradients = take_gradients(&mut f);
    let hyper = input(&mut f, "hyper", [Hyper::LEN as i64], DType::F32);
    let one = TensorType::new([1i64], DType::F32);
    let number = |f: &mut Function, at: i64| f.slice(hyper, 0, at, one.clone());
    let [beta1, rest1, beta2, rest2, eps, clip, c1, c2] = std::array::from_fn(|i| number(&mut f, i as i64));
    let rates: [ValueId; 3] = std::array::from_fn(|i| number(&mut f, 8 + i as i64));
    let decays: [ValueId; 3] = std::array::from_fn(|i| number(&mut f, 11 + i as i64));

    let mut total = None;
    for (name, g) in &mut gradients {
        let ty = f.ty(*g).clone();
        if accumulated {
            let sum = state(&mut f, format!("sum.{name}"), &ty);
            let both = f.add(sum, *g);
            // The sum's memory holds the whole gradient now, and is emptied when it was used.
            *g = f.update(sum, both);
        }
        let mut squares = f.mul(*g, *g);
        for axis in (0..ty.rank()).rev() {
            squares = f.reduce_sum(squares, axis as i64);
        }
        let squares = f.reshape(squares, one.clone());
        total = Some(match total {
            None => squares,
            Some(t) => f.add(t, squares),
        });
    }
    let Some(total) = total else { return f };
    let tiny = f.scalar(1e-30, DType::F32);
    let norm = root(&mut f, total, tiny);
    let most = f.max(norm, clip);
    let scale = f.div(clip, most);

    for (name, g) in gradients {
        let (ty, group) = (f.ty(g).clone(), Group::of(&name) as usize);
        let d = f.mul(g, scale);
        let moment = |f: &mut Function, prefix: &str, value: ValueId, beta: ValueId, rest: ValueId| {
            let old = state(f, format!("{prefix}.{name}"), &ty);
            let (kept, new) = (f.mul(old, beta), f.mul(value, rest));
            let sum = f.add(kept, new);
            f.update(old, sum)
        };
        let m = moment(&mut f, "m", d, beta1, rest1);
        let squared = f.mul(d, d);
        let v = moment(&mut f, "v", squared, beta2, rest2);
        let w = state(&mut f, format!("{PARAM}{name}"), &ty);
        let m = f.mul(m, c1);
        let v = f.mul(v, c2);
        let size = root(&mut f, v, tiny);
        let size = f.add(size, eps);
        let direction = f.div(m, size);
        let shrink = f.mul(w, decays[group]);
        let direction = f.add(direction, shrink);
        let by = f.mul(direction, rates[group]);
        let new = f.sub(w, by);
        f.update(w, new);
        if accumulated {
            let zero = f.constant(0.0, ty.clone());
            f.update(g, zero);
        }
    }
    let norm = f.reshape(norm, TensorType::new([1i64, 1], DType::F32));
    f.returns("norm", norm);
    f
}

/// sqrt(x) = x / sqrt(max(x, tiny)): 0 at 0.
fn root(f: &mut Function, x: ValueId, tiny: ValueId) -> ValueId {
    let safe = f.max(x, tiny);
    let by = f.unary("rsqrt", safe);
    f.mul(x, by)
}
