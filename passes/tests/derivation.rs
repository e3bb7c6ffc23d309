//! The fused form is derived, not matched: attention written in other ways becomes the same sweeps, every rule is needed by one of
//! them, and without it that graph takes another road.

mod common;

use std::collections::BTreeSet;

use common::check::*;
use common::*;
use ir::{DType, Function, Module, ValueId};
use passes::egraph::{self, cost::MACHINES, rules};

const WINDOW: i64 = 3;

/// Attention written one way: its name, the graph, the sweeps it becomes and how many of them continue another.
type Way = (&'static str, Function, usize, usize);

/// One pass, from its scores and values to its result.
fn pass(shape: &Shape, write: impl Fn(&mut Graph, ValueId, ValueId) -> ValueId) -> Function {
    let mut g = Graph::new(shape);
    let (q, k, v) = (g.q("q"), g.k("k"), g.k("v"));
    let scores = g.scores(q, k, SCALE);
    let out = write(&mut g, scores, v);
    g.returns(out);
    g.f
}

/// Scores masked in a way of its own, then softmax and the product.
fn masked(shape: &Shape, mask: impl Fn(&mut Graph, ValueId) -> ValueId) -> Function {
    pass(shape, |g, scores, v| {
        let x = mask(g, scores);
        let p = g.f.softmax(x, DType::F32);
        g.f.matmul(p, v, false, DType::F32)
    })
}

/// A mask to be added: 0, and -inf behind it.
fn bias(g: &mut Graph, window: Option<i64>) -> ValueId {
    let zero = g.f.scalar(0.0, DType::F32);
    g.masked(zero, window)
}

/// exp(x - max x) and its sum, by hand.
fn by_hand(g: &mut Graph, x: ValueId) -> (ValueId, ValueId) {
    let max = g.f.reduce_max(x, 4);
    let shifted = g.f.sub(x, max);
    let e = g.f.unary("exp", shifted);
    let sum = g.f.reduce_sum(e, 4);
    (e, sum)
}

fn divided(g: &mut Graph, x: ValueId) -> ValueId {
    let (e, sum) = by_hand(g, x);
    g.f.div(e, sum)
}

/// exp x / sum exp x, as softmax is defined.
fn unguarded(g: &mut Graph, x: ValueId) -> ValueId {
    let e = g.f.unary("exp", x);
    let sum = g.f.reduce_sum(e, 4);
    g.f.div(e, sum)
}

/// (v^T p^T)^T
fn turned(g: &mut Graph, p: ValueId, v: ValueId) -> ValueId {
    let v = g.f.transpose(v, &[0, 1, 2, 4, 3]);
    let o = g.f.matmul(v, p, true, DType::F32);
    g.f.transpose(o, &[0, 1, 2, 4, 3])
}

/// Both passes' weights brought together by the gate, then one product with the values.
fn weights(shape: &Shape, join: impl Fn(&mut Graph, [ValueId; 3]) -> ValueId) -> Function {
    pass(shape, |g, scores, v| {
        let gate = g.gate("gate", 1);
        let [far, near] = [None, Some(WINDOW)].map(|w| {
            let x = g.masked(scores, w);
            g.f.softmax(x, DType::F32)
        });
        let p = join(g, [gate, far, near]);
        g.f.matmul(p, v, false, DType::F32)
    })
}

fn ways(shape: &Shape) -> Vec<Way> {
    let product = |g: &mut Graph, p, v| g.f.matmul(p, v, false, DType::F32);
    vec![
        ("two passes, blended", layer(shape, WINDOW, 1), 2, 1),
        (
            "a mask added",
            masked(shape, |g, x| {
                let m = bias(g, None);
                g.f.add(x, m)
            }),
            1,
            0,
        ),
        (
            "a mask that scores are added to",
            masked(shape, |g, x| {
                let m = bias(g, None);
                g.f.add(m, x)
            }),
            1,
            0,
        ),
        (
            "masks added one after the other",
            masked(shape, |g, x| {
                let (m, w) = (bias(g, None), bias(g, Some(WINDOW)));
                let x = g.f.add(x, m);
                g.f.add(x, w)
            }),
            1,
            0,
        ),
        (
            "masks added to each other first",
            masked(shape, |g, x| {
                let (m, w) = (bias(g, None), bias(g, Some(WINDOW)));
                let both = g.f.add(m, w);
                g.f.add(x, both)
            }),
            1,
            0,
        ),
        (
            "a mask in a mask",
            masked(shape, |g, x| {
                let x = g.masked(x, Some(WINDOW));
                g.masked(x, None)
            }),
            1,
            0,
        ),
        (
            "divided before the product",
            pass(shape, |g, x, v| {
                let x = g.masked(x, None);
                let p = divided(g, x);
                product(g, p, v)
            }),
            1,
            0,
        ),
        (
            "divided after the product",
            pass(shape, |g, x, v| {
                let x = g.masked(x, None);
                let (e, sum) = by_hand(g, x);
                let o = product(g, e, v);
                g.f.div(o, sum)
            }),
            1,
            0,
        ),
        (
            "no maximum taken off",
            pass(shape, |g, x, v| {
                let x = g.masked(x, None);
                let p = unguarded(g, x);
                product(g, p, v)
            }),
            1,
            0,
        ),
        (
            "values first: (v^T p^T)^T",
            pass(shape, |g, x, v| {
                let x = g.masked(x, None);
                let p = g.f.softmax(x, DType::F32);
                turned(g, p, v)
            }),
            1,
            0,
        ),
        (
            "weights gated before the product",
            pass(shape, |g, x, v| {
                let gate = g.gate("gate", 1);
                let x = g.masked(x, None);
                let p = g.f.softmax(x, DType::F32);
                let p = g.f.mul(gate, p);
                product(g, p, v)
            }),
            1,
            0,
        ),
        (
            "weights blended before the product",
            weights(shape, |g, [gate, far, near]| g.blend(gate, far, near)),
            2,
            1,
        ),
        (
            "weights from one to the other",
            weights(shape, |g, [gate, far, near]| {
                let way = g.f.sub(far, near);
                let way = g.f.mul(gate, way);
                g.f.add(near, way)
            }),
            2,
            1,
        ),
    ]
}

/// Only sweeps are left of attention, as many as there should be.
fn arrived(f: &Function, sweeps: usize, continued: usize) -> bool {
    let goes_on = |o: &&ir::Op| o.attrs.contains_key("continues");
    let left: usize = ["softmax", "where", "exp", "reduce_max"]
        .map(|op| count(f, op))
        .iter()
        .sum();
    count(f, "sweep") == sweeps && f.ops.iter().filter(goes_on).count() == continued && left == 0
}

#[test]
fn every_way_of_writing_it_fuses() {
    for decode in [false, true] {
        for flat in [false, true] {
            let shape = Shape {
                flat,
                ..Shape::new(decode)
            };
            for (name, f, sweeps, continued) in ways(&shape) {
                let g = fused(&f);
                let text = Module {
                    functions: vec![g.clone()],
                }
                .to_string();
                assert!(
                    arrived(&g, sweeps, continued),
                    "{name}, decode {decode}, flat {flat}:\n{text}"
                );
                for t in [1, 2, 3, 4, 7] {
                    same(&f, &g, &[("B", 2), ("T", t), ("S", t)]);
                    planned(&f, &g, &[("B", 2), ("T", t), ("S", t)]);
                }
                if !flat {
                    agree(name, &f, 2);
                }
            }
        }
    }
}

/// Each graph with the rules it needs: without any one of them it does not become its sweeps. No rule is without a graph.
#[test]
fn every_rule_is_needed() {
    let mut text = String::new();
    let mut needed = BTreeSet::new();
    for (name, f, sweeps, continued) in ways(&Shape::new(false)) {
        let needs = |rule: &&rules::Rule| {
            let rest: Vec<_> = rules::all().into_iter().filter(|r| r.name != rule.name).collect();
            let mut f = f.clone();
            egraph::fuse(&mut f, &rest, &MACHINES[0]).unwrap();
            let mut module = Module { functions: vec![f] };
            let dce = passes::PASSES.iter().find(|p| p.name == "dce").unwrap();
            (dce.run)(&mut module).unwrap();
            !arrived(&module.functions[0], sweeps, continued)
        };
        let names: Vec<&str> = rules::all().iter().filter(needs).map(|r| r.name).collect();
        text += &format!("{name}: {}\n", names.join(" "));
        needed.extend(names);
    }
    let idle: Vec<&str> = rules::all()
        .iter()
        .map(|r| r.name)
        .filter(|r| !needed.contains(r))
        .collect();
    assert!(idle.is_empty(), "no graph here needs {idle:?}:\n{text}");
    insta::assert_snapshot!(text);
}

/// Masks, softmax and product each written in a way of its own, and what comes out blended before or after the product: all of it
/// fuses, means the same, and so does every alternative. `LOOPC_CASES` sets how many.
#[test]
fn random_ways() {
    let cases = std::env::var("LOOPC_CASES").ok().and_then(|n| n.parse().ok());
    for seed in 0..cases.unwrap_or(100u64) {
        let mut random = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = |n: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            (random >> 20) % n
        };
        let mut shape = Shape::new(next(2) == 0);
        shape.flat = next(2) == 0;
        for axis in [&mut shape.kv, &mut shape.group, &mut shape.head] {
            if next(3) == 0 {
                *axis = 1;
            }
        }
        let mut g = Graph::new(&shape);
        let (q, k, v) = (g.q("q"), g.k("k"), g.k("v"));
        let scores = g.scores(q, k, SCALE);
        let mut parts = vec![];
        for i in 0..1 + next(3) {
            let windows: Vec<_> = (0..1 + next(2))
                .map(|_| (next(3) > 0).then(|| 1 + next(7) as i64))
                .collect();
            let mut x = scores;
            for w in windows {
                x = match next(3) {
                    0 => g.masked(x, w),
                    1 => {
                        let m = bias(&mut g, w);
                        g.f.add(x, m)
                    }
                    _ => {
                        let m = bias(&mut g, w);
                        g.f.add(m, x)
                    }
                };
            }
            let mut p = match next(3) {
                0 => g.f.softmax(x, DType::F32),
                1 => divided(&mut g, x),
                _ => unguarded(&mut g, x),
            };
            if next(3) == 0 {
                let gate = g.gate(&format!("g{i}"), 1);
                p = if next(2) == 0 {
                    g.f.mul(gate, p)
                } else {
                    g.f.mul(p, gate)
                };
            }
            parts.push(p);
        }
        let first = next(2) == 0;
        if !first {
            for p in &mut parts {
                *p = if next(2) == 0 {
                    g.f.matmul(*p, v, false, DType::F32)
                } else {
                    turned(&mut g, *p, v)
                };
            }
        }
        let join = |a: ValueId, b: ValueId| if next(2) == 0 { g.f.add(a, b) } else { g.f.sub(b, a) };
        let mut out = parts.into_iter().reduce(join).unwrap();
        if first {
            out = g.f.matmul(out, v, false, DType::F32);
        }
        g.returns(out);
        let fused = fused(&g.f);
        let text = || {
            Module {
                functions: vec![fused.clone()],
            }
            .to_string()
        };
        assert_eq!(
            ["softmax", "where", "exp"].map(|op| count(&fused, op)),
            [0; 3],
            "seed {seed}:\n{}",
            text()
        );
        let (t, b) = (1 + next(9) as i64, 1 + next(2) as i64);
        let sizes = [("B", b), ("T", t), ("S", t)];
        same(&g.f, &fused, &sizes);
        planned(&g.f, &fused, &sizes);
        if seed % 10 == 0 {
            agree(&format!("seed {seed}"), &g.f, 1);
        }
    }
}
