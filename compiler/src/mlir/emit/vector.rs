//! Lanes of vectors: making, moving, reducing them; and the instructions of x86 for bf16.

use super::{Cmp, Elem, Emit, Ty, Val};

impl Emit {
    pub fn broadcast(&mut self, a: Val, lanes: usize) -> Val {
        let ty = Ty { lanes, ..a.ty };
        self.op(ty, &format!("vector.broadcast {a} : {} to {ty}", a.ty))
    }

    /// 0, 1, 2, ... as i32 or i64.
    pub fn iota(&mut self, elem: Elem, lanes: usize) -> Val {
        let list: Vec<String> = (0..lanes).map(|i| i.to_string()).collect();
        let ty = Ty::vector(elem, lanes);
        self.op(ty, &format!("arith.constant dense<[{}]> : {ty}", list.join(", ")))
    }

    /// The first `n` (i64) lanes.
    pub fn first_lanes(&mut self, n: Val, lanes: usize) -> Val {
        let iota = self.iota(Elem::I32, lanes);
        let n = self.truncate_int(n, Elem::I32);
        let n = self.broadcast(n, lanes);
        self.cmp(Cmp::Lt, iota, n)
    }

    /// Lanes of `a`, then `b`, by their numbers.
    pub fn shuffle(&mut self, a: Val, b: Val, lanes: &[usize]) -> Val {
        let list: Vec<String> = lanes.iter().map(|i| i.to_string()).collect();
        let ty = Ty {
            lanes: lanes.len(),
            ..a.ty
        };
        self.op(
            ty,
            &format!("vector.shuffle {a}, {b} [{}] : {}, {}", list.join(", "), a.ty, b.ty),
        )
    }

    pub fn extract(&mut self, a: Val, lane: usize) -> Val {
        let ty = Ty::scalar(a.ty.elem);
        self.op(ty, &format!("vector.extract {a}[{lane}] : {ty} from {}", a.ty))
    }

    /// A vector of these scalars.
    pub fn vector(&mut self, lanes: &[Val]) -> Val {
        let ty = Ty::vector(lanes[0].ty.elem, lanes.len());
        let list = lanes.iter().map(Val::to_string).collect::<Vec<_>>().join(", ");
        self.op(ty, &format!("vector.from_elements {list} : {ty}"))
    }

    /// A function of scalars on each lane of a vector, or on the scalar.
    pub fn lanes(&mut self, a: Val, f: impl Fn(&mut Emit, Val) -> Val) -> Val {
        if a.ty.lanes == 0 {
            return f(self, a);
        }
        let lanes: Vec<Val> = (0..a.ty.lanes)
            .map(|i| {
                let x = self.extract(a, i);
                f(self, x)
            })
            .collect();
        self.vector(&lanes)
    }

    /// The largest lane, by halves: without a NaN's fate to mind it is a shuffle and a maximum each.
    pub fn largest(&mut self, a: Val) -> Val {
        let n = a.ty.lanes;
        if n == 1 {
            return self.extract(a, 0);
        }
        let (low, high): (Vec<usize>, Vec<usize>) = ((0..n / 2).collect(), (n / 2..n).collect());
        let low = self.shuffle(a, a, &low);
        let high = self.shuffle(a, a, &high);
        let half = self.max(low, high);
        self.largest(half)
    }

    /// The sum of all lanes, in any order.
    pub fn reduce_add(&mut self, a: Val) -> Val {
        let ty = Ty::scalar(a.ty.elem);
        let zero = self.f32(0.0, ty);
        let flags = "<{fastmathFlags = #llvm.fastmath<reassoc>}>";
        self.op(
            ty,
            &format!(
                "\"llvm.intr.vector.reduce.fadd\"({zero}, {a}) {flags} : ({ty}, {}) -> {ty}",
                a.ty
            ),
        )
    }

    pub fn reduce_max(&mut self, a: Val) -> Val {
        let ty = Ty::scalar(a.ty.elem);
        self.op(ty, &format!("llvm.intr.vector.reduce.fmax({a}) : ({}) -> {ty}", a.ty))
    }

    /// acc + the sums of pairs of products: 16 lanes of f32 from 32 of bf16 (AVX-512 BF16).
    pub fn dot_bf16(&mut self, acc: Val, a: Val, b: Val) -> Val {
        let name = "llvm.x86.avx512bf16.dpbf16ps.512";
        self.op(
            acc.ty,
            &format!(
                "llvm.call_intrinsic \"{name}\"({acc}, {a}, {b}) : ({0}, {1}, {1}) -> {0}",
                acc.ty, a.ty
            ),
        )
    }

    /// 16 lanes of f32 to bf16 bits, to the nearest even (AVX-512 BF16).
    pub fn round_bf16(&mut self, a: Val) -> Val {
        let ty = a.ty.with(Elem::BF16);
        let name = "llvm.x86.avx512bf16.cvtneps2bf16.512";
        let rounded = self.op(ty, &format!("llvm.call_intrinsic \"{name}\"({a}) : ({}) -> {ty}", a.ty));
        self.bitcast(rounded, ty.with(Elem::I16))
    }
}
