//! Kinds of engines of which one does for another.

use super::{EnginesError, Gpu};

/// How an engine is built, beside what it is built for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Form {
    /// Without weights, which are read from the bundle when the engine is loaded.
    pub stripped: bool,
    /// For all GPUs from Ampere on.
    pub compatible: bool,
}

impl Form {
    /// All, in the order in which they are looked for: the fastest to run first, then the fastest to load.
    pub const ALL: [Self; 4] = [
        Self { stripped: false, compatible: false },
        Self { stripped: true, compatible: false },
        Self { stripped: false, compatible: true },
        Self { stripped: true, compatible: true },
    ];

    /// The GPU that an engine built on `gpu` is for.
    ///
    /// # Errors
    /// A GPU that takes no such engines.
    pub(super) fn gpu(self, gpu: &Gpu) -> Result<Gpu, EnginesError> {
        if !self.compatible {
            return Ok(gpu.clone());
        }
        let major = gpu.architecture.split('.').next().and_then(|major| major.parse::<u32>().ok());
        if major.is_none_or(|major| major < 8) {
            return Err(EnginesError::Architecture(gpu.architecture.clone()));
        }
        Ok(Gpu { name: "any".into(), architecture: "8.0 or newer".into(), driver: "any".into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_for_all_gpus_from_ampere_on_knows_none_of_them() {
        let gpu = |name: &str, architecture: &str, driver: &str| Gpu {
            name: name.into(),
            architecture: architecture.into(),
            driver: driver.into(),
        };
        let (h200, l40) = (gpu("H200", "9.0", "580.1"), gpu("L40", "8.9", "590.2"));
        let compatible = Form { compatible: true, ..Form::default() };
        assert_eq!(compatible.gpu(&h200).expect("newer"), compatible.gpu(&l40).expect("newer"));
        assert_eq!(Form::default().gpu(&h200).expect("any"), h200);
        let said = compatible.gpu(&gpu("T4", "7.5", "580.1")).expect_err("older").to_string();
        assert_eq!(said, "`--hardware-compatible`: expected a GPU of compute capability 8.0 or newer, found 7.5");
        assert!(compatible.gpu(&gpu("?", "", "")).is_err());
        assert!(compatible.gpu(&gpu("B200", "10.0", "590.2")).is_ok());
    }
}
