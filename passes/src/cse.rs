//! `cse`: equal ops on equal operands become one. Calls and cache writes are left alone.

use std::collections::HashMap;

use ir::{Op, ValueId};

use crate::Pass;

pub const CSE: Pass = Pass {
    name: "cse",
    about: "compute equal ops on equal operands once",
    run: |module| {
        for f in &mut module.functions {
            let mut first: HashMap<String, ValueId> = HashMap::new();
            let mut replaced: HashMap<ValueId, ValueId> = HashMap::new();
            let of = |replaced: &HashMap<ValueId, ValueId>, v: ValueId| replaced.get(&v).copied().unwrap_or(v);
            let mut ops: Vec<Op> = vec![];
            for mut op in std::mem::take(&mut f.ops) {
                op.operands.iter_mut().for_each(|v| *v = of(&replaced, *v));
                if op.name != "call" && !op.writes_state() {
                    let key = format!("{} {:?} {:?}", op.name, op.operands, op.attrs);
                    if let Some(v) = first.get(&key) {
                        replaced.insert(op.results[0], *v);
                        continue;
                    }
                    first.insert(key, op.results[0]);
                }
                ops.push(op);
            }
            f.ops = ops;
            f.returns.iter_mut().for_each(|(_, v)| *v = of(&replaced, *v));
        }
        Ok(())
    },
};
