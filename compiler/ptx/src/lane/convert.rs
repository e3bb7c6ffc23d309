//! `cvt`: between integers and floats, with every rounding (PTX ISA 9.7.9.22).

use half::f16;

use super::float::put_bf16;
use super::int::widen;
use crate::types::Type;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// To nearest, ties to even.
    Nearest,
    /// To nearest, ties away from zero (`.rna`, for tf32).
    Away,
    Zero,
    Down,
    Up,
}

/// One conversion. `to` may be packed, then the second operand is the lower half.
#[derive(Clone, Copy, Debug)]
pub struct Convert {
    pub to: Type,
    pub from: Type,
    pub rounding: Rounding,
    /// `.rni` and its like: a float rounded to an integer that stays a float.
    pub integer: bool,
    pub ftz: bool,
    pub sat: bool,
    pub relu: bool,
}

fn whole(x: f64, rounding: Rounding) -> f64 {
    match rounding {
        Rounding::Nearest => x.round_ties_even(),
        Rounding::Away => x.round(),
        Rounding::Zero => x.trunc(),
        Rounding::Down => x.floor(),
        Rounding::Up => x.ceil(),
    }
}

/// The value of a format with `digits` binary digits, exponents from `least` up and `most` as its largest, that stands for `x`.
fn round(x: f64, digits: i32, least: i32, most: f64, rounding: Rounding) -> f64 {
    if x == 0.0 || !x.is_finite() {
        return x;
    }
    let exponent = ((x.to_bits() >> 52 & 0x7ff) as i32 - 1023).max(least);
    let unit = 2f64.powi(exponent - (digits - 1));
    let y = whole(x / unit, rounding) * unit;
    if y.abs() <= most {
        return y;
    }
    let toward_zero = match rounding {
        Rounding::Nearest | Rounding::Away => false,
        Rounding::Zero => true,
        Rounding::Down => y > 0.0,
        Rounding::Up => y < 0.0,
    };
    if toward_zero {
        most.copysign(y)
    } else {
        f64::INFINITY.copysign(y)
    }
}

fn is_float(ty: Type) -> bool {
    ty.float()
}

/// A float's value.
fn read(ty: Type, a: u64, ftz: bool) -> f64 {
    match ty {
        Type::F64 => f64::from_bits(a),
        Type::F16 => f16::from_bits(a as u16).to_f64(),
        Type::BF16 => f32::from_bits((a as u32) << 16) as f64,
        _ => {
            let x = f32::from_bits(a as u32);
            if ftz && x.is_subnormal() {
                0f64.copysign(x as f64)
            } else {
                x as f64
            }
        }
    }
}

/// A value that is finite or not in the format `ty`.
fn write(ty: Type, x: f64, how: &Convert) -> u64 {
    let x = if how.sat {
        if x.is_nan() { 0.0 } else { x.clamp(0.0, 1.0) }
    } else {
        x
    };
    let x = if how.relu && !(x > 0.0) && !x.is_nan() { 0.0 } else { x };
    match ty {
        Type::F64 => x.to_bits(),
        Type::F32 => {
            let y = round(x, 24, -126, f32::MAX as f64, how.rounding) as f32;
            let y = if how.ftz && y.is_subnormal() {
                0f32.copysign(y)
            } else {
                y
            };
            if y.is_nan() { 0x7fff_ffff } else { y.to_bits() as u64 }
        }
        Type::F16 => {
            if x.is_nan() {
                return 0x7fff;
            }
            f16::from_f64(round(x, 11, -14, 65504.0, how.rounding)).to_bits() as u64
        }
        Type::BF16 => {
            const MOST: f64 = 3.3895313892515355e38;
            put_bf16(round(x, 8, -126, MOST, how.rounding) as f32)
        }
        // tf32 is an f32 whose lower 13 bits count for nothing; a conversion clears them.
        _ => {
            let y = round(x, 11, -126, f32::MAX as f64, how.rounding) as f32;
            if y.is_nan() {
                0x7fff_ffff
            } else {
                (y.to_bits() & !0x1fff) as u64
            }
        }
    }
}

fn limits(ty: Type) -> (i128, i128) {
    let bits = ty.bits();
    if ty.signed() {
        (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1)
    } else {
        (0, (1i128 << bits) - 1)
    }
}

/// Converts one element of `from` to one of `to` (both unpacked).
fn element(how: &Convert, to: Type, a: u64) -> u64 {
    match (is_float(how.from), is_float(to)) {
        (true, true) => {
            let x = read(how.from, a, how.ftz);
            let x = if how.integer { whole(x, how.rounding) } else { x };
            write(to, x, how)
        }
        (true, false) => {
            // Out of range clamps; NaN is 0 for 32 bits and the top bit alone for 64.
            let x = read(how.from, a, how.ftz);
            let (low, high) = limits(to);
            if x.is_nan() {
                return if to.bits() == 64 { 1 << 63 } else { 0 };
            }
            (whole(x, how.rounding) as i128).clamp(low, high) as u64
        }
        (false, true) => {
            let wide = widen(how.from).map_or(a, |f| f(a));
            let value = if how.from.signed() {
                wide as i64 as i128
            } else {
                wide as i128
            };
            integer_to_float(to, value, how)
        }
        (false, false) => {
            let wide = widen(how.from).map_or(a, |f| f(a));
            if how.sat {
                let value = if how.from.signed() {
                    wide as i64 as i128
                } else {
                    wide as i128
                };
                let (low, high) = limits(to);
                return value.clamp(low, high) as u64;
            }
            widen(to).map_or(wide, |f| f(wide))
        }
    }
}

fn integer_to_float(to: Type, value: i128, how: &Convert) -> u64 {
    // Rust's own conversions round once, to nearest; other roundings only meet values that an f64 holds, or lose its last digits.
    match (to, how.rounding) {
        (Type::F32, Rounding::Nearest) => (value as f32).to_bits() as u64,
        (Type::F64, Rounding::Nearest) => (value as f64).to_bits(),
        _ => write(to, value as f64, how),
    }
}

/// The whole instruction: `a` alone, or `{a, b}` into the upper and lower half of a packed result.
pub fn convert(how: &Convert, a: u64, b: u64) -> u64 {
    match how.to.half() {
        Some(half) => {
            let bits = half.bits();
            element(how, half, b) & ((1 << bits) - 1) | element(how, half, a) << bits
        }
        None => element(how, how.to, a),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(to: Type, rounding: Rounding, x: f32) -> u64 {
        let how = Convert {
            to,
            from: Type::F32,
            rounding,
            integer: false,
            ftz: false,
            sat: false,
            relu: false,
        };
        convert(&how, x.to_bits() as u64, 0)
    }

    #[test]
    fn rounding_to_bf16_agrees_with_an_independent_one_and_directions_bracket_it() {
        for i in 0..100_000u32 {
            let x = f32::from_bits(i.wrapping_mul(2_654_435_761));
            if x.is_nan() {
                continue;
            }
            assert_eq!(
                to(Type::BF16, Rounding::Nearest, x),
                half::bf16::from_f32(x).to_bits() as u64,
                "{x:e}"
            );
            assert_eq!(
                to(Type::F16, Rounding::Nearest, x),
                f16::from_f32(x).to_bits() as u64,
                "{x:e}"
            );
            assert_eq!(to(Type::BF16, Rounding::Zero, x), (x.to_bits() >> 16) as u64, "{x:e}");
            let value = |bits: u64| f32::from_bits((bits as u32) << 16);
            assert!(value(to(Type::BF16, Rounding::Down, x)) <= x && x <= value(to(Type::BF16, Rounding::Up, x)));
        }
    }

    #[test]
    fn tf32_keeps_ten_bits_and_ties_go_away_from_zero() {
        let x = f32::from_bits(0x3f80_1000);
        assert_eq!(to(Type::TF32, Rounding::Away, x), 0x3f80_2000);
        assert_eq!(to(Type::TF32, Rounding::Nearest, x), 0x3f80_0000);
    }

    #[test]
    fn floats_out_of_range_clamp_to_the_integers_limits() {
        assert_eq!(to(Type::S32, Rounding::Zero, 3e9) as i32, i32::MAX);
        assert_eq!(to(Type::U8, Rounding::Zero, -4.0), 0);
        assert_eq!(to(Type::S32, Rounding::Zero, -2.9) as i32, -2);
        assert_eq!(to(Type::S32, Rounding::Nearest, 2.5) as i32, 2);
    }
}
