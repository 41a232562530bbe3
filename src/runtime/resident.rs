//! Numbers that stay on the device from run to run.

use std::path::PathBuf;

use cogvx_graphs::pass::{self, Lower, Target};
use cogvx_graphs::{DType, Graph, dims, onnx};
use ndarray::{ArrayViewD, arr1};
use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::IoBinding;
use ort::value::{Tensor, TensorRef};

use super::session::Place;
use super::{Input, Runtime, RuntimeError, Session};

/// `f32` numbers in memory of the device that a session runs on.
///
/// Graphs read and write them where they are; nothing is moved but by [`Resident::put`] and [`Resident::get`].
pub struct Resident {
    tensor: Tensor<f32>,
    place: Place,
}

impl Resident {
    /// Put numbers there, of the shape it was made for.
    ///
    /// # Errors
    /// Another shape, or a failure of the device.
    pub fn put(&mut self, numbers: &ArrayViewD<'_, f32>) -> Result<(), RuntimeError> {
        let Self { tensor, place } = self;
        let put = || {
            if place.device.is_some() {
                return TensorRef::from_array_view(numbers.view())?.copy_into(tensor);
            }
            let mut there = tensor.try_extract_array_mut::<f32>()?;
            if there.shape() != numbers.shape() {
                let shapes = format!("expected {:?}, found {:?}", there.shape(), numbers.shape());
                return Err(ort::Error::new(shapes));
            }
            there.assign(numbers);
            Ok(())
        };
        put().map_err(|e| place.failed(&e))
    }

    /// Copy the numbers, in standard order, to `into`, which has room for as many.
    ///
    /// # Errors
    /// A failure of the device.
    ///
    /// # Panics
    /// If there is room for more or fewer.
    pub fn get(&self, into: &mut [f32]) -> Result<(), RuntimeError> {
        let failed = |e: ort::Error| self.place.failed(&e);
        if self.place.device.is_some() {
            let here = self.tensor.to(AllocationDevice::CPU, 0).map_err(failed)?;
            into.copy_from_slice(here.try_extract_tensor::<f32>().map_err(failed)?.1);
        } else {
            into.copy_from_slice(self.tensor.try_extract_tensor::<f32>().map_err(failed)?.1);
        }
        Ok(())
    }
}

/// A graph's inputs and outputs, each tied to a [`Resident`].
pub struct Bound {
    binding: IoBinding,
    place: Place,
}

impl Bound {
    /// The graph reads its input `name` there.
    ///
    /// # Errors
    /// No such input.
    pub fn input(&mut self, name: &str, from: &Resident) -> Result<(), RuntimeError> {
        self.binding.bind_input(name, &from.tensor).map_err(|e| self.place.failed(&e))
    }

    /// The graph writes its output `name` there.
    ///
    /// # Errors
    /// No such output.
    pub fn output(&mut self, name: &str, to: &mut Resident) -> Result<(), RuntimeError> {
        self.binding.bind_output(name, &mut to.tensor).map_err(|e| self.place.failed(&e))
    }
}

impl Session {
    /// Room for numbers of this shape on the device the session runs on.
    ///
    /// # Errors
    /// No room.
    pub fn resident(&self, shape: &[usize]) -> Result<Resident, RuntimeError> {
        let room = || {
            let allocator = match self.place.device {
                Some(_) => Allocator::new(&self.inner, self.place.memory()?)?,
                None => Allocator::default(),
            };
            Tensor::<f32>::new(&allocator, shape.to_vec())
        };
        Ok(Resident { tensor: room().map_err(|e| self.place.failed(&e))?, place: self.place.clone() })
    }

    /// The same, filled.
    ///
    /// # Errors
    /// As [`Session::resident`] and [`Resident::put`].
    pub fn resident_of(&self, numbers: &ArrayViewD<'_, f32>) -> Result<Resident, RuntimeError> {
        let mut room = self.resident(numbers.shape())?;
        room.put(numbers)?;
        Ok(room)
    }

    /// Nothing bound yet.
    ///
    /// # Errors
    /// A failure of ONNX Runtime.
    pub fn bound(&self) -> Result<Bound, RuntimeError> {
        let binding = self.inner.create_binding().map_err(|e| self.place.failed(&e))?;
        Ok(Bound { binding, place: self.place.clone() })
    }

    /// Run the graph on what is bound. If it is `always` the same, of all that this session ever runs on, and the device records
    /// graphs, its kernels are recorded in the first runs and started all together later.
    ///
    /// # Errors
    /// An input or output that is not bound, a failure in ONNX Runtime, or an interrupt.
    pub fn run_bound(&mut self, bound: &Bound, always: bool) -> Result<(), RuntimeError> {
        self.timed(|session, runs| {
            let options = if always { &runs.bound } else { &runs.other };
            session.run_binding_with_options(&bound.binding, options).map(drop)
        })
    }
}

impl Place {
    /// Where the device's numbers lie.
    pub(super) fn memory(&self) -> ort::Result<MemoryInfo<'static>> {
        let (device, id) = match self.device {
            Some(id) => (AllocationDevice::CUDA, i32::try_from(id).unwrap_or(i32::MAX)),
            None => (AllocationDevice::CPU, 0),
        };
        MemoryInfo::new(device, id, AllocatorType::Device, MemoryType::Default)
    }
}

/// Run the smallest graph there is: a GPU that cannot be used is found out before anything large is loaded.
pub(super) fn try_device(runtime: &Runtime) -> Result<(), RuntimeError> {
    let name = "the first graph on the GPU";
    let graph = Graph::new();
    let x = graph.input("x", DType::F32, dims![1]);
    graph.output("y", x + x);
    let failed = |message: String| RuntimeError::Load { path: PathBuf::from(name), message };
    let lowered =
        pass::run(&mut Lower::new(Target::Cuda), &graph).map_err(|problems| failed(format!("{problems:?}")))?;
    let model = onnx::serialize(&lowered, "sum", |_| Err("no weights")).map_err(|e| failed(e.into()))?;
    let mut session = runtime.load_made(name, &model.bytes)?;
    session.run(&[("x", Input::Float(arr1(&[1.0]).into_dyn().view()))]).map(drop)
}
