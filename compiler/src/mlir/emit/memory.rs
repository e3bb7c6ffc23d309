//! Memory. Pointers are untyped; indices count elements.

use super::{Elem, Emit, Ty, Val};

impl Emit {
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
}
