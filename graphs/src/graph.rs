//! The graph under construction: an arena of values and nodes, filled through `&Graph` by [`Value`] methods.

use std::cell::{Ref, RefCell};
use std::collections::HashMap;

use crate::infer::infer;
use crate::op::{Op, Type};
use crate::{DType, Dim, Problem, Value};

/// A tensor of the checkpoint as the graph declares it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Weight {
    /// Key in the checkpoint.
    pub name: String,
    /// What of it: the tensor itself, or what it is quantized to.
    pub part: WeightPart,
    /// Element type the graph stores it in; the checkpoint's own unless a pass chose another.
    pub stored: DType,
    /// Sizes the graph gives it: the checkpoint's, or another shape of the same elements in the same order.
    pub shape: Vec<usize>,
}

/// What a graph reads of a checkpoint's tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum WeightPart {
    /// The tensor.
    Whole,
    /// The few-bit values it is quantized to.
    Values,
    /// What the values are multiples of.
    Scales,
    /// The values that stand for zero.
    ZeroPoints,
    /// The bias of its layer, in steps of the products of values.
    Bias,
}

impl Weight {
    /// The tensor `name` itself, stored as the checkpoint has it.
    #[must_use]
    pub fn whole(name: &str, stored: DType, shape: &[usize]) -> Self {
        Self { name: name.into(), part: WeightPart::Whole, stored, shape: shape.into() }
    }

    /// The initializer's name: the checkpoint's key and, where quantized, what of it.
    #[must_use]
    pub fn initializer(&self) -> String {
        format!("{}{}", self.name, self.part.suffix())
    }
}

impl WeightPart {
    /// What its initializer's name ends with.
    #[must_use]
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::Whole => "",
            Self::Values => "_quantized",
            Self::Scales => "_scale",
            Self::ZeroPoints => "_zero_point",
            Self::Bias => "_bias",
        }
    }
}

/// A tensor known when the graph is built.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Constant {
    /// Element type.
    pub dtype: DType,
    /// Sizes.
    pub shape: Vec<usize>,
    /// Elements, little endian.
    pub bytes: Vec<u8>,
}

/// Where a value comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// Fed to the graph under this name.
    Input {
        /// Name of the input.
        name: String,
        /// Whether the value is handed from run to run and so may take the compute precision.
        state: bool,
    },
    /// A tensor of the checkpoint.
    Weight(Weight),
    /// A tensor known at build time.
    Constant(Constant),
    /// Output number `output` of node `node`.
    Node {
        /// Index in [`Graph::nodes`].
        node: usize,
        /// Which of the node's outputs.
        output: usize,
    },
}

/// A value's type and origin.
#[derive(Clone, Debug)]
pub struct ValueData {
    /// Element type and sizes.
    pub r#type: Type,
    /// Where it comes from.
    pub source: Source,
}

/// An operation on values.
#[derive(Clone, Debug)]
pub struct Node {
    /// What is done.
    pub op: Op,
    /// Values it reads; `None` is an optional input left out.
    pub inputs: Vec<Option<usize>>,
    /// Values it makes.
    pub outputs: Vec<usize>,
    /// Module path of the layer being built, as in the checkpoint: `transformer_blocks.0.attn1`.
    pub path: String,
}

/// An output of the graph.
#[derive(Clone, Debug)]
pub struct Output {
    /// Name of the output.
    pub name: String,
    /// The value.
    pub value: usize,
    /// Whether it is handed to the next run (see [`Source::Input`]).
    pub state: bool,
}

/// A graph of operations on tensors.
#[derive(Default)]
pub struct Graph {
    values: RefCell<Vec<ValueData>>,
    nodes: RefCell<Vec<Node>>,
    inputs: RefCell<Vec<usize>>,
    outputs: RefCell<Vec<Output>>,
    weights: RefCell<HashMap<Weight, usize>>,
    constants: RefCell<HashMap<Constant, usize>>,
    path: RefCell<Vec<String>>,
    problems: RefCell<Vec<Problem>>,
}

impl Graph {
    /// An empty graph.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A tensor fed to the graph.
    pub fn input(&self, name: &str, dtype: DType, shape: Vec<Dim>) -> Value<'_> {
        self.add_input(name, Type::new(dtype, shape), false)
    }

    /// A tensor that one run returns and the next is fed with: `f32` here, the compute precision once that is chosen.
    pub fn state(&self, name: &str, shape: Vec<Dim>) -> Value<'_> {
        self.add_input(name, Type::new(DType::F32, shape), true)
    }

    pub(crate) fn add_input(&self, name: &str, r#type: Type, state: bool) -> Value<'_> {
        let value = self.push(r#type, Source::Input { name: name.into(), state });
        self.inputs.borrow_mut().push(value.id);
        value
    }

    /// Name `value` as an output.
    pub fn output(&self, name: &str, value: Value<'_>) {
        self.outputs.borrow_mut().push(Output { name: name.into(), value: value.id, state: false });
    }

    /// Name `value` as an output that the next run is fed with.
    pub fn state_output(&self, name: &str, value: Value<'_>) {
        self.outputs.borrow_mut().push(Output { name: name.into(), value: value.id, state: true });
    }

    /// Take back the outputs that `keep` does not want; the next pass leaves out what only they depend on.
    pub fn keep_outputs(&self, keep: impl Fn(&str) -> bool) {
        self.outputs.borrow_mut().retain(|output| keep(&output.name));
    }

    /// A tensor of the checkpoint, as elements of `dtype`; the same weight twice is the same value.
    pub fn weight(&self, weight: Weight, dtype: DType) -> Value<'_> {
        if let Some(&id) = self.weights.borrow().get(&weight) {
            return Value { graph: self, id };
        }
        let r#type = Type::new(dtype, weight.shape.iter().map(|&n| Dim::Fixed(n)).collect());
        let value = self.push(r#type, Source::Weight(weight.clone()));
        self.weights.borrow_mut().insert(weight, value.id);
        value
    }

    /// A tensor known now; equal constants are the same value.
    pub fn constant(&self, constant: Constant) -> Value<'_> {
        if let Some(&id) = self.constants.borrow().get(&constant) {
            return Value { graph: self, id };
        }
        let r#type = Type::new(constant.dtype, constant.shape.iter().map(|&n| Dim::Fixed(n)).collect());
        let value = self.push(r#type, Source::Constant(constant.clone()));
        self.constants.borrow_mut().insert(constant, value.id);
        value
    }

    /// `f32` constants.
    pub fn floats(&self, shape: &[usize], values: &[f32]) -> Value<'_> {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.constant(Constant { dtype: DType::F32, shape: shape.to_vec(), bytes })
    }

    /// `i64` constants.
    pub fn integers(&self, shape: &[usize], values: &[i64]) -> Value<'_> {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.constant(Constant { dtype: DType::I64, shape: shape.to_vec(), bytes })
    }

    /// A size as an `i64` tensor `[1]`.
    pub fn size(&self, dim: &Dim) -> Value<'_> {
        self.apply(Op::Size(dim.clone()), &[])
    }

    /// `0, 1, ..., n - 1` as `i64` `[n]`, where the `[1]` tensor `length` holds `n`.
    pub fn range(&self, n: &Dim, length: Value<'_>) -> Value<'_> {
        self.apply(Op::Range(n.clone()), &[Some(length.id)])
    }

    /// Values side by side along `axis`.
    pub fn concat(&self, axis: usize, parts: &[Value<'_>]) -> Value<'_> {
        let parts: Vec<_> = parts.iter().map(|v| Some(v.id)).collect();
        self.apply(Op::Concat(axis), &parts)
    }

    /// A node with one output.
    pub(crate) fn apply(&self, op: Op, inputs: &[Option<usize>]) -> Value<'_> {
        self.add(op, inputs)[0]
    }

    /// A node; a type error is recorded with the place and building goes on with a guess.
    pub fn add(&self, op: Op, inputs: &[Option<usize>]) -> Vec<Value<'_>> {
        let inferred = {
            let values = self.values.borrow();
            let types: Vec<_> = inputs.iter().map(|i| i.map(|i| &values[i].r#type)).collect();
            infer(&op, &types)
        };
        let types = inferred.unwrap_or_else(|message| {
            let place = format!("{}/{}", self.path(), op.name());
            self.problem(Problem::Type { place, message });
            let guess = inputs.iter().flatten().next().map(|&i| self.values.borrow()[i].r#type.clone());
            let parts = if let Op::Split { parts, .. } = op { parts } else { 1 };
            vec![guess.unwrap_or(Type::new(DType::F32, vec![])); parts]
        });
        let node = self.nodes.borrow().len();
        let outputs: Vec<_> =
            types.into_iter().enumerate().map(|(output, t)| self.push(t, Source::Node { node, output })).collect();
        self.nodes.borrow_mut().push(Node {
            op,
            inputs: inputs.to_vec(),
            outputs: outputs.iter().map(|v| v.id).collect(),
            path: self.path(),
        });
        outputs
    }

    fn push(&self, r#type: Type, source: Source) -> Value<'_> {
        let mut values = self.values.borrow_mut();
        values.push(ValueData { r#type, source });
        Value { graph: self, id: values.len() - 1 }
    }

    /// All values, in the order they were made.
    pub fn values(&self) -> Ref<'_, [ValueData]> {
        Ref::map(self.values.borrow(), Vec::as_slice)
    }

    /// All nodes, each after the nodes it reads from.
    pub fn nodes(&self) -> Ref<'_, [Node]> {
        Ref::map(self.nodes.borrow(), Vec::as_slice)
    }

    /// Values fed to the graph.
    pub fn inputs(&self) -> Ref<'_, [usize]> {
        Ref::map(self.inputs.borrow(), Vec::as_slice)
    }

    /// Values the graph returns.
    pub fn outputs(&self) -> Ref<'_, [Output]> {
        Ref::map(self.outputs.borrow(), Vec::as_slice)
    }

    pub(crate) fn value(&self, id: usize) -> Value<'_> {
        Value { graph: self, id }
    }

    pub(crate) fn push_output(&self, output: Output) {
        self.outputs.borrow_mut().push(output);
    }

    /// Module path of the layer being built.
    pub(crate) fn path(&self) -> String {
        self.path.borrow().last().cloned().unwrap_or_default()
    }

    pub(crate) fn enter(&self, path: String) {
        self.path.borrow_mut().push(path);
    }

    pub(crate) fn leave(&self) {
        self.path.borrow_mut().pop();
    }

    pub(crate) fn problem(&self, problem: Problem) {
        self.problems.borrow_mut().push(problem);
    }

    /// What went wrong so far; empties the list.
    pub(crate) fn take_problems(&self) -> Vec<Problem> {
        self.problems.take()
    }

    /// For each value, whether an output depends on it.
    #[must_use]
    pub fn live(&self) -> Vec<bool> {
        let mut live = vec![false; self.values().len()];
        for output in self.outputs().iter() {
            live[output.value] = true;
        }
        for node in self.nodes().iter().rev() {
            if node.outputs.iter().any(|&v| live[v]) {
                node.inputs.iter().flatten().for_each(|&v| live[v] = true);
            }
        }
        live
    }
}
