//! Integer and bit instructions of one thread (PTX ISA 9.7.1, 9.7.6, 9.7.8).

// The macro below casts for every type, for some of them to what they are.
#![allow(clippy::unnecessary_cast)]

use super::{F1, F2, F3, Lane};
use crate::types::Type;

/// A function per integer type: bits are read at the type's width, and results of signed types extend their sign.
macro_rules! by_int {
    ($ty:expr, $t:ident => $body:expr) => {
        by_int!($ty, $t, Unused => $body)
    };
    ($ty:expr, $t:ident, $w:ident => $body:expr) => {
        match $ty {
            Type::U8 | Type::B8 => { type $t = u8; #[allow(dead_code)] type $w = u16; $body }
            Type::S8 => { type $t = i8; #[allow(dead_code)] type $w = i16; $body }
            Type::U16 | Type::B16 => { type $t = u16; #[allow(dead_code)] type $w = u32; $body }
            Type::S16 => { type $t = i16; #[allow(dead_code)] type $w = i32; $body }
            Type::U32 | Type::B32 => { type $t = u32; #[allow(dead_code)] type $w = u64; $body }
            Type::S32 => { type $t = i32; #[allow(dead_code)] type $w = i64; $body }
            Type::U64 | Type::B64 => { type $t = u64; #[allow(dead_code)] type $w = u128; $body }
            Type::S64 => { type $t = i64; #[allow(dead_code)] type $w = i128; $body }
            _ => return None,
        }
    };
}

/// Instructions that have one form: operation, its `.lo`/`.hi`/... and type.
#[allow(non_camel_case_types)]
pub fn arithmetic(op: &str, mode: &str, ty: Type) -> Option<Lane> {
    let two = |f: F2| Some(Lane::Two(f));
    let three = |f: F3| Some(Lane::Three(f));
    let one = |f: F1| Some(Lane::One(f));
    match (op, mode) {
        ("add", "") => two(by_int!(ty, T => |a, b| (a as T).wrapping_add(b as T) as u64)),
        ("sub", "") => two(by_int!(ty, T => |a, b| (a as T).wrapping_sub(b as T) as u64)),
        ("add", "sat") => two(by_int!(ty, T => |a, b| (a as T).saturating_add(b as T) as u64)),
        ("sub", "sat") => two(by_int!(ty, T => |a, b| (a as T).saturating_sub(b as T) as u64)),
        ("mul", "lo") => two(by_int!(ty, T => |a, b| (a as T).wrapping_mul(b as T) as u64)),
        ("mul", "hi") => two(by_int!(ty, T, W => |a, b| (((a as T as W) * (b as T as W)) >> T::BITS) as u64)),
        ("mul", "wide") => two(by_int!(ty, T, W => |a, b| ((a as T as W) * (b as T as W)) as u64)),
        ("mad", "lo") => three(by_int!(ty, T => |a, b, c| (a as T).wrapping_mul(b as T).wrapping_add(c as T) as u64)),
        ("mad", "hi") => three(
            by_int!(ty, T, W => |a, b, c| ((((a as T as W) * (b as T as W)) >> T::BITS) as T).wrapping_add(c as T) as u64),
        ),
        ("mad", "wide") => {
            three(by_int!(ty, T, W => |a, b, c| ((a as T as W) * (b as T as W)).wrapping_add(c as W) as u64))
        }
        // Division by zero gives all ones on the machine; PTX leaves it open.
        ("div", "") => {
            two(by_int!(ty, T => |a, b| if b as T == 0 { u64::MAX } else { (a as T).wrapping_div(b as T) as u64 }))
        }
        ("rem", "") => two(by_int!(ty, T => |a, b| if b as T == 0 { a } else { (a as T).wrapping_rem(b as T) as u64 })),
        ("min", "") => two(by_int!(ty, T => |a, b| (a as T).min(b as T) as u64)),
        ("max", "") => two(by_int!(ty, T => |a, b| (a as T).max(b as T) as u64)),
        // Not below zero (PTX ISA, "Integer arithmetic instructions: min, max").
        ("min", "relu") if ty == Type::S32 => two(|a, b| (a as i32).min(b as i32).max(0) as u64),
        ("max", "relu") if ty == Type::S32 => two(|a, b| (a as i32).max(b as i32).max(0) as u64),
        ("neg", "") => one(by_int!(ty, T => |a| (a as T).wrapping_neg() as u64)),
        ("abs", "") => match ty {
            Type::S16 => one(|a| (a as i16).wrapping_abs() as u64),
            Type::S32 => one(|a| (a as i32).wrapping_abs() as u64),
            Type::S64 => one(|a| (a as i64).wrapping_abs() as u64),
            _ => None,
        },
        ("sad", "") => three(by_int!(ty, T => |a, b, c| ((a as T).abs_diff(b as T) as u64).wrapping_add(c))),
        _ => None,
    }
}

/// and, or, xor, not and the shifts, which clamp the amount at the width.
pub fn bits(op: &str, ty: Type) -> Option<Lane> {
    let two = |f: F2| Some(Lane::Two(f));
    match op {
        "and" => two(|a, b| a & b),
        "or" => two(|a, b| a | b),
        "xor" => two(|a, b| a ^ b),
        "not" if ty == Type::Pred => Some(Lane::One(|a| !a & 1)),
        "not" => Some(Lane::One(|a| !a)),
        "cnot" => Some(Lane::One(by_int!(ty, T => |a| (a as T == 0) as u64))),
        "shl" => two(by_int!(ty, T => |a, b| if b as u32 >= T::BITS { 0 } else { ((a as T) << b as u32) as u64 })),
        "shr" => two(by_int!(ty, T => |a, b| {
            // A signed shift by the width or more leaves only the sign.
            let by = b as u32;
            if by < T::BITS {
                ((a as T) >> by) as u64
            } else {
                (((a as T) >> (T::BITS - 1)) >> 1) as u64
            }
        })),
        "popc" => Some(Lane::One(by_int!(ty, T => |a| (a as T).count_ones() as u64))),
        "clz" => Some(Lane::One(by_int!(ty, T => |a| (a as T).leading_zeros() as u64))),
        "brev" => Some(Lane::One(by_int!(ty, T => |a| (a as T).reverse_bits() as u64))),
        "bfi" => None,
        "bfind" => Some(Lane::One(match ty {
            Type::U32 => |a| 31u32.wrapping_sub((a as u32).leading_zeros()) as u64,
            Type::U64 => |a| 63u32.wrapping_sub(a.leading_zeros()) as u64,
            Type::S32 => |a| {
                let x = if (a as i32) < 0 { !(a as u32) } else { a as u32 };
                31u32.wrapping_sub(x.leading_zeros()) as u64
            },
            _ => return None,
        })),
        _ => None,
    }
}

/// `bfe`: the field of `len` bits at `pos`.
pub fn bfe(ty: Type) -> Option<F3> {
    fn field(a: u64, pos: u64, len: u64, width: u64, signed: bool) -> u64 {
        let (pos, len) = (pos & 0xff, len & 0xff);
        let msb = width - 1;
        let bit = |i: u64| (a >> i.min(msb)) & 1;
        let sign = if !signed || len == 0 {
            0
        } else {
            bit((pos + len - 1).min(msb))
        };
        let mut d = if sign == 1 { u64::MAX } else { 0 };
        for i in 0..len.min(width) {
            if pos + i <= msb {
                d = d & !(1 << i) | bit(pos + i) << i;
            }
        }
        d
    }
    Some(match ty {
        Type::U32 => |a, b, c| field(a, b, c, 32, false),
        Type::S32 => |a, b, c| field(a, b, c, 32, true),
        Type::U64 => |a, b, c| field(a, b, c, 64, false),
        Type::S64 => |a, b, c| field(a, b, c, 64, true),
        _ => return None,
    })
}

/// `bfi a, b, pos, len`: the low `len` bits of `a` put into `b` at `pos`.
pub fn bfi(a: u64, b: u64, pos: u64, len: u64, width: u64) -> u64 {
    let (pos, len) = (pos & 0xff, len & 0xff);
    let mut d = b;
    for i in 0..len {
        if pos + i < width {
            d = d & !(1 << (pos + i)) | ((a >> i) & 1) << (pos + i);
        }
    }
    d
}

/// `prmt` in its default mode: four nibbles choose bytes of `{b, a}`; a nibble's top bit asks for the byte's sign instead.
pub fn prmt(a: u64, b: u64, c: u64) -> u64 {
    let both = (a & 0xffff_ffff) | b << 32;
    (0..4).fold(0, |d, i| {
        let pick = c >> (4 * i) & 0xf;
        let byte = both >> (8 * (pick & 7)) & 0xff;
        let byte = if pick & 8 == 0 { byte } else { 0xff * (byte >> 7) };
        d | byte << (8 * i)
    })
}

/// `lop3`: bit i of the result is bit `4 a_i + 2 b_i + c_i` of the table.
pub fn lop3(a: u64, b: u64, c: u64, table: u64) -> u64 {
    (0..8).filter(|i| table >> i & 1 == 1).fold(0, |d, i: u64| {
        let pick = |x: u64, on: bool| if on { x } else { !x };
        d | pick(a, i & 4 != 0) & pick(b, i & 2 != 0) & pick(c, i & 1 != 0)
    })
}

/// `shf`: a shift of the 64 bits `{b, a}`; `.l` gives the upper word, `.r` the lower.
pub fn funnel(left: bool, wrap: bool) -> F3 {
    fn amount(c: u64, wrap: bool) -> u32 {
        if wrap { c as u32 & 31 } else { (c as u32).min(32) }
    }
    fn both(a: u64, b: u64) -> u64 {
        (a & 0xffff_ffff) | b << 32
    }
    match (left, wrap) {
        (true, true) => |a, b, c| (both(a, b) << amount(c, true)) >> 32,
        (true, false) => |a, b, c| (both(a, b) << amount(c, false)) >> 32,
        (false, true) => |a, b, c| both(a, b) >> amount(c, true) & 0xffff_ffff,
        (false, false) => |a, b, c| both(a, b) >> amount(c, false) & 0xffff_ffff,
    }
}

/// Comparisons: 1 or 0. `lo`, `ls`, `hi`, `hs` are the unsigned ones.
pub fn compare(op: &str, ty: Type) -> Option<F2> {
    let unsigned = |t| match t {
        Type::B16 | Type::S16 => Type::U16,
        Type::B32 | Type::S32 => Type::U32,
        Type::B64 | Type::S64 => Type::U64,
        other => other,
    };
    let (op, ty) = match op {
        "lo" => ("lt", unsigned(ty)),
        "ls" => ("le", unsigned(ty)),
        "hi" => ("gt", unsigned(ty)),
        "hs" => ("ge", unsigned(ty)),
        _ => (op, ty),
    };
    Some(match op {
        "eq" => by_int!(ty, T => |a, b| (a as T == b as T) as u64),
        "ne" => by_int!(ty, T => |a, b| (a as T != b as T) as u64),
        "lt" => by_int!(ty, T => |a, b| ((a as T) < b as T) as u64),
        "le" => by_int!(ty, T => |a, b| (a as T <= b as T) as u64),
        "gt" => by_int!(ty, T => |a, b| (a as T > b as T) as u64),
        "ge" => by_int!(ty, T => |a, b| (a as T >= b as T) as u64),
        _ => return None,
    })
}

/// Reads bits at a type's width: sign-extended for signed types, zero-extended for others. Also what integer conversions do.
pub fn widen(ty: Type) -> Option<F1> {
    Some(match ty {
        Type::Pred => |a| a & 1,
        Type::U8 | Type::B8 => |a| a as u8 as u64,
        Type::U16 | Type::B16 | Type::F16 | Type::BF16 => |a| a as u16 as u64,
        Type::U32 | Type::B32 | Type::F32 | Type::F16x2 | Type::BF16x2 | Type::TF32 => |a| a as u32 as u64,
        Type::U64 | Type::B64 | Type::F64 | Type::F32x2 => |a| a,
        Type::S8 => |a| a as i8 as u64,
        Type::S16 => |a| a as i16 as u64,
        Type::S32 => |a| a as i32 as u64,
        Type::S64 => |a| a,
        Type::B128 => return None,
    })
}
