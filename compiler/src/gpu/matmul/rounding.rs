//! Rows that cannot be multiplied where they lie: rounded to bf16, and measured, in front of the product.
//!
//!     warp = row                                       16 bytes or two times 16 a lane and step

use ir::Size;
use ir::plan::{Access, Contraction, Kernel};
use runtime::artefact::Step;

use super::super::ptx::{self, F32, I32, Signature, lane_bits};
use super::super::{math, tiles};
use crate::mlir::emit::{Cmp, Elem, Ty};
use crate::scalar::{Body, Math, memory, widen};

/// Rows of A in bf16, densely, and the sum of each row's squares before it is rounded: a warp a row.
pub fn rounding(kernel: &Kernel, c: &Contraction, name: &str) -> (Step, (String, String)) {
    const THREADS: i64 = 256;
    let rows = Size::product(&kernel.outer);
    let signature = Signature {
        buffers: kernel.args.len(),
        // Of a kernel that reduces, the tiles' results stand behind.
        workspaces: 2 + usize::from(kernel.reduces()),
        threads: THREADS as u32,
        overlap: true,
        ..Signature::default()
    };
    let k = c.k.as_const().unwrap_or(0);
    let dtype = kernel.args[c.a.arg].dtype;
    let text = ptx::function(name, signature, |e, params| {
        let body = Body::over(kernel, 1, params.buffers, params.symbols, Math::Gpu);
        let (block, thread) = (ptx::block(e), ptx::thread(e));
        let (warp, lane) = (e.shr(thread, 5), lane_bits(e, thread, 0, 5));
        let warps = e.int(THREADS / 32, I32);
        let at = e.mul(block, warps);
        let row = e.add(at, warp);
        let row = e.extend_signed(row, Elem::I64);
        let n = body.size(e, &rows);
        let is_there = e.cmp(Cmp::Lt, row, n);
        e.if_then(is_there, &[], |e| {
            let index = body.unravel(e, row, &kernel.outer);
            let mut point = body.point(index);
            let base = body.base(e, &mut point, &c.a);
            let eight = e.int(8, I32);
            let first = e.mul(lane, eight);
            let (end, nothing) = (e.int(k, I32), e.f32(0.0, F32));
            let aligned = accesses_align(&c.a);
            let sum = e.for_loop(first, end, 256, &[nothing], |e, at, acc| {
                let at = e.extend_signed(at, Elem::I64);
                let from = e.add(base, at);
                let from = e.at(body.args[c.a.arg], from, memory(dtype));
                let bytes = if aligned { 16 } else { dtype.bytes() as usize };
                let raw = e.load_aligned(from, Ty::vector(memory(dtype), 8), bytes);
                let x = widen(e, raw, dtype);
                let mut sum = acc[0];
                for i in 0..8 {
                    let x = e.extract(x, i);
                    sum = e.fma(x, x, sum);
                }
                let bits = math::bf16_bits(e, x);
                let width = e.i64(k);
                let to = e.mul(row, width);
                let to = e.add(to, at);
                let to = e.at(params.workspaces[0], to, Elem::I16);
                e.store_aligned(bits, to, 16);
                vec![sum]
            });
            let mut sum = sum[0];
            for bits in [16, 8, 4, 2, 1] {
                let other = ptx::shuffle_xor(e, sum, bits);
                sum = e.add(sum, other);
            }
            let to = e.at(params.workspaces[1], row, Elem::F32);
            e.store(sum, to);
            vec![]
        });
    });
    let step = Step {
        function: name.to_string(),
        tiles: tiles(&[(rows.clone(), THREADS / 32)]),
        threads: THREADS as u32,
        overlap: true,
        ..Step::default()
    };
    (step, (name.to_string(), text))
}

fn accesses_align(a: &Access) -> bool {
    let rows = &a.strides[..a.strides.len() - 1];
    rows.iter().chain([&a.offset]).all(|s| s.coef % 8 == 0)
}
