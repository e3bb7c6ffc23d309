//! Points by a few warps of some other kernel's block: what a sweep begins with (`Plan::prologue`).

use super::super::ptx::I32;
use super::{Map, Shape};
use crate::mlir::emit::{Cmp, Elem, Emit, Val};
use crate::scalar::Body;

impl Shape {
    /// Can a few warps do a point among themselves, without meeting the others of their block?
    pub fn is_of_warps(&self) -> bool {
        self.team <= 32 && !self.along_points && self.chunk.is_none()
    }

    /// Points `first..first + count` by this many threads, whole warps, of which this is number `thread`; see `is_of_warps`.
    pub fn emit_points(&self, e: &mut Emit, body: &Body, [first, thread]: [Val; 2], threads: i64, count: i64) {
        let team = e.int(self.team, I32);
        let (number, member) = (e.div(thread, team), e.rem(thread, team));
        let (zero, cols) = (e.i64(0), body.size(e, &body.kernel.cols));
        let member = e.extend_signed(member, Elem::I64);
        let at_once = threads / self.team;
        for begin in (0..count).step_by(at_once as usize) {
            let (begin, last) = (e.int(begin, I32), e.int(count - 1, I32));
            let number = e.add(number, begin);
            let is_there = e.cmp(Cmp::Le, number, last);
            let number = e.min(number, last);
            let point = e.add(first, number);
            let point = e.extend_signed(point, Elem::I64);
            let map = Map {
                body,
                shape: self,
                thread,
                member,
                point,
                is_there,
                first: zero,
                last: cols,
                is_first_chunk: None,
            };
            map.run(e);
        }
    }
}
