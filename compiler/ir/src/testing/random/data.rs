//! What a random program is given to run: weights, inputs and states, as parameters and with their values. Makes no ops.

use std::collections::BTreeMap;

use super::super::{ENTRY, floats, integers};
use super::{Generator, LAYERS};
use crate::graph::{Param, ValueId};
use crate::tensor::Tensor;
use crate::types::{Dim, Sizes, TensorType};

pub(super) struct Data {
    pub(super) training: bool,
    pub(super) sizes: Sizes,
    pub(super) inputs: BTreeMap<String, Tensor>,
    pub(super) weights: BTreeMap<String, Tensor>,
    pub(super) states: BTreeMap<String, Tensor>,
}

impl Generator<'_> {
    /// A new tensor within [-1, 1]: a weight where the shape is constant, else an input; a layer gets no inputs but x.
    pub(super) fn fresh(&mut self, ty: TensorType) -> ValueId {
        let name = format!("a{}", self.f.values.len());
        let constant = ty.shape.iter().all(|d| matches!(d, Dim::Const(_)));
        match (self.f.name == ENTRY, constant) {
            (true, false) => {
                self.data
                    .inputs
                    .insert(name.clone(), floats(&ty, &self.data.sizes, self.rng, -1.0, 1.0));
                self.f.param(&name, ty, Param::Input(name.clone()))
            }
            (true, true) => {
                self.data.weights.insert(
                    format!("{name}.weight"),
                    floats(&ty, &self.data.sizes, self.rng, -1.0, 1.0),
                );
                self.f.param(&name, ty, Param::Weight(format!("{name}.weight")))
            }
            (false, true) => {
                for i in 0..LAYERS {
                    self.data.weights.insert(
                        format!("layers.{i}.{name}"),
                        floats(&ty, &self.data.sizes, self.rng, -1.0, 1.0),
                    );
                }
                self.f.param(&name, ty, Param::Weight(format!("layers.{{i}}.{name}")))
            }
            (false, false) => self.f.constant(0.375, ty),
        }
    }

    /// `start`, `last`, ..: an integer input of the entry point.
    pub(super) fn integer(&mut self, name: &str, ty: TensorType, low: i64, end: i64) -> ValueId {
        self.data
            .inputs
            .insert(name.to_string(), integers(&ty, &self.data.sizes, self.rng, low, end));
        self.f.param(name, ty, Param::Input(name.to_string()))
    }

    /// A state of its own, in every layer if it is a layer's.
    pub(super) fn new_state(&mut self, ty: &TensorType) -> ValueId {
        let name = format!("state{}", self.f.values.len());
        let (layers, full) = match self.f.name == ENTRY {
            true => (1, name.clone()),
            false => (LAYERS, format!("layers.{{i}}.{name}")),
        };
        for i in 0..layers {
            let values = floats(ty, &self.data.sizes, self.rng, -1.0, 1.0);
            let name = full.replace("{i}", &i.to_string());
            self.data.states.insert(name, values);
        }
        self.f.param(&name, ty.clone(), Param::State(full))
    }
}
