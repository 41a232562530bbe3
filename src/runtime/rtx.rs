//! TensorRT-RTX, for NVIDIA's RTX GPUs: a provider in a library of its own, which ONNX Runtime is told of.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use ort::device::Device;
use ort::environment::Environment;

use super::cuda::Pairs;
use super::error::line;
use super::{CudaOptions, DeviceError, Profile, ProfileError, RuntimeError, Traits};

/// The name of the provider.
const PROVIDER: &str = "NvTensorRTRTXExecutionProvider";
/// Compute capabilities that it builds engines for without asking the GPU, and its names of them. Such an engine is good for all GPUs
/// of that capability; newer ones get engines for themselves.
const TARGETS: [(&str, &str); 4] = [("8.6", "sm86"), ("8.9", "sm89"), ("12.0", "sm120"), ("12.1", "sm121")];

/// TensorRT-RTX on a CUDA device, and how its engines are built.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RtxOptions {
    /// The device; what TensorRT-RTX has no layer for runs there, too. Of it TensorRT-RTX knows nothing but its number.
    pub cuda: CudaOptions,
    /// Sizes that engines are built for.
    pub profile: Option<Profile>,
    /// The compute capability that engines are built for, such as `8.9`; without it, and where it is none that TensorRT-RTX knows
    /// by name, that GPU.
    pub architecture: Option<String>,
}

impl RtxOptions {
    /// Whether engines are for all GPUs of [`RtxOptions::architecture`].
    #[must_use]
    pub fn is_portable(&self) -> bool {
        self.target().is_some()
    }

    fn target(&self) -> Option<&'static str> {
        let own = self.architecture.as_deref()?;
        TARGETS.iter().find(|(architecture, _)| *architecture == own).map(|(_, target)| *target)
    }

    /// The options of the provider for a graph, by name: what an engine depends on.
    ///
    /// # Errors
    /// An input with a size that the profile does not know.
    pub fn described(&self, traits: Traits<'_>) -> Result<BTreeMap<String, String>, ProfileError> {
        Ok(self.provider(traits)?.into_iter().map(|(key, value)| (key.to_string(), value)).collect())
    }

    /// The options of the provider for a graph.
    pub(super) fn provider(&self, traits: Traits<'_>) -> Result<Pairs, ProfileError> {
        let mut pairs = vec![];
        if let Some(profile) = &self.profile {
            let [least, best, greatest] = profile.shapes(traits.inputs)?;
            pairs.push(("nv_profile_min_shapes", least));
            pairs.push(("nv_profile_opt_shapes", best));
            pairs.push(("nv_profile_max_shapes", greatest));
        }
        if let Some(target) = self.target() {
            pairs.push(("nv_target_sm", target.into()));
        }
        Ok(pairs)
    }
}

/// The options under the names that ONNX Runtime's devices take them by.
pub(super) fn named(pairs: &Pairs) -> Vec<(String, String)> {
    pairs.iter().map(|(key, value)| (format!("{PROVIDER}.{key}"), value.clone())).collect()
}

/// Tell ONNX Runtime of the provider in `library`, once a process.
pub(super) fn register(environment: &Environment, library: &Path) -> Result<(), RuntimeError> {
    static REGISTERED: Mutex<bool> = Mutex::new(false);
    let mut registered = REGISTERED.lock().unwrap_or_else(PoisonError::into_inner);
    if !*registered {
        let failed = |e: ort::Error| RuntimeError::Start { path: library.into(), message: line(&e) };
        environment.register_ep_library(PROVIDER, library).map_err(failed)?;
        *registered = true;
    }
    Ok(())
}

/// CUDA's device of this number, as the provider knows it.
///
/// # Errors
/// The provider does not know it: that it is there and works was found out before, so it is of another architecture.
pub(super) fn device(environment: &Environment, number: u32) -> Result<Device<'_>, DeviceError> {
    let is_it = |device: &Device<'_>| {
        device.ep().is_ok_and(|name| name == PROVIDER)
            && u32::try_from(device.memory_info(false).device_id()).is_ok_and(|id| id == number)
    };
    environment.devices().find(is_it).ok_or_else(|| {
        let found = crate::gpu::gpu(number).map(|gpu| format!("{} ({})", gpu.name, gpu.architecture));
        DeviceError::NotRtx(found.unwrap_or("another".into()))
    })
}

#[cfg(test)]
mod tests {
    use cogvx_graphs::DType;
    use cogvx_graphs::onnx::{Port, Size};

    use super::*;

    #[test]
    fn an_engine_is_for_the_architecture_where_that_has_a_name_and_else_for_the_gpu() {
        let inputs = [Port { name: "x".into(), dtype: DType::F32, shape: vec![Size::Named("frames".into())] }];
        let traits = Traits { inputs: &inputs, ..Traits::default() };
        let options = |architecture: &str| RtxOptions {
            profile: Some(Profile([("frames".to_string(), [1, 2, 3])].into())),
            architecture: Some(architecture.into()),
            ..RtxOptions::default()
        };
        let said = named(&options("8.9").provider(traits).expect("all names are known"));
        let said: Vec<_> = said.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let expected = [
            "NvTensorRTRTXExecutionProvider.nv_profile_min_shapes=x:1",
            "NvTensorRTRTXExecutionProvider.nv_profile_opt_shapes=x:2",
            "NvTensorRTRTXExecutionProvider.nv_profile_max_shapes=x:3",
            "NvTensorRTRTXExecutionProvider.nv_target_sm=sm89",
        ];
        assert_eq!(said, expected);
        assert!(options("12.0").is_portable() && !options("12.3").is_portable());
        assert_eq!(RtxOptions::default().provider(traits).expect("nothing to look up"), []);
    }
}
