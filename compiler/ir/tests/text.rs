//! The text form: what it looks like, what MLIR says to it, and what is said about texts that are wrong.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use ir::ops::OPS;
use ir::testing::{random, sample_case};
use ir::text::{parse, parse_with_lines};
use ir::verify::{verify, verify_at};
use ir::{DType, Function, Module, Param, TensorType};

#[test]
fn how_it_looks() {
    let mut f = Function::new("layer");
    let x = f.param(
        "x",
        TensorType::new(["B".into(), "T".into(), ir::Dim::Const(64)], DType::F32),
        Param::Input("x".into()),
    );
    let w = f.param(
        "w",
        TensorType::new([3i64, 64], DType::BF16),
        Param::Weight("model.layers.{i}.w \"é\"".into()),
    );
    let x16 = f.cast(x, DType::BF16);
    let y = f.matmul(x16, w, true, DType::F32);
    let c = f.scalar(f64::NEG_INFINITY, DType::F32);
    let z = f.max(y, c);
    f.returns("y", z);
    let mut g = Function::new("main");
    let x = g.param(
        "x",
        TensorType::new(["B".into(), "T".into(), ir::Dim::Const(64)], DType::F32),
        Param::Input("x".into()),
    );
    let y = g.call(&f, 3, &[x]);
    g.returns("y", y[0]);
    let module = Module { functions: vec![f, g] };
    insta::assert_snapshot!(module, @r#"
    module {
      func.func @layer(
        %x: tensor<?x?x64xf32, ["B", "T"]> {loop.input = "x"},
        %w: tensor<3x64xbf16> {loop.weight = "model.layers.{i}.w \22\C3\A9\22"}
      ) -> (tensor<?x?x3xf32, ["B", "T"]> {loop.name = "y"}) {
        %2 = "loop.cast"(%x) {dtype = "bf16"} : (tensor<?x?x64xf32, ["B", "T"]>) -> tensor<?x?x64xbf16, ["B", "T"]>
        %3 = "loop.matmul"(%2, %w) {dtype = "f32", transpose_b = true} : (tensor<?x?x64xbf16, ["B", "T"]>, tensor<3x64xbf16>) -> tensor<?x?x3xf32, ["B", "T"]>
        %4 = "loop.constant"() {type = tensor<f32>, value = 0xFFF0000000000000 : f64} : () -> tensor<f32>
        %5 = "loop.max"(%3, %4) : (tensor<?x?x3xf32, ["B", "T"]>, tensor<f32>) -> tensor<?x?x3xf32, ["B", "T"]>
        return %5 : tensor<?x?x3xf32, ["B", "T"]>
      }

      func.func @main(
        %x: tensor<?x?x64xf32, ["B", "T"]> {loop.input = "x"}
      ) -> (tensor<?x?x3xf32, ["B", "T"]> {loop.name = "y"}) {
        %1 = "loop.call"(%x) {callee = "layer", layer = 3 : i64} : (tensor<?x?x64xf32, ["B", "T"]>) -> tensor<?x?x3xf32, ["B", "T"]>
        return %1 : tensor<?x?x3xf32, ["B", "T"]>
      }
    }
    "#);
    assert_eq!(parse(&module.to_string()).expect("parses"), module);
}

/// MLIR 22's own parser takes every sample and random programs. Without `mlir-opt` (MLIR_OPT names another) there is nothing to ask.
#[test]
fn mlir_takes_what_is_printed() {
    let tool = std::env::var_os("MLIR_OPT").map_or(PathBuf::from("/usr/lib/llvm-22/bin/mlir-opt"), PathBuf::from);
    if !tool.exists() {
        eprintln!("skipped: no {}", tool.display());
        return;
    }
    let samples = OPS.iter().flat_map(|op| {
        (op.samples)()
            .into_iter()
            .map(|s| sample_case(op, &s, 1).expect(op.name).module)
    });
    let text: String = samples
        .chain((0..20).map(|seed| random(seed).module))
        .map(|m| m.to_string())
        .collect();
    let mut child = Command::new(&tool)
        .args(["--allow-unregistered-dialect", "-o", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("mlir-opt starts");
    child
        .stdin
        .take()
        .expect("piped")
        .write_all(text.as_bytes())
        .expect("mlir-opt reads");
    let output = child.wait_with_output().expect("mlir-opt ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

const GOOD: &str = r#"module {
  func.func @main(%x: tensor<2x3xf32> {loop.input = "x"}) -> (tensor<2x3xf32> {loop.name = "y"}) {
    %y = "loop.exp"(%x) : (tensor<2x3xf32>) -> tensor<2x3xf32>
    return %y : tensor<2x3xf32>
  }
}
"#;

#[test]
fn syntax_errors_have_places() {
    assert_eq!(verify(&parse(GOOD).expect("parses")), []);
    for (old, new, wanted) in [
        ("module {", "modul {", "1:1: expected `module`"),
        ("@main", "main", "2:13: expected a function's name, `@name`"),
        (
            "loop.input",
            "loop.output",
            "`loop.output`: a parameter is loop.input, loop.weight or loop.state",
        ),
        (
            "2x3xf32> {loop.input",
            "2x3xf31> {loop.input",
            "`f31` is no element type",
        ),
        (
            "2x3xf32> {loop.input",
            "?x3xf32> {loop.input",
            "each `?` of a type wants a name: tensor<?xf32, [\"T\"]>",
        ),
        (
            "\"loop.exp\"",
            "\"arith.exp\"",
            "3:10: `arith.exp` is not of the dialect `loop`",
        ),
        ("(%x)", "(%z)", "3:21: %z is not defined above"),
        ("%y = ", "%x = ", "%x is defined twice"),
        ("(%x) :", "(%x) {a = 1, a = 2} :", "the attribute a stands twice"),
        (
            "(%x) : (tensor<2x3xf32>)",
            "(%x) : (tensor<2x4xf32>)",
            "the operands' types are not those of their values",
        ),
        (
            "return %y : tensor<2x3",
            "return %y : tensor<3x2",
            "%y is tensor<2x3xf32>, returned as tensor<3x2xf32>",
        ),
        ("= \"x\"", "= \"x", "2:93: the string has no end"),
        (
            "2x3xf32> {loop.input",
            "99999999999999999999xf32> {loop.input",
            "`99999999999999999999` is no number",
        ),
    ] {
        assert!(GOOD.contains(old), "{old}");
        let error = parse(&GOOD.replacen(old, new, 1)).expect_err(new).to_string();
        assert!(error.contains(wanted), "{new}: {error:?} does not say {wanted:?}");
    }
}

/// All errors at once, each with its value and its line in the text as it was written.
#[test]
fn verifier_reports_all() {
    let text = r#"// Comments and empty lines count.

module {
  func.func @main(%x: tensor<2x3xf32> {loop.input = "x"}) -> (tensor<3xf32> {loop.name = "y"}) {
    %a = "loop.exq"(%x) : (tensor<2x3xf32>) -> tensor<2x3xf32>
    %b = "loop.exp"(%x) : (tensor<2x3xf32>) -> tensor<3xf32>

    %c = "loop.add"(%x) : (tensor<2x3xf32>) -> tensor<2x3xf32>
    %d = "loop.call"(%x) {callee = "main", layer = 0} : (tensor<2x3xf32>) -> tensor<3xf32>
    %e = "loop.reduce_sum"(%x) {axes = 0} : (tensor<2x3xf32>) -> tensor<1x3xf32>
    return %b : tensor<3xf32>
  }
  func.func @again(%x: tensor<2x3xf32> {loop.input = "x"}) -> () {
    %d = "loop.call"() {callee = "main", layer = 0} : () -> tensor<3xf32>
    %e, %f = "loop.call"(%x) {callee = "main", layer = 0} : (tensor<2x3xf32>) -> (tensor<3xf32>, tensor<3xf32>)
    return
  }
  func.func @again(%x: tensor<1xf32> {loop.input = "x"}, %y: tensor<1xf32> {loop.input = "x"}) -> () {
    return
  }
}"#;
    let (module, lines) = parse_with_lines(text).expect("parses");
    let errors: Vec<String> = verify_at(&module, &lines).iter().map(|e| e.to_string()).collect();
    insta::assert_snapshot!(errors.join("\n"), @r#"
    line 5: @main: %a: there is no op `exq`
    line 6: @main: %b: exp: is tensor<2x3xf32>, declared as tensor<3xf32>
    line 8: @main: %c: add: has 1 operands, wants 2
    line 9: @main: %d: call: there is no function @main above @main
    line 10: @main: %e: reduce_sum: has no attribute `axes`; it takes x; axis: Int
    line 14: @again: %d: call: @main wants (tensor<2x3xf32>), gets ()
    line 15: @again: %e: call: is tensor<3xf32>, declared as tensor<3xf32>, tensor<3xf32>
    @again: there are two functions of this name
    @again: two parameters are input "x"
    "#);
    // Without the text's own lines: those of the module as it is printed.
    let printed = module.to_string();
    for e in verify(&module).iter().filter(|e| e.line > 0) {
        let line = printed.lines().nth(e.line - 1).unwrap_or_default();
        assert!(line.trim_start().starts_with(&format!("%{}", e.value)), "{e}: {line}");
    }
}

/// What no text can say, but a faulty pass can build.
#[test]
fn verifier_checks_dominance_and_names() {
    let mut module = parse(GOOD).expect("parses");
    let f = &mut module.functions[0];
    let y = f.unary("exp", f.returns[0].1);
    f.ops.swap(0, 1);
    f.returns("y", y);
    f.values[1].name = "x".to_string();
    let errors: Vec<String> = verify(&module).iter().map(|e| e.to_string()).collect();
    insta::assert_snapshot!(errors.join("\n"), @r#"
    line 5: @main: %2: %x is used before it is defined
    @main: two values are called %x
    @main: two results are called "y"
    "#);
}
