//! An element-wise or row kernel as a task: each block takes every so many tiles.

use ir::plan::Kernel;

use crate::gpu::map::Shape;
use crate::gpu::ptx::{self, I32, Params};
use crate::mlir::emit::{Elem, Emit};

pub struct Small<'k> {
    kernel: &'k Kernel,
    shape: Shape,
}

impl<'k> Small<'k> {
    pub fn new(kernel: &'k Kernel) -> Small<'k> {
        Small {
            kernel,
            shape: Shape::new(kernel),
        }
    }

    pub fn shared(&self) -> i64 {
        self.shape.shared(self.kernel).into()
    }

    pub fn run(&self, e: &mut Emit, params: Params) {
        let body = self.shape.body(self.kernel, params.buffers, params.symbols);
        let (first, blocks, one, zero) = (ptx::block(e), ptx::blocks(e), e.int(1, I32), e.int(0, I32));
        let tiles = self.shape.tiles(e, &body);
        let tiles = e.truncate_int(tiles, Elem::I32);
        // Of a block: (tiles - first + blocks - 1) / blocks.
        let left = e.sub(tiles, first);
        let more = e.add(left, blocks);
        let more = e.sub(more, one);
        let more = e.max(more, zero);
        let count = e.div(more, blocks);
        e.for_loop(zero, count, 1, &[], |e, i, _| {
            let at = e.mul(i, blocks);
            let tile = e.add(first, at);
            self.shape.emit(e, &body, tile);
            // Another tile may reduce where this one reads.
            ptx::barrier(e);
            vec![]
        });
    }
}
