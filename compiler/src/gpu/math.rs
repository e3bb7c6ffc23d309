//! exp, log and their family by a GPU's own approximate instructions (2 ulp or so), lane by lane.

use crate::mlir::emit::{Elem, Emit, Ty, Val};

/// An LLVM intrinsic from f32 to f32, on each lane.
fn intrinsic(e: &mut Emit, name: &str, x: Val) -> Val {
    e.lanes(x, |e, x| {
        let f32 = Ty::scalar(Elem::F32);
        e.op(f32, &format!("llvm.call_intrinsic \"{name}\"({x}) : (f32) -> f32"))
    })
}

/// 2^x; denormal results are 0.
pub fn exp2(e: &mut Emit, x: Val) -> Val {
    intrinsic(e, "llvm.nvvm.ex2.approx.ftz.f32", x)
}

pub fn exp(e: &mut Emit, x: Val) -> Val {
    let log2e = e.f32(std::f32::consts::LOG2_E, x.ty);
    let x = e.mul(x, log2e);
    exp2(e, x)
}

pub fn log2(e: &mut Emit, x: Val) -> Val {
    intrinsic(e, "llvm.nvvm.lg2.approx.f", x)
}

pub fn log(e: &mut Emit, x: Val) -> Val {
    let y = log2(e, x);
    let ln2 = e.f32(std::f32::consts::LN_2, x.ty);
    e.mul(y, ln2)
}

/// The larger one, in one instruction.
pub fn max(e: &mut Emit, a: Val, b: Val) -> Val {
    e.op(a.ty, &format!("llvm.intr.maxnum({a}, {b}) : ({0}, {0}) -> {0}", a.ty))
}

pub fn reciprocal(e: &mut Emit, x: Val) -> Val {
    intrinsic(e, "llvm.nvvm.rcp.approx.ftz.f", x)
}

pub fn rsqrt(e: &mut Emit, x: Val) -> Val {
    intrinsic(e, "llvm.nvvm.rsqrt.approx.f", x)
}

/// 1 / (1 + e^-x): e^-x may be infinity, whose reciprocal is 0.
pub fn sigmoid(e: &mut Emit, x: Val) -> Val {
    let minus = e.f32(-std::f32::consts::LOG2_E, x.ty);
    let x = e.mul(x, minus);
    let y = exp2(e, x);
    let one = e.f32(1.0, x.ty);
    let y = e.add(y, one);
    reciprocal(e, y)
}

/// To the nearest even, as bits.
pub fn bf16_bits(e: &mut Emit, x: Val) -> Val {
    let rounded = e.truncate_float(x, Elem::BF16);
    e.bitcast(rounded, x.ty.with(Elem::I16))
}
