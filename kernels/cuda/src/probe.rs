//! What of CUDA this machine has. Owns the order of looking; opens no context, so that it is cheap and always safe.

use crate::error::{Context, CudaError};
use cudarc::driver::{result, sys};
use std::ffi::c_int;
use std::sync::OnceLock;
use sys::CUdevice_attribute_enum as Attribute;

/// One card, as the driver describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    /// Its number, from 0.
    pub ordinal: usize,
    /// The maker's name for it.
    pub name: String,
    /// Compute capability, such as (9, 0).
    pub capability: (u32, u32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Device memory, bytes.
    pub memory_bytes: usize,
    /// Second-level cache, bytes.
    pub l2_bytes: usize,
}

impl Card {
    /// The name NVRTC knows its architecture by; Hopper and later with their own instructions.
    pub fn arch(&self) -> String {
        let (major, minor) = self.capability;
        format!("sm_{major}{minor}{}", if major >= 9 { "a" } else { "" })
    }

    /// Whether kernels with Hopper's own instructions run on it.
    pub fn is_hopper(&self) -> bool {
        self.capability == (9, 0)
    }
}

/// What was found.
#[derive(Debug)]
pub struct Findings {
    /// The CUDA version that the driver supports, such as (13, 0), or why there is no driver.
    pub driver: Result<(i32, i32), CudaError>,
    /// The cards, or why there are none.
    pub cards: Result<Vec<Card>, CudaError>,
    /// NVRTC's version, or why there is none.
    pub compiler: Result<(i32, i32), CudaError>,
}

/// Looks for the driver, cards and the compiler. Never panics.
pub fn probe() -> Findings {
    Findings { driver: driver_version(), cards: cards(), compiler: crate::compile::compiler_version() }
}

/// # Errors
/// [`CudaError::NoDriver`] if libcuda cannot be loaded.
pub(crate) fn require_driver() -> Result<(), CudaError> {
    // SAFETY: loading NVIDIA's library runs its initialisers, which is what is wanted. Looking first is needed because
    // cudarc panics when a library is missing.
    static PRESENT: OnceLock<bool> = OnceLock::new();
    PRESENT.get_or_init(|| unsafe { sys::is_culib_present() }).then_some(()).ok_or(CudaError::NoDriver)
}

/// # Errors
/// [`CudaError::NoCompiler`] if libnvrtc cannot be loaded.
pub(crate) fn require_compiler() -> Result<(), CudaError> {
    // SAFETY: as in `require_driver`.
    static PRESENT: OnceLock<bool> = OnceLock::new();
    PRESENT.get_or_init(|| unsafe { cudarc::nvrtc::sys::is_culib_present() }).then_some(()).ok_or(CudaError::NoCompiler)
}

pub(crate) fn driver_version() -> Result<(i32, i32), CudaError> {
    require_driver()?;
    let mut version: c_int = 0;
    // SAFETY: the library is there; the pointer is to this frame.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().during("asking the driver's version")?;
    Ok((version / 1000, version % 1000 / 10))
}

/// Every card of this machine.
///
/// # Errors
/// [`CudaError::NoDriver`], [`CudaError::NoDevice`], or the driver's own.
pub fn cards() -> Result<Vec<Card>, CudaError> {
    require_driver()?;
    // A driver's library without a driver or a card is common in containers, and says so here.
    result::init().map_err(|_| CudaError::NoDevice)?;
    let count = result::device::get_count().during("counting devices")?;
    if count == 0 {
        return Err(CudaError::NoDevice);
    }
    (0..count as usize).map(card).collect()
}

fn card(ordinal: usize) -> Result<Card, CudaError> {
    let device = result::device::get(ordinal as c_int).during("opening a device")?;
    let attribute = |which| {
        // SAFETY: the handle came from the driver.
        unsafe { result::device::get_attribute(device, which) }.during("reading a device's attributes")
    };
    Ok(Card {
        ordinal,
        name: result::device::get_name(device).during("reading a device's name")?,
        capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)? as u32,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)? as u32,
        ),
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as u32,
        // SAFETY: as above.
        memory_bytes: unsafe { result::device::total_mem(device) }.during("reading a device's memory")?,
        l2_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)? as usize,
    })
}
