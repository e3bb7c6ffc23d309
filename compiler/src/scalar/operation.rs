//! One value: from memory, to memory, and each operation of an expression, as a target writes it.

use ir::DType;
use ir::plan::{Binary, Unary};

use super::Math;
use crate::cpu::vmath;
use crate::gpu::math;
use crate::mlir::emit::{Cmp, Elem, Emit, Val};

/// How an element lies in memory: bf16 by its bits, a truth value as a byte.
pub fn memory(dtype: DType) -> Elem {
    match dtype {
        DType::F32 => Elem::F32,
        DType::BF16 => Elem::I16,
        DType::F16 => Elem::F16,
        DType::I32 => Elem::I32,
        DType::I1 => Elem::I8,
    }
}

/// From memory to f32, i32 or a truth value.
pub fn widen(e: &mut Emit, raw: Val, dtype: DType) -> Val {
    match dtype {
        DType::F32 | DType::I32 => raw,
        DType::BF16 => vmath::widen_bf16(e, raw),
        DType::F16 => e.extend_float(raw, Elem::F32),
        DType::I1 => {
            let zero = e.zero(raw.ty);
            e.cmp(Cmp::Ne, raw, zero)
        }
    }
}

/// From f32, i32 or a truth value to memory.
pub fn narrow(e: &mut Emit, how: Math, value: Val, dtype: DType) -> Val {
    match dtype {
        DType::F32 | DType::I32 => value,
        DType::BF16 if how == Math::Gpu => math::bf16_bits(e, value),
        DType::BF16 => vmath::bf16_bits(e, value),
        DType::F16 => e.truncate_float(value, Elem::F16),
        DType::I1 => e.extend_unsigned(value, Elem::I8),
    }
}

pub(super) fn unary(e: &mut Emit, how: Math, op: Unary, a: Val) -> Val {
    let gpu = how == Math::Gpu;
    match op {
        Unary::Neg => {
            let sign = e.f32(-1.0, a.ty);
            e.mul(sign, a)
        }
        Unary::Exp if gpu => math::exp(e, a),
        Unary::Exp => vmath::exp(e, a),
        Unary::Log if gpu => math::log(e, a),
        Unary::Log => vmath::log(e, a),
        Unary::Rsqrt if gpu => math::rsqrt(e, a),
        Unary::Rsqrt => vmath::rsqrt(e, a),
        Unary::Sigmoid if gpu => math::sigmoid(e, a),
        Unary::Sigmoid => vmath::sigmoid(e, a),
        Unary::Silu => {
            let s = unary(e, how, Unary::Sigmoid, a);
            e.mul(a, s)
        }
        Unary::ToFloat => e.int_to_float(a),
        Unary::RoundBf16 => {
            let bits = narrow(e, how, a, DType::BF16);
            vmath::widen_bf16(e, bits)
        }
    }
}

pub(super) fn binary(e: &mut Emit, op: Binary, a: Val, b: Val) -> Val {
    match op {
        Binary::Add => e.add(a, b),
        Binary::Sub => e.sub(a, b),
        Binary::Mul => e.mul(a, b),
        Binary::Div => e.div(a, b),
        Binary::Max => e.max(a, b),
        Binary::Rem => e.rem(a, b),
        Binary::Lt => e.cmp(Cmp::Lt, a, b),
        Binary::Le => e.cmp(Cmp::Le, a, b),
        Binary::Eq => e.cmp(Cmp::Eq, a, b),
        Binary::And => e.and(a, b),
    }
}
