//! The layer functions: one per mode and phase (`stack`: one per trip), and the equations of a layer they share.

use ir::{DType, Dim, Function, Param, TensorType, ValueId};

use super::attention::Keys;
use super::{Options, Phase, input};
use crate::config::{Config, Family, Mode};

/// A layer function under construction.
pub(super) struct Block<'a> {
    pub f: Function,
    pub c: &'a Config,
    pub o: &'a Options,
    pub phase: Phase,
    /// Position of the new token, [B]; in `decode` alone.
    pub start: Option<ValueId>,
}

/// The functions that the entry points of this phase call, in the order of the trips.
pub(super) fn functions(c: &Config, o: &Options, phase: Phase) -> Vec<Function> {
    match c.attention.mode {
        Mode::Base => vec![base(c, o, phase)],
        Mode::Layer => vec![layer(c, o, phase)],
        Mode::Restart => vec![restart(c, o, phase)],
        Mode::Stack => {
            let later = (2..=c.attention.loops).map(|trip| stack_later(c, o, phase, trip));
            std::iter::once(stack_first(c, o, phase)).chain(later).collect()
        }
    }
}

/// x -> x: plain attention.
fn base(c: &Config, o: &Options, phase: Phase) -> Function {
    let (mut b, x) = Block::new("layer", c, o, phase, &["x"]);
    let (q, k, v) = b.qkv(x[0]);
    let keys = b.global_keys(k, v);
    let out = b.attend(q, &keys, o.dtype);
    let y = b.finish(x[0], out);
    b.f.returns("x", y);
    b.f
}

/// x -> x: both passes on the layer's own q, k, v.
fn layer(c: &Config, o: &Options, phase: Phase) -> Function {
    let (mut b, x) = Block::new("layer", c, o, phase, &["x"]);
    let (q, k, v) = b.qkv(x[0]);
    let global = b.global_keys(k, v);
    let local = b.windowed(&global);
    let out = b.blend(q, &global, &local);
    let y = b.finish(x[0], out);
    b.f.returns("x", y);
    b.f
}

/// x1, x2, .. -> x1, x2, ..: this layer of all trips side by side; they share its weights and trip 1's keys and values.
fn restart(c: &Config, o: &Options, phase: Phase) -> Function {
    let names: Vec<String> = (1..=c.attention.loops).map(|trip| format!("x{trip}")).collect();
    let (mut b, xs) = Block::new(
        "layer",
        c,
        o,
        phase,
        &names.iter().map(String::as_str).collect::<Vec<_>>(),
    );
    let (q, k, v) = b.qkv(xs[0]);
    let global = b.global_keys(k, v);
    let out = b.attend(q, &global, o.dtype);
    let y = b.finish(xs[0], out);
    b.f.returns(&names[0], y);
    for (trip, (x, name)) in xs.iter().zip(&names).enumerate().skip(1) {
        let (q, k, v) = b.qkv(*x);
        let local = b.local_keys(k, v, trip as i64 + 1);
        let out = b.blend(q, &global, &local);
        let y = b.finish(*x, out);
        b.f.returns(name, y);
    }
    b.f
}

/// x -> x, k, v: trip 1 of `stack`, plain attention that hands its keys and values on.
fn stack_first(c: &Config, o: &Options, phase: Phase) -> Function {
    let (mut b, x) = Block::new("trip1", c, o, phase, &["x"]);
    let (q, k, v) = b.qkv(x[0]);
    let keys = b.global_keys(k, v);
    let out = b.attend(q, &keys, o.dtype);
    let y = b.finish(x[0], out);
    b.f.returns("x", y);
    b.f.returns("k", keys.k);
    b.f.returns("v", keys.v);
    b.f
}

/// x, k, v -> x: a later trip of `stack`; k, v are trip 1's.
fn stack_later(c: &Config, o: &Options, phase: Phase, trip: i64) -> Function {
    let (mut b, x) = Block::new(&format!("trip{trip}"), c, o, phase, &["x", "k", "v"]);
    let global = Keys {
        k: x[1],
        v: x[2],
        mask: b.global_mask(None),
    };
    let (q, k, v) = b.qkv(x[0]);
    let local = b.local_keys(k, v, trip);
    let out = b.blend(q, &global, &local);
    let y = b.finish(x[0], out);
    b.f.returns("x", y);
    b.f
}

impl<'a> Block<'a> {
    /// A function `{name}_{phase}` with these inputs (`x..` [B, T, hidden] f32; `k`, `v` keys and values) and, in `decode`, `start`.
    fn new(name: &str, c: &'a Config, o: &'a Options, phase: Phase, inputs: &[&str]) -> (Block<'a>, Vec<ValueId>) {
        let f = Function::new(&format!("{name}_{}", phase.name()));
        let mut b = Block {
            f,
            c,
            o,
            phase,
            start: None,
        };
        let mut values = vec![];
        for name in inputs {
            let ty = match *name {
                "k" | "v" => b.keys_type(b.keys_dim()),
                _ => TensorType::new([Dim::sym("B"), phase.rows(), c.hidden.into()], DType::F32),
            };
            values.push(b.f.param(name, ty, Param::Input(name.to_string())));
        }
        if phase == Phase::Decode {
            b.start = Some(input(&mut b.f, "start", ["B"], DType::I32));
        }
        (b, values)
    }

    /// The parameter for a tensor of the checkpoint; asked for again it is the same one.
    fn weight(&mut self, tensor: &str, shape: &[i64], dtype: DType) -> ValueId {
        let name = match tensor.strip_prefix("gate_projections.{i}.") {
            Some(part) => format!("gate_{part}"),
            None => tensor
                .trim_end_matches(".weight")
                .rsplit('.')
                .next()
                .unwrap_or(tensor)
                .to_string(),
        };
        let kind = Param::Weight(format!("model.{tensor}"));
        if let Some((v, _)) = self.f.params.iter().find(|(_, k)| *k == kind) {
            return *v;
        }
        self.f.param(&name, TensorType::new(shape.iter().copied(), dtype), kind)
    }

    fn norm(&mut self, x: ValueId, tensor: &str, size: i64) -> ValueId {
        let w = self.weight(&format!("layers.{{i}}.{tensor}.weight"), &[size], DType::F32);
        self.f.rms_norm(x, w, self.c.eps, self.o.dtype)
    }

    /// x W^T in `dtype`.
    fn linear(&mut self, x: ValueId, tensor: &str, shape: [i64; 2], dtype: DType) -> ValueId {
        let w = self.weight(&format!("layers.{{i}}.{tensor}.weight"), &shape, self.o.dtype);
        self.f.matmul(x, w, true, dtype)
    }

    /// q [B, KV, G, T, D] and k, v [B, KV, T, D] of x [B, T, hidden]; q and k after their norms and RoPE.
    pub fn qkv(&mut self, x: ValueId) -> (ValueId, ValueId, ValueId) {
        let (heads, kv, d) = (self.c.heads, self.c.kv_heads, self.c.head_dim);
        let n = self.norm(x, "input_layernorm", self.c.hidden);
        let q = self.heads(n, "q_proj", Some("q_norm"), heads);
        let k = self.heads(n, "k_proj", Some("k_norm"), kv);
        let v = self.heads(n, "v_proj", None, kv);
        let grouped = [
            Dim::sym("B"),
            kv.into(),
            self.c.group().into(),
            self.phase.rows(),
            d.into(),
        ];
        let q = self.f.reshape(q, TensorType::new(grouped, self.o.dtype));
        (q, k, v)
    }

    /// [B, heads, T, D]: one projection of n, with `norm` (in the families that have it) and RoPE if a norm is named.
    fn heads(&mut self, n: ValueId, projection: &str, norm: Option<&str>, heads: i64) -> ValueId {
        let (d, dtype) = (self.c.head_dim, self.o.dtype);
        let y = self.linear(n, &format!("self_attn.{projection}"), [heads * d, self.c.hidden], dtype);
        let split = [Dim::sym("B"), self.phase.rows(), heads.into(), d.into()];
        let mut y = self.f.reshape(y, TensorType::new(split, dtype));
        if let Some(norm) = norm.filter(|_| self.c.family == Family::Qwen3) {
            y = self.norm(y, &format!("self_attn.{norm}"), d);
        }
        let y = self.f.transpose(y, &[0, 2, 1, 3]);
        match norm {
            Some(_) => self.f.rope(y, self.start, self.c.theta, self.o.max_context, dtype),
            None => y,
        }
    }

    /// g [B, KV, G, T, 1] f32 = sigmoid(q . w_h + b_h).
    fn gate(&mut self, q: ValueId) -> ValueId {
        let (heads, kv, group, d) = (self.c.heads, self.c.kv_heads, self.c.group(), self.c.head_dim);
        let w = self.weight("gate_projections.{i}.weight", &[heads, d], DType::F32);
        let bias = self.weight("gate_projections.{i}.bias", &[heads], DType::F32);
        let w = self.f.reshape(w, TensorType::new([kv, group, 1, d], DType::F32));
        let bias = self.f.reshape(bias, TensorType::new([kv, group, 1, 1], DType::F32));
        let q = self.f.cast(q, DType::F32);
        let product = self.f.mul(q, w);
        let dot = self.f.reduce_sum(product, 4);
        let sum = self.f.add(dot, bias);
        self.f.unary("sigmoid", sum)
    }

    /// g * global + (1 - g) * local, in the compute type.
    pub fn blend(&mut self, q: ValueId, global: &Keys, local: &Keys) -> ValueId {
        let g = self.gate(q);
        let far = self.attend(q, global, DType::F32);
        let near = self.attend(q, local, DType::F32);
        let one = self.f.scalar(1.0, DType::F32);
        let rest = self.f.sub(one, g);
        let far = self.f.mul(g, far);
        let near = self.f.mul(rest, near);
        let out = self.f.add(far, near);
        self.f.cast(out, self.o.dtype)
    }

    /// Output projection and residual, then the SwiGLU block and its residual. attention [B, KV, G, T, D].
    pub fn finish(&mut self, x: ValueId, attention: ValueId) -> ValueId {
        let (dtype, hidden, inner, width) = (
            self.o.dtype,
            self.c.hidden,
            self.c.intermediate,
            self.c.heads * self.c.head_dim,
        );
        let (b, t) = (Dim::sym("B"), self.phase.rows());
        let by_head = [b.clone(), self.c.heads.into(), t.clone(), self.c.head_dim.into()];
        let y = self.f.reshape(attention, TensorType::new(by_head, dtype));
        let y = self.f.transpose(y, &[0, 2, 1, 3]);
        let y = self.f.reshape(y, TensorType::new([b, t, width.into()], dtype));
        let y = self.linear(y, "self_attn.o_proj", [hidden, width], DType::F32);
        let x = self.f.add(x, y);
        let n = self.norm(x, "post_attention_layernorm", hidden);
        let gate = self.linear(n, "mlp.gate_proj", [inner, hidden], DType::F32);
        let up = self.linear(n, "mlp.up_proj", [inner, hidden], DType::F32);
        let gate = self.f.unary("silu", gate);
        let y = self.f.mul(gate, up);
        let y = self.f.cast(y, dtype);
        let y = self.linear(y, "mlp.down_proj", [hidden, inner], DType::F32);
        self.f.add(x, y)
    }
}
