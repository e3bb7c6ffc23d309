//! Arithmetic and conversions: the operation follows from the operands' type.

use super::{Cmp, Elem, Emit, Ty, Val};

impl Emit {
    fn arith(&mut self, op: &str, a: Val, b: Val) -> Val {
        self.op(a.ty, &format!("arith.{op} {a}, {b} : {}", a.ty))
    }

    pub fn add(&mut self, a: Val, b: Val) -> Val {
        self.arith(if a.ty.is_float() { "addf" } else { "addi" }, a, b)
    }

    pub fn sub(&mut self, a: Val, b: Val) -> Val {
        self.arith(if a.ty.is_float() { "subf" } else { "subi" }, a, b)
    }

    pub fn mul(&mut self, a: Val, b: Val) -> Val {
        self.arith(if a.ty.is_float() { "mulf" } else { "muli" }, a, b)
    }

    /// Floats; integers as unsigned.
    pub fn div(&mut self, a: Val, b: Val) -> Val {
        self.arith(if a.ty.is_float() { "divf" } else { "divui" }, a, b)
    }

    pub fn rem(&mut self, a: Val, b: Val) -> Val {
        self.arith("remui", a, b)
    }

    pub fn and(&mut self, a: Val, b: Val) -> Val {
        self.arith("andi", a, b)
    }

    pub fn or(&mut self, a: Val, b: Val) -> Val {
        self.arith("ori", a, b)
    }

    pub fn xor(&mut self, a: Val, b: Val) -> Val {
        self.arith("xori", a, b)
    }

    pub fn shl(&mut self, a: Val, bits: i64) -> Val {
        let b = self.int(bits, a.ty);
        self.arith("shli", a, b)
    }

    /// Logical.
    pub fn shr(&mut self, a: Val, bits: i64) -> Val {
        let b = self.int(bits, a.ty);
        self.arith("shrui", a, b)
    }

    pub fn shr_signed(&mut self, a: Val, bits: i64) -> Val {
        let b = self.int(bits, a.ty);
        self.arith("shrsi", a, b)
    }

    /// `a > b ? a : b`, one instruction on x86.
    pub fn max(&mut self, a: Val, b: Val) -> Val {
        let c = self.cmp(Cmp::Gt, a, b);
        self.select(c, a, b)
    }

    pub fn min(&mut self, a: Val, b: Val) -> Val {
        let c = self.cmp(Cmp::Lt, a, b);
        self.select(c, a, b)
    }

    pub fn cmp(&mut self, cmp: Cmp, a: Val, b: Val) -> Val {
        let name = match (cmp, a.ty.is_float()) {
            (Cmp::Eq, true) => "oeq",
            (Cmp::Ne, true) => "une",
            (Cmp::Lt, true) => "olt",
            (Cmp::Le, true) => "ole",
            (Cmp::Gt, true) => "ogt",
            (Cmp::Eq, false) => "eq",
            (Cmp::Ne, false) => "ne",
            (Cmp::Lt, false) => "slt",
            (Cmp::Le, false) => "sle",
            (Cmp::Gt, false) => "sgt",
        };
        let op = if a.ty.is_float() { "cmpf" } else { "cmpi" };
        self.op(a.ty.with(Elem::I1), &format!("arith.{op} {name}, {a}, {b} : {}", a.ty))
    }

    pub fn select(&mut self, c: Val, a: Val, b: Val) -> Val {
        let types = if c.ty.lanes == 0 {
            a.ty.to_string()
        } else {
            format!("{}, {}", c.ty, a.ty)
        };
        self.op(a.ty, &format!("arith.select {c}, {a}, {b} : {types}"))
    }

    pub fn fma(&mut self, a: Val, b: Val, c: Val) -> Val {
        self.op(
            c.ty,
            &format!("llvm.intr.fma({a}, {b}, {c}) : ({0}, {0}, {0}) -> {0}", c.ty),
        )
    }

    pub fn sqrt(&mut self, a: Val) -> Val {
        self.op(a.ty, &format!("llvm.intr.sqrt({a}) : ({0}) -> {0}", a.ty))
    }

    /// To the nearest integer, ties to even.
    pub fn rint(&mut self, a: Val) -> Val {
        self.op(a.ty, &format!("llvm.intr.rint({a}) : ({0}) -> {0}", a.ty))
    }

    // Conversions.

    fn convert(&mut self, op: &str, a: Val, elem: Elem) -> Val {
        let ty = a.ty.with(elem);
        self.op(ty, &format!("{op} {a} : {} to {ty}", a.ty))
    }

    pub fn truncate_int(&mut self, a: Val, elem: Elem) -> Val {
        self.convert("arith.trunci", a, elem)
    }

    pub fn extend_unsigned(&mut self, a: Val, elem: Elem) -> Val {
        self.convert("arith.extui", a, elem)
    }

    pub fn extend_signed(&mut self, a: Val, elem: Elem) -> Val {
        self.convert("arith.extsi", a, elem)
    }

    pub fn extend_float(&mut self, a: Val, elem: Elem) -> Val {
        self.convert("arith.extf", a, elem)
    }

    pub fn truncate_float(&mut self, a: Val, elem: Elem) -> Val {
        self.convert("arith.truncf", a, elem)
    }

    pub fn int_to_float(&mut self, a: Val) -> Val {
        self.convert("arith.sitofp", a, Elem::F32)
    }

    pub fn float_to_int(&mut self, a: Val) -> Val {
        self.convert("arith.fptosi", a, Elem::I32)
    }

    /// The same bits.
    pub fn bitcast(&mut self, a: Val, ty: Ty) -> Val {
        let op = if a.ty.lanes == 0 {
            "arith.bitcast"
        } else {
            "vector.bitcast"
        };
        self.op(ty, &format!("{op} {a} : {} to {ty}", a.ty))
    }
}
