//! The GPUs of this machine, as their driver tells (NVML).

use std::ffi::OsStr;

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;
use serde::Serialize;

/// Why nothing is known of a GPU.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum GpuError {
    #[error(
        "no NVIDIA driver: its library `libnvidia-ml.so.1` was not found; install the driver, or use a bundle for `cpu`"
    )]
    NoDriver,
    #[error(
        "the NVIDIA driver's library is of another version than the driver that runs: restart the machine, or the container \
         with the driver of its host"
    )]
    Mismatch,
    #[error("GPU {index}: expected one of the {count} of this machine")]
    NoGpu { index: u32, count: u32 },
    #[error("the NVIDIA driver does not tell of its GPUs: {0}")]
    Driver(String),
}

/// A GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Gpu {
    /// Its name, such as `NVIDIA H200`.
    pub name: String,
    /// Compute capability, such as `9.0`.
    pub architecture: String,
    /// Version of the driver.
    pub driver: String,
    /// Bytes of memory.
    pub memory: u64,
    /// Bytes that nobody uses.
    pub free: u64,
}

/// The GPU that CUDA calls number `index` in this process.
///
/// `CUDA_VISIBLE_DEVICES` is heeded; machines with GPUs of several kinds need `CUDA_DEVICE_ORDER=PCI_BUS_ID` too, for CUDA to
/// count as the driver does.
///
/// # Errors
/// No driver, one that does not answer, or no such GPU.
pub fn gpu(index: u32) -> Result<Gpu, GpuError> {
    let library = |name: &str| Nvml::builder().lib_path(OsStr::new(name)).init();
    // The second name is that of a development package; what the first one said counts.
    let nvml = library("libnvidia-ml.so.1").or_else(|why| Nvml::init().map_err(|_| why)).map_err(GpuError::from)?;
    let visible = std::env::var("CUDA_VISIBLE_DEVICES").ok();
    let count = nvml.device_count().map_err(GpuError::from)?;
    let no_gpu = || GpuError::NoGpu { index, count };
    let device = match place(visible.as_deref(), index).ok_or_else(no_gpu)? {
        Place::Number(number) if number >= count => return Err(no_gpu()),
        Place::Number(number) => nvml.device_by_index(number),
        Place::Uuid(uuid) => nvml.device_by_uuid(uuid),
    };
    let told = || -> Result<Gpu, NvmlError> {
        let device = device?;
        let capability = device.cuda_compute_capability()?;
        let memory = device.memory_info()?;
        Ok(Gpu {
            name: device.name()?,
            architecture: format!("{}.{}", capability.major, capability.minor),
            driver: nvml.sys_driver_version()?,
            memory: memory.total,
            free: memory.free,
        })
    };
    told().map_err(GpuError::from)
}

impl From<Gpu> for crate::engines::Gpu {
    fn from(Gpu { name, architecture, driver, .. }: Gpu) -> Self {
        Self { name, architecture, driver }
    }
}

/// How the driver knows a GPU.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    Number(u32),
    Uuid(String),
}

/// What CUDA calls number `index` where `CUDA_VISIBLE_DEVICES` is `visible`: it counts what is listed, up to the first entry that
/// is none.
fn place(visible: Option<&str>, index: u32) -> Option<Place> {
    let Some(visible) = visible else { return Some(Place::Number(index)) };
    let entry = |text: &str| match text.trim() {
        uuid if uuid.starts_with("GPU-") || uuid.starts_with("MIG-") => Some(Place::Uuid(uuid.into())),
        number => number.parse().ok().map(Place::Number),
    };
    visible.split(',').map_while(entry).nth(usize::try_from(index).ok()?)
}

impl From<NvmlError> for GpuError {
    fn from(error: NvmlError) -> Self {
        match error {
            NvmlError::LibloadingError(_) | NvmlError::LibraryNotFound | NvmlError::DriverNotLoaded => Self::NoDriver,
            NvmlError::LibRmVersionMismatch => Self::Mismatch,
            other => Self::Driver(other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_are_counted_as_cuda_counts_them() {
        let number = |n| Some(Place::Number(n));
        for (visible, index, expected) in [
            (None, 1, number(1)),
            (Some("2,0"), 0, number(2)),
            (Some("2,0"), 1, number(0)),
            (Some("2,0"), 2, None),
            (Some("3, -1,0"), 0, number(3)),
            (Some("3,-1,0"), 1, None),
            (Some(""), 0, None),
            (Some("GPU-8932f937-d72c"), 0, Some(Place::Uuid("GPU-8932f937-d72c".into()))),
        ] {
            assert_eq!(place(visible, index), expected, "{visible:?} {index}");
        }
    }

    #[test]
    fn what_the_driver_says_becomes_what_to_do() {
        assert!(GpuError::from(NvmlError::LibRmVersionMismatch).to_string().contains("restart the machine"));
        assert!(GpuError::from(NvmlError::DriverNotLoaded).to_string().starts_with("no NVIDIA driver"));
        assert!(GpuError::from(NvmlError::NoPermission).to_string().contains("does not tell of its GPUs"));
    }
}
