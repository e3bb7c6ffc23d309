//! Reading, printing and reading again what LLVM prints.

use ptx::text::parse;

const SCALAR: &str = include_str!("../fixtures/scalar.ptx");

#[test]
fn a_printed_tree_is_read_as_the_same_tree() {
    let tree = parse(SCALAR).unwrap();
    assert_eq!(tree.functions.len(), 3);
    assert_eq!(tree.variables.len(), 3);
    let again = parse(&tree.to_string()).unwrap();
    // Alignments that the text left out are printed, so the printing is what must not change.
    assert_eq!(tree.to_string(), again.to_string());
    assert_eq!(
        tree.functions,
        again
            .functions
            .iter()
            .map(|f| ptx::text::Function {
                line: tree_line(&tree, &f.name),
                ..f.clone()
            })
            .collect::<Vec<_>>()
    );
}

fn tree_line(tree: &ptx::text::Tree, name: &str) -> u32 {
    tree.functions.iter().find(|f| f.name == name).map_or(0, |f| f.line)
}

#[test]
fn errors_name_their_line() {
    let e = parse(".version 9.0\n.target sm_90a\n.visible .entry k() {\n  add.s32 %r1 %r2;\n}\n").unwrap_err();
    assert_eq!(e.line, 4);
    let module =
        ptx::Module::parse(".visible .entry k()\n{\n.reg .b32 %r<3>;\nfrobnicate.b32 %r1, %r2;\nret;\n}\n").unwrap();
    let e = module.check().unwrap_err();
    assert_eq!(e.line, 4);
    assert!(e.what.contains("frobnicate"), "{e}");
}
