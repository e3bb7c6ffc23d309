//! Every kind of kernel for every target: what its PTX holds (snapshots, `INSTA_UPDATE=always` rewrites them), how it is assembled, and
//! what it computes at sizes that break things.

use runtime::artefact::{Step, Variant};

use crate::coverage::{self, Seen, sizes};
use crate::subjects::{Made, TARGETS, group, make};
use crate::{assembly, describe};

/// Small kernels that are kept whole: (group, function).
const WHOLE: [(&str, &str); 2] = [("small", "cast_sigmoid_mul"), ("small", "reduce_sum")];

fn settings() -> insta::Settings {
    let mut settings = insta::Settings::clone_current();
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.set_snapshot_path("snapshots");
    settings
}

/// Snapshots and assembly.
fn code(name: &str) {
    let mut faults = vec![];
    let mut texts = vec![];
    for target in TARGETS {
        let mut out = String::new();
        for subject in group(name) {
            let made = make(&subject, target);
            let tree = ptx::text::parse(&made.code.text).expect("PTX that is read");
            out += &format!("plan {}\n\n", subject.plan.entry);
            for kernel in &made.kernels {
                out += &describe::kernel(kernel, &tree);
                out += "\n";
                for step in kernel.variants.iter().flat_map(|v| &v.steps) {
                    if WHOLE.contains(&(name, &step.function)) {
                        let function = describe::function(&tree, &step.function);
                        texts.push((format!("{}.{target}", step.function), function.to_string()));
                    }
                }
            }
            let label = format!("{name}-{}", subject.plan.entry);
            faults.extend(assembly::faults(&label, target, &made.code.text, &made.kernels));
        }
        texts.push((format!("{name}.{target}"), out));
    }
    for (name, text) in texts {
        settings().bind(|| insta::assert_snapshot!(name, text));
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Values at each of the sizes [B, T, S, C]. Every way must be taken at some of them, but for those that `elsewhere` names.
fn values(name: &str, all: &[[i64; 4]], elsewhere: &[&str]) {
    for target in TARGETS {
        for subject in group(name) {
            let made = make(&subject, target);
            let mut seen = Seen::default();
            let which = |function: &str| !elsewhere.iter().any(|e| function.contains(e));
            for list in all {
                let result = coverage::check(&subject, &made, &sizes(*list), &which, &mut seen);
                result.unwrap_or_else(|e| panic!("{name} for {target}, plan {}: {e}", subject.plan.entry));
            }
            for kernel in &made.kernels {
                for (i, v) in kernel.variants.iter().enumerate() {
                    if kernel.name.contains('+') && is_apart(&made, v) {
                        continue;
                    }
                    // For one row, where each token is two.
                    if v.at_most.as_ref().is_some_and(|(s, n)| s.coef > *n) {
                        continue;
                    }
                    let taken = seen.0.contains(&(kernel.name.clone(), i)) || !which(&v.steps[0].function);
                    let way = &v.steps[0].function;
                    assert!(taken, "{name} for {target}: {way} was run at no size");
                }
            }
        }
    }
}

/// Is a variant of joined kernels their own functions, one behind the other? Those are run by themselves.
fn is_apart(made: &Made, v: &Variant) -> bool {
    let alone = made.kernels.iter().filter(|k| !k.name.contains('+'));
    let steps: Vec<&Step> = alone.flat_map(|k| &k.variants).flat_map(|v| &v.steps).collect();
    v.steps.iter().all(|s| steps.iter().any(|t| t.function == s.function))
}

macro_rules! groups {
    ($($name:ident: $sizes:expr, elsewhere $elsewhere:expr;)*) => {
        $(mod $name {
            #[test]
            fn code() {
                super::code(stringify!($name));
            }

            #[test]
            fn values() {
                super::values(stringify!($name), &$sizes, &$elsewhere);
            }
        })*
    };
}

/// Tiles that no product of these is large enough for; `matmul` runs them.
const LARGE: [&str; 2] = ["_128x128x", "_128x256x"];

// Models have 64 positions. At the edges of: one row; the few rows of a function; a warp's, a block's and a tile's rows (16, 64, 128); and odd between.
groups! {
    small: [[1, 1, 1, 1], [2, 7, 5, 5], [1, 64, 33, 64], [3, 43, 257, 257]], elsewhere [];
    products: [[1, 1, 1, 1], [1, 2, 8, 8], [2, 2, 7, 9], [1, 7, 16, 16], [3, 3, 65, 65], [1, 127, 127, 127], [2, 64, 128, 128], [3, 43, 40, 40]],
        elsewhere super::LARGE;
    sweeps: [[1, 1, 1, 1], [1, 1, 2, 2], [1, 17, 33, 40]], elsewhere [];
    layer: [[1, 1, 1, 1], [1, 1, 7, 9], [2, 3, 17, 20], [1, 2, 33, 40], [1, 9, 33, 40], [1, 64, 64, 64]], elsewhere super::LARGE;
    base: [[2, 3, 17, 20], [3, 3, 7, 9], [1, 64, 33, 64]], elsewhere super::LARGE;
    restart: [[1, 1, 1, 1], [1, 2, 5, 7], [2, 2, 8, 8], [2, 3, 8, 8], [2, 5, 17, 20], [1, 63, 64, 64]], elsewhere super::LARGE;
    stack: [[2, 5, 17, 20], [1, 3, 5, 7], [1, 63, 64, 64]], elsewhere super::LARGE;
    train: [[2, 24, 24, 24]], elsewhere super::LARGE;
    token: [[1, 1, 1, 1], [2, 1, 5, 5], [3, 1, 63, 64], [1, 1, 64, 64], [2, 1, 1100, 1200]], elsewhere [];
}
