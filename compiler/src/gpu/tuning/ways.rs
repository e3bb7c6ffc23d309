//! A kernel's ways, its name in tables, and the variants that tables make of them.

use std::collections::BTreeSet;

use ir::Size;
use ir::plan::{Contraction, Expr, Kernel, Rhs, Stage, Unary};
use runtime::artefact::{self, GpuKernel, Variant};

use super::{Choice, Table};
use crate::pipeline::size;

/// One way to run a kernel. Its variant has the conditions under which it is right; which way is best is said elsewhere.
pub struct Way {
    pub name: String,
    pub variant: Variant,
    /// (name, MLIR)
    pub functions: Vec<(String, String)>,
}

impl Way {
    /// A variant of one function.
    pub fn new(name: &str, variant: Variant, function: String, text: String) -> Way {
        Way {
            name: name.to_string(),
            variant,
            functions: vec![(function, text)],
        }
    }

    /// The most rows for which it is right.
    fn most(&self) -> Option<i64> {
        self.variant.at_most.as_ref().map(|(_, n)| *n)
    }

    fn is_conditional(&self) -> bool {
        self.variant.at_most.is_some() || !self.variant.multiples.is_empty()
    }
}

/// What there is to measure of a kernel.
pub struct Space {
    /// See `key`.
    pub key: String,
    pub rows: artefact::Size,
    /// Every way as a variant.
    pub kernel: GpuKernel,
    /// The variants' names.
    pub ways: Vec<String>,
    /// PTX with all of them.
    pub code: Vec<u8>,
    /// As it would be compiled: indices into `ways`, and the conditions.
    pub chosen: Vec<(usize, Variant)>,
}

/// A kernel's name in tables: what its time depends on, but for the rows. Only products of two matrices have one.
pub fn key(kernel: &Kernel, c: &Contraction) -> Option<String> {
    if c.batch > 0 {
        return None;
    }
    let (Rhs::Packed { arg } | Rhs::KContiguous { arg, .. } | Rhs::NContiguous { arg, .. }) = c.b;
    let (k, columns) = (c.k.as_const()?, kernel.cols.as_const()?);
    let (weight, left) = (kernel.args[arg].dtype, kernel.args[c.a.arg].dtype);
    let mut words = vec![format!("matmul {} {k}x{columns}", weight.name())];
    if c.also.is_some() {
        words.push("twice".to_string());
    }
    if left != weight {
        words.push(format!("of {}", left.name()));
    }
    for (turned, side) in [
        (kernel.is_turned(), "left"),
        (matches!(c.b, Rhs::NContiguous { .. }), "right"),
    ] {
        words.extend(turned.then(|| format!("{side} turned")));
    }
    let known = [
        (Expr::RowSquares, "norm"),
        (Expr::Index(kernel.outer.len()), "by-column"),
    ];
    words.extend(
        known
            .iter()
            .filter(|(e, _)| kernel.exprs.contains(e))
            .map(|(_, word)| word.to_string()),
    );
    for (op, word) in [(Unary::Silu, "silu"), (Unary::Sigmoid, "sigmoid"), (Unary::Exp, "exp")] {
        if kernel.exprs.iter().any(|e| matches!(e, Expr::Unary(u, _) if *u == op)) {
            words.push(word.to_string());
        }
    }
    let loads = kernel.exprs.iter().filter(|e| matches!(e, Expr::Load(_))).count();
    let stores: Vec<_> = (kernel.stages.iter())
        .filter_map(|s| match s {
            Stage::Store { to, .. } => Some(kernel.args[to.arg].dtype),
            Stage::Reduce { .. } => None,
        })
        .collect();
    if loads > 0 {
        words.push(format!("loads {loads}"));
    }
    match &stores[..] {
        [one] if *one == weight => {}
        [one] => words.push(format!("to {}", one.name())),
        all => words.push(format!("stores {}", all.len())),
    }
    Some(words.join(" "))
}

/// The ways that tables name for a kernel.
pub fn named<'t>(tables: &'t [Table], key: Option<&str>) -> BTreeSet<&'t str> {
    let found = tables.iter().filter_map(|t| t.find(key?));
    found
        .flat_map(|(_, choices)| choices.iter().map(|c| c.way.as_str()))
        .collect()
}

/// The variants that the tables make of a kernel's ways, each with the way's index. `unknown` takes what tables name and nobody knows.
pub fn arranged(
    ways: &[Way],
    key: Option<&str>,
    kernel: &Kernel,
    tables: &[Table],
    unknown: &mut BTreeSet<String>,
) -> Vec<(usize, Variant)> {
    let found = key.map_or(vec![], |key| tables.iter().filter_map(|t| t.find(key)).collect());
    let mut fill = Fill {
        ways,
        columns: kernel.cols.as_const().unwrap_or(1) * (1 + i64::from(is_pair(kernel))),
        pieces: vec![],
        unknown,
    };
    fill.rows(&found, 1, None);
    let rows = rows(kernel);
    if let Some(n) = rows.as_const() {
        fill.only(n);
    }
    let variant = |(way, to): (usize, Option<i64>)| {
        let most = [ways[way].most(), to].into_iter().flatten().min();
        let variant = Variant {
            at_most: most.map(|n| (size(&rows), n)),
            ..ways[way].variant.clone()
        };
        (way, variant)
    };
    fill.pieces.into_iter().map(variant).collect()
}

/// `arranged` as it would be, and every way beside it. None where there is nothing to choose.
pub fn space(ways: Vec<Way>, key: String, kernel: &Kernel, tables: &[Table]) -> Option<(Space, Vec<(String, String)>)> {
    if ways.len() < 2 {
        return None;
    }
    let chosen = arranged(&ways, Some(&key), kernel, tables, &mut BTreeSet::new());
    let space = Space {
        key,
        rows: size(&rows(kernel)),
        kernel: GpuKernel {
            name: kernel.name.clone(),
            variants: ways.iter().map(|w| w.variant.clone()).collect(),
        },
        ways: ways.iter().map(|w| w.name.clone()).collect(),
        code: vec![],
        chosen,
    };
    Some((space, ways.into_iter().flat_map(|w| w.functions).collect()))
}

/// Are there two weights?
fn is_pair(kernel: &Kernel) -> bool {
    kernel.contraction.as_ref().is_some_and(|c| c.also.is_some())
}

/// What ranges are counted in.
fn rows(kernel: &Kernel) -> Size {
    let batch = kernel.contraction.as_ref().map_or(0, |c| c.batch);
    Size::product(&kernel.outer[batch..])
}

/// Ways with the most rows that each serves; the first one that fits is meant.
struct Fill<'a> {
    ways: &'a [Way],
    /// Of all weights together.
    columns: i64,
    pieces: Vec<(usize, Option<i64>)>,
    unknown: &'a mut BTreeSet<String>,
}

impl Fill<'_> {
    /// Rows `from` to `to`: the first table's choices, and the other tables where it has none.
    fn rows(&mut self, tables: &[(&str, &[Choice])], from: i64, to: Option<i64>) {
        let Some(((key, choices), rest)) = tables.split_first() else {
            return self.in_order(from, to);
        };
        let mut next = from;
        for c in *choices {
            let begin = c.from.unwrap_or(next).max(next);
            let end = [c.end(self.columns), to].into_iter().flatten().min();
            if to.is_some_and(|to| begin > to) || end.is_some_and(|end| begin > end) {
                continue;
            }
            let Some(way) = self.ways.iter().position(|w| w.name == c.way) else {
                // A line for many kernels may name what not all of them have; and where the rows are known there are no ways for few.
                let of_few = c.way.strip_prefix('r').is_some_and(|n| n.parse::<u32>().is_ok());
                if !key.ends_with('*') && !of_few {
                    self.unknown.insert(format!("`{key}`: there is no way `{}`", c.way));
                }
                continue;
            };
            if begin > next {
                self.rows(rest, next, Some(begin - 1));
            }
            self.push(way, end);
            if self.ways[way].is_conditional() {
                // What it is not right for.
                self.rows(rest, self.ways[way].most().map_or(begin, |n| begin.max(n + 1)), end);
            }
            let Some(end) = end else { return };
            next = end + 1;
        }
        if to.is_none_or(|to| next <= to) {
            self.rows(rest, next, to);
        }
    }

    /// The ways' own order, up to the first one that is right for all.
    fn in_order(&mut self, from: i64, to: Option<i64>) {
        if to.is_some_and(|to| from > to) {
            return;
        }
        // Rows that the ways so far are right for.
        let mut done = from - 1;
        for (i, way) in self.ways.iter().enumerate() {
            if way.most().is_some_and(|n| n <= done) {
                continue;
            }
            self.push(i, to);
            if way.variant.multiples.is_empty() {
                done = way.most().unwrap_or(i64::MAX);
            }
            if done >= to.unwrap_or(i64::MAX) {
                break;
            }
        }
    }

    /// What so many rows can take, up to the first piece that is always right.
    fn only(&mut self, rows: i64) {
        let ways = self.ways;
        self.pieces
            .retain(|(way, to)| [ways[*way].most(), *to].into_iter().flatten().all(|most| rows <= most));
        let always = self
            .pieces
            .iter()
            .position(|(way, _)| ways[*way].variant.multiples.is_empty());
        if let Some(last) = always {
            self.pieces.truncate(last + 1);
        }
    }

    fn push(&mut self, way: usize, to: Option<i64>) {
        match self.pieces.last_mut() {
            // Ranges ascend.
            Some(last) if last.0 == way => last.1 = to,
            _ => self.pieces.push((way, to)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_rows() -> artefact::Size {
        artefact::Size {
            coef: 1,
            syms: vec!["T".to_string()],
        }
    }

    /// r1 to r8 for few rows, and another one that nothing is left for, `even` for multiples of 8, a and b for all.
    fn ways() -> Vec<Way> {
        let way = |name: &str, most: Option<i64>, multiple: bool| {
            let variant = Variant {
                at_most: most.map(|n| (size_of_rows(), n)),
                multiples: if multiple { vec![(size_of_rows(), 8)] } else { vec![] },
                ..Variant::default()
            };
            Way::new(name, variant, name.to_string(), String::new())
        };
        let few = [1, 2, 4, 8].map(|n| way(&format!("r{n}"), Some(n), false));
        let few = few.into_iter().chain([way("again4", Some(4), false)]);
        let many = [way("even", None, true), way("a", None, false), way("b", None, false)];
        few.chain(many).collect()
    }

    /// From, to, way.
    type Line<'a> = (Option<i64>, Option<i64>, &'a str);

    /// The pieces for kernels of 100 columns by these lines, table by table, and what was unknown.
    fn pieces(tables: &[(&str, &[Line])]) -> (String, BTreeSet<String>) {
        let tables: Vec<(&str, Vec<Choice>)> = (tables.iter())
            .map(|(key, lines)| {
                let choice = |(from, to, way): &Line| Choice {
                    from: *from,
                    to: *to,
                    elements: None,
                    way: way.to_string(),
                };
                (*key, lines.iter().map(choice).collect())
            })
            .collect();
        let lines: Vec<(&str, &[Choice])> = tables.iter().map(|(key, c)| (*key, c.as_slice())).collect();
        let (ways, mut unknown) = (ways(), BTreeSet::new());
        let mut fill = Fill {
            ways: &ways,
            columns: 100,
            pieces: vec![],
            unknown: &mut unknown,
        };
        fill.rows(&lines, 1, None);
        let shown: Vec<String> = (fill.pieces.iter())
            .map(|(way, to)| format!("{}{}", ways[*way].name, to.map_or(String::new(), |n| format!("<={n}"))))
            .collect();
        (shown.join(" "), unknown)
    }

    #[test]
    fn without_tables_the_ways_own_order() {
        assert_eq!(pieces(&[]).0, "r1 r2 r4 r8 even a");
    }

    #[test]
    fn known_rows_need_no_other_ways() {
        let ways = ways();
        let left = |rows: i64| {
            let mut fill = Fill {
                ways: &ways,
                columns: 100,
                pieces: vec![(0, Some(1)), (2, Some(4)), (5, Some(9)), (6, Some(9)), (7, None)],
                unknown: &mut BTreeSet::new(),
            };
            fill.only(rows);
            fill.pieces
                .iter()
                .map(|(way, _)| ways[*way].name.clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(left(3), ["r4"]);
        // `even` is not right for all numbers of columns.
        assert_eq!(left(5), ["even", "a"]);
        assert_eq!(left(10), ["b"]);
    }

    #[test]
    fn gaps_are_filled_by_the_tables_below() {
        let (low, high) = ((Some(9), None, "b"), (Some(33), Some(64), "a"));
        assert_eq!(pieces(&[("m *", &[low])]).0, "r1<=8 r2<=8 r4<=8 r8<=8 b");
        assert_eq!(
            pieces(&[("m", &[high]), ("m *", &[low])]).0,
            "r1<=8 r2<=8 r4<=8 r8<=8 b<=32 a<=64 b"
        );
    }

    #[test]
    fn a_way_that_is_not_right_for_all_of_its_range_leaves_the_rest() {
        let few = (None, Some(16), "r4");
        assert_eq!(pieces(&[("m", &[few])]).0, "r4<=16 r8<=16 even<=16 a<=16 even a");
    }

    #[test]
    fn what_is_not_there_any_more_is_told_and_left_out() {
        let (shown, unknown) = pieces(&[("m", &[(None, Some(99), "gone"), (None, None, "b")])]);
        assert_eq!(shown, "b");
        assert_eq!(Vec::from_iter(unknown), ["`m`: there is no way `gone`"]);
        // Lines for many kernels are not of one's own.
        let (shown, unknown) = pieces(&[("m *", &[(None, Some(99), "gone")])]);
        assert_eq!((shown.as_str(), unknown.len()), ("r1 r2 r4 r8 even a", 0));
    }
}
