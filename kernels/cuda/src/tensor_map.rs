//! Descriptors for Hopper's copy engine. Owns their encoding.

use crate::device::Device;
use crate::error::CudaError;
use cudarc::driver::sys;
use sys::CUtensorMapDataType_enum as DataType;
use sys::CUtensorMapL2promotion_enum as Promotion;
use sys::CUtensorMapSwizzle_enum as Swizzle;

/// A 128-byte descriptor, passed to kernels by value.
#[repr(C, align(128))]
#[derive(Debug, Clone, Copy)]
pub(crate) struct TensorMap(sys::CUtensorMap);

impl TensorMap {
    /// Of nothing, for what does not read it.
    pub(crate) fn nothing() -> TensorMap {
        TensorMap(sys::CUtensorMap_st { opaque: [0; 16] })
    }
}

/// A matrix of `rows` rows of `columns` elements, seen as blocks of `block` columns: a 3-D tensor `[columns / block,
/// rows, block]`. A box is `box_blocks` blocks of `box_rows` rows, each block contiguous in shared memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Blocked {
    pub address: u64,
    /// Bytes of an element: 2 (bf16) or 1.
    pub element: u32,
    pub rows: u64,
    pub columns: u64,
    /// Columns of a block; `block * element` is the swizzle's width, 128 or 64 bytes.
    pub block: u32,
    pub box_rows: u32,
    pub box_blocks: u32,
}

impl Blocked {
    /// Where there is no card, as when memory is only counted, a descriptor of nothing.
    pub(crate) fn encode_on(&self, device: Option<&Device>) -> Result<TensorMap, CudaError> {
        device.map_or_else(|| Ok(TensorMap::nothing()), |device| self.encode(device))
    }

    /// The same for what is read a block's width at a time: L2 is not asked for twice as much of a row.
    pub(crate) fn encode_narrowly_on(&self, device: Option<&Device>) -> Result<TensorMap, CudaError> {
        let nothing = || Ok(TensorMap(sys::CUtensorMap_st { opaque: [0; 16] }));
        device.map_or_else(nothing, |device| self.described(device, Promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B))
    }

    pub(crate) fn encode(&self, device: &Device) -> Result<TensorMap, CudaError> {
        self.described(device, Promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B)
    }

    fn described(&self, device: &Device, promotion: Promotion) -> Result<TensorMap, CudaError> {
        device.bind()?;
        let row_bytes = self.columns * u64::from(self.element);
        let block_bytes = self.block * self.element;
        let sizes = [u64::from(self.block), self.rows, self.columns / u64::from(self.block)];
        let strides = [row_bytes, u64::from(block_bytes)];
        let extent = [self.block, self.box_rows, self.box_blocks];
        let steps = [1u32; 3];
        let mut map = sys::CUtensorMap_st { opaque: [0; 16] };
        // SAFETY: all arrays have three entries (strides two), and the map is this frame's.
        let code = unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut map,
                if self.element == 2 {
                    DataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                } else {
                    DataType::CU_TENSOR_MAP_DATA_TYPE_UINT8
                },
                3,
                self.address as *mut _,
                sizes.as_ptr(),
                strides.as_ptr(),
                extent.as_ptr(),
                steps.as_ptr(),
                sys::CUtensorMapInterleave_enum::CU_TENSOR_MAP_INTERLEAVE_NONE,
                if block_bytes == 128 {
                    Swizzle::CU_TENSOR_MAP_SWIZZLE_128B
                } else {
                    Swizzle::CU_TENSOR_MAP_SWIZZLE_64B
                },
                promotion,
                sys::CUtensorMapFloatOOBfill_enum::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        match code {
            sys::CUresult::CUDA_SUCCESS => Ok(TensorMap(map)),
            code => Err(CudaError::Driver { action: "describing a matrix to the copy engine", code }),
        }
    }
}
