//! Writes MLIR, one method per operation: dialects scf (`control`), arith (`arith`), vector (`vector`), and llvm for pointers (`memory`)
//! and intrinsics. Here are types, values, constants and the text itself.
//!
//! The text is the product: it is what `--emit mlir` shows and what MLIR parses and verifies. Values carry their type, so that an
//! operation's type need not be told. Knows nothing of kernels.

mod arith;
mod control;
mod memory;
mod vector;

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
}
