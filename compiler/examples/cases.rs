//! Every kernel of a graph's plans with random arguments and what the plan's interpreter makes of them, for `tests/gpu/check.py`.
//!
//!     cases GRAPH.mlir OUT B=2,T=19,S=19,C=32 [--target sm_90a] [--op-by-op] [--only NAME,NAME]
//!
//! A plan is run launch by launch, so arguments are what the kernel meets in a model: token ids, positions, padded caches.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use compiler::{Target, gpu};
use half::{bf16, f16};
use ir::plan::{BufferKind, Kernel, WeightRecipe, eval};
use ir::{DType, Sizes};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let mut flag = |name: &str, value: bool| -> Option<String> {
        let at = args.iter().position(|a| a == name)?;
        args.remove(at);
        Some(if value { args.remove(at) } else { String::new() })
    };
    let target = flag("--target", true).unwrap_or("sm_90a".into());
    let program = match flag("--op-by-op", false) {
        Some(_) => passes::Program::op_by_op(),
        None => passes::Program::fused(),
    };
    let only = flag("--only", true);
    let [input, out, sizes] = &args[..] else {
        return Err("cases GRAPH.mlir OUT B=2,T=19,S=19,C=32".into());
    };
    let out = PathBuf::from(out);
    let Target::Gpu(target) = Target::by_name(&target)? else {
        return Err("a GPU target, please".into());
    };
    let pairs = sizes.split(',').filter_map(|p| p.split_once('='));
    let sizes: Sizes = pairs
        .map(|(k, v)| Ok((k.to_string(), v.parse()?)))
        .collect::<Result<_, std::num::ParseIntError>>()?;
    let mut module = ir::text::parse(&std::fs::read_to_string(input)?).map_err(|e| format!("{e:?}"))?;
    for pass in program.steps().map_err(|e| e.to_string())? {
        (pass.run)(&mut module).map_err(|e| e.to_string())?;
    }

    let mut seed = 1u32;
    let mut random = || {
        seed = seed.wrapping_mul(1664525).wrapping_add(1013904223);
        f64::from(seed >> 8) / f64::from(1 << 23) - 1.0
    };
    let mut kernels: Vec<Kernel> = vec![];
    let mut bodies: HashSet<String> = HashSet::new();
    let mut cases = vec![];
    let mut data: Vec<u8> = vec![];
    for entry in ["prefill", "decode", "logits", "loss", "train_step", "gradients"] {
        if module.function(entry).is_none() {
            continue;
        }
        let sizes: Sizes = if entry == "decode" {
            sizes
                .iter()
                .map(|(k, v)| (k.clone(), if k == "T" { 1 } else { *v }))
                .collect()
        } else {
            sizes.clone()
        };
        let plan = passes::schedule(&module, entry, &program.scheduling).map_err(|e| e.to_string())?;
        let mut memory = eval::allocate(&plan, &sizes)?;
        for (b, values) in plan.buffers.iter().zip(&mut memory) {
            let limit = if b.name.contains("start") || b.name.contains("last") {
                sizes["T"].min(sizes["S"])
            } else {
                50
            };
            match (&b.kind, b.dtype) {
                (
                    BufferKind::Weight(WeightRecipe::RopeTable { .. })
                    | BufferKind::Temp { .. }
                    | BufferKind::Output(_),
                    _,
                ) => {}
                (_, DType::I32) => values
                    .iter_mut()
                    .for_each(|x| *x = ((random() + 1.0) * 0.5 * limit as f64).floor()),
                (_, dtype) => values.iter_mut().for_each(|x| *x = eval::round(random(), dtype)),
            }
        }
        let mut names = HashMap::new();
        for launch in &plan.launches {
            let kernel = &plan.kernels[launch.kernel];
            let body = format!(
                "{:?}",
                Kernel {
                    name: String::new(),
                    ..kernel.clone()
                }
            );
            let mut held: Vec<Vec<f64>> = launch.args.iter().map(|b| std::mem::take(&mut memory[*b])).collect();
            let before = held.clone();
            eval::run_kernel(kernel, &sizes, &mut held)?;
            // What is stored is rounded, as memory does.
            for (arg, values) in kernel.args.iter().zip(&mut held).filter(|(a, _)| a.written) {
                values.iter_mut().for_each(|x| *x = eval::round(*x, arg.dtype));
            }
            let name = format!("{entry}_{}", kernel.name.replace('.', "_"));
            let wanted = only.as_ref().is_none_or(|o| o.split(',').any(|o| name.contains(o)));
            if wanted && bodies.insert(body) && names.insert(name.clone(), ()).is_none() {
                let mut arguments = vec![];
                for ((arg, before), after) in kernel.args.iter().zip(&before).zip(&held) {
                    let mut put = |values: &[f64]| {
                        let at = data.len();
                        data.extend(bytes(values, arg.dtype));
                        at
                    };
                    let before = put(before);
                    let after_at = if arg.written { Some(put(after)) } else { None };
                    arguments.push(serde_json::json!({
                        "dtype": arg.dtype.name(), "len": after.len(), "before": before, "after": after_at,
                    }));
                }
                cases.push(serde_json::json!({"kernel": name, "sizes": sizes, "args": arguments}));
                kernels.push(Kernel { name, ..kernel.clone() });
            }
            for (b, values) in launch.args.iter().zip(held) {
                memory[*b] = values;
            }
        }
    }
    let works = |k: &Kernel| gpu::emit(k, &target).inspect_err(|e| eprintln!("{e}")).is_ok();
    kernels.retain(|k| works(k));
    let (compiled, how) = gpu::compile_kernels(&kernels, &target, false)?;
    std::fs::create_dir_all(&out)?;
    std::fs::write(out.join("code.ptx"), &compiled.code)?;
    let rows: Vec<_> = (kernels.iter().zip(&how))
        .map(|(k, how)| serde_json::json!({"kernel": k, "gpu": how}))
        .collect();
    std::fs::write(out.join("kernels.json"), serde_json::to_string(&rows)?)?;
    cases.retain(|c| kernels.iter().any(|k| c["kernel"] == k.name));
    std::fs::write(out.join("cases.json"), serde_json::to_string(&cases)?)?;
    std::fs::write(out.join("cases.bin"), &data)?;
    println!("{} cases, {} bytes, in {}", cases.len(), data.len(), out.display());
    Ok(())
}

fn bytes(values: &[f64], dtype: DType) -> Vec<u8> {
    match dtype {
        DType::F32 => values.iter().flat_map(|x| (*x as f32).to_le_bytes()).collect(),
        DType::BF16 => values
            .iter()
            .flat_map(|x| bf16::from_f64(*x).to_bits().to_le_bytes())
            .collect(),
        DType::F16 => values
            .iter()
            .flat_map(|x| f16::from_f64(*x).to_bits().to_le_bytes())
            .collect(),
        DType::I32 => values.iter().flat_map(|x| (*x as i32).to_le_bytes()).collect(),
        DType::I1 => values.iter().map(|x| *x as u8).collect(),
    }
}
