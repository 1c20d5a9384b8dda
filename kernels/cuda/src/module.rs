//! Loaded kernels and their launch. Owns a module's handle; what a kernel's arguments mean is its operation's.

use crate::device::Device;
use crate::error::{Context, CudaError};
use crate::stream::Stream;
use cudarc::driver::{result, sys};
use std::ffi::{CString, c_void};
use std::sync::Arc;
use sys::CUfunction_attribute_enum as Attribute;

/// A loaded cubin.
#[derive(Debug)]
pub struct Module {
    handle: sys::CUmodule,
    device: Arc<Device>,
}

// SAFETY: the driver's calls on a module are thread-safe.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Module {
    pub(crate) fn load(device: &Arc<Device>, cubin: &[u8]) -> Result<Arc<Module>, CudaError> {
        device.bind()?;
        // The driver wants a cubin aligned like the ELF file it is.
        let mut aligned = vec![0u64; cubin.len().div_ceil(8)];
        for (word, bytes) in aligned.iter_mut().zip(cubin.chunks(8)) {
            let mut whole = [0; 8];
            whole[..bytes.len()].copy_from_slice(bytes);
            *word = u64::from_ne_bytes(whole);
        }
        // SAFETY: a whole cubin, which the call copies; unloaded in `drop`.
        let handle = unsafe { result::module::load_data(aligned.as_ptr().cast()) }.during("loading kernels")?;
        Ok(Arc::new(Module { handle, device: device.clone() }))
    }

    /// A kernel of the module, allowed `shared_bytes` of dynamic shared memory.
    ///
    /// # Errors
    /// The driver's own: no such kernel, or more shared memory than a block can have.
    pub fn kernel(self: &Arc<Self>, name: &'static str, shared_bytes: u32) -> Result<Kernel, CudaError> {
        self.device.bind()?;
        let symbol = CString::new(name).expect("kernel names hold no NUL");
        // SAFETY: the module is loaded, and kept so by the kernel.
        let handle = unsafe { result::module::get_function(self.handle, symbol) }.during("finding a kernel")?;
        // SAFETY: the handle is alive.
        unsafe {
            result::function::set_function_attribute(
                handle,
                Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                shared_bytes as i32,
            )
        }
        .during("giving a kernel shared memory")?;
        Ok(Kernel { handle, shared_bytes, module: self.clone() })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // SAFETY: loaded once by `load`, and no kernel of it is left.
            let _ = unsafe { result::module::unload(self.handle) };
        }
    }
}

/// One kernel.
#[derive(Debug, Clone)]
pub struct Kernel {
    handle: sys::CUfunction,
    shared_bytes: u32,
    /// Keeps the code loaded.
    module: Arc<Module>,
}

// SAFETY: a function's handle is only read.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

/// How a launch stands to the kernel before it and to its own blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Begins when everything before it is done.
    After,
    /// The same, and all blocks are resident at once, since they wait for each other; or the launch fails.
    Together,
    /// Its blocks take places that the kernel before frees, and wait for its end where the kernel says so.
    Overlapped,
}

/// Blocks and threads of a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Blocks: x, y.
    pub grid: (u32, u32),
    /// Threads of a block.
    pub block: u32,
    /// Order.
    pub order: Order,
}

impl Order {
    fn attribute(self) -> Option<sys::CUlaunchAttribute> {
        // SAFETY: a C structure of integers, for which zeros are a value.
        let mut attribute: sys::CUlaunchAttribute = unsafe { std::mem::zeroed() };
        match self {
            Order::After => return None,
            Order::Together => {
                attribute.id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_COOPERATIVE;
                attribute.value.cooperative = 1;
            }
            Order::Overlapped => {
                attribute.id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
                attribute.value.programmaticStreamSerializationAllowed = 1;
            }
        }
        Some(attribute)
    }
}

impl Kernel {
    /// The device it is loaded on.
    pub fn device(&self) -> &Arc<Device> {
        &self.module.device
    }

    /// Enqueues the kernel.
    ///
    /// # Safety
    /// `arguments` point to values of the kernel's parameter types, in order; device memory they name outlives the work
    /// and nobody else writes it meanwhile.
    ///
    /// # Errors
    /// The driver's own; faults of the kernel come later, from the stream.
    pub unsafe fn launch(&self, stream: &Stream, shape: Shape, arguments: &mut [*mut c_void]) -> Result<(), CudaError> {
        // SAFETY: passed on.
        unsafe { self.launch_clusters(stream, shape, 1, arguments) }
    }

    /// Enqueues the kernel, whose blocks come in clusters of `cluster` along x, which divides the grid.
    ///
    /// # Safety
    /// As [`Kernel::launch`].
    ///
    /// # Errors
    /// As [`Kernel::launch`].
    pub unsafe fn launch_clusters(
        &self,
        stream: &Stream,
        shape: Shape,
        cluster: u32,
        arguments: &mut [*mut c_void],
    ) -> Result<(), CudaError> {
        let clustered = (cluster > 1).then(|| {
            // SAFETY: a C structure of integers, for which zeros are a value.
            let mut attribute: sys::CUlaunchAttribute = unsafe { std::mem::zeroed() };
            attribute.id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
            attribute.value.clusterDim = sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: cluster, y: 1, z: 1 };
            attribute
        });
        let mut attributes: Vec<_> = shape.order.attribute().into_iter().chain(clustered).collect();
        // SAFETY: a C structure of integers and pointers, for which zeros are a value.
        let mut config: sys::CUlaunchConfig = unsafe { std::mem::zeroed() };
        (config.gridDimX, config.gridDimY, config.gridDimZ) = (shape.grid.0, shape.grid.1, 1);
        (config.blockDimX, config.blockDimY, config.blockDimZ) = (shape.block, 1, 1);
        config.sharedMemBytes = self.shared_bytes;
        config.hStream = stream.handle();
        if !attributes.is_empty() {
            config.attrs = attributes.as_mut_ptr();
            config.numAttrs = attributes.len() as u32;
        }
        // SAFETY: the function is loaded, the configuration is this frame's; the rest is the caller's.
        unsafe { sys::cuLaunchKernelEx(&config, self.handle, arguments.as_mut_ptr(), std::ptr::null_mut()) }
            .result()
            .during("launching a kernel")
    }
}
