//! Values that are waited for one by one: how a token's functions hand on what they make without waiting for each other's end.
//!
//!     memory is all ones before the call               no number is: a NaN that is made or stored here is 7fff or 7fffffff
//!     who makes a value stores it                      relaxed, never all ones
//!     who reads asks, and then settles                 loads under way together; again until none of them is all ones
//!
//! A value says itself that it is there, so nothing is fenced and nothing is counted: a release of the whole GPU waits for every copy that is
//! under way on its multiprocessor, weights that functions further on have asked for among them (docs/notes/2026-11-28-persistent.md). What
//! is read so is read from the second cache, where all multiprocessors see the same.
//!
//! A function may wait for another only if all blocks of that one have their places or have ended; see `ptx::Begin::Awaits`.

use ir::plan::Arg;

use super::ptx::{self, I32};
use crate::mlir::emit::{Cmp, Elem, Emit, Ty, Val};

/// Tries before a function gives up: some seconds, so that a value that never comes is an error of the driver, not a GPU that hangs.
const TRIES: i64 = 1 << 24;

/// How a function takes part.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Awaiting {
    /// By buffer: is it one whose values are waited for? Empty: the function is none of those that wait for values.
    pub buffers: Vec<bool>,
    /// It waits for the values that it reads; if not, for the functions in front of it, and others for the values that it makes.
    pub polls: bool,
}

impl Awaiting {
    pub fn is_on(&self) -> bool {
        !self.buffers.is_empty()
    }

    /// The buffers, for a function that waits for functions: those alone that it writes.
    pub fn stores<'a>(&self, args: impl Iterator<Item = &'a Arg>) -> Vec<bool> {
        self.buffers
            .iter()
            .zip(args)
            .map(|(b, arg)| *b && arg.written)
            .collect()
    }
}

/// A load of 2, 4, 8 or 16 bytes under way.
#[derive(Clone)]
pub struct Asked {
    /// i32 each; one i16 where it is 2 bytes.
    words: Vec<Val>,
    at: Val,
    /// The elements that are stored as one are 16 bits wide.
    halves: bool,
}

/// So many bytes, of elements of this size, at a multiple of them.
pub fn ask(e: &mut Emit, at: Val, bytes: usize, elem: usize) -> Asked {
    let words = if bytes == 2 {
        let text = "ld.relaxed.gpu.global.b16 $0, [$1];";
        ptx::asm(e, text, "=h,l", &[at], &[Ty::scalar(Elem::I16)])
    } else {
        let n = bytes / 4;
        let text = load(0, n, n);
        let constraints = format!("{}l", "=r,".repeat(n));
        ptx::asm(e, &text, &constraints, &[at], &vec![I32; n])
    };
    Asked {
        words,
        at,
        halves: elem == 2,
    }
}

/// `n` words to operands `first..`, from the address in operand `at`.
fn load(first: usize, n: usize, at: usize) -> String {
    let list: Vec<String> = (first..first + n).map(|i| format!("${i}")).collect();
    let list = list.join(", ");
    match n {
        1 => format!("ld.relaxed.gpu.global.b32 {list}, [${at}];"),
        n => format!("ld.relaxed.gpu.global.v{n}.b32 {{{list}}}, [${at}];"),
    }
}

/// Until all of them are there; their words.
pub fn settle(e: &mut Emit, asked: &[Asked]) -> Vec<Vec<Val>> {
    let all: Vec<Val> = asked.iter().flat_map(|a| a.words.iter().copied()).collect();
    let n = all.len();
    // The largest word, and the largest halves of words: is one of them all ones?
    let (mut checks, mut loads, mut at) = (String::new(), String::new(), 0);
    for (i, a) in asked.iter().enumerate() {
        let address = 2 * n + i;
        for word in at..at + a.words.len() {
            checks += &match (a.words[0].ty.elem, a.halves) {
                (Elem::I16, _) => format!("cvt.u32.u16 t, ${word}; max.u16x2 halves, halves, t; "),
                (_, true) => format!("max.u16x2 halves, halves, ${word}; "),
                (_, false) => format!("max.u32 words, words, ${word}; "),
            };
        }
        loads += &match a.words[0].ty.elem {
            Elem::I16 => format!("ld.relaxed.gpu.global.b16 ${at}, [${address}]; "),
            _ => load(at, a.words.len(), address) + " ",
        };
        at += a.words.len();
    }
    let text = format!(
        "{{ .reg .pred p; .reg .b32 t, tries, words, halves; mov.b32 tries, 0; again: mov.b32 words, 0; mov.b32 halves, 0; {checks}\
         setp.eq.s32 p, words, -1; and.b32 t, halves, 65535; setp.eq.or.s32 p, t, 65535, p; shr.u32 t, halves, 16; \
         setp.eq.or.s32 p, t, 65535, p; @!p bra done; \
         add.s32 tries, tries, 1; setp.gt.s32 p, tries, {TRIES}; @p trap; {loads}bra again; done: }}"
    );
    let class = |v: &Val| if v.ty.elem == Elem::I16 { "h" } else { "r" };
    let mut constraints: Vec<String> = all.iter().map(|v| format!("={}", class(v))).collect();
    constraints.extend((0..n).map(|i| i.to_string()));
    constraints.extend(asked.iter().map(|_| "l".to_string()));
    constraints.push("~{memory}".to_string());
    let operands: Vec<Val> = all.iter().copied().chain(asked.iter().map(|a| a.at)).collect();
    let types: Vec<Ty> = all.iter().map(|v| v.ty).collect();
    let mut words = ptx::asm(e, &text, &constraints.join(","), &operands, &types).into_iter();
    asked
        .iter()
        .map(|a| words.by_ref().take(a.words.len()).collect())
        .collect()
}

/// A value of elements in memory's type, and never all ones.
fn guarded(e: &mut Emit, x: Val) -> Val {
    let (int, nan) = match x.ty.elem.bytes() {
        2 => (Elem::I16, 0x7fff),
        _ => (Elem::I32, 0x7fff_ffff),
    };
    let ty = x.ty.with(int);
    let bits = if ty == x.ty { x } else { e.bitcast(x, ty) };
    let (ones, nan) = (e.int(-1, ty), e.int(nan, ty));
    let is_ones = e.cmp(Cmp::Eq, bits, ones);
    let bits = e.select(is_ones, nan, bits);
    if ty == x.ty { bits } else { e.bitcast(bits, x.ty) }
}

/// A value, or a vector of up to 16 bytes that lies at a multiple of its size, for others to wait for.
pub fn store(e: &mut Emit, x: Val, at: Val) {
    let x = guarded(e, x);
    let bytes = x.ty.elem.bytes() * x.ty.lanes.max(1);
    if bytes == 2 {
        let x = if x.ty.lanes == 1 { e.extract(x, 0) } else { x };
        ptx::asm(e, "st.relaxed.gpu.global.b16 [$0], $1;", "l,h,~{memory}", &[at, x], &[]);
        return;
    }
    let n = bytes / 4;
    let words: Vec<Val> = if n == 1 && x.ty.lanes == 0 {
        vec![if x.ty == I32 { x } else { e.bitcast(x, I32) }]
    } else {
        let ty = Ty::vector(Elem::I32, n);
        let x = if x.ty == ty { x } else { e.bitcast(x, ty) };
        (0..n).map(|i| e.extract(x, i)).collect()
    };
    let list: Vec<String> = (1..=n).map(|i| format!("${i}")).collect();
    let (list, vector) = (list.join(", "), if n > 1 { format!(".v{n}") } else { String::new() });
    let list = if n > 1 { format!("{{{list}}}") } else { list };
    let text = format!("st.relaxed.gpu.global{vector}.b32 [$0], {list};");
    let constraints = format!("l,{}~{{memory}}", "r,".repeat(n));
    let operands: Vec<Val> = [at].into_iter().chain(words).collect();
    ptx::asm(e, &text, &constraints, &operands, &[]);
}

/// The memory of 16 bytes is as before the call again.
pub fn forget(e: &mut Emit, at: Val) {
    let ones = e.int(-1, I32);
    let text = "st.relaxed.gpu.global.v4.b32 [$0], {$1, $1, $1, $1};";
    ptx::asm(e, text, "l,r,~{memory}", &[at, ones], &[]);
}

/// One value of this type, once its loads are there: 16 bytes each, or an element each.
pub fn settled(e: &mut Emit, asked: &[Asked], ty: Ty) -> Val {
    let words = settle(e, asked).concat();
    value(e, &words, ty)
}

/// Words as a value of this type.
pub fn value(e: &mut Emit, words: &[Val], ty: Ty) -> Val {
    if let ([word], 0) = (words, ty.lanes) {
        return if word.ty == ty { *word } else { e.bitcast(*word, ty) };
    }
    let x = e.vector(words);
    if x.ty == ty { x } else { e.bitcast(x, ty) }
}
