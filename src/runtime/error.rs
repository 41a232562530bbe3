//! What can go wrong in ONNX Runtime, and the next step where there is one.

use std::path::PathBuf;

use super::{LibraryError, ProfileError, VERSION};

/// Why a graph was not loaded or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum RuntimeError {
    #[error(transparent)]
    Library(#[from] LibraryError),
    #[error("cannot start ONNX Runtime from `{}`: {message}", path.display())]
    Start { path: PathBuf, message: String },
    #[error("cannot load `{}`: {message}", path.display())]
    Load { path: PathBuf, message: String },
    #[error("cannot run `{}`: {message}", path.display())]
    Run { path: PathBuf, message: String },
    #[error(
        "cannot run `{}`: expected more memory, found none left: fewer frames or a smaller video take less, and so does \
         `--vae-tiling` in the VAE",
        path.display()
    )]
    Memory { path: PathBuf },
    #[error("cannot load `{}` for TensorRT: {source}", path.display())]
    Profile { path: PathBuf, source: ProfileError },
    #[error("cannot profile `{}`: {message}", path.display())]
    Profiling { path: PathBuf, message: String },
    #[error("`{}`: expected an output `{name}`, found none", path.display())]
    NoOutput { path: PathBuf, name: String },
    /// The GPU cannot be used at all: another device may do.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Stopped by [`Interrupt::stop`](super::Interrupt::stop).
    #[error("interrupted")]
    Interrupted,
}

/// Why a GPU cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum DeviceError {
    #[error(
        "the GPU: expected {}, found none on the system or in Python's packages: `{install}`{driver}",
        list(missing)
    )]
    Libraries {
        missing: Vec<String>,
        install: &'static str,
        /// What to do for those that belong to the driver.
        driver: &'static str,
    },
    #[error(
        "the GPU: expected an NVIDIA driver for CUDA 13 (580 or newer), found an older one: update it, and see that `nvidia-smi` \
         works"
    )]
    Driver,
    #[error(
        "the GPU: expected an NVIDIA GPU, found none: see what `nvidia-smi` tells, and what `CUDA_VISIBLE_DEVICES` hides"
    )]
    None,
    #[error("`--device`: expected a GPU that `nvidia-smi` lists, counted from 0, found {0}")]
    Number(u32),
    #[error(
        "the GPU: expected one that ONNX Runtime {VERSION} has kernels for (compute capability 7.5, 8.0, 8.6, 8.9, 9.0 or 12.0), found \
         another: choose one with `--device N`, or export with `--target cpu`"
    )]
    Unsupported,
    #[error(
        "`--tensorrt-rtx`: expected a GPU of compute capability 8.6, 8.9, 12.0 or newer, found {0}: choose one with `--device N`, or \
         leave the option out for TensorRT"
    )]
    NotRtx(String),
    #[error(
        "the GPU: expected more of its memory, found none left: fewer frames or a smaller video take less, `--vae-tiling` does in the \
         VAE, `cogvx export --quantize int8-weight` halves the weights; `nvidia-smi` tells what else holds memory"
    )]
    Memory,
    #[error("the GPU: {0}")]
    Other(String),
}

fn list(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

impl DeviceError {
    /// What the message of a CUDA or TensorRT session means; none if it is not about the device.
    pub(super) fn of(message: &str, device: u32) -> Option<Self> {
        let says = |signs: &[&str]| signs.iter().any(|sign| message.contains(sign));
        if says(&["CUDA failure 35:", "CUDA driver version is insufficient", "cudaErrorInsufficientDriver"]) {
            Some(Self::Driver)
        } else if says(&[
            "CUDA failure 100:",
            "no CUDA-capable device",
            "must be between 0 (inclusive) and 0 (exclusive)",
        ]) {
            Some(Self::None)
        } else if says(&["CUDA failure 101:", "Invalid device ID", "invalid device ordinal"]) {
            Some(Self::Number(device))
        } else if says(&["no kernel image is available", "cudaErrorNoKernelImageForDevice", "CUDA failure 209:"]) {
            Some(Self::Unsupported)
        } else if says(&["out of memory", "Failed to allocate memory", "ALLOC_FAILED", "Available memory of"]) {
            Some(Self::Memory)
        } else if message.contains("cuDNN is unavailable") {
            Some(Self::libraries(vec![super::driver::CUDNN.into()]))
        } else if message.contains("Failed to load library") {
            let shared = message.split([' ', ':', '`']).find(|word| word.starts_with("lib") && word.contains(".so."));
            let ours = |name: &&str| !name.starts_with("libonnxruntime");
            shared.filter(ours).map(|name| Self::libraries(vec![name.into()]))
        } else {
            // "CUDA failure 802: system not yet initialized ; GPU=0 ; hostname=..."
            let failure = message.split_once("CUDA failure ")?.1;
            Some(Self::Other(format!("CUDA failure {}", failure.split(" ; ").next()?.trim_end())))
        }
    }

    /// Libraries that were not found.
    pub(super) fn libraries(missing: Vec<String>) -> Self {
        let lacks = |start: &str| missing.iter().any(|name| name.starts_with(start));
        let driver = match (lacks("libcuda.so"), lacks("libnvidia-ml.so")) {
            (true, true) => "; `libcuda.so.1` and `libnvidia-ml.so.1` come with the NVIDIA driver",
            (true, false) => "; `libcuda.so.1` comes with the NVIDIA driver",
            (false, true) => "; `libnvidia-ml.so.1` comes with the NVIDIA driver",
            (false, false) => "",
        };
        let install = if lacks("libnvinfer") || lacks("libnvonnxparser") {
            super::driver::INSTALL_TENSORRT
        } else if missing.iter().any(|name| name.contains("tensorrt")) {
            super::driver::INSTALL_RTX
        } else {
            super::driver::INSTALL
        };
        Self::Libraries { missing, install, driver }
    }
}

/// Whether ONNX Runtime's message says that the processor's memory is short.
pub(super) fn is_memory(message: &str) -> bool {
    let signs = ["bad_alloc", "Failed to allocate memory", "out of memory", "ALLOC_FAILED"];
    signs.iter().any(|sign| message.contains(sign))
}

/// ONNX Runtime's message on one line.
pub(super) fn line(error: &impl ToString) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_onnx_runtime_says_when_memory_is_short_is_known() {
        for message in [
            "Non-zero status code returned while running Mul node. Name:'norm1/Mul_3' Status Message: std::bad_alloc",
            "Status Message: Failed to allocate memory for requested buffer of size 5662310400",
            "CUDA failure 2: out of memory ; GPU=0",
        ] {
            assert!(is_memory(message), "{message}");
        }
        assert!(!is_memory("Status Message: Invalid input shape: {2,3}"));
    }

    /// As ONNX Runtime 1.31.1 words them, but for what is cut out of the middle.
    #[test]
    fn each_problem_of_a_gpu_is_told_from_the_others() {
        let at = "GPU=0 ; hostname=host ; file=/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_execution_provider.cc ; \
                  line=355 ; expr=cudaSetDevice(info_.device_id);";
        let call = |failure: &str| {
            format!("[with ERRTYPE = cudaError; bool THRW = true; SUCCTYPE = cudaError] CUDA failure {failure} ; {at}")
        };
        let library = |name: &str| DeviceError::libraries(vec![name.into()]);
        let cases = [
            (call("35: CUDA driver version is insufficient for CUDA runtime version"), Some(DeviceError::Driver)),
            (call("100: no CUDA-capable device is detected"), Some(DeviceError::None)),
            (call("101: invalid device ordinal"), Some(DeviceError::Number(3))),
            (call("2: out of memory"), Some(DeviceError::Memory)),
            (
                call("802: system not yet initialized"),
                Some(DeviceError::Other("CUDA failure 802: system not yet initialized".into())),
            ),
            (
                "Failed to parse provider option \"device_id\": cuda_execution_provider_info.cc:71 operator() Invalid device ID: 3, \
                 must be between 0 (inclusive) and 1 (exclusive)."
                    .into(),
                Some(DeviceError::Number(3)),
            ),
            (
                "Failed to parse provider option \"device_id\": cuda_execution_provider_info.cc:71 operator() Invalid device ID: 0, \
                 must be between 0 (inclusive) and 0 (exclusive)."
                    .into(),
                Some(DeviceError::None),
            ),
            (
                "Non-zero status code returned while running Mul node. Name:'Mul' Status Message: CUDA error \
                 cudaErrorNoKernelImageForDevice:no kernel image is available for execution on the device"
                    .into(),
                Some(DeviceError::Unsupported),
            ),
            (
                "Non-zero status code returned while running MatMul node. Status Message: bfc_arena.cc:402 void* \
                 onnxruntime::BFCArena::AllocateRawInternal(size_t, bool, Stream*) Failed to allocate memory for requested buffer of \
                 size 5662310400"
                    .into(),
                Some(DeviceError::Memory),
            ),
            (
                "Non-zero status code returned while running Conv node. Name:'decoder.conv_in.conv/Conv' Status Message: [ONNXRuntimeError] \
                 : 9 : NOT_IMPLEMENTED : cuDNN is unavailable or disabled for CUDA Execution Provider: dlopen failed for libcudnn.so: \
                 libcudnn.so: cannot open shared object file: No such file or directory"
                    .into(),
                Some(library("libcudnn.so.9")),
            ),
            (
                "/onnxruntime_src/onnxruntime/core/session/provider_bridge_ort.cc:2416 TryGetProviderInfo_TensorRT [ONNXRuntimeError] : 1 \
                 : FAIL : Failed to load library libonnxruntime_providers_tensorrt.so with error: libnvinfer.so.10: cannot open shared \
                 object file: No such file or directory"
                    .into(),
                Some(library("libnvinfer.so.10")),
            ),
            ("Status Message: Invalid input shape: {2,3}".into(), None),
        ];
        for (message, expected) in cases {
            assert_eq!(DeviceError::of(&message, 3), expected, "{message}");
        }
    }

    #[test]
    fn messages_name_what_is_missing_and_what_to_do() {
        let missing = vec!["libcudart.so.13".to_string(), "libcuda.so.1".into()];
        assert_eq!(
            DeviceError::libraries(missing).to_string(),
            "the GPU: expected `libcudart.so.13`, `libcuda.so.1`, found none on the system or in Python's packages: \
             `python3 -m pip install \"onnxruntime-gpu[cuda,cudnn]==1.31.1\"`; `libcuda.so.1` comes with the NVIDIA driver"
        );
        let tensorrt = DeviceError::libraries(vec!["libnvinfer.so.10".into()]).to_string();
        assert!(tensorrt.contains("`python3 -m pip install tensorrt-cu13==10.14.1.48"), "{tensorrt}");
        let rtx = DeviceError::libraries(vec!["libnvidia-ml.so.1".into(), "libtensorrt_rtx.so.1".into()]).to_string();
        let expected = "`python3 -m pip install onnxruntime-ep-nv-tensorrt-rtx-cu13==0.5.0`; `libnvidia-ml.so.1` comes with the \
                        NVIDIA driver";
        assert!(rtx.ends_with(expected), "{rtx}");
        for (error, next) in [
            (DeviceError::NotRtx("NVIDIA H200 (9.0)".into()), "found NVIDIA H200 (9.0): choose one"),
            (DeviceError::Driver, "update it"),
            (DeviceError::None, "`nvidia-smi`"),
            (DeviceError::Number(3), "found 3"),
            (DeviceError::Unsupported, "`--target cpu`"),
            (DeviceError::Memory, "`--vae-tiling`"),
        ] {
            let said = error.to_string();
            assert!(said.contains("expected ") && said.contains(next), "{said}");
        }
    }
}
