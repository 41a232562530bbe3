//! A layer being built: its path names the nodes and finds the weights.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;

use crate::graph::{Graph, Weight};
use crate::{BuildError, DType, Dim, Problem, Value, Weights};

/// A place in the module tree of a checkpoint, such as `transformer_blocks.0.attn1`.
///
/// Entering a scope with [`Scope::at`] names the nodes made until it is dropped; weights are looked up below its path, so
/// the checkpoint's key is the initializer's name.
pub struct Scope<'g> {
    graph: &'g Graph,
    weights: &'g Weights,
    used: &'g RefCell<BTreeSet<String>>,
    path: String,
}

impl<'g> Scope<'g> {
    /// The scope of the child module `name`.
    #[must_use]
    pub fn at(&self, name: impl std::fmt::Display) -> Self {
        let path = self.key(&name.to_string());
        self.graph.enter(path.clone());
        Self { path, ..*self }
    }

    fn key(&self, name: &str) -> String {
        if self.path.is_empty() { name.into() } else { format!("{}.{name}", self.path) }
    }

    /// Path of the module.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The graph.
    #[must_use]
    pub fn graph(&self) -> &'g Graph {
        self.graph
    }

    /// Whether the checkpoint has the tensor `name` of this module.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.weights.get(&self.key(name)).is_some()
    }

    /// The shape of the tensor `name` of this module, where the checkpoint has it.
    #[must_use]
    pub fn shape(&self, name: &str) -> Option<&'g [usize]> {
        self.weights.get(&self.key(name)).map(|tensor| tensor.shape.as_slice())
    }

    /// The tensor `name` of this module, which must have this shape.
    #[must_use]
    pub fn weight(&self, name: &str, shape: &[usize]) -> Value<'g> {
        self.weight_as(name, shape, shape)
    }

    /// The tensor `name` of this module, which must have `shape`, its elements seen on the axes `view`.
    #[must_use]
    pub fn weight_as(&self, name: &str, shape: &[usize], view: &[usize]) -> Value<'g> {
        let key = self.key(name);
        let tensor = self.weights.get(&key);
        // A weight used twice is checked once.
        if self.used.borrow_mut().insert(key.clone()) {
            let file = |file: usize| self.weights.files()[file].name.clone();
            let (name, expected) = (key.clone(), shape.to_vec());
            match tensor {
                None => self.graph.problem(Problem::Missing { name, expected }),
                Some(t) if t.shape != shape => {
                    self.graph.problem(Problem::Shape { name, expected, found: t.shape.clone(), file: file(t.file) });
                }
                Some(t) if !t.dtype.is_float() => {
                    self.graph.problem(Problem::NotFloat { name, found: t.dtype, file: file(t.file) });
                }
                Some(_) => {}
            }
        }
        let stored = tensor.map_or(DType::F32, |t| t.dtype);
        self.graph.weight(Weight::whole(&key, stored, view), DType::F32)
    }

    /// The fully connected layer `name` with `out` features.
    #[must_use]
    pub fn linear(&self, name: &str, x: Value<'g>, out: usize, bias: bool) -> Value<'g> {
        let width = x.shape().last().and_then(Dim::fixed).unwrap_or(0);
        let s = self.at(name);
        let weight = s.weight("weight", &[out, width]);
        x.linear(weight, bias.then(|| s.weight("bias", &[out])))
    }
}

impl Drop for Scope<'_> {
    fn drop(&mut self) {
        self.graph.leave();
    }
}

/// Build the graph that `model` describes, binding `weights` strictly: every tensor the model names must be there with its
/// shape, and every tensor there must be named by the model or accepted by `ignored`.
///
/// # Errors
/// All problems found, together.
pub fn build(
    component: &str,
    weights: &Weights,
    ignored: impl Fn(&str) -> bool,
    model: impl FnOnce(&Scope<'_>),
) -> Result<Graph, BuildError> {
    let graph = Graph::new();
    let used = RefCell::default();
    graph.enter(String::new());
    model(&Scope { graph: &graph, weights, used: &used, path: String::new() });
    let mut problems = graph.take_problems();
    let used = used.into_inner();
    let unexpected = weights.iter().filter(|t| !used.contains(&t.name) && !ignored(&t.name));
    problems.extend(
        unexpected.map(|t| Problem::Unexpected { name: t.name.clone(), file: weights.files()[t.file].name.clone() }),
    );
    // A tensor that two layers share is looked up twice.
    let mut seen = BTreeSet::new();
    problems.retain(|problem| seen.insert(problem.to_string()));
    if problems.is_empty() {
        return Ok(graph);
    }
    let folder = weights.files().first().and_then(|f| f.path.parent()).unwrap_or(Path::new("")).to_path_buf();
    Err(BuildError { component: component.into(), folder, problems })
}
