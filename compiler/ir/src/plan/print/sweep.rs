//! The lines of a sweep and of a sweep's backward: what is summed over which keys.

use super::super::{Rows, Sweep, SweepGradient};
use super::expressions::{brackets, float, term};
use super::kernel::Body;

impl Body<'_> {
    pub(super) fn sweep(&mut self, s: &Sweep) {
        let q = self.access(&s.q, "d");
        let mut position: Vec<String> = s.start.iter().map(|e| self.expr(*e, 4)).collect();
        if s.tokens {
            position.push(self.index(self.kernel.outer.len() - 1));
        }
        if position.is_empty() {
            position.push("0".to_string());
        }
        self.lines.push(format!("p = {}", position.join(" + ")));
        for (i, segment) in s.segments.iter().enumerate() {
            let k = self.rhs(segment.k.arg, &segment.k.offset, &segment.k.strides, "key", "d");
            let v = self.rhs(segment.v.arg, &segment.v.offset, &segment.v.strides, "key", "j");
            let far = segment.far.map(|f| format!(" < {f}")).unwrap_or_default();
            let after = segment
                .after
                .map(|a| format!(", going on from s{a}"))
                .unwrap_or_default();
            let scale = float(f32::from_bits(segment.scale));
            self.lines.push(format!(
                "s{i} = mean over key in {} with {} <= p - key{far} of {v} by exp({scale} * (sum over d in {} of {q} * {k})){after}",
                segment.keys, segment.near, s.depth
            ));
        }
    }

    pub(super) fn sweep_gradient(&mut self, g: &SweepGradient) {
        let rows = |rows: &Rows, names: &[&str], last: Option<&str>| {
            let mut terms = vec![];
            if rows.offset.coef != 0 {
                terms.push(rows.offset.to_string());
            }
            let batch = rows.strides.len() - names.len();
            for (d, stride) in rows.strides.iter().enumerate().filter(|(_, s)| s.coef != 0) {
                let name = if d < batch {
                    format!("i{d}")
                } else {
                    names[d - batch].to_string()
                };
                terms.push(term(&name, stride));
            }
            terms.extend(last.map(str::to_string));
            brackets(rows.arg, terms)
        };
        let (token, key) = (&["group", "token"][..], &["key"][..]);
        self.lines.push(format!(
            "for group in {}, token in {}, key in {}",
            g.groups, g.tokens, g.keys
        ));
        let scale = float(f32::from_bits(g.scale));
        let (q, k) = (rows(&g.q, token, Some("d")), rows(&g.k, key, Some("d")));
        self.lines
            .push(format!("x = {scale} * (sum over d in {} of {q} * {k})", g.depth));
        for r in &g.ranges {
            let far = r.far.map(|f| format!(" < {f}")).unwrap_or_default();
            self.lines.push(format!("where {} <= token - key{far}", r.near));
            let (d, v) = (rows(&r.d, token, Some("j")), rows(&g.v, key, Some("j")));
            self.lines.push(format!("  p = exp(x - {})", rows(&r.lse, token, None)));
            let z = rows(&r.z, token, None);
            self.lines
                .push(format!("  dx = {scale} * p * ((sum over j of {d} * {v}) + {z})"));
            for (to, names, last, value) in [
                (&g.dq, token, "d", format!("dx * {k}")),
                (&g.dk, key, "d", format!("dx * {q}")),
                (&g.dv, key, "j", format!("p * {d}")),
            ] {
                if let Some(to) = to {
                    self.lines.push(format!("  {} += {value}", rows(to, names, Some(last))));
                }
            }
        }
    }
}
