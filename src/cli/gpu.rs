//! `--device`, `--gpu-memory`, `--cuda-graph`, `--fallback`: how bundles for GPUs run.

use anyhow::bail;
use clap::{Args, ValueEnum};

use super::memory;
use super::progress::say;
use crate::bundle::Manifest;
use crate::pipeline::{self, Streaming};
use crate::runtime::{CpuOptions, CudaOptions, Device, RtxOptions, Runtime, RuntimeError, Setup, TensorRtOptions};

/// How a bundle for a GPU runs.
#[derive(Args, Clone, Default)]
#[expect(clippy::struct_excessive_bools, reason = "the options")]
pub(super) struct Gpu {
    /// Which GPU, as `nvidia-smi` counts them from 0 [default: 0]
    #[arg(long, value_name = "N", help_heading = "GPU")]
    device: Option<u32>,
    /// Most memory for what is computed, such as 8GB; weights come beside it
    #[arg(long = "gpu-memory", help_heading = "GPU", value_name = "BYTES", value_parser = memory::parse)]
    memory: Option<u64>,
    /// Record the transformer's kernels once and start them all together, where the bundle has fixed sizes
    #[arg(long, help_heading = "GPU")]
    cuda_graph: bool,
    /// Let weights of text encoder and transformer come from their files block by block: less of the GPU's memory, more time.
    /// `run --max-memory` does so for as many blocks as it takes
    #[arg(long, help_heading = "GPU", conflicts_with = "cuda_graph")]
    weight_streaming: bool,
    /// Where to run if the GPU cannot be used; without it that is an error
    #[arg(long, value_name = "DEVICE", help_heading = "GPU")]
    fallback: Option<Fallback>,
    /// The bundle need not be for a GPU.
    #[arg(skip)]
    any: bool,
    /// How bundles for the processor run.
    #[arg(skip)]
    cpu: CpuOptions,
    /// Engines are TensorRT-RTX's.
    #[arg(skip)]
    rtx: bool,
}

/// Whose engines a bundle for TensorRT runs.
#[derive(Args, Clone, Copy, Default)]
pub(super) struct Rtx {
    /// Take TensorRT-RTX in TensorRT's place, for RTX GPUs (compute capability 8.6, 8.9, 12.0 or newer)
    #[arg(long, help_heading = "GPU")]
    tensorrt_rtx: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Fallback {
    Cpu,
}

impl Gpu {
    /// The same for a bundle that is only compared with.
    pub fn of_another(&self) -> Self {
        Self { any: true, ..self.clone() }
    }

    /// The same, with how bundles for the processor run.
    pub fn or_on(&self, cpu: CpuOptions) -> Self {
        Self { cpu, ..self.clone() }
    }

    /// The same, with whose engines bundles for TensorRT run.
    pub fn through(&self, rtx: Rtx) -> Self {
        Self { rtx: rtx.tensorrt_rtx, ..self.clone() }
    }

    /// Whether weights are to be streamed.
    pub fn streams(&self) -> bool {
        self.weight_streaming
    }

    /// Whether the transformer's kernels are to be recorded.
    pub fn records(&self) -> bool {
        self.cuda_graph
    }

    /// The weights that stay on the device of `runtime`.
    pub fn streaming(&self, runtime: &Runtime) -> Streaming {
        let kept = (self.weight_streaming && runtime.device() == Device::Cuda).then_some(0);
        Streaming { text_encoder: kept, transformer: kept }
    }

    /// ONNX Runtime for the bundle of `manifest`.
    pub fn start(&self, manifest: &Manifest, threads: usize) -> anyhow::Result<Runtime> {
        let setup = self.setup(&manifest.target)?;
        match Runtime::start(setup, threads) {
            Err(RuntimeError::Device(why)) if self.fallback == Some(Fallback::Cpu) => {
                if manifest.accuracy == "bf16" {
                    bail!(
                        "{why}; `--fallback cpu`: expected graphs of fp16 or fp32, found bf16: export with `--target cpu`"
                    );
                }
                say(&format!("warning: {why}: the processor takes over"));
                Ok(Runtime::start(Device::Cpu, threads)?)
            }
            started => Ok(started?),
        }
    }

    /// ONNX Runtime on the GPU, without TensorRT.
    pub fn start_cuda(&self) -> anyhow::Result<Runtime> {
        Ok(Runtime::start(Self { rtx: false, ..self.clone() }.setup("cuda")?, 0)?)
    }

    fn setup(&self, target: &str) -> anyhow::Result<Setup> {
        if let Some(option) = super::cpu::given(self.cpu)
            && !self.any
            && pipeline::device(target) != Device::Cpu
        {
            bail!("`--{option}`: expected a bundle exported with `--target cpu`, found one for `{target}`");
        }
        if self.rtx && pipeline::device(target) != Device::TensorRt {
            bail!("`--tensorrt-rtx`: expected a bundle exported with `--target tensorrt`, found one for `{target}`");
        }
        if self.rtx && self.cuda_graph {
            bail!("`--cuda-graph`: expected no such option with `--tensorrt-rtx`");
        }
        if self.weight_streaming && pipeline::device(target) != Device::Cuda && !self.any {
            let why = match pipeline::device(target) {
                Device::TensorRt => "engines have their weights",
                _ => "weights are mapped from their files there",
            };
            bail!(
                "`--weight-streaming`: expected a bundle exported with `--target cuda`, found one for `{target}`: {why}"
            );
        }
        let cuda = CudaOptions { device: self.device.unwrap_or(0), memory_limit: self.memory, graphs: self.cuda_graph };
        match pipeline::device(target) {
            Device::Cuda => Ok(Setup::Cuda(cuda)),
            Device::TensorRt if self.rtx => Ok(Setup::Rtx(Box::new(RtxOptions { cuda, ..RtxOptions::default() }))),
            Device::TensorRt => Ok(Setup::TensorRt(Box::new(TensorRtOptions { cuda, ..TensorRtOptions::default() }))),
            Device::Cpu => {
                let asked = [
                    ("device", self.device.is_some()),
                    ("gpu-memory", self.memory.is_some()),
                    ("cuda-graph", self.cuda_graph),
                ];
                if let Some((option, _)) = asked.iter().find(|(_, asked)| *asked && !self.any) {
                    bail!(
                        "`--{option}`: expected a bundle exported with `--target cuda` or `tensorrt`, found one for `{target}`"
                    );
                }
                Ok(Setup::Cpu(self.cpu))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Arenas;

    #[test]
    fn options_of_gpus_are_refused_for_other_bundles() {
        let gpu = Gpu { device: Some(1), ..Gpu::default() };
        let said = gpu.setup("cpu").expect_err("no GPU there").to_string();
        assert_eq!(
            said,
            "`--device`: expected a bundle exported with `--target cuda` or `tensorrt`, found one for `cpu`"
        );
        let cuda = CudaOptions { device: 1, ..CudaOptions::default() };
        assert_eq!(gpu.setup("cuda").ok(), Some(Setup::Cuda(cuda)));
        assert_eq!(Gpu::default().setup("cpu").ok(), Some(Setup::default()));
    }

    #[test]
    fn engines_of_tensorrt_rtx_are_for_bundles_of_tensorrt() {
        let gpu = Gpu { device: Some(1), ..Gpu::default() }.through(Rtx { tensorrt_rtx: true });
        let said = |setup: anyhow::Result<Setup>| setup.expect_err("refused").to_string();
        assert_eq!(
            said(gpu.setup("cuda")),
            "`--tensorrt-rtx`: expected a bundle exported with `--target tensorrt`, found one for `cuda`"
        );
        let recorded = Gpu { cuda_graph: true, ..gpu.clone() };
        assert_eq!(said(recorded.setup("tensorrt")), "`--cuda-graph`: expected no such option with `--tensorrt-rtx`");
        let cuda = CudaOptions { device: 1, ..CudaOptions::default() };
        let options = RtxOptions { cuda, ..RtxOptions::default() };
        assert_eq!(gpu.setup("tensorrt").ok(), Some(Setup::Rtx(Box::new(options))));
        assert_eq!(Gpu::default().setup("tensorrt").ok(), Some(Setup::from(Device::TensorRt)));
    }

    #[test]
    fn options_of_processors_are_refused_for_bundles_of_gpus_unless_they_are_only_compared_with() {
        let prepacked = CpuOptions { prepack: true, ..CpuOptions::default() };
        let kept = CpuOptions { arenas: Arenas::All, ..CpuOptions::default() };
        for (cpu, option) in [(prepacked, "prepack"), (kept, "arena")] {
            let gpu = Gpu { cpu, ..Gpu::default() };
            assert_eq!(gpu.setup("cpu").ok(), Some(Setup::Cpu(cpu)));
            let said = gpu.setup("cuda").expect_err("not of the processor").to_string();
            let expected = "expected a bundle exported with `--target cpu`, found one for `cuda`";
            assert_eq!(said, format!("`--{option}`: {expected}"));
            assert_eq!(gpu.of_another().setup("cuda").ok(), Some(Setup::Cuda(CudaOptions::default())));
        }
    }
}
