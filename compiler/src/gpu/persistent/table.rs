//! What a task is told (`runtime::artefact::Persistent`): rows of a table, each brought to shared memory while the task before it runs.

use super::Layout;
use crate::gpu::ptx::{self, I32, Params};
use crate::mlir::emit::{Cmp, Elem, Emit, Ty, Val};

const WORD: Ty = Ty::scalar(Elem::I64);

pub struct Table {
    pub thread: Val,
    /// In global memory.
    at: Val,
    /// Two rows in shared memory.
    rows: Val,
    words: Val,
    /// Has the thread a word of each row?
    has_word: Val,
}

/// A row in shared memory.
pub struct Row {
    at: Val,
    body: Val,
    /// Is the task `beside` the one before it? Not 0 then.
    pub beside: Val,
}

impl Table {
    pub fn new(e: &mut Emit, layout: &Layout, params: &Params) -> Table {
        let (thread, shared) = (ptx::thread(e), ptx::shared(e));
        let (rows, words) = (e.int(layout.rows / 8, I32), e.int(layout.words, I32));
        Table {
            thread,
            at: params.buffers[0],
            rows: e.at(shared, rows, Elem::I64),
            words,
            has_word: e.cmp(Cmp::Lt, thread, words),
        }
    }

    /// The first row. A barrier must follow.
    pub fn begin(&self, e: &mut Emit) {
        e.if_then(self.has_word, &[], |e| {
            let zero = e.int(0, I32);
            let word = self.look_up(e, zero);
            let to = e.at(self.rows, self.thread, Elem::I64);
            e.store(word, to);
            vec![]
        });
    }

    /// The thread's word of row `number` (i32).
    fn look_up(&self, e: &mut Emit, number: Val) -> Val {
        let at = e.mul(number, self.words);
        let at = e.add(at, self.thread);
        let from = e.at(self.at, at, Elem::I64);
        e.load(from, WORD)
    }

    fn place(&self, e: &mut Emit, number: Val) -> Val {
        let one = e.int(1, I32);
        let which = e.and(number, one);
        let at = e.mul(which, self.words);
        e.at(self.rows, at, Elem::I64)
    }

    pub fn row(&self, e: &mut Emit, task: Val) -> Row {
        let (at, one) = (self.place(e, task), e.int(1, I32));
        let head = e.load(at, WORD);
        let head = e.truncate_int(head, Elem::I32);
        Row {
            at,
            body: e.shr(head, 1),
            beside: e.and(head, one),
        }
    }

    /// The thread's word of the row behind this task's; of the last one's, something that nobody reads.
    pub fn look_up_next(&self, e: &mut Emit, task: Val, tasks: Val) -> Val {
        let (one, nothing) = (e.int(1, I32), e.i64(0));
        let next = e.add(task, one);
        let more = e.cmp(Cmp::Lt, next, tasks);
        let mine = e.and(more, self.has_word);
        e.if_then(mine, &[nothing], |e| vec![self.look_up(e, next)])[0]
    }

    /// To where the task before this one had its row: a barrier has ended that.
    pub fn put_next(&self, e: &mut Emit, task: Val, word: Val) {
        e.if_then(self.has_word, &[], |e| {
            let one = e.int(1, I32);
            let next = e.add(task, one);
            let row = self.place(e, next);
            let to = e.at(row, self.thread, Elem::I64);
            e.store(word, to);
            vec![]
        });
    }
}

impl Row {
    /// If the task has body number `body`.
    pub fn if_it_is(&self, e: &mut Emit, body: usize, init: &[Val], then: impl FnOnce(&mut Emit) -> Vec<Val>) -> Vec<Val> {
        let number = e.int(body as i64, I32);
        let mine = e.cmp(Cmp::Eq, self.body, number);
        e.if_then(mine, init, then)
    }

    /// What a body takes: so many buffers of the row, and what is the same for all.
    pub fn params(&self, e: &mut Emit, buffers: usize, all: &Params) -> Params {
        let buffers = (0..buffers).map(|n| {
            let n = e.int(1 + n as i64, I32);
            let from = e.at(self.at, n, Elem::I64);
            let address = e.load(from, WORD);
            ptx::global(e, address)
        });
        Params {
            buffers: buffers.collect(),
            workspaces: all.workspaces.clone(),
            counters: all.counters,
            symbols: all.symbols.clone(),
            maps: vec![],
        }
    }
}
