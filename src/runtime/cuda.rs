//! How a CUDA session is set up.

use super::Traits;

/// A CUDA device, and how graphs run on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CudaOptions {
    /// Which GPU, counted from 0.
    pub device: u32,
    /// Most bytes of what is computed; weights come beside that.
    pub memory_limit: Option<u64>,
    /// Record the kernels of a graph of fixed sizes once and start them all together, where its inputs and outputs stay on the
    /// device.
    pub graphs: bool,
}

/// The keys and values of an execution provider, or of a session.
pub(super) type Pairs = Vec<(&'static str, String)>;

impl CudaOptions {
    /// The options of ONNX Runtime's CUDA provider for a graph.
    pub(super) fn provider(&self, traits: Traits<'_>) -> Pairs {
        let mut pairs = vec![
            ("device_id", self.device.to_string()),
            // Room for exactly what is asked for: doubling would take twice the VAE's largest tensors.
            ("arena_extend_strategy", "kSameAsRequested".into()),
            // What a graph says is `float32` has the precision of `float32`.
            ("use_tf32", "0".into()),
        ];
        if let Some(limit) = self.memory_limit {
            pairs.push(("gpu_mem_limit", limit.to_string()));
        }
        if traits.convolves {
            // cuDNN takes gigabytes otherwise to save little time.
            pairs.push(("cudnn_conv_use_max_workspace", "0".into()));
        }
        if self.graphs && traits.repeats && traits.fixed {
            pairs.push(("enable_cuda_graph", "1".into()));
        }
        pairs
    }
}

/// The settings of a session on a GPU.
pub(super) fn session(traits: Traits<'_>) -> Pairs {
    // Weights go from the mapped file to memory of their own, not to the arena.
    let mut pairs = vec![("session.use_device_allocator_for_initializers", "1".into())];
    if traits.fixed {
        // What has no kernel is an error, not a slow run. Where sizes are open, ONNX Runtime computes them on the processor.
        pairs.push(("session.disable_cpu_ep_fallback", "1".into()));
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(pairs: &Pairs) -> Vec<String> {
        pairs.iter().map(|(key, value)| format!("{key}={value}")).collect()
    }

    #[test]
    fn a_vae_takes_little_workspace_and_a_limit() {
        let options = CudaOptions { device: 2, memory_limit: Some(8_000_000_000), graphs: true };
        let traits = Traits { convolves: true, ..Traits::default() };
        let expected = [
            "device_id=2",
            "arena_extend_strategy=kSameAsRequested",
            "use_tf32=0",
            "gpu_mem_limit=8000000000",
            "cudnn_conv_use_max_workspace=0",
        ];
        assert_eq!(said(&options.provider(traits)), expected);
        assert_eq!(said(&session(traits)), ["session.use_device_allocator_for_initializers=1"]);
    }

    #[test]
    fn only_graphs_of_fixed_sizes_that_run_again_and_again_are_recorded() {
        let options = CudaOptions { graphs: true, ..CudaOptions::default() };
        let recorded = |fixed, repeats| {
            let traits = Traits { fixed, repeats, ..Traits::default() };
            said(&options.provider(traits)).contains(&"enable_cuda_graph=1".to_string())
        };
        assert_eq!([recorded(true, true), recorded(false, true), recorded(true, false)], [true, false, false]);
        let all = Traits { fixed: true, repeats: true, ..Traits::default() };
        assert!(!said(&CudaOptions::default().provider(all)).contains(&"enable_cuda_graph=1".to_string()));
        assert!(said(&session(all)).contains(&"session.disable_cpu_ep_fallback=1".to_string()));
    }
}
