//! Times packed matmul kernels through the runtime's pool. Reads lines `M K N f32|bf16 THREADS` and answers each with a line of
//! JSON, so that another program can alternate it with a peer (`benches/matmul.py`). Checks nothing: the tests do.

use std::hint::black_box;
use std::io::BufRead;
use std::time::{Duration, Instant};

use compiler::cpu::{Target, compile_kernels};
use ir::plan::{Access, Arg, Contraction, Expr, Kernel, Rhs, Stage};
use ir::{DType, Size};
use runtime::memory::Memory;
use runtime::threads::Pool;

/// How long one answer measures.
const BURST: Duration = Duration::from_millis(150);
/// Rows up to which a call reads another copy of the weight each time, as a model's layers do.
const FEW_ROWS: i64 = 16;
/// Bytes of all copies: more than the caches hold.
const COLD: usize = 512 << 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let target = Target::native()?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let [m, k, n, dtype, threads] = words[..] else {
            return Err(format!("M K N DTYPE THREADS, not `{line}`").into());
        };
        let dtype = DType::from_name(dtype).ok_or("f32 or bf16")?;
        println!(
            "{}",
            answer(&target, m.parse()?, k.parse()?, n.parse()?, dtype, threads.parse()?)?
        );
    }
    Ok(())
}

fn kernel(k: i64, n: i64, dtype: DType) -> Kernel {
    let access = |arg, row: i64| Access {
        arg,
        offset: 0.into(),
        strides: vec![row.into(), 1.into()],
        indirect: None,
    };
    let arg = |written| Arg { dtype, written };
    Kernel {
        name: "matmul".to_string(),
        args: vec![arg(false), arg(false), arg(true)],
        outer: vec![Size::sym("T")],
        ordered: 0,
        panels: false,
        sweep_gradient: None,
        cols: n.into(),
        sweep: None,
        contraction: Some(Contraction {
            batch: 0,
            k: k.into(),
            a: access(0, k),
            packed_a: false,
            b: Rhs::Packed { arg: 1 },
            also: None,
        }),
        exprs: vec![Expr::Acc],
        stages: vec![Stage::Store {
            to: access(2, n),
            value: 0,
            when: None,
        }],
    }
}

fn answer(
    target: &Target,
    m: i64,
    k: i64,
    n: i64,
    dtype: DType,
    threads: usize,
) -> Result<String, Box<dyn std::error::Error>> {
    let kernel = kernel(k, n, dtype);
    let compiled = compile_kernels(std::slice::from_ref(&kernel), target, false)?;
    let code = runtime::elf::Code::load(&compiled.code)?;
    let run = code.kernel("matmul").ok_or("no kernel")?;
    let bytes = |rows: i64, cols: i64| (rows * cols * dtype.bytes()) as usize;
    let weight = bytes((n + 63) / 64 * 64, (k + 1) / 2 * 2);
    let copies = if m <= FEW_ROWS { COLD / weight + 1 } else { 1 };
    let (a, b, c) = (
        Memory::zeroed(bytes(m, k))?,
        Memory::zeroed(weight * copies)?,
        Memory::zeroed(bytes(m, n))?,
    );
    for memory in [&a, &b] {
        // SAFETY: nobody else holds these yet.
        let words = unsafe { std::slice::from_raw_parts_mut(memory.mut_ptr().cast::<u32>(), memory.len() / 4) };
        // As random as the peer's: equal bits would cost the multipliers less power. In either half of a word a bf16 (and in
        // the whole an f32) of magnitude 1/2 to 2 and any sign.
        let mut state = 1u32;
        for word in words {
            state = state.wrapping_mul(1664525).wrapping_add(1013904223);
            let mixed = state ^ state >> 15;
            *word = (mixed & 0x80ff_80ff) + 0x3f00_3f00;
        }
    }
    let pool = Pool::new(threads);
    let symbols = [1, m, 0, 0];
    let sizes = [("T".to_string(), m)].into();
    let tiles = kernel
        .tiles()
        .iter()
        .map(|(s, block)| (s.eval(&sizes).unwrap_or(0) + block - 1) / block)
        .product();
    let (pa, pb, pc) = (a.ptr() as usize, b.ptr() as usize, c.ptr() as usize);
    let call = |copy: usize| {
        let buffers = [pa, pb + copy * weight, pc];
        // SAFETY: the buffers are as large as m, k and n say; a packed weight needs no scratch.
        pool.run(tiles, &|begin, end, _| unsafe {
            run(
                buffers.as_ptr().cast(),
                symbols.as_ptr(),
                begin,
                end,
                std::ptr::null_mut(),
            );
        });
    };
    let read = |copy: usize| {
        let words = weight / 8;
        pool.run(threads as i64 * 8, &|begin, end, _| {
            let (from, to) = (
                words * begin as usize / (threads * 8),
                words * end as usize / (threads * 8),
            );
            // SAFETY: inside copy `copy` of the weight, which nobody writes.
            let words = unsafe { std::slice::from_raw_parts((pb + copy * weight) as *const u64, to) };
            black_box(xor(&words[from..]));
        });
    };
    let times = [measure(copies, &call), measure(copies, &read)];
    let [ours, reading] = times.map(|mut t| {
        t.sort_by(f64::total_cmp);
        (t[0], t[t.len() / 2])
    });
    let rate = |per: f64, time: f64| per / time / 1e9;
    let flops = 2.0 * (m * k * n) as f64;
    Ok(format!(
        "{{\"gflops\": {:.1}, \"gflops_median\": {:.1}, \"weight_gbs\": {:.2}, \"weight_gbs_median\": {:.2}, \"read_gbs\": {:.2}, \
         \"read_gbs_median\": {:.2}}}",
        rate(flops, ours.0),
        rate(flops, ours.1),
        rate(weight as f64, ours.0),
        rate(weight as f64, ours.1),
        rate(weight as f64, reading.0),
        rate(weight as f64, reading.1),
    ))
}

/// Reads everything, four streams side by side, so that many misses are under way.
fn xor(words: &[u64]) -> u64 {
    let (streams, line) = (4, 8);
    let quarter = words.len() / streams / line * line;
    let mut acc = [0u64; 8];
    for at in (0..quarter).step_by(line) {
        for s in 0..streams {
            let from = s * quarter + at;
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a prefetch may name any address.
            unsafe {
                use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
                _mm_prefetch(words.as_ptr().wrapping_add(from + 16 * line).cast(), _MM_HINT_T0);
            }
            acc.iter_mut().zip(&words[from..from + line]).for_each(|(a, w)| *a ^= w);
        }
    }
    acc.iter().fold(0, |a, b| a ^ b)
}

fn measure(copies: usize, call: &dyn Fn(usize)) -> Vec<f64> {
    let mut times = vec![];
    let begin = Instant::now();
    // The first call is not counted: it wakes the pool.
    call(0);
    while times.len() < 5 || begin.elapsed() < BURST {
        let start = Instant::now();
        call(times.len() % copies);
        times.push(start.elapsed().as_secs_f64());
    }
    times
}
