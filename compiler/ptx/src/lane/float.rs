//! Floating-point instructions of one thread (PTX ISA 9.7.3 to 9.7.5).
//!
//! 16-bit formats are computed in f32 and rounded once more: f32 has more than twice their digits plus two, so that changes nothing for
//! one operation. `.approx` instructions give the value nearest to the exact one, where the machine's may be a few units off.

use half::{bf16, f16};

use super::{F1, F2, F3, Lane};
use crate::types::Type;

/// The NaN that PTX's f32 instructions give.
const NAN: u32 = 0x7fff_ffff;

fn get<const FLUSH: bool>(a: u64) -> f32 {
    let x = f32::from_bits(a as u32);
    if FLUSH && x.is_subnormal() { 0f32.copysign(x) } else { x }
}

fn put<const FLUSH: bool, const SAT: bool>(x: f32) -> u64 {
    let x = if FLUSH && x.is_subnormal() { 0f32.copysign(x) } else { x };
    match x.is_nan() {
        true if SAT => 0,
        true => NAN as u64,
        false if SAT => x.clamp(0.0, 1.0).to_bits() as u64,
        false => x.to_bits() as u64,
    }
}

fn get_f16(a: u64) -> f32 {
    f16::from_bits(a as u16).to_f32()
}

fn get_bf16(a: u64) -> f32 {
    f32::from_bits((a as u32) << 16)
}

fn put_f16(x: f32) -> u64 {
    if x.is_nan() {
        0x7fff
    } else {
        f16::from_f32(x).to_bits() as u64
    }
}

pub fn put_bf16(x: f32) -> u64 {
    if x.is_nan() {
        0x7fff
    } else {
        bf16::from_f32(x).to_bits() as u64
    }
}

/// One closure for every format and flag. Arguments are f32 except for f64, results likewise.
macro_rules! by_float {
    ($ty:expr, $ftz:expr, $sat:expr, |$($x:ident),*| $e:expr) => {
        match ($ty, $ftz, $sat) {
            (Type::F32 | Type::F32x2, false, false) => |$($x),*| { $(let $x = get::<false>($x);)* put::<false, false>($e) },
            (Type::F32 | Type::F32x2, true, false) => |$($x),*| { $(let $x = get::<true>($x);)* put::<true, false>($e) },
            (Type::F32, false, true) => |$($x),*| { $(let $x = get::<false>($x);)* put::<false, true>($e) },
            (Type::F32, true, true) => |$($x),*| { $(let $x = get::<true>($x);)* put::<true, true>($e) },
            (Type::F64, false, false) => |$($x),*| { $(let $x = f64::from_bits($x);)* ($e).to_bits() },
            // Flushing subnormal f16 and bf16 (`.ftz`) is not modelled.
            (Type::F16 | Type::F16x2, _, false) => |$($x),*| { $(let $x = get_f16($x);)* put_f16($e) },
            (Type::BF16 | Type::BF16x2, _, false) => |$($x),*| { $(let $x = get_bf16($x);)* put_bf16($e) },
            _ => return None,
        }
    };
}

/// min and max of PTX: a NaN loses, and +0 is above -0.
trait Order: Copy + PartialOrd {
    fn nan(self) -> bool;
    fn negative(self) -> bool;

    fn lower(self, other: Self) -> Self {
        let first = other.nan() || self < other || (self == other && self.negative());
        if !self.nan() && first { self } else { other }
    }

    fn upper(self, other: Self) -> Self {
        let first = other.nan() || self > other || (self == other && !self.negative());
        if !self.nan() && first { self } else { other }
    }
}

impl Order for f32 {
    fn nan(self) -> bool {
        self.is_nan()
    }
    fn negative(self) -> bool {
        self.is_sign_negative()
    }
}

impl Order for f64 {
    fn nan(self) -> bool {
        self.is_nan()
    }
    fn negative(self) -> bool {
        self.is_sign_negative()
    }
}

/// Modifiers of a floating-point instruction.
#[derive(Clone, Copy, Debug, Default)]
pub struct Flags {
    pub ftz: bool,
    pub sat: bool,
    /// `.NaN`: a NaN wins in min and max.
    pub nan: bool,
    pub relu: bool,
}

/// The instruction's function at one element of its type.
pub fn arithmetic(op: &str, ty: Type, flags: Flags) -> Option<Lane> {
    let Flags {
        ftz, sat, nan, relu, ..
    } = flags;
    let one = |f: F1| Some(Lane::One(f));
    let two = |f: F2| Some(Lane::Two(f));
    match op {
        "add" => two(by_float!(ty, ftz, sat, |a, b| a + b)),
        "sub" => two(by_float!(ty, ftz, sat, |a, b| a - b)),
        "mul" => two(by_float!(ty, ftz, sat, |a, b| a * b)),
        "fma" | "mad" => fma(ty, flags).map(Lane::Three),
        "div" => two(by_float!(ty, ftz, sat, |a, b| a / b)),
        "min" if nan => two(by_float!(ty, ftz, sat, |a, b| if a.nan() || b.nan() {
            a + b
        } else {
            a.lower(b)
        })),
        "max" if nan => two(by_float!(ty, ftz, sat, |a, b| if a.nan() || b.nan() {
            a + b
        } else {
            a.upper(b)
        })),
        "min" => two(by_float!(ty, ftz, sat, |a, b| a.lower(b))),
        "max" => two(by_float!(ty, ftz, sat, |a, b| a.upper(b))),
        // Sign instructions touch bits only: a NaN keeps its payload.
        "neg" if !relu => one(match ty {
            Type::F16 | Type::BF16 | Type::F16x2 | Type::BF16x2 => |a| a ^ 0x8000,
            Type::F32 if ftz => |a| put::<true, false>(-get::<true>(a)),
            Type::F32 | Type::F32x2 => |a| a ^ 0x8000_0000,
            Type::F64 => |a| a ^ 1 << 63,
            _ => return None,
        }),
        "abs" => one(match ty {
            Type::F16 | Type::BF16 | Type::F16x2 | Type::BF16x2 => |a| a & 0x7fff,
            Type::F32 if ftz => |a| put::<true, false>(get::<true>(a).abs()),
            Type::F32 | Type::F32x2 => |a| a & 0x7fff_ffff,
            Type::F64 => |a| a & !(1 << 63),
            _ => return None,
        }),
        "copysign" => two(match ty {
            Type::F32 => |a, b| b & 0x7fff_ffff | a & 0x8000_0000,
            Type::F64 => |a, b| b & !(1 << 63) | a & 1 << 63,
            _ => return None,
        }),
        "sqrt" => one(by_float!(ty, ftz, sat, |a| a.sqrt())),
        "rcp" => one(by_float!(ty, ftz, sat, |a| 1.0 / a)),
        "rsqrt" => one(match (ty, ftz) {
            (Type::F32, false) => |a| put::<false, false>((1.0 / (get::<false>(a) as f64).sqrt()) as f32),
            (Type::F32, true) => |a| put::<true, false>((1.0 / (get::<true>(a) as f64).sqrt()) as f32),
            (Type::F64, _) => |a| (1.0 / f64::from_bits(a).sqrt()).to_bits(),
            _ => return None,
        }),
        "ex2" => one(by_float!(ty, ftz, sat, |a| a.exp2())),
        "lg2" => one(by_float!(ty, ftz, sat, |a| a.log2())),
        "sin" => one(by_float!(ty, ftz, sat, |a| a.sin())),
        "cos" => one(by_float!(ty, ftz, sat, |a| a.cos())),
        "tanh" => one(by_float!(ty, ftz, sat, |a| a.tanh())),
        _ => None,
    }
}

fn fma(ty: Type, Flags { ftz, sat, relu, .. }: Flags) -> Option<F3> {
    // The products of 16-bit formats are exact in f64, and so is nearly every sum of them.
    fn wide(a: f32, b: f32, c: f32) -> f64 {
        a as f64 * b as f64 + c as f64
    }
    Some(match ty {
        Type::F16 | Type::F16x2 if relu => {
            |a, b, c| put_f16((wide(get_f16(a), get_f16(b), get_f16(c)) as f32).upper(0.0))
        }
        Type::BF16 | Type::BF16x2 if relu => {
            |a, b, c| put_bf16((wide(get_bf16(a), get_bf16(b), get_bf16(c)) as f32).upper(0.0))
        }
        Type::F16 | Type::F16x2 if !sat => |a, b, c| put_f16(wide(get_f16(a), get_f16(b), get_f16(c)) as f32),
        Type::BF16 | Type::BF16x2 if !sat => |a, b, c| put_bf16(wide(get_bf16(a), get_bf16(b), get_bf16(c)) as f32),
        Type::F16 | Type::F16x2 | Type::BF16 | Type::BF16x2 => return None,
        _ => by_float!(ty, ftz, sat, |a, b, c| a.mul_add(b, c)),
    })
}

/// Comparisons: 1 or 0. Names that end in `u` hold for NaNs too.
pub fn compare(op: &str, ty: Type, ftz: bool) -> Option<F2> {
    macro_rules! by {
        (|$a:ident, $b:ident| $e:expr) => {
            match (ty, ftz) {
                (Type::F32, false) => |a, b| {
                    let ($a, $b) = (get::<false>(a), get::<false>(b));
                    ($e) as u64
                },
                (Type::F32, true) => |a, b| {
                    let ($a, $b) = (get::<true>(a), get::<true>(b));
                    ($e) as u64
                },
                (Type::F64, _) => |a, b| {
                    let ($a, $b) = (f64::from_bits(a), f64::from_bits(b));
                    ($e) as u64
                },
                (Type::F16 | Type::F16x2, _) => |a, b| {
                    let ($a, $b) = (get_f16(a), get_f16(b));
                    ($e) as u64
                },
                (Type::BF16 | Type::BF16x2, _) => |a, b| {
                    let ($a, $b) = (get_bf16(a), get_bf16(b));
                    ($e) as u64
                },
                _ => return None,
            }
        };
    }
    Some(match op {
        "eq" => by!(|a, b| a == b),
        "ne" => by!(|a, b| a < b || a > b),
        "lt" => by!(|a, b| a < b),
        "le" => by!(|a, b| a <= b),
        "gt" => by!(|a, b| a > b),
        "ge" => by!(|a, b| a >= b),
        "equ" => by!(|a, b| a == b || a.nan() || b.nan()),
        "neu" => by!(|a, b| a != b),
        "ltu" => by!(|a, b| a < b || a.nan() || b.nan()),
        "leu" => by!(|a, b| a <= b || a.nan() || b.nan()),
        "gtu" => by!(|a, b| a > b || a.nan() || b.nan()),
        "geu" => by!(|a, b| a >= b || a.nan() || b.nan()),
        "num" => by!(|a, b| !a.nan() && !b.nan()),
        "nan" => by!(|a, b| a.nan() || b.nan()),
        _ => return None,
    })
}

/// `testp`.
pub fn test(what: &str, ty: Type) -> Option<F1> {
    Some(match (what, ty) {
        ("finite", Type::F32) => |a| get::<false>(a).is_finite() as u64,
        ("infinite", Type::F32) => |a| get::<false>(a).is_infinite() as u64,
        ("number", Type::F32) => |a| !get::<false>(a).is_nan() as u64,
        ("notanumber", Type::F32) => |a| get::<false>(a).is_nan() as u64,
        ("normal", Type::F32) => |a| get::<false>(a).is_normal() as u64,
        ("subnormal", Type::F32) => |a| get::<false>(a).is_subnormal() as u64,
        ("finite", Type::F64) => |a| f64::from_bits(a).is_finite() as u64,
        ("infinite", Type::F64) => |a| f64::from_bits(a).is_infinite() as u64,
        ("number", Type::F64) => |a| !f64::from_bits(a).is_nan() as u64,
        ("notanumber", Type::F64) => |a| f64::from_bits(a).is_nan() as u64,
        _ => return None,
    })
}
