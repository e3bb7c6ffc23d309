//! The plan's text, for people: buffers, kernels as loop nests, launches. Nothing reads it back.
//!
//! Here are the lists of buffers and launches; a kernel's loops and stages are in `kernel`, sweeps in `sweep`, what stands in a line in
//! `expressions`.

mod expressions;
mod kernel;
mod sweep;

use std::fmt::{self, Display, Formatter, Write};

use super::{BufferKind, Plan, WeightRecipe};
use crate::types::Size;

impl Display for Plan {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "plan {}\n\nbuffers", self.entry)?;
        let names: Vec<String> = self.buffers.iter().map(|b| b.name.clone()).collect();
        let types: Vec<String> = self
            .buffers
            .iter()
            .map(|b| format!("{}{}", b.dtype, list(&b.shape)))
            .collect();
        let width = |texts: &[String]| texts.iter().map(|t| t.chars().count()).max().unwrap_or(0);
        let (name_width, type_width) = (width(&names), width(&types));
        for ((name, ty), b) in names.iter().zip(&types).zip(&self.buffers) {
            writeln!(f, "  {name:name_width$}  {ty:type_width$}  {}", b.kind)?;
        }
        for kernel in &self.kernels {
            write!(f, "\n{kernel}")?;
        }
        writeln!(f, "\nlaunches")?;
        for (i, launch) in self.launches.iter().enumerate() {
            let kernel = &self.kernels[launch.kernel];
            let side = |written: bool| {
                let args = kernel
                    .args
                    .iter()
                    .zip(&launch.args)
                    .filter(|(a, _)| a.written == written);
                args.map(|(_, &b)| names[b].as_str()).collect::<Vec<_>>().join(", ")
            };
            writeln!(f, "  {i:3}  {} = {}({})", side(true), kernel.name, side(false))?;
        }
        Ok(())
    }
}

impl Display for BufferKind {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            BufferKind::Temp { slot } => write!(f, "slot {slot}"),
            BufferKind::Input(name) => write!(f, "input {name}"),
            BufferKind::Output(name) => write!(f, "output {name}"),
            BufferKind::State(name) => write!(f, "state {name}"),
            BufferKind::Weight(recipe) => write!(f, "weight {recipe}"),
        }
    }
}

impl Display for WeightRecipe {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            WeightRecipe::Tensors { names, packed, scale } => {
                write!(f, "{}", names.join(" | "))?;
                if let Some(scale) = scale {
                    write!(f, " * {scale}")?;
                }
                f.write_str(if *packed { ", packed" } else { "" })
            }
            WeightRecipe::RopeTable {
                rows,
                dim,
                theta_bits,
                sin,
            } => {
                let what = if *sin { "sin" } else { "cos" };
                write!(
                    f,
                    "{what} of {rows} positions, dim {dim}, theta {}",
                    f64::from_bits(*theta_bits)
                )
            }
        }
    }
}

fn list(sizes: &[Size]) -> String {
    let mut text = String::from("[");
    for (i, s) in sizes.iter().enumerate() {
        let _ = write!(text, "{}{s}", if i > 0 { ", " } else { "" });
    }
    text + "]"
}
