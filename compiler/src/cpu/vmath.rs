//! exp, log and their family as polynomials over f32, scalar or vector alike: no calls into a library.
//!
//! Coefficients are those of Cephes (Moshier): about 1 ulp for exp, 2 for log on normal numbers.

use crate::mlir::emit::{Cmp, Elem, Emit, Val};

/// c[0] * x^n + ... + c[n]
fn polynomial(e: &mut Emit, x: Val, coefficients: &[f32]) -> Val {
    let mut acc = e.f32(coefficients[0], x.ty);
    for c in &coefficients[1..] {
        let c = e.f32(*c, x.ty);
        acc = e.fma(acc, x, c);
    }
    acc
}

/// 2^n for integral n in -126..=127, by its exponent bits.
fn power_of_two(e: &mut Emit, n: Val) -> Val {
    let bias = e.int(127, n.ty);
    let n = e.add(n, bias);
    let bits = e.shl(n, 23);
    e.bitcast(bits, n.ty.with(Elem::F32))
}

/// e^x: 0 below -87.3 (no denormals), infinity above 88.7.
pub fn exp(e: &mut Emit, x: Val) -> Val {
    let ty = x.ty;
    let (low, high) = (e.f32(-87.336_54, ty), e.f32(88.722_83, ty));
    let inside = e.max(x, low);
    let inside = e.min(inside, high);
    // x = n ln 2 + r, |r| <= ln 2 / 2; ln 2 in two parts so that n ln 2 is exact.
    let log2e = e.f32(std::f32::consts::LOG2_E, ty);
    let n = e.mul(inside, log2e);
    let n = e.rint(n);
    let (hi, lo) = (e.f32(-0.693_359_4, ty), e.f32(2.121_944_4e-4, ty));
    let r = e.fma(n, hi, inside);
    let r = e.fma(n, lo, r);
    let p = polynomial(
        e,
        r,
        &[
            1.987_569_2e-4,
            1.398_199_9e-3,
            8.333_452e-3,
            4.166_579_6e-2,
            1.666_666_6e-1,
            0.5,
        ],
    );
    let square = e.mul(r, r);
    let p = e.fma(p, square, r);
    let one = e.f32(1.0, ty);
    let p = e.add(p, one);
    // 2^n in two factors: n may be 128.
    let n = e.float_to_int(n);
    let half = e.shr_signed(n, 1);
    let rest = e.sub(n, half);
    let (a, b) = (power_of_two(e, half), power_of_two(e, rest));
    let y = e.mul(p, a);
    let y = e.mul(y, b);
    let (zero, infinity) = (e.f32(0.0, ty), e.f32(f32::INFINITY, ty));
    let under = e.cmp(Cmp::Lt, x, low);
    let y = e.select(under, zero, y);
    let over = e.cmp(Cmp::Gt, x, high);
    let y = e.select(over, infinity, y);
    let nan = e.cmp(Cmp::Ne, x, x);
    e.select(nan, x, y)
}

/// 2^x for x <= 0, to 2e-7; 2^-126 below -126.
pub fn exp2_negative(e: &mut Emit, x: Val) -> Val {
    let low = e.f32(-126.0, x.ty);
    let x = e.max(x, low);
    let n = e.rint(x);
    let r = e.sub(x, n);
    // ln(2)^k / k! for |r| <= 1/2.
    let p = polynomial(
        e,
        r,
        &[
            1.540_353e-4,
            1.333_355_8e-3,
            9.618_129e-3,
            5.550_411e-2,
            2.402_265e-1,
            std::f32::consts::LN_2,
            1.0,
        ],
    );
    let n = e.float_to_int(n);
    let n = e.shl(n, 23);
    let bits = e.bitcast(p, n.ty);
    let bits = e.add(bits, n);
    e.bitcast(bits, x.ty)
}

/// The natural logarithm of a positive normal number.
pub fn log(e: &mut Emit, x: Val) -> Val {
    let (ty, int) = (x.ty, x.ty.with(Elem::I32));
    // x = m 2^n with m in [sqrt(1/2), sqrt(2)).
    let bits = e.bitcast(x, int);
    let offset = e.int(0x3f35_04f3, int);
    let shifted = e.sub(bits, offset);
    let n = e.shr_signed(shifted, 23);
    let whole = e.shl(n, 23);
    let m = e.sub(bits, whole);
    let m = e.bitcast(m, ty);
    let one = e.f32(1.0, ty);
    let f = e.sub(m, one);
    let n = e.int_to_float(n);
    let p = polynomial(
        e,
        f,
        &[
            7.037_683_6e-2,
            -1.151_461e-1,
            1.167_699_9e-1,
            -1.242_014_1e-1,
            1.424_932_3e-1,
            -1.666_805_8e-1,
            2.000_071_5e-1,
            -2.499_999_4e-1,
            3.333_333e-1,
        ],
    );
    let square = e.mul(f, f);
    let cube = e.mul(square, f);
    let y = e.mul(p, cube);
    let (lo, hi, half) = (e.f32(-2.121_944_4e-4, ty), e.f32(0.693_359_4, ty), e.f32(-0.5, ty));
    let y = e.fma(n, lo, y);
    let y = e.fma(square, half, y);
    let y = e.add(f, y);
    e.fma(n, hi, y)
}

/// 1 / (1 + e^-x)
pub fn sigmoid(e: &mut Emit, x: Val) -> Val {
    let zero = e.f32(0.0, x.ty);
    let minus = e.sub(zero, x);
    let y = exp(e, minus);
    let one = e.f32(1.0, x.ty);
    let y = e.add(one, y);
    e.div(one, y)
}

/// 1 / sqrt(x), by the exact square root and division.
pub fn rsqrt(e: &mut Emit, x: Val) -> Val {
    let root = e.sqrt(x);
    let one = e.f32(1.0, x.ty);
    e.div(one, root)
}

/// The upper 16 bits of an f32 rounded to nearest even: bf16, as bits in an i16. NaN stays NaN.
pub fn bf16_bits(e: &mut Emit, x: Val) -> Val {
    let int = x.ty.with(Elem::I32);
    let bits = e.bitcast(x, int);
    let odd = e.shr(bits, 16);
    let one = e.int(1, int);
    let odd = e.and(odd, one);
    let half = e.int(0x7fff, int);
    let rounded = e.add(bits, half);
    let rounded = e.add(rounded, odd);
    let rounded = e.shr(rounded, 16);
    let nan = e.cmp(Cmp::Ne, x, x);
    let quiet = e.int(0x7fc0, int);
    let rounded = e.select(nan, quiet, rounded);
    e.truncate_int(rounded, Elem::I16)
}

/// bf16 bits widened to f32.
pub fn widen_bf16(e: &mut Emit, bits: Val) -> Val {
    let wide = e.extend_unsigned(bits, Elem::I32);
    let wide = e.shl(wide, 16);
    e.bitcast(wide, wide.ty.with(Elem::F32))
}
