//! Loops and branches, which carry values.

use super::{Elem, Emit, Ty, Val};

impl Emit {
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
        parts(result, init.iter().map(|v| v.ty))
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
        parts(result, init.iter().map(|v| v.ty))
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
        parts(result, types.iter().copied())
    }
}

/// The values of an operation with several results.
fn parts(result: Val, types: impl Iterator<Item = Ty>) -> Vec<Val> {
    let part = |(i, ty)| Val {
        part: Some(i),
        ty,
        ..result
    };
    types.enumerate().map(part).collect()
}
