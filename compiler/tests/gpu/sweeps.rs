//! Attention's kernels by hand: the segments that every mode has, heads of 64 and 128, and what only the plain ways take.

use ir::plan::{Access, Arg, Binary, Expr, Kernel, Reduction, Rows, Segment, Stage, Sweep, Unary};
use ir::{DType, Size};

/// near, far, the segment it continues, whether it reads the second keys and values.
type Range = (i64, Option<i64>, Option<usize>, bool);

struct Case {
    name: &'static str,
    dtype: DType,
    /// Heads of keys; heads of queries for each.
    heads: i64,
    groups: i64,
    /// T tokens and as many keys; else one token, which sees S of a cache of C.
    tokens: bool,
    depth: i64,
    ranges: Vec<Range>,
}

const WINDOW: i64 = 24;

/// Both passes share keys: the window's result is a prefix of the whole.
fn layer() -> Vec<Range> {
    vec![(0, Some(WINDOW), None, false), (WINDOW, None, Some(0), false)]
}

/// Each pass has its own keys.
fn two_passes() -> Vec<Range> {
    vec![(0, Some(WINDOW), None, true), (0, None, None, false)]
}

/// With the elements of each argument.
pub fn kernels() -> Vec<(Kernel, Vec<Size>)> {
    let case = |name, tokens, depth, ranges| Case {
        name,
        dtype: DType::BF16,
        heads: 2,
        groups: 2,
        tokens,
        depth,
        ranges,
    };
    let all = [
        case("base_64", true, 64, vec![(0, None, None, false)]),
        case("layer_64", true, 64, layer()),
        case("layer_128", true, 128, layer()),
        case("two_passes_64", true, 64, two_passes()),
        case("two_passes_128", true, 128, two_passes()),
        Case {
            groups: 3,
            ..case("odd_groups_64", true, 64, layer())
        },
        Case {
            dtype: DType::F32,
            ..case("plain_20", true, 20, layer())
        },
        case("decode_base_64", false, 64, vec![(0, None, None, false)]),
        case("decode_layer_64", false, 64, layer()),
        case("decode_layer_128", false, 128, layer()),
        case("decode_two_passes_128", false, 128, two_passes()),
        Case {
            dtype: DType::F32,
            ..case("decode_plain_20", false, 20, layer())
        },
    ];
    all.into_iter().map(|c| c.kernel()).collect()
}

impl Case {
    /// args: q, k, v, k2, v2, w, start, out. g = sigmoid(sum over d of q w); out = g * last + (1 - g) * first.
    fn kernel(&self) -> (Kernel, Vec<Size>) {
        let n = Size::from;
        let (batch, one) = (Size::sym("B"), n(1));
        let (rows, keys, room) = if self.tokens {
            (Size::sym("T"), Size::sym("T"), Size::sym("T"))
        } else {
            (n(1), Size::sym("S"), Size::sym("C"))
        };
        let (heads, groups, depth) = (self.heads, self.groups, self.depth);
        let mut outer = vec![batch.clone(), n(heads), n(groups)];
        let head = &n(depth) * &rows;
        let mut strides = vec![&n(heads * groups) * &head, &n(groups) * &head, head.clone()];
        if self.tokens {
            outer.push(rows.clone());
            strides.push(n(depth));
        }
        strides.push(one.clone());
        let rank = outer.len();
        let access = |arg, strides: Vec<Size>| Access {
            arg,
            offset: n(0),
            strides,
            indirect: None,
        };
        // A position for each sequence; none where tokens begin at 0.
        let mut by_batch = vec![n(0); rank + 1];
        by_batch[0] = one.clone();
        let mut by_head = vec![n(0); rank + 1];
        (by_head[1], by_head[2], by_head[rank]) = (n(groups * depth), n(depth), one.clone());
        let matrix = |arg| Rows {
            arg,
            offset: n(0),
            strides: vec![&n(heads * depth) * &room, &n(depth) * &room, n(depth)],
        };
        let last = self.ranges.len() - 1;
        let q = access(0, strides.clone());
        let exprs = vec![
            Expr::Load(access(6, by_batch)),
            Expr::Load(q.clone()),
            Expr::Load(access(5, by_head)),
            Expr::Binary(Binary::Mul, 1, 2),
            Expr::Reduced(0),
            Expr::Unary(Unary::Sigmoid, 4),
            Expr::Swept(last),
            Expr::Binary(Binary::Mul, 5, 6),
            Expr::Float(1f32.to_bits()),
            Expr::Binary(Binary::Sub, 8, 5),
            Expr::Swept(0),
            Expr::Binary(Binary::Mul, 9, 10),
            Expr::Binary(Binary::Add, 7, 11),
        ];
        let segments = self.ranges.iter().map(|(near, far, after, second)| Segment {
            k: matrix(if *second { 3 } else { 1 }),
            v: matrix(if *second { 4 } else { 2 }),
            keys: keys.clone(),
            scale: (1.0 / (depth as f32).sqrt()).to_bits(),
            near: *near,
            far: *far,
            after: *after,
        });
        let sweep = Sweep {
            batch: 2,
            q,
            depth,
            tokens: self.tokens,
            start: (!self.tokens).then_some(0),
            segments: segments.collect(),
        };
        let elements = |rows: &Size, heads: i64| &(&batch * rows) * &n(heads * depth);
        let (all, of_keys) = (elements(&rows, heads * groups), elements(&room, heads));
        let mut args = vec![self.dtype; 5];
        args.extend([DType::F32, DType::I32, self.dtype]);
        let kernel = Kernel {
            name: self.name.to_string(),
            args: (args.into_iter().enumerate())
                .map(|(i, dtype)| Arg { dtype, written: i == 7 })
                .collect(),
            outer,
            ordered: 0,
            panels: false,
            cols: n(depth),
            contraction: None,
            sweep: Some(sweep),
            sweep_gradient: None,
            exprs,
            stages: vec![
                Stage::Reduce {
                    op: Reduction::Sum,
                    value: 3,
                },
                Stage::Store {
                    to: access(7, strides),
                    value: 12,
                    when: None,
                },
            ],
        };
        let errors = ir::plan::verify::verify_kernel(&kernel);
        assert!(errors.is_empty(), "{}: {errors:?}", self.name);
        let mut lengths = vec![all.clone()];
        lengths.extend(vec![of_keys; 4]);
        lengths.extend([n(heads * groups * depth), batch, all]);
        (kernel, lengths)
    }
}
