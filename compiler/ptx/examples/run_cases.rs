//! Kernels in folders of cases (compiler/examples/cases.rs) on the CPU: `run_cases DIR... [--kernel NAME]`, what tests/gpu/check.py does on a GPU.
//!
//! A folder holds code.ptx, kernels.json, cases.json and cases.bin; what their fields mean is in runtime/src/artefact.rs. Every argument is
//! an allocation of its own, so an access outside it is a fault. Written ones are compared element by element.

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use half::{bf16, f16};
use ptx::{Element, Launch, Machine, Module, Param, Swizzle, TensorMap};
use serde_json::Value;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const SYMBOLS: [&str; 4] = ["B", "T", "S", "C"];
const MULTIPROCESSORS: u64 = 132;

fn list(v: &Value) -> &[Value] {
    v.as_array().map_or(&[], Vec::as_slice)
}

fn text(v: &Value) -> &str {
    v.as_str().unwrap_or_default()
}

fn number(v: &Value) -> u64 {
    v.as_u64().unwrap_or(0)
}

fn size(s: &Value, sizes: &Value) -> u64 {
    let value = |sym: &Value| sizes.get(text(sym)).and_then(Value::as_u64).unwrap_or(1);
    number(&s["coef"]) * list(&s["syms"]).iter().map(value).product::<u64>()
}

fn fits(variant: &Value, sizes: &Value) -> bool {
    let pairs = |v: &Value| (size(&v[0], sizes), number(&v[1]));
    let few = list(&variant["at_most"]).is_empty() || {
        let (n, most) = pairs(&variant["at_most"]);
        n <= most
    };
    few && list(&variant["multiples"])
        .iter()
        .map(pairs)
        .all(|(n, of)| n.is_multiple_of(of))
}

fn element(dtype: &str) -> Option<Element> {
    Some(match dtype {
        "f32" => Element::F32,
        "bf16" => Element::BF16,
        "f16" => Element::F16,
        "i32" => Element::S32,
        "i1" => Element::U8,
        _ => return None,
    })
}

fn values(bytes: &[u8], dtype: &str) -> Vec<f64> {
    let half = |b: &[u8]| u16::from_le_bytes([b[0], b[1]]);
    let word = |b: &[u8]| u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    match dtype {
        "f32" => bytes.chunks_exact(4).map(|b| f32::from_bits(word(b)) as f64).collect(),
        "bf16" => bytes
            .chunks_exact(2)
            .map(|b| bf16::from_bits(half(b)).to_f64())
            .collect(),
        "f16" => bytes
            .chunks_exact(2)
            .map(|b| f16::from_bits(half(b)).to_f64())
            .collect(),
        "i32" => bytes.chunks_exact(4).map(|b| word(b) as i32 as f64).collect(),
        _ => bytes.iter().map(|b| *b as f64).collect(),
    }
}

fn tensor_map(m: &Value, sizes: &Value, pointers: &[u64], spaces: &[u64]) -> Result<TensorMap> {
    let element = element(text(&m["dtype"])).ok_or("a tensor map of an unknown type")?;
    let width = element.bytes() as u64;
    let all = |v: &Value| list(v).iter().map(|s| size(s, sizes)).collect::<Vec<_>>();
    let base = match (m["source"].get("buffer"), m["source"].get("workspace")) {
        (Some(n), _) => pointers[number(n) as usize],
        (_, Some(n)) => spaces[number(n) as usize],
        _ => return Err("a tensor map of an unknown source".into()),
    };
    Ok(TensorMap {
        address: base + size(&m["offset"], sizes) * width,
        element,
        dims: all(&m["dims"]),
        strides: all(&m["strides"]).iter().map(|s| s * width).collect(),
        box_dims: list(&m["box"]).iter().map(|n| number(n) as u32).collect(),
        swizzle: match number(&m["swizzle"]) {
            32 => Swizzle::B32,
            64 => Swizzle::B64,
            128 => Swizzle::B128,
            _ => Swizzle::None,
        },
    })
}

/// Runs one variant on one case; the largest difference, or what is wrong.
fn run(module: &Module, case: &Value, data: &[u8], variant: &Value) -> Result<f64> {
    let sizes = &case["sizes"];
    let mut machine = Machine::new();
    let mut upload = |a: &Value| -> Result<u64> {
        let width = element(text(&a["dtype"])).ok_or("an unknown type")?.bytes() as u64;
        let (at, bytes) = (number(&a["before"]) as usize, number(&a["len"]) * width);
        let address = machine.alloc(bytes);
        machine.write(address, &data[at..at + bytes as usize])?;
        Ok(address)
    };
    let pointers = list(&case["args"])
        .iter()
        .map(&mut upload)
        .collect::<Result<Vec<u64>>>()?;
    let spaces: Vec<u64> = list(&variant["workspaces"])
        .iter()
        .map(|s| {
            // What an earlier kernel left there is noise.
            let bytes = size(s, sizes);
            let address = machine.alloc(bytes);
            machine.write(address, &vec![0xff; bytes as usize]).map(|()| address)
        })
        .collect::<std::result::Result<_, _>>()?;
    let mut arguments: Vec<u64> = pointers.iter().chain(&spaces).copied().collect();
    let counters = 4 * number(&variant["counters"]);
    if counters > 0 {
        arguments.push(machine.alloc(counters));
    }
    for step in list(&variant["steps"]) {
        let mut params: Vec<Param> = arguments.iter().map(|p| Param::Pointer(*p)).collect();
        let symbol = |s: &str| sizes.get(s).and_then(Value::as_u64).unwrap_or(1);
        params.extend(SYMBOLS.iter().map(|s| Param::U32(symbol(s) as u32)));
        for m in list(&step["maps"]) {
            params.push(Param::TensorMap(tensor_map(m, sizes, &pointers, &spaces)?));
        }
        let tiles = std::iter::once(&step["tiles"]).chain(list(&step["more_tiles"]));
        let count = |t: &Value| {
            list(t)
                .iter()
                .map(|p| size(&p[0], sizes).div_ceil(number(&p[1])))
                .product::<u64>()
        };
        let mut blocks: u64 = tiles.map(count).sum();
        if number(&step["per_multiprocessor"]) > 0 {
            blocks = blocks.min(number(&step["per_multiprocessor"]) * MULTIPROCESSORS);
        }
        let cluster = number(&step["cluster"]).max(1);
        let blocks = blocks.next_multiple_of(cluster) as u32;
        let launch = Launch::new([blocks, 1, 1], number(&step["threads"]) as u32);
        let launch = launch.shared(number(&step["shared"]) as u32).cluster(cluster as u32);
        machine.launch(module, text(&step["function"]), launch, &params)?;
    }
    if counters > 0
        && machine
            .read(arguments[arguments.len() - 1], counters)?
            .iter()
            .any(|b| *b != 0)
    {
        return Err("counters are not left at zero".into());
    }
    let args = list(&case["args"]);
    let mixed = args.iter().any(|a| text(&a["dtype"]) == "bf16");
    let mut worst = 0f64;
    for (i, (a, &pointer)) in args.iter().zip(&pointers).enumerate() {
        let dtype = text(&a["dtype"]);
        let bytes = number(&a["len"]) * element(dtype).map_or(1, |e| e.bytes() as u64);
        let from = a["after"].as_u64().unwrap_or(number(&a["before"])) as usize;
        let wanted = values(&data[from..from + bytes as usize], dtype);
        let mine = values(&machine.read(pointer, bytes)?, dtype);
        let scale = wanted
            .iter()
            .filter(|x| x.is_finite())
            .fold(1f64, |m, x| m.max(x.abs()));
        for (n, (x, y)) in mine.iter().zip(&wanted).enumerate() {
            // NaN: never written by the plan.
            let off = if y.is_nan() || x == y {
                0.0
            } else {
                (x - y).abs() / scale
            };
            if off.is_nan() || off > if mixed { 2e-2 } else { 2e-5 } {
                return Err(format!("argument {i} element {n} of {}: {x:.6}, wants {y:.6}", wanted.len()).into());
            }
            worst = worst.max(off);
        }
    }
    Ok(worst)
}

fn folder(path: &Path, only: Option<&str>) -> Result<(u32, u32)> {
    let read = |name: &str| std::fs::read_to_string(path.join(name));
    let module = Module::parse(&read("code.ptx")?)?;
    let kernels: Value = serde_json::from_str(&read("kernels.json")?)?;
    let cases: Value = serde_json::from_str(&read("cases.json")?)?;
    let data = std::fs::read(path.join("cases.bin"))?;
    let (mut total, mut failed) = (0, 0);
    for case in list(&cases) {
        let name = text(&case["kernel"]);
        if only.is_some_and(|o| !name.contains(o)) {
            continue;
        }
        let kernel = list(&kernels)
            .iter()
            .find(|k| text(&k["kernel"]["name"]) == name)
            .ok_or("a case of no kernel")?;
        for (v, variant) in list(&kernel["gpu"]["variants"]).iter().enumerate() {
            if !fits(variant, &case["sizes"]) {
                continue;
            }
            total += 1;
            let begin = Instant::now();
            let result = run(&module, case, &data, variant);
            let seconds = begin.elapsed().as_secs_f64();
            let what = match result {
                Ok(worst) => format!("ok, differs by {worst:.1e}"),
                Err(e) => {
                    failed += 1;
                    format!("FAILED: {e}")
                }
            };
            println!("{} {name} variant {v} ({seconds:.2} s): {what}", path.display());
        }
    }
    Ok((total, failed))
}

fn main() -> Result<()> {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let only = match args.iter().position(|a| a == "--kernel") {
        Some(i) if i + 1 < args.len() => {
            let name = args.remove(i + 1);
            args.remove(i);
            Some(name)
        }
        _ => None,
    };
    let (mut total, mut failed) = (0, 0);
    for path in &args {
        let (t, f) = folder(Path::new(path), only.as_deref()).map_err(|e| format!("{path}: {e}"))?;
        total += t;
        failed += f;
    }
    println!("{total} checked, {failed} failed");
    if failed > 0 {
        std::process::exit(1);
    }
    Ok(())
}
