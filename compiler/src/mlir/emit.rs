//! Writes MLIR, one method per operation: dialects scf, arith, vector, and llvm for pointers and intrinsics.
//!
//! The text is the product: it is what `--emit mlir` shows and what MLIR parses and verifies. Values carry their type, so that an
//! operation's type need not be told. Knows nothing of kernels.

use std::fmt::Write;

/// Element types of values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Elem {
    I1,
    I8,
    I16,
    I32,
    I64,
    F16,
    BF16,
    F32,
    Ptr,
    /// Pointers into a GPU's global and shared memory.
    Global,
    Shared,
}

impl Elem {
    fn name(self) -> &'static str {
        match self {
            Elem::I1 => "i1",
            Elem::I8 => "i8",
            Elem::I16 => "i16",
            Elem::I32 => "i32",
            Elem::I64 => "i64",
            Elem::F16 => "f16",
            Elem::BF16 => "bf16",
            Elem::F32 => "f32",
            Elem::Ptr => "!llvm.ptr",
            Elem::Global => "!llvm.ptr<1>",
            Elem::Shared => "!llvm.ptr<3>",
        }
    }

    pub fn bytes(self) -> usize {
        match self {
            Elem::I1 | Elem::I8 => 1,
            Elem::I16 | Elem::F16 | Elem::BF16 => 2,
            Elem::I32 | Elem::F32 | Elem::Shared => 4,
            Elem::I64 | Elem::Ptr | Elem::Global => 8,
        }
    }
}

/// A scalar (`lanes` 0) or a vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ty {
    pub elem: Elem,
    pub lanes: usize,
}

impl Ty {
    pub const fn scalar(elem: Elem) -> Ty {
        Ty { elem, lanes: 0 }
    }

    pub const fn vector(elem: Elem, lanes: usize) -> Ty {
        Ty { elem, lanes }
    }

    pub fn with(self, elem: Elem) -> Ty {
        Ty { elem, ..self }
    }

    fn is_float(self) -> bool {
        matches!(self.elem, Elem::F16 | Elem::BF16 | Elem::F32)
    }
}

impl std::fmt::Display for Ty {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.lanes {
            0 => f.write_str(self.elem.name()),
            n => write!(f, "vector<{n}x{}>", self.elem.name()),
        }
    }
}

/// An SSA value: `%id`, or `%id#part` of an operation with several results.
#[derive(Clone, Copy, Debug)]
pub struct Val {
    id: usize,
    part: Option<usize>,
    pub ty: Ty,
}

impl std::fmt::Display for Val {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.part {
            None => write!(f, "%{}", self.id),
            Some(part) => write!(f, "%{}#{part}", self.id),
        }
    }
}

/// The comparison of `Emit::cmp`.
#[derive(Clone, Copy, Debug)]
pub enum Cmp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
}

#[derive(Default)]
pub struct Emit {
    text: String,
    next: usize,
    pub(crate) depth: usize,
}

impl Emit {
    pub fn finish(self) -> String {
        self.text
    }

    pub(crate) fn line(&mut self, text: &str) {
        let pad = 2 * self.depth;
        let _ = writeln!(self.text, "{:pad$}{text}", "");
    }

    pub(crate) fn fresh(&mut self, ty: Ty) -> Val {
        self.next += 1;
        Val {
            id: self.next - 1,
            part: None,
            ty,
        }
    }

    pub(crate) fn op(&mut self, ty: Ty, text: &str) -> Val {
        let v = self.fresh(ty);
        self.line(&format!("{v} = {text}"));
        v
    }

    pub fn comment(&mut self, text: &str) {
        self.line(&format!("// {text}"));
    }

    /// A kernel: `body` gets (buffers, symbols, begin, end, scratch), see `runtime::artefact::KernelFn`.
    pub fn kernel(&mut self, name: &str, body: impl FnOnce(&mut Emit, [Val; 5])) {
        let [ptr, i64] = [Ty::scalar(Elem::Ptr), Ty::scalar(Elem::I64)];
        let args = [ptr, ptr, i64, i64, ptr].map(|ty| self.fresh(ty));
        let list = args.map(|a| format!("{a}: {}", a.ty)).join(", ");
        self.line(&format!("func.func @{name}({list}) {{"));
        self.depth += 1;
        body(self, args);
        self.line("return");
        self.depth -= 1;
        self.line("}");
    }

    // Constants.

    pub fn i64(&mut self, x: i64) -> Val {
        self.op(Ty::scalar(Elem::I64), &format!("arith.constant {x} : i64"))
    }

    /// An integer of any integer type.
    pub fn int(&mut self, x: i64, ty: Ty) -> Val {
        match ty.lanes {
            0 => self.op(ty, &format!("arith.constant {x} : {ty}")),
            _ => self.op(ty, &format!("arith.constant dense<{x}> : {ty}")),
        }
    }

    /// A mask with every lane on.
    pub fn all_lanes(&mut self, lanes: usize) -> Val {
        let ty = Ty::vector(Elem::I1, lanes);
        self.op(ty, &format!("arith.constant dense<true> : {ty}"))
    }

    pub fn f32(&mut self, x: f32, ty: Ty) -> Val {
        let text = if x.is_finite() && x.abs() < 1e9 && (x == 0.0 || x.abs() > 1e-4) && x.is_sign_positive() {
            let text = format!("{x:?}");
            if text.parse() == Ok(x) && text.contains('.') {
                text
            } else {
                format!("0x{:08X}", x.to_bits())
            }
        } else {
            format!("0x{:08X}", x.to_bits())
        };
        match ty.lanes {
            0 => self.op(ty, &format!("arith.constant {text} : {ty}")),
            _ => self.op(ty, &format!("arith.constant dense<{text}> : {ty}")),
        }
    }

    pub fn zero(&mut self, ty: Ty) -> Val {
        if ty.is_float() {
            self.f32(0.0, ty)
        } else {
            self.int(0, ty)
        }
    }

    // Arithmetic: the operation follows from the operands' type.

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

    // Vectors.

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

    // Memory. Pointers are untyped; indices count elements.

    /// `base + index` elements; a vector of indices gives a vector of pointers.
    pub fn at(&mut self, base: Val, index: Val, elem: Elem) -> Val {
        let ty = Ty {
            elem: base.ty.elem,
            lanes: index.ty.lanes,
        };
        self.op(
            ty,
            &format!(
                "llvm.getelementptr {base}[{index}] : ({}, {}) -> {ty}, {}",
                base.ty,
                index.ty,
                elem.name()
            ),
        )
    }

    /// From one pointer to another, in units of four bytes.
    pub fn units_between(&mut self, from: Val, to: Val) -> Val {
        let i64 = Ty::scalar(Elem::I64);
        let [a, b] = [from, to].map(|p| self.op(i64, &format!("llvm.ptrtoint {p} : !llvm.ptr to i64")));
        let bytes = self.sub(b, a);
        self.shr_signed(bytes, 2)
    }

    pub fn load(&mut self, ptr: Val, ty: Ty) -> Val {
        self.load_aligned(ptr, ty, ty.elem.bytes())
    }

    /// From a place that is a multiple of so many bytes.
    pub fn load_aligned(&mut self, ptr: Val, ty: Ty, bytes: usize) -> Val {
        self.op(
            ty,
            &format!("llvm.load {ptr} {{alignment = {bytes} : i64}} : {} -> {ty}", ptr.ty),
        )
    }

    pub fn store(&mut self, value: Val, ptr: Val) {
        self.store_aligned(value, ptr, value.ty.elem.bytes());
    }

    /// To a place that is a multiple of so many bytes.
    pub fn store_aligned(&mut self, value: Val, ptr: Val, bytes: usize) {
        self.line(&format!(
            "llvm.store {value}, {ptr} {{alignment = {bytes} : i64}} : {}, {}",
            value.ty, ptr.ty
        ));
    }

    /// Zero where the mask is off.
    pub fn masked_load(&mut self, ptr: Val, mask: Val, ty: Ty) -> Val {
        let zero = self.zero(ty);
        let align = format!("{{alignment = {} : i32}}", ty.elem.bytes());
        self.op(
            ty,
            &format!(
                "llvm.intr.masked.load {ptr}, {mask}, {zero} {align} : ({}, {}, {ty}) -> {ty}",
                ptr.ty, mask.ty
            ),
        )
    }

    pub fn masked_store(&mut self, value: Val, ptr: Val, mask: Val) {
        let align = format!("{{alignment = {} : i32}}", value.ty.elem.bytes());
        self.line(&format!(
            "llvm.intr.masked.store {value}, {ptr}, {mask} {align} : {}, {} into {}",
            value.ty, mask.ty, ptr.ty
        ));
    }

    pub fn gather(&mut self, ptrs: Val, mask: Val, ty: Ty) -> Val {
        let zero = self.zero(ty);
        let align = format!("{{alignment = {} : i32}}", ty.elem.bytes());
        let types = format!("({}, {}, {ty}) -> {ty}", ptrs.ty, mask.ty);
        self.op(
            ty,
            &format!("llvm.intr.masked.gather {ptrs}, {mask}, {zero} {align} : {types}"),
        )
    }

    pub fn scatter(&mut self, value: Val, ptrs: Val, mask: Val) {
        let align = format!("{{alignment = {} : i32}}", value.ty.elem.bytes());
        let types = format!("{}, {} into {}", value.ty, mask.ty, ptrs.ty);
        self.line(&format!(
            "llvm.intr.masked.scatter {value}, {ptrs}, {mask} {align} : {types}"
        ));
    }

    /// Into all caches, for reading.
    pub fn prefetch(&mut self, ptr: Val) {
        let attrs = "<{cache = 1 : i32, hint = 3 : i32, rw = 0 : i32}>";
        self.line(&format!("\"llvm.intr.prefetch\"({ptr}) {attrs} : (!llvm.ptr) -> ()"));
    }

    // Control flow.

    /// `for iv in lo..hi step`, i64 or i32, carrying values; returns their last ones.
    pub fn for_loop(
        &mut self,
        lo: Val,
        hi: Val,
        step: i64,
        init: &[Val],
        body: impl FnOnce(&mut Emit, Val, &[Val]) -> Vec<Val>,
    ) -> Vec<Val> {
        let step = self.int(step, lo.ty);
        let result = self.fresh(lo.ty);
        let iv = self.fresh(lo.ty);
        let carried: Vec<Val> = init.iter().map(|v| self.fresh(v.ty)).collect();
        let types = init.iter().map(|v| v.ty.to_string()).collect::<Vec<_>>().join(", ");
        let pairs = carried
            .iter()
            .zip(init)
            .map(|(c, v)| format!("{c} = {v}"))
            .collect::<Vec<_>>()
            .join(", ");
        let (head, args) = match init.len() {
            0 => (String::new(), String::new()),
            n => (
                format!("%{}:{n} = ", result.id),
                format!(" iter_args({pairs}) -> ({types})"),
            ),
        };
        self.line(&format!(
            "{head}scf.for {iv} = {lo} to {hi} step {step}{args} : {} {{",
            lo.ty
        ));
        self.depth += 1;
        let yields = body(self, iv, &carried);
        assert_eq!(yields.len(), init.len(), "a loop yields what it carries");
        if !yields.is_empty() {
            let list = yields.iter().map(|v| v.to_string()).collect::<Vec<_>>().join(", ");
            self.line(&format!("scf.yield {list} : {types}"));
        }
        self.depth -= 1;
        self.line("}");
        init.iter()
            .enumerate()
            .map(|(i, v)| Val {
                id: result.id,
                part: Some(i),
                ty: v.ty,
            })
            .collect()
    }

    /// `if c { then } else { init }`: `then` may replace the carried values.
    pub fn if_then(&mut self, c: Val, init: &[Val], then: impl FnOnce(&mut Emit) -> Vec<Val>) -> Vec<Val> {
        let result = self.fresh(Ty::scalar(Elem::I64));
        let types = init.iter().map(|v| v.ty.to_string()).collect::<Vec<_>>().join(", ");
        let list = |values: &[Val]| values.iter().map(|v| v.to_string()).collect::<Vec<_>>().join(", ");
        match init.len() {
            0 => self.line(&format!("scf.if {c} {{")),
            n => self.line(&format!("%{}:{n} = scf.if {c} -> ({types}) {{", result.id)),
        }
        self.depth += 1;
        let yields = then(self);
        assert_eq!(yields.len(), init.len(), "a branch yields what it carries");
        if !init.is_empty() {
            self.line(&format!("scf.yield {} : {types}", list(&yields)));
            self.depth -= 1;
            self.line("} else {");
            self.depth += 1;
            self.line(&format!("scf.yield {} : {types}", list(init)));
        }
        self.depth -= 1;
        self.line("}");
        init.iter()
            .enumerate()
            .map(|(i, v)| Val {
                id: result.id,
                part: Some(i),
                ty: v.ty,
            })
            .collect()
    }

    /// `if c { then } else { otherwise }`: both give values of these types.
    pub fn if_else(
        &mut self,
        c: Val,
        types: &[Ty],
        then: impl FnOnce(&mut Emit) -> Vec<Val>,
        otherwise: impl FnOnce(&mut Emit) -> Vec<Val>,
    ) -> Vec<Val> {
        let result = self.fresh(Ty::scalar(Elem::I64));
        let list = types.iter().map(Ty::to_string).collect::<Vec<_>>().join(", ");
        match types.len() {
            0 => self.line(&format!("scf.if {c} {{")),
            n => self.line(&format!("%{}:{n} = scf.if {c} -> ({list}) {{", result.id)),
        }
        let branch = |e: &mut Emit, yields: Vec<Val>| {
            assert_eq!(yields.len(), types.len(), "a branch yields what it carries");
            if !yields.is_empty() {
                let values = yields.iter().map(Val::to_string).collect::<Vec<_>>().join(", ");
                e.line(&format!("scf.yield {values} : {list}"));
            }
            e.depth -= 1;
        };
        self.depth += 1;
        let yields = then(self);
        branch(self, yields);
        self.line("} else {");
        self.depth += 1;
        let yields = otherwise(self);
        branch(self, yields);
        self.line("}");
        (types.iter().enumerate())
            .map(|(i, ty)| Val {
                id: result.id,
                part: Some(i),
                ty: *ty,
            })
            .collect()
    }
}
