//! The walk over all ops and all their samples, and the page of the docs that is made from the table.

use ir::Attr;
use ir::ops::{OPS, op, table_markdown};
use ir::testing::sample_case;

/// Each op, each sample, a few sizes: valid, evaluates to the inferred shape, and survives its text.
#[test]
fn samples() {
    for def in OPS {
        let samples = (def.samples)();
        assert!(!samples.is_empty(), "{} has no samples", def.name);
        for (i, sample) in samples.iter().enumerate() {
            for seed in 0..6 {
                let what = format!("{} sample {i} seed {seed}", def.name);
                let case = sample_case(def, sample, seed).unwrap_or_else(|e| panic!("{what}: {e}"));
                assert_eq!(ir::verify::verify(&case.module), [], "{what}");
                let (results, _) = case.run(false).unwrap_or_else(|e| panic!("{what}: {e}"));
                let y = &results["y"];
                let f = &case.module.functions[0];
                let declared = f.ty(f.returns[0].1);
                let shape: Vec<i64> = y.shape.iter().map(|n| *n as i64).collect();
                assert_eq!(declared.resolve(&case.sizes), Some(shape), "{what}");
                assert_eq!(y.data.len(), y.shape.iter().product::<usize>(), "{what}");
                assert_eq!(y.dtype, declared.dtype, "{what}");
                assert!(y.data.iter().all(|x| x.is_finite()), "{what}: {y:?}");

                let text = case.module.to_string();
                let parsed = ir::text::parse(&text).unwrap_or_else(|e| panic!("{what}: {e}\n{text}"));
                assert_eq!(parsed, case.module, "{what}");
                assert_eq!(parsed.to_string(), text, "{what}");
            }
        }
    }
}

#[test]
fn table_has_no_op_twice() {
    for def in OPS {
        assert!(
            std::ptr::eq(op(def.name).expect(def.name), *def),
            "{} stands twice",
            def.name
        );
    }
}

/// What must not be accepted: one wrong signature each.
#[test]
fn wrong_signatures() {
    let ty = |text: &str| {
        let module = format!("module {{ func.func @f(%x: {text} {{loop.input = \"x\"}}) -> () {{ return }} }}");
        let module = ir::text::parse(&module).unwrap_or_else(|e| panic!("{text}: {e}"));
        module.functions[0].values[0].ty.clone()
    };
    let i = Attr::Int;
    let as_type = |text| Attr::Type(ty(text));
    type Case<'a> = (&'a str, &'a [&'a str], Vec<(&'a str, Attr)>, &'a str);
    let cases: Vec<Case> = vec![
        ("add", &["tensor<2xf32>"], vec![], "has 1 operands, wants 2"),
        (
            "add",
            &["tensor<2xf32>", "tensor<3xf32>"],
            vec![],
            "dimension 2 does not broadcast with 3",
        ),
        (
            "add",
            &["tensor<?xf32, [\"T\"]>", "tensor<?xf32, [\"S\"]>"],
            vec![],
            "dimension T does not broadcast with S",
        ),
        ("mul", &["tensor<2xf32>", "tensor<2xbf16>"], vec![], "cast one of them"),
        ("exp", &["tensor<2xi32>"], vec![], "wants floats"),
        ("matmul", &["tensor<2x3xf32>", "tensor<4x5xf32>"], vec![], "3 against 4"),
        ("matmul", &["tensor<3xf32>", "tensor<3x5xf32>"], vec![], "rank 2"),
        (
            "cast",
            &["tensor<2xf32>"],
            vec![("dtype", Attr::Str("i7".into()))],
            "no float type",
        ),
        (
            "rms_norm",
            &["tensor<2x3xf32>", "tensor<2xf32>"],
            vec![("eps", Attr::Float(0.0))],
            "with weights",
        ),
        (
            "rms_norm",
            &["tensor<2x3xf32>", "tensor<3xf32>"],
            vec![],
            "eps is missing",
        ),
        (
            "rope",
            &["tensor<1x2x3xf32>"],
            vec![("theta", Attr::Float(1e4)), ("max", i(8))],
            "D even",
        ),
        ("mask", &[], vec![("type", as_type("tensor<1x2x2xi1>"))], "is no mask"),
        (
            "mask",
            &[],
            vec![("type", as_type("tensor<2x2xi1>")), ("window", i(0))],
            "sees nothing",
        ),
        (
            "reduce_sum",
            &["tensor<2xf32>"],
            vec![("axis", i(1))],
            "axis 1 of a rank-1",
        ),
        (
            "reduce_sum",
            &["tensor<f32>"],
            vec![("axis", i(-1))],
            "axis -1 of a rank-0",
        ),
        (
            "reshape",
            &["tensor<6xf32>"],
            vec![("type", as_type("tensor<2x2xf32>"))],
            "other elements",
        ),
        (
            "transpose",
            &["tensor<2x3xf32>"],
            vec![("perm", Attr::Ints(vec![0, 0]))],
            "no permutation",
        ),
        (
            "slice",
            &["tensor<6xf32>"],
            vec![
                ("axis", i(0)),
                ("begin", i(i64::MAX)),
                ("type", as_type("tensor<2xf32>")),
            ],
            "exceed 6",
        ),
        ("concat", &[], vec![("axis", i(0))], "wants 1 or more"),
        (
            "concat",
            &["tensor<?xf32, [\"T\"]>"],
            vec![("axis", i(0))],
            "along axis 0",
        ),
        (
            "cache_write",
            &["tensor<1x1x4x2xf32>", "tensor<1x1x2x3xf32>"],
            vec![],
            "into",
        ),
        (
            "cross_entropy",
            &["tensor<1x2x3xf32>", "tensor<1x3xi32>"],
            vec![],
            "against targets",
        ),
        (
            "take_rows",
            &["tensor<2x2x3xf32>", "tensor<3xi32>"],
            vec![],
            "3 rows are asked of 2",
        ),
        ("embed", &["tensor<5x4xf32>", "tensor<1x2xf32>"], vec![], "wants i32"),
    ];
    for (name, operands, attrs, wanted) in cases {
        let operands: Vec<_> = operands.iter().map(|t| ty(t)).collect();
        let attrs = attrs.into_iter().map(|(k, v)| (k.to_string(), v)).collect();
        let signature = ir::ops::Signature {
            operands: &operands.iter().collect::<Vec<_>>(),
            attrs: &attrs,
        };
        let message = (op(name).expect(name).infer)(&signature).expect_err(name);
        assert!(message.contains(wanted), "{name}: {message:?} does not say {wanted:?}");
    }
}

/// `BLESS=1 cargo test` writes the page anew.
#[test]
fn docs_page_is_the_table() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/ops.md");
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(page, table_markdown()).expect(page);
    }
    let written = std::fs::read_to_string(page).expect(page);
    assert!(
        written == table_markdown(),
        "docs/ops.md is not what the table says: run the tests once with BLESS=1"
    );
}
