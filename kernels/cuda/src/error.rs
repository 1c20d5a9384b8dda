//! What can go wrong with CUDA, each with the remedy. Owns no recovery.

use cudarc::driver::result::DriverError;
use std::path::PathBuf;

/// A failure of CUDA or of what it needs.
#[derive(Debug, thiserror::Error)]
pub enum CudaError {
    /// The driver's library cannot be loaded.
    #[error("libcuda is not installed: install NVIDIA's driver (580 or newer for CUDA 13)")]
    NoDriver,
    /// The run-time compiler cannot be loaded.
    #[error(
        "libnvrtc is not installed or not found: install CUDA 12 or 13's NVRTC (`cuda-nvrtc-13-0`, or `pip install \
         nvidia-cuda-nvrtc` with its `lib` folder on LD_LIBRARY_PATH)"
    )]
    NoCompiler,
    /// The driver works and finds no card.
    #[error("no CUDA device: check `nvidia-smi` and CUDA_VISIBLE_DEVICES")]
    NoDevice,
    /// A device number beyond what is there.
    #[error("no CUDA device {ordinal}: this machine has {count}, numbered from 0")]
    Ordinal {
        /// The device asked for.
        ordinal: usize,
        /// Devices there are.
        count: usize,
    },
    /// A call of the driver failed.
    #[error("{action} failed: {code:?}")]
    Driver {
        /// What was being done.
        action: &'static str,
        /// The driver's own code.
        code: cudarc::driver::sys::CUresult,
    },
    /// A kernel's source was refused.
    #[error("{file} does not compile for {arch}:\n{log}")]
    Compile {
        /// The kernel's file.
        file: &'static str,
        /// The architecture, such as `sm_90a`.
        arch: String,
        /// The compiler's own words.
        log: String,
    },
    /// Compiled kernels cannot be kept.
    #[error("cannot write compiled kernels to {}: {source}; set XDG_CACHE_HOME to a folder that can be written", path.display())]
    Cache {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// More memory was asked of an arena than it has left.
    #[error("the device arena has {left} of {total} bytes left, {wanted} wanted: plan a larger one")]
    Arena {
        /// Bytes asked for.
        wanted: usize,
        /// Bytes left.
        left: usize,
        /// Bytes in all.
        total: usize,
    },
    /// The device has not enough free memory.
    #[error("the device has {free} bytes free, {wanted} wanted: use a smaller KV cache, or more devices")]
    OutOfMemory {
        /// Bytes asked for.
        wanted: usize,
        /// Bytes free.
        free: usize,
    },
    /// NCCL cannot be loaded.
    #[error(
        "libnccl is not installed or not found: install NCCL 2.28 (`libnccl2` and `libnccl-dev`, or a folder with `libnccl.so` on LD_LIBRARY_PATH)"
    )]
    NoNccl,
    /// A call of NCCL failed.
    #[error("{action} with NCCL failed: {code}")]
    Nccl {
        /// What was being done.
        action: &'static str,
        /// NCCL's own code.
        code: String,
    },
    /// A card cannot be divided as its devices want.
    #[error("no such share of a card: {problem}")]
    Share {
        /// What is wanted, and what there is.
        problem: String,
    },
    /// The processor cannot stand in for a card.
    #[error("no stand-in for a CUDA device: {problem}; it needs a C compiler, `cc` or what CC names")]
    StandIn {
        /// What went wrong.
        problem: String,
    },
    /// An operation was given what it cannot take.
    #[error("{operation}: {problem}")]
    Shape {
        /// The operation.
        operation: &'static str,
        /// What does not fit, and what would.
        problem: String,
    },
}

/// Names what was being done when a call of the driver failed.
pub(crate) trait Context<T> {
    /// `action` in the error.
    fn during(self, action: &'static str) -> Result<T, CudaError>;
}

impl<T> Context<T> for Result<T, DriverError> {
    fn during(self, action: &'static str) -> Result<T, CudaError> {
        self.map_err(|error| CudaError::Driver { action, code: error.0 })
    }
}
