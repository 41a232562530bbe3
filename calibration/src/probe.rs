//! The pass that makes a graph tell values asked for, and leaves blocks out.

use std::collections::BTreeSet;

use cogvx_graphs::Value;
use cogvx_graphs::graph::{Graph, Node};
use cogvx_graphs::op::{Binary, Op};
use cogvx_graphs::pass::Pass;

use crate::convs::input_of;
use crate::values::ValueNames;

/// What to tell, and what to leave out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Probe {
    /// Values, as [`ValueNames`] names them, with `.input` for the first that the operation reads; outputs of the same names.
    pub tell: BTreeSet<String>,
    /// Paths in which what is added to the residual stream is left out, such as `transformer_blocks.3`.
    pub skip: BTreeSet<String>,
    /// Whether these values are all that the graph is to make, and what only others need is left out.
    pub alone: bool,
}

/// The pass.
#[derive(Debug)]
pub struct Probing<'a> {
    probe: &'a Probe,
    names: ValueNames,
}

impl<'a> Probing<'a> {
    /// Probe one graph.
    #[must_use]
    pub fn new(probe: &'a Probe) -> Self {
        Self { probe, names: ValueNames::default() }
    }
}

impl Pass for Probing<'_> {
    fn name(&self) -> &'static str {
        "probe"
    }

    fn rewrite<'g>(&mut self, node: &Node, inputs: &[Option<Value<'g>>], out: &'g Graph) -> Option<Vec<Value<'g>>> {
        let name = self.names.of(node, inputs)?;
        // The stream comes first.
        if node.op == Op::Binary(Binary::Add) && self.probe.skip.contains(&node.path) {
            return inputs[0].map(|stream| vec![stream]);
        }
        let read = input_of(&name);
        if let Some(x) = inputs[0].filter(|_| self.probe.tell.contains(&read)) {
            out.output(&read, x);
        }
        if !self.probe.tell.contains(&name) {
            return None;
        }
        let ids: Vec<_> = inputs.iter().map(|input| input.map(Value::id)).collect();
        let made = out.add(node.op.clone(), &ids);
        out.output(&name, made[0]);
        Some(made)
    }
}
