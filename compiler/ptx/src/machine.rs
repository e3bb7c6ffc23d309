//! What a user holds: modules of kernels, and a machine with global memory that runs them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use crate::decode::{self, Code};
use crate::exec::{self, Launch, Param, Stats};
use crate::fault::{Fault, FaultKind, Problem};
use crate::memory::Memory;
use crate::text::{self, ParseError, Tree};

/// A parsed module. Kernels are decoded when they are first launched, so an instruction that is not known concerns only its kernel.
pub struct Module {
    tree: Tree,
    kernels: HashMap<String, OnceLock<Result<Arc<Code>, ParseError>>>,
    /// Tells modules apart: a machine places each one's variables once.
    id: u64,
}

impl Module {
    pub fn parse(text: &str) -> Result<Module, ParseError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let tree = text::parse(text)?;
        let entries = tree.functions.iter().filter(|f| f.entry && f.body.is_some());
        let kernels = entries.map(|f| (f.name.clone(), OnceLock::new())).collect();
        Ok(Module {
            tree,
            kernels,
            id: NEXT.fetch_add(1, Ordering::Relaxed),
        })
    }

    /// Names of all kernels, sorted.
    pub fn kernels(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.kernels.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// Decodes every kernel: the first instruction that is not known, if there is one.
    pub fn check(&self) -> Result<(), ParseError> {
        for f in self.tree.functions.iter().filter(|f| f.entry && f.body.is_some()) {
            decode::decode(&self.tree, f)?;
        }
        Ok(())
    }

    /// Shared memory that a kernel's named variables take, before dynamic memory.
    pub fn static_shared(&self, kernel: &str) -> Result<u32, Box<Fault>> {
        self.code(kernel).map(|c| c.static_shared)
    }

    fn code(&self, kernel: &str) -> Result<Arc<Code>, Box<Fault>> {
        let unknown = || {
            let what = format!("there is no such kernel, only {}", self.kernels().join(", "));
            Fault::launch(kernel, FaultKind::Launch(what))
        };
        let cell = self.kernels.get(kernel).ok_or_else(unknown)?;
        let f = self
            .tree
            .functions
            .iter()
            .find(|f| f.entry && f.name == kernel)
            .ok_or_else(unknown)?;
        let code = cell.get_or_init(|| decode::decode(&self.tree, f).map(Arc::new));
        code.clone().map_err(|e| Fault::undecodable(kernel, e))
    }
}

/// Global memory, kept between launches.
#[derive(Default)]
pub struct Machine {
    memory: Memory,
    /// Addresses of each module's variables.
    globals: HashMap<u64, Vec<u64>>,
}

impl Machine {
    pub fn new() -> Machine {
        Machine::default()
    }

    /// Like `new`, and reads of global memory that nobody wrote are faults.
    pub fn strict() -> Machine {
        let mut machine = Machine::default();
        machine.memory.tracks_writes = true;
        machine
    }

    /// Zeroed memory, aligned to 256 bytes and to no more; nothing is near it.
    pub fn alloc(&mut self, bytes: u64) -> u64 {
        self.memory.alloc(bytes)
    }

    pub fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), Box<Fault>> {
        let place = self.memory.write(address, bytes.len() as u64).map_err(host)?;
        place.copy_from_slice(bytes);
        Ok(())
    }

    pub fn read(&self, address: u64, bytes: u64) -> Result<Vec<u8>, Box<Fault>> {
        self.memory.read(address, bytes).map(<[u8]>::to_vec).map_err(host)
    }

    /// The address of a module's `.global` or `.const` variable.
    pub fn variable(&mut self, module: &Module, name: &str) -> Option<u64> {
        let n = decode::globals(&module.tree).iter().position(|g| g.name == name)?;
        self.place(module).get(n).copied()
    }

    fn place(&mut self, module: &Module) -> &[u64] {
        let memory = &mut self.memory;
        self.globals.entry(module.id).or_insert_with(|| {
            let one = |g: &decode::Global| {
                let at = memory.alloc(g.bytes.len() as u64);
                if let Ok(place) = memory.write(at, g.bytes.len() as u64) {
                    place.copy_from_slice(&g.bytes);
                }
                at
            };
            decode::globals(&module.tree).iter().map(one).collect()
        })
    }

    /// Runs a kernel to its end.
    pub fn launch(
        &mut self,
        module: &Module,
        kernel: &str,
        launch: Launch,
        params: &[Param],
    ) -> Result<Stats, Box<Fault>> {
        let code = module.code(kernel)?;
        let globals = self.place(module).to_vec();
        exec::run(&code, &mut self.memory, &globals, &launch, params)
    }
}

fn host(problem: Box<Problem>) -> Box<Fault> {
    Fault::launch("(none: the host)", problem.kind)
}
