//! The e-graph finds fused attention by itself: every kind of graph, every entry of the derivation, every alternative.

mod common;

use common::check::*;
use common::*;
use ir::{Function, Module};

/// Name, naive graph, sweeps wanted, of which continue another.
fn variants(shape: &Shape) -> Vec<(&'static str, Function, usize, usize)> {
    vec![
        ("base", base(shape), 1, 0),
        ("layer", layer(shape, 3, 1), 2, 1),
        ("gate per element", layer(shape, 3, shape.head), 2, 1),
        ("two streams", streams(shape, 3), 2, 0),
        ("own scale", own_scale(shape, 3), 2, 0),
        ("three windows", three_windows(shape, [5, 2]), 3, 2),
    ]
}

/// All variants of a shape fuse, and mean what they meant.
fn all_fuse(what: &str, shape: &Shape) {
    for (name, f, sweeps, continued) in variants(shape) {
        let what = format!("{what}, {name}, decode {}", shape.decode);
        let g = fused(&f);
        let text = Module {
            functions: vec![g.clone()],
        }
        .to_string();
        assert_eq!(count(&g, "sweep"), sweeps, "{what}:\n{text}");
        let goes_on = |o: &&ir::Op| o.attrs.contains_key("continues");
        assert_eq!(g.ops.iter().filter(goes_on).count(), continued, "{what}:\n{text}");
        assert_eq!(
            count(&g, "softmax") + count(&g, "where"),
            usize::from(name == "three windows"),
            "{what}:\n{text}"
        );
        for t in [1, 2, 3, 4, 7] {
            same(&f, &g, &[("B", 2), ("T", t), ("S", t)]);
            planned(&f, &g, &[("B", 2), ("T", t), ("S", t)]);
        }
    }
}

#[test]
fn every_variant_becomes_sweeps() {
    for decode in [false, true] {
        let shape = Shape::new(decode);
        all_fuse("plain", &shape);
        all_fuse("flat", &Shape { flat: true, ..shape });
    }
}

/// Windows of one key to more keys than there are, lengths around each of them. Edges of tiles: compiler/tests/kernels/sweep.rs.
#[test]
fn every_window_and_length() {
    for decode in [false, true] {
        let shape = Shape::new(decode);
        for w in [1, 2, 3, 6, 20] {
            let graphs = [
                ("layer", layer(&shape, w, 1), 2),
                ("two streams", streams(&shape, w), 2),
                ("own scale", own_scale(&shape, w), 2),
                ("three windows", three_windows(&shape, [w + 2, w]), 3),
            ];
            for (name, f, sweeps) in graphs {
                let g = fused(&f);
                assert_eq!(count(&g, "sweep"), sweeps, "{name}, window {w}, decode {decode}");
                for t in [1, w - 1, w, w + 1, w + 3, 2 * w + 1] {
                    if (1..16).contains(&t) {
                        same(&f, &g, &[("B", 2), ("T", t), ("S", t)]);
                        planned(&f, &g, &[("B", 2), ("T", t), ("S", t)]);
                    }
                }
            }
        }
    }
}

/// Shapes with axes of size 1, which have no index of their own and tell nothing by their place.
fn with_ones(decode: bool) -> Vec<(&'static str, Shape)> {
    let all = Shape::new(decode);
    let mut list = vec![];
    for flat in [false, true] {
        let all = Shape { flat, ..all.clone() };
        let one = || ir::Dim::Const(1);
        list.extend([
            ("one KV head", Shape { kv: 1, ..all.clone() }),
            (
                "one query head each",
                Shape {
                    group: 1,
                    ..all.clone()
                },
            ),
            (
                "one head",
                Shape {
                    kv: 1,
                    group: 1,
                    ..all.clone()
                },
            ),
            (
                "one sequence",
                Shape {
                    batch: one(),
                    ..all.clone()
                },
            ),
            ("one feature", Shape { head: 1, ..all.clone() }),
            (
                "one key",
                Shape {
                    keys: one(),
                    ..all.clone()
                },
            ),
            (
                "one row",
                Shape {
                    rows: one(),
                    ..all.clone()
                },
            ),
            (
                "one row and key",
                Shape {
                    rows: one(),
                    keys: one(),
                    ..all.clone()
                },
            ),
            (
                "one head and sequence",
                Shape {
                    kv: 1,
                    group: 1,
                    batch: one(),
                    ..all.clone()
                },
            ),
            (
                "one of all but keys",
                Shape {
                    kv: 1,
                    group: 1,
                    batch: one(),
                    head: 1,
                    rows: one(),
                    ..all.clone()
                },
            ),
            (
                "one of all",
                Shape {
                    kv: 1,
                    group: 1,
                    batch: one(),
                    head: 1,
                    rows: one(),
                    keys: one(),
                    ..all
                },
            ),
        ]);
    }
    list
}

#[test]
fn axes_of_one_fuse_as_others() {
    for decode in [false, true] {
        for (what, shape) in with_ones(decode) {
            all_fuse(what, &shape);
        }
    }
}

/// One key as [B, KV, D]: the axis of keys is the reshape's own.
#[test]
fn one_key_without_an_axis_fuses() {
    for (name, kv, group, head) in [("heads", 2, 2, 4), ("one KV head", 1, 2, 4), ("one of all", 1, 1, 1)] {
        let one = ir::Dim::Const(1);
        for decode in [false, true] {
            let shape = Shape {
                kv,
                group,
                head,
                keys: one.clone(),
                rows: one.clone(),
                ..Shape::new(decode)
            };
            for windows in [vec![None], vec![None, Some(3)]] {
                // All axes at once, or the keys' first and the group's then.
                for steps in [1, 2] {
                    let mut g = Graph::new(&shape);
                    let q = g.q("q");
                    let [k, v] = ["k", "v"].map(|name| g.one_key(name, steps));
                    let gate = g.gate("gate", 1);
                    let passes: Vec<_> = windows.iter().map(|w| g.attend(q, k, v, *w, SCALE)).collect();
                    let out = match passes[..] {
                        [far, near] => g.blend(gate, far, near),
                        _ => passes[0],
                    };
                    g.returns(out);
                    let fused = fused(&g.f);
                    let what = format!("{name}, decode {decode}, {windows:?}, {steps} steps");
                    assert_eq!(count(&fused, "sweep"), windows.len(), "{what}");
                    assert_eq!(count(&fused, "softmax"), 0, "{what}");
                    let sizes = [("B", 2), ("S", 1), ("T", 1)];
                    same(&g.f, &fused, &sizes);
                    planned(&g.f, &fused, &sizes);
                    agree(&what, &g.f, 1);
                }
            }
        }
    }
}

/// The one key is another attention's result: both fuse.
#[test]
fn one_key_out_of_attention_fuses() {
    let one = ir::Dim::Const(1);
    let shape = Shape {
        group: 1,
        rows: one.clone(),
        ..Shape::new(true)
    };
    let mut g = Graph::new(&shape);
    let (q, k, v) = (g.q("q"), g.k("k"), g.k("v"));
    let first = g.attend(q, k, v, None, SCALE);
    g.shape.keys = one;
    let key = g.as_one_key(first);
    let out = g.attend(q, key, key, None, SCALE);
    g.returns(out);
    let fused = fused(&g.f);
    assert_eq!((count(&fused, "sweep"), count(&fused, "softmax")), (2, 0));
    same(&g.f, &fused, &[("B", 2), ("S", 5)]);
    agree("one key out of attention", &g.f, 1);
}

/// Every alternative in every class of every variant is the same function, not only the one that was taken.
#[test]
fn all_alternatives_agree() {
    for decode in [false, true] {
        every_variant_agrees("plain", &Shape::new(decode));
        // As a model writes it: then more of the graph is terms.
        let some = ["one KV head", "one head", "one key", "one of all"];
        for (what, shape) in with_ones(decode) {
            if shape.flat && some.contains(&what) {
                every_variant_agrees(what, &shape);
            }
        }
    }
}

fn every_variant_agrees(what: &str, shape: &Shape) {
    for (name, f, ..) in variants(shape) {
        let what = format!("{what}, {name}, decode {}", shape.decode);
        agree(&what, &f, if what.starts_with("plain") { 4 } else { 1 });
    }
}

/// What `fuse` makes of each variant, for people to read.
#[test]
fn fused_graphs() {
    let mut text = String::new();
    for (name, f, ..) in variants(&Shape::new(false)) {
        let module = Module {
            functions: vec![fused(&f)],
        };
        text += &format!("// {name}\n{module}\n");
    }
    insta::assert_snapshot!(text);
}

/// Random graphs of attention: shapes, windows, phases, passes over shared or own keys. `LOOPC_CASES` sets how many.
#[test]
fn random_attention() {
    let cases: u64 = std::env::var("LOOPC_CASES")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(300);
    for seed in 0..cases {
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = |n: i64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            (random >> 20) as i64 % n
        };
        let mut shape = Shape::new(next(2) == 0);
        shape.flat = next(2) == 0;
        for axis in [&mut shape.kv, &mut shape.group, &mut shape.head] {
            if next(3) == 0 {
                *axis = 1;
            }
        }
        for axis in [&mut shape.batch, &mut shape.rows, &mut shape.keys] {
            if next(6) == 0 {
                *axis = ir::Dim::Const(1);
            }
        }
        let mut g = Graph::new(&shape);
        let q = g.q("q");
        let streams: Vec<_> = (0..1 + next(2))
            .map(|i| (g.k(&format!("k{i}")), g.k(&format!("v{i}"))))
            .collect();
        let mut out = None;
        for i in 0..1 + next(4) {
            let (k, v) = streams[next(streams.len() as i64) as usize];
            let window = (next(3) > 0).then(|| 1 + next(7));
            let scale = if next(5) == 0 { 2.0 * SCALE } else { SCALE };
            let a = g.attend(q, k, v, window, scale);
            let part = match next(4) {
                0 => a,
                1 => {
                    let gate = g.gate(&format!("g{i}"), 1);
                    g.f.mul(gate, a)
                }
                2 => {
                    let gate = g.gate(&format!("g{i}"), shape.head);
                    g.f.mul(a, gate)
                }
                _ => g.f.unary("silu", a),
            };
            out = Some(match out {
                None => part,
                Some(o) if next(2) == 0 => g.f.add(o, part),
                Some(o) => g.f.sub(part, o),
            });
        }
        g.returns(out.unwrap());
        let fused = fused(&g.f);
        assert_eq!(count(&fused, "softmax"), 0, "seed {seed}");
        let (t, b) = (1 + next(9), 1 + next(2));
        let sizes = [("B", b), ("T", t), ("S", t)];
        same(&g.f, &fused, &sizes);
        planned(&g.f, &fused, &sizes);
    }
}
