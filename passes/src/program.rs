//! Ways to compile one graph: which passes run, and what the scheduler may join. Comparisons are between these.

use crate::schedule::Scheduling;
use crate::{PASSES, Pass, PassError};

/// A list of passes and the scheduler's freedom.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    pub name: String,
    /// Names of `PASSES`, in order.
    pub passes: Vec<&'static str>,
    pub scheduling: Scheduling,
}

/// What can be switched off in the fused program: (name, what is lost).
pub const SWITCHES: &[(&str, &str)] = &[
    ("fuse", "softmax attention as it is written"),
    ("split", "each attention pass sweeps its keys by itself"),
    ("join-rows", "the trips of `restart` read each weight for themselves"),
    ("join-projections", "q, k and v are three matmuls"),
    (
        "join-sums",
        "so are the products that their gradients are, and the sum of three",
    ),
    ("fold-norms", "norms before matmuls are kernels of their own"),
    (
        "epilogues",
        "a kernel for every matmul, reduction and element-wise chain",
    ),
    ("joined-sweeps", "a kernel for every sweep"),
    ("layouts", "values are turned by copies"),
    (
        "merge",
        "what several kernels read, or a reduction over another axis, is stored",
    ),
];

impl Program {
    /// Everything on: the default.
    pub fn fused() -> Program {
        Program {
            name: "fused".to_string(),
            passes: vec![
                "cse",
                "fuse",
                "join-rows",
                "join-projections",
                "join-sums",
                "fold-norms",
                "views-first",
                "dce",
            ],
            scheduling: Scheduling::FUSED,
        }
    }

    /// One kernel per op, element-wise chains joined: what `--no-fuse` means.
    pub fn op_by_op() -> Program {
        Program {
            name: "op by op".to_string(),
            passes: vec!["cse", "dce"],
            scheduling: Scheduling::OP_BY_OP,
        }
    }

    /// As fused, but each attention pass is its own sweep in its own kernel.
    pub fn pass_by_pass() -> Program {
        let mut program = Program::fused();
        program.passes[1] = "fuse-apart";
        program.scheduling.joined_sweeps = false;
        Program {
            name: "pass by pass".to_string(),
            ..program
        }
    }

    /// The fused program less one of `SWITCHES`.
    pub fn without(switch: &str) -> Option<Program> {
        let mut program = Program::fused();
        program.name = format!("without {switch}");
        match switch {
            "epilogues" => program.scheduling.epilogues = false,
            "joined-sweeps" => program.scheduling.joined_sweeps = false,
            "layouts" => program.scheduling.layouts = false,
            "merge" => program.scheduling.merged = false,
            "split" => program.passes[1] = "fuse-apart",
            _ => {
                let at = program.passes.iter().position(|p| *p == switch)?;
                SWITCHES.iter().find(|s| s.0 == switch)?;
                program.passes.remove(at);
            }
        }
        Some(program)
    }

    /// Is the loss joined with the projection to logits, a block of rows at a time? Else all logits are stored, as the graph is written.
    pub fn joins_the_loss(&self) -> bool {
        self.scheduling.epilogues
    }

    /// What the forward graph goes through before it is differentiated: the passes up to the one that finds attention's sweeps, whose
    /// backward is written for them. The gradient's graph goes through all of them.
    pub fn forward(&self, mut module: ir::Module) -> Result<ir::Module, PassError> {
        let steps = self.steps()?;
        let last = self
            .passes
            .iter()
            .rposition(|p| p.starts_with("fuse"))
            .map_or(0, |at| at + 1);
        for pass in &steps[..last] {
            (pass.run)(&mut module)?;
        }
        Ok(module)
    }

    /// The passes themselves.
    pub fn steps(&self) -> Result<Vec<&'static Pass>, PassError> {
        let find = |name: &&str| {
            PASSES
                .iter()
                .find(|p| p.name == *name)
                .ok_or_else(|| PassError(format!("there is no pass `{name}`")))
        };
        self.passes.iter().map(find).collect()
    }
}
