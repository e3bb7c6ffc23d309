//! `dce`: ops whose results nobody reads go. Writes to caches and calls (which may write some) stay.

use std::collections::HashSet;

use crate::Pass;

pub const DCE: Pass = Pass {
    name: "dce",
    about: "remove ops whose results nobody reads",
    run: |module| {
        for f in &mut module.functions {
            let mut live: HashSet<_> = f.returns.iter().map(|(_, v)| *v).collect();
            let mut keep = vec![false; f.ops.len()];
            for (i, op) in f.ops.iter().enumerate().rev() {
                let effect = op.name == "call" || op.writes_state();
                if effect || op.results.iter().any(|v| live.contains(v)) {
                    keep[i] = true;
                    live.extend(&op.operands);
                }
            }
            let mut keep = keep.into_iter();
            f.ops.retain(|_| keep.next().unwrap_or(true));
        }
        Ok(())
    },
};
