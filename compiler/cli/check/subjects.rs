//! What is checked: graph files, ops, random programs. A subject is a program and, by seed, data to run it on.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, bail};
use ir::eval::Tensor;
use ir::testing::{self, Case, ENTRY, Rng};
use ir::{Attr, Module, Sizes};

pub struct Subject {
    pub name: String,
    /// Of `loopc check`, that makes it again.
    pub option: String,
    /// What it was made with, if that is no file and no sample: its data follow from that. And how many trials it is worth.
    pub made: Option<(u64, u64)>,
    pub module: Module,
    pub entries: Vec<String>,
    /// By the names that the program knows them by.
    pub weights: BTreeMap<String, Tensor>,
    pub max_context: i64,
    /// Against `passes::tolerance`: sums of many terms err more.
    pub slack: f64,
    pub trial: Draw,
}

/// Data by seed.
pub type Draw = Box<dyn Fn(u64) -> anyhow::Result<Trial>>;

/// Calls on one set of states.
pub struct Trial {
    pub states: BTreeMap<String, Tensor>,
    pub batch: i64,
    pub capacity: i64,
    pub calls: Vec<Call>,
}

pub struct Call {
    pub entry: String,
    pub sizes: Sizes,
    /// The device may be given more keys than this, up to `capacity`: S is a bound.
    pub loose_keys: bool,
    pub inputs: BTreeMap<String, Tensor>,
}

impl Trial {
    fn once(entry: &str, sizes: Sizes, inputs: BTreeMap<String, Tensor>, states: BTreeMap<String, Tensor>) -> Trial {
        let size = |name: &str| sizes.get(name).copied().unwrap_or(1);
        Trial {
            states,
            batch: size("B"),
            capacity: size("C"),
            calls: vec![Call {
                entry: entry.to_string(),
                sizes,
                loose_keys: false,
                inputs,
            }],
        }
    }
}

/// Lengths at which tiles begin and end, and some between.
pub const LENGTHS: [i64; 16] = [1, 2, 3, 7, 8, 15, 17, 31, 33, 63, 64, 65, 100, 127, 128, 130];

fn larger(rng: &mut Rng) -> Sizes {
    let (b, t) = (1 + rng.below(3), *rng.choose(&LENGTHS));
    let s = t + rng.below(70);
    [("B", b), ("T", t), ("S", s), ("C", s + rng.below(9))]
        .map(|(k, v)| (k.to_string(), v))
        .into()
}

/// Parts of attention that mean something together only: a sweep's state, its mean, a gradient that takes both. `models` has them.
const PARTS: [&str; 4] = ["sweep", "mean", "lse", "sweep_gradient"];

/// Every op and sample: small sizes for even seeds, larger ones for odd seeds.
pub fn ops() -> anyhow::Result<Vec<Subject>> {
    let mut all = vec![];
    for def in ir::ops::OPS.iter().filter(|def| !PARTS.contains(&def.name)) {
        for at in 0..(def.samples)().len() {
            let draw = move |seed: u64| -> anyhow::Result<Case> {
                let sample = &(def.samples)()[at];
                let mut rng = Rng::new(seed);
                let case = match seed % 2 {
                    0 => testing::sample_case(def, sample, seed),
                    _ => testing::sized_case(def, sample, larger(&mut rng), rng),
                };
                case.map_err(|e| anyhow::anyhow!("{}: {e}", def.name))
            };
            all.push(Subject {
                name: format!("{} {at}", def.name),
                option: "--ops".to_string(),
                made: None,
                module: draw(0)?.module,
                entries: vec![ENTRY.to_string()],
                weights: BTreeMap::new(),
                max_context: 4096,
                slack: 1.0,
                trial: Box::new(move |seed| {
                    let case = draw(seed)?;
                    Ok(Trial::once(ENTRY, case.sizes, case.inputs, case.states))
                }),
            });
        }
    }
    Ok(all)
}

/// A random program, on the data that was made with it. None where rounding decides its results: there two right ways differ.
pub fn random(seed: u64) -> anyhow::Result<Option<Subject>> {
    let case = testing::random(seed);
    let (rounded, exact) = (case.run(false)?, case.run(true)?);
    let slack = 3.0;
    let far = |a, b| passes::differ(a, b, 0.3 * slack * passes::tolerance(&case.module)).is_some();
    if far(&rounded.0, &exact.0) || far(&rounded.1, &exact.1) {
        return Ok(None);
    }
    let (sizes, inputs, states) = (case.sizes, case.inputs, case.states);
    Ok(Some(Subject {
        name: format!("random {seed}"),
        option: "--random".to_string(),
        made: Some((seed, 1)),
        module: case.module,
        entries: vec![ENTRY.to_string()],
        weights: case.weights,
        max_context: 4096,
        slack,
        trial: Box::new(move |_| Ok(Trial::once(ENTRY, sizes.clone(), inputs.clone(), states.clone()))),
    }))
}

/// How many positions all of the module's rotations know.
fn positions(module: &Module) -> Option<i64> {
    let ops = module.functions.iter().flat_map(|f| &f.ops);
    let most = ops
        .filter(|op| op.name == "rope")
        .filter_map(|op| match op.attrs.get("max") {
            Some(Attr::Int(n)) => Some(*n),
            _ => None,
        });
    most.min()
}

/// A graph file: each function that nobody calls, on data that its ops accept.
pub fn of_file(path: &Path, seed: u64) -> anyhow::Result<Subject> {
    let at = path.display().to_string();
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {at}"))?;
    let (module, lines) = ir::text::parse_with_lines(&text).map_err(|e| anyhow::anyhow!("{at}:{e}"))?;
    if let Some(e) = ir::verify::verify_at(&module, &lines).first() {
        bail!("{at}: {e}");
    }
    let called: BTreeSet<&String> = module
        .functions
        .iter()
        .flat_map(|f| &f.ops)
        .filter_map(|op| match op.attrs.get("callee") {
            Some(Attr::Str(name)) => Some(name),
            _ => None,
        })
        .collect();
    let names = module.functions.iter().map(|f| &f.name);
    let entries: Vec<String> = names.filter(|n| !called.contains(n)).cloned().collect();
    let small = passes::sizes(&module, seed);
    let weights = passes::Data::new(&module, &small, seed).map(|d| d.weights)?;
    let (program, all) = (module.clone(), entries.clone());
    let trial = move |seed: u64| -> anyhow::Result<Trial> {
        let mut drawn = passes::sizes(&program, seed);
        if seed % 2 == 1 {
            drawn.extend(larger(&mut Rng::new(seed)));
        }
        // A table of rotations has no rows for more positions.
        for name in ["T", "S", "C"] {
            let n = drawn.get_mut(name).zip(positions(&program));
            n.into_iter().for_each(|(n, most)| *n = most.min(*n));
        }
        // A cache of fixed length may be too short for the rows drawn; one row fits all.
        let one = drawn.keys().map(|name| (name.clone(), 1)).collect();
        let (sizes, data) = match passes::Data::new(&program, &drawn, seed) {
            Ok(data) => (drawn, data),
            Err(_) => passes::Data::new(&program, &one, seed).map(|data| (one, data))?,
        };
        let mut trial = Trial::once("", sizes.clone(), BTreeMap::new(), data.states);
        trial.calls = all
            .iter()
            .map(|entry| Call {
                entry: entry.clone(),
                sizes: sizes.clone(),
                loose_keys: false,
                inputs: data.inputs.get(entry).cloned().unwrap_or_default(),
            })
            .collect();
        Ok(trial)
    };
    Ok(Subject {
        name: at.clone(),
        option: at,
        made: None,
        module,
        entries,
        weights,
        max_context: 4096,
        slack: 1.0,
        trial: Box::new(trial),
    })
}
