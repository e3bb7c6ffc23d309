//! One typed function per instruction or intrinsic of a GPU, and the frame of a kernel. Knows no tile and no kernel.

use runtime::artefact::SYMBOLS;

use crate::mlir::emit::{Elem, Emit, Ty, Val};

pub const I32: Ty = Ty::scalar(Elem::I32);
pub const F32: Ty = Ty::scalar(Elem::F32);

/// What a function takes; see `runtime::artefact::Step`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Signature {
    pub buffers: usize,
    pub workspaces: usize,
    pub counters: bool,
    pub maps: usize,
    pub threads: u32,
    /// The function waits at once for those in front of it, which may let it begin before they end (`Step::overlap`).
    pub overlap: bool,
}

/// A function's parameters.
pub struct Params {
    pub buffers: Vec<Val>,
    pub workspaces: Vec<Val>,
    pub counters: Option<Val>,
    /// Name and value, i64.
    pub symbols: Vec<(&'static str, Val)>,
    /// Pointers to descriptors of the copy engine.
    pub maps: Vec<Val>,
}

/// A kernel function of PTX, in MLIR.
pub fn function(name: &str, signature: Signature, body: impl FnOnce(&mut Emit, Params)) -> String {
    let mut e = Emit::default();
    let global = Ty::scalar(Elem::Global);
    let fresh = |e: &mut Emit, n: usize, ty: Ty| (0..n).map(|_| e.fresh(ty)).collect::<Vec<Val>>();
    let buffers = fresh(&mut e, signature.buffers, global);
    let workspaces = fresh(&mut e, signature.workspaces, global);
    let counters = signature.counters.then(|| e.fresh(global));
    let symbols = fresh(&mut e, SYMBOLS.len(), I32);
    let maps = fresh(&mut e, signature.maps, Ty::scalar(Elem::Ptr));
    let plain = buffers.iter().chain(&workspaces).chain(&counters).chain(&symbols);
    let mut list: Vec<String> = plain.map(|p| format!("{p}: {}", p.ty)).collect();
    list.extend(maps.iter().map(|m| {
        format!("{m}: !llvm.ptr {{llvm.byval = !llvm.array<128 x i8>, llvm.align = 64 : i64, nvvm.grid_constant}}")
    }));
    e.line(&format!("llvm.func @{name}({}) attributes {{", list.join(", ")));
    e.line(&format!(
        "    nvvm.kernel, nvvm.reqntid = array<i32: {}>, nvvm.minctasm = 1 : i32}} {{",
        signature.threads
    ));
    e.depth += 1;
    let symbols = SYMBOLS
        .iter()
        .zip(&symbols)
        .map(|(name, v)| (*name, e.extend_signed(*v, Elem::I64)))
        .collect();
    if signature.overlap {
        wait_for_earlier(&mut e);
    }
    body(
        &mut e,
        Params {
            buffers,
            workspaces,
            counters,
            symbols,
            maps,
        },
    );
    e.line("llvm.return");
    e.depth -= 1;
    e.line("}");
    e.finish()
}

fn register(e: &mut Emit, name: &str) -> Val {
    e.op(
        I32,
        &format!("llvm.call_intrinsic \"llvm.nvvm.read.ptx.sreg.{name}\"() : () -> i32"),
    )
}

/// The thread's number in its block, i32.
pub fn thread(e: &mut Emit) -> Val {
    register(e, "tid.x")
}

/// The block's number, i32.
pub fn block(e: &mut Emit) -> Val {
    register(e, "ctaid.x")
}

/// How many blocks, i32.
pub fn blocks(e: &mut Emit) -> Val {
    register(e, "nctaid.x")
}

/// All threads of the block meet; what they wrote to memory before is seen after.
pub fn barrier(e: &mut Emit) {
    let zero = e.int(0, I32);
    e.line(&format!(
        "llvm.call_intrinsic \"llvm.nvvm.barrier.cta.sync.aligned.all\"({zero}) : (i32) -> ()"
    ));
}

/// With `Step::overlap`: waits until what the functions in front of this one wrote is there. Before it only weights and what a call gives may
/// be read.
pub fn wait_for_earlier(e: &mut Emit) {
    asm(e, "griddepcontrol.wait;", "~{memory}", &[], &[]);
}

/// The next function's blocks may take their places, as far as there is room; they wait for our end before they read. Worth it where the next
/// one reads weights meanwhile: behind products. Elsewhere it was measured to cost time (docs/notes/2026-11-26-cuda.md).
///
/// Only behind `wait_for_earlier`: a multiprocessor forgets what it has cached when a function begins on it, not when it waits. Were two
/// functions lines that an earlier one read of memory that is written anew in between would be stale for the later one.
pub fn let_next_begin(e: &mut Emit) {
    asm(e, "griddepcontrol.launch_dependents;", "", &[], &[]);
}

/// Bits `from..from + n` of a lane's number.
pub fn lane_bits(e: &mut Emit, lane: Val, from: i64, n: i64) -> Val {
    let x = e.shr(lane, from);
    let mask = e.int((1 << n) - 1, I32);
    e.and(x, mask)
}

/// The value of the lane whose number differs in these bits.
pub fn shuffle_xor(e: &mut Emit, x: Val, bits: i64) -> Val {
    let all = e.int(-1, I32);
    let bits = e.int(bits, I32);
    let clamp = e.int(31, I32);
    e.op(
        F32,
        &format!("llvm.call_intrinsic \"llvm.nvvm.shfl.sync.bfly.f32\"({all}, {x}, {bits}, {clamp}) : (i32, f32, i32, i32) -> f32"),
    )
}

/// The value of that lane.
pub fn shuffle(e: &mut Emit, x: Val, lane: Val) -> Val {
    let all = e.int(-1, I32);
    let clamp = e.int(31, I32);
    e.op(
        F32,
        &format!("llvm.call_intrinsic \"llvm.nvvm.shfl.sync.idx.f32\"({all}, {x}, {lane}, {clamp}) : (i32, f32, i32, i32) -> f32"),
    )
}

/// The start of the block's dynamic shared memory.
pub fn shared(e: &mut Emit) -> Val {
    e.op(Ty::scalar(Elem::Shared), "llvm.mlir.addressof @smem : !llvm.ptr<3>")
}

/// The module-level declaration that `shared` refers to. 1024 bytes is what 128-byte swizzled tiles need.
pub const SHARED: &str =
    "llvm.mlir.global external @smem() {addr_space = 3 : i32, alignment = 1024 : i64} : !llvm.array<0 x i8>\n";

/// Inline PTX: `$0..` are results, then operands, in the order of the constraints.
pub fn asm(e: &mut Emit, text: &str, constraints: &str, operands: &[Val], results: &[Ty]) -> Vec<Val> {
    let list = operands.iter().map(Val::to_string).collect::<Vec<_>>().join(", ");
    let types = operands.iter().map(|v| v.ty.to_string()).collect::<Vec<_>>().join(", ");
    let head =
        format!("llvm.inline_asm has_side_effects asm_dialect = att \"{text}\", \"{constraints}\" {list} : ({types})");
    match results {
        [] => {
            e.line(&format!("{head} -> ()"));
            vec![]
        }
        [ty] => vec![e.op(*ty, &format!("{head} -> {ty}"))],
        many => {
            let inner = many.iter().map(Ty::to_string).collect::<Vec<_>>().join(", ");
            let all = e.op(many[0], &format!("{head} -> !llvm.struct<({inner})>"));
            (many.iter().enumerate())
                .map(|(i, ty)| e.op(*ty, &format!("llvm.extractvalue {all}[{i}] : !llvm.struct<({inner})>")))
                .collect()
        }
    }
}

/// The start of the block's dynamic shared memory, i32: what instructions of the asynchronous units and `ldmatrix` take.
pub fn shared_address(e: &mut Emit) -> Val {
    let start = shared(e);
    e.op(I32, &format!("llvm.ptrtoint {start} : !llvm.ptr<3> to i32"))
}

/// 16 bytes from global to shared memory, of which the first `bytes` are read and the rest are zero; see `commit_copies`.
pub fn copy_async(e: &mut Emit, to: Val, from: Val, bytes: Val) {
    let text = "cp.async.cg.shared.global [$0], [$1], 16, $2;";
    asm(e, text, "r,l,r,~{memory}", &[to, from, bytes], &[]);
}

/// The copies so far are a group.
pub fn commit_copies(e: &mut Emit) {
    asm(e, "cp.async.commit_group;", "~{memory}", &[], &[]);
}

/// Waits until at most so many of the thread's last groups are on their way.
pub fn wait_copies(e: &mut Emit, groups: i64) {
    asm(e, &format!("cp.async.wait_group {groups};"), "~{memory}", &[], &[]);
}

/// Four 8 x 8 matrices of 16-bit elements: lanes 8 i.. give the addresses (i32, in shared memory) of matrix i's rows.
pub fn load_matrices(e: &mut Emit, at: Val, turned: bool) -> Vec<Val> {
    let turn = if turned { ".trans" } else { "" };
    let text = format!("ldmatrix.sync.aligned.m8n8.x4{turn}.shared.b16 {{$0, $1, $2, $3}}, [$4];");
    asm(e, &text, "=r,=r,=r,=r,r,~{memory}", &[at], &[I32; 4])
}

/// acc + a b for m16 n8 k16, bf16 into f32: the fragments of the PTX ISA, "Matrix fragments for mma.m16n8k16".
pub fn mma_bf16(e: &mut Emit, a: &[Val], b: &[Val], acc: &[Val]) -> Vec<Val> {
    let text = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, \
                {$10, $11, $12, $13};";
    let operands: Vec<Val> = a.iter().chain(b).chain(acc).copied().collect();
    asm(e, text, "=f,=f,=f,=f,r,r,r,r,r,r,f,f,f,f", &operands, &[F32; 4])
}

/// The line of global memory at the address is brought to the second cache.
pub fn prefetch(e: &mut Emit, at: Val) {
    asm(e, "prefetch.global.L2 [$0];", "l", &[at], &[]);
}

/// 16 bytes that are read once: they need no place in the first cache.
pub fn load_once(e: &mut Emit, from: Val) -> Vec<Val> {
    let text = "ld.global.nc.L1::no_allocate.v4.b32 {$0, $1, $2, $3}, [$4];";
    asm(e, text, "=r,=r,=r,=r,l", &[from], &[I32; 4])
}
