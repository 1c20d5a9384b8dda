//! Weight matrices on a machine as stored, and products with them (`cu/matmul.cu`, `cu/weights.cuh`).

use super::{Ops, Sorted, Stored, TILE_ROWS, holds, launch};
use crate::error::CudaError;
use crate::machine::{Launch, Machine, write};
use crate::memory::{Arena, DeviceSlice};

/// Elements that share a scale, down and across.
const SCALE_TILE: usize = 128;

/// A matrix of the host, `[rows, cols]`, numbers as stored.
#[derive(Debug, Clone, Copy)]
pub struct HostMatrix<'a> {
    /// Output width.
    pub rows: usize,
    /// Input width.
    pub cols: usize,
    /// Elements from one row to the next: rows begin at multiples of 16 bytes, and what lies between is zero.
    pub stride: usize,
    /// The numbers' bytes, little-endian.
    pub values: &'a [u8],
    /// `[ceil(rows/128), ceil(cols/128)]` for fp8, else empty.
    pub scales: &'a [f32],
    /// The format.
    pub stored: Stored,
}

/// What matrices of one stack have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) stride: usize,
    pub(super) stored: Stored,
}

impl Extent {
    /// Bytes of one matrix's numbers.
    pub(super) fn value_bytes(self) -> usize {
        self.rows * self.stride * self.stored.bytes()
    }

    /// Scales of one matrix.
    pub(super) fn scales(self) -> usize {
        scales_of(self.rows, self.cols, self.stored)
    }

    /// What the table says of a matrix that lies there.
    pub(super) fn entry(self, values: &DeviceSlice<u8>, scales: &DeviceSlice<f32>) -> [u64; 3] {
        [values.address(), scales.address(), kind(self.stride, self.stored)]
    }
}

/// Matrices of one shape on a machine, in order: the experts of a layer, or just one.
#[derive(Debug)]
pub struct Weights {
    rows: usize,
    cols: usize,
    count: usize,
    /// The numbers of all of them, one after another.
    values: DeviceSlice<u8>,
    /// `[count, ceil(rows/128), ceil(cols/128)]` for fp8, else empty.
    scales: DeviceSlice<f32>,
    stride: usize,
    stored: Stored,
    /// What `weights.cuh` calls `Weights`, of each: two addresses, the stride, and above it the format.
    table: DeviceSlice<u64>,
}

impl Weights {
    /// Copies one matrix in.
    ///
    /// # Errors
    /// As [`Weights::of`].
    pub fn one(machine: &dyn Machine, matrix: HostMatrix<'_>) -> Result<Weights, CudaError> {
        Weights::of(machine, 1, matrix.rows, matrix.cols, |_, take| take(matrix))
    }

    /// Copies `count` matrices of `[rows, cols]` in. `each` is called once a matrix with its index, and hands it to what it is
    /// given; so that the host never holds more than one.
    ///
    /// # Errors
    /// [`CudaError::Shape`] for another shape; no memory; or what `each` says.
    pub fn of<E: From<CudaError>>(
        machine: &dyn Machine,
        count: usize,
        rows: usize,
        cols: usize,
        mut each: impl FnMut(usize, &mut dyn FnMut(HostMatrix<'_>) -> Result<(), CudaError>) -> Result<(), E>,
    ) -> Result<Weights, E> {
        let mut room: Option<(Weights, Vec<u64>)> = None;
        for index in 0..count {
            each(index, &mut |matrix| {
                check(&matrix, rows, cols)?;
                let extent = Extent { rows, cols, stride: matrix.stride, stored: matrix.stored };
                if room.is_none() {
                    room = Some((Weights::room(machine, count, extent)?, Vec::new()));
                }
                let (to, table) = room.as_mut().expect("made above");
                if (matrix.stored, matrix.stride) != (to.stored, to.stride) {
                    let problem = format!("{:?} among matrices of {:?}", matrix.stored, to.stored);
                    return Err(CudaError::Shape { operation: "weights", problem });
                }
                let values = to.values.part(index * matrix.values.len(), matrix.values.len());
                let scales = to.scales.part(index * matrix.scales.len(), matrix.scales.len());
                write(machine, matrix.values, &values)?;
                write(machine, matrix.scales, &scales)?;
                table.extend(extent.entry(&values, &scales));
                Ok(())
            })?;
        }
        let Some((weights, table)) = room else {
            // A device may hold no expert of a layer.
            let none = Extent { rows, cols, stride: cols, stored: Stored::F32 };
            return Ok(Weights::room(machine, 0, none)?);
        };
        Ok(weights.told(machine, &table)?)
    }

    /// With its table as `entries` say.
    pub(super) fn told(self, machine: &dyn Machine, entries: &[u64]) -> Result<Weights, CudaError> {
        write(machine, entries, &self.table)?;
        Ok(self)
    }

    /// Over what is on a device already, rows without a gap: `values` `[count, rows, cols]`, `scales` as [`HostMatrix`] has them.
    ///
    /// # Errors
    /// [`CudaError::Shape`] for slices of other lengths.
    pub fn over(
        machine: &dyn Machine,
        (count, rows, cols): (usize, usize, usize),
        stored: Stored,
        values: DeviceSlice<u8>,
        scales: DeviceSlice<f32>,
    ) -> Result<Weights, CudaError> {
        let (bytes, tiles) = (rows * cols * stored.bytes(), scales_of(rows, cols, stored));
        if values.len() != count * bytes || scales.len() != count * tiles {
            let problem = format!("{} bytes and {} scales for {count} of {rows}x{cols}", values.len(), scales.len());
            return Err(CudaError::Shape { operation: "weights", problem });
        }
        let each = |index: usize| {
            let (values, scales) = (values.part(index * bytes, bytes), scales.part(index * tiles, tiles));
            [values.address(), scales.address(), kind(cols, stored)]
        };
        let entries: Vec<u64> = (0..count).flat_map(each).collect();
        let table = machine.allocate(size_of_val(&entries[..]))?.take(entries.len())?;
        write(machine, &entries, &table)?;
        Ok(Weights { rows, cols, count, values, scales, stride: cols, stored, table })
    }

    /// Memory for `count` matrices of this extent.
    pub(super) fn room(machine: &dyn Machine, count: usize, extent: Extent) -> Result<Weights, CudaError> {
        let Extent { rows, cols, stride, stored } = extent;
        let (values, scales) = (count * extent.value_bytes(), count * extent.scales());
        let sizes = [values, scales * size_of::<f32>(), count * 3 * size_of::<u64>()];
        let mut arena = machine.allocate(Arena::bytes_for(sizes))?;
        let (values, scales, table) = (arena.take(values)?, arena.take(scales)?, arena.take(count * 3)?);
        Ok(Weights { rows, cols, count, values, scales, stride, stored, table })
    }

    /// Matrices.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The format.
    pub fn stored(&self) -> Stored {
        self.stored
    }

    /// Elements from one row to the next.
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    /// The numbers of all of them, `[count, rows, stride]`.
    pub fn values(&self) -> &DeviceSlice<u8> {
        &self.values
    }

    /// `[count, ceil(rows/128), ceil(cols/128)]` for fp8, else empty.
    pub fn scales(&self) -> &DeviceSlice<f32> {
        &self.scales
    }

    /// Output width.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input width.
    pub fn cols(&self) -> usize {
        self.cols
    }

    pub(super) fn table(&self) -> u64 {
        self.table.address()
    }
}

/// Stride and format as a table has them.
fn kind(stride: usize, stored: Stored) -> u64 {
    stride as u64 | (stored as u64) << 32
}

fn scales_of(rows: usize, cols: usize, stored: Stored) -> usize {
    if stored == Stored::Fp8 { rows.div_ceil(SCALE_TILE) * cols.div_ceil(SCALE_TILE) } else { 0 }
}

fn check(matrix: &HostMatrix<'_>, rows: usize, cols: usize) -> Result<(), CudaError> {
    let refused = |problem: String| Err(CudaError::Shape { operation: "weights", problem });
    if (matrix.rows, matrix.cols) != (rows, cols) {
        return refused(format!("a matrix of {}x{} among those of {rows}x{cols}", matrix.rows, matrix.cols));
    }
    if matrix.stride < cols || !(matrix.stride * matrix.stored.bytes()).is_multiple_of(16) {
        return refused(format!("rows of {} elements do not begin at multiples of 16 bytes", matrix.stride));
    }
    if matrix.values.len() != rows * matrix.stride * matrix.stored.bytes() {
        return refused(format!("{} bytes are not {rows} rows of {}", matrix.values.len(), matrix.stride));
    }
    let wanted = scales_of(rows, cols, matrix.stored);
    if matrix.scales.len() != wanted {
        return refused(format!("{} scales where {wanted} belong", matrix.scales.len()));
    }
    Ok(())
}

#[repr(C)]
struct Matmul {
    x: u64,
    y: u64,
    w: u64,
    up: u64,
    tiles: u64,
    members: u64,
    rows: i32,
    inputs: i32,
    outputs: i32,
    top_k: i32,
    gathers: i32,
}

impl Ops {
    /// `y = x · Wᵀ`: x `[rows, cols]`, y `[rows, w.rows()]`.
    ///
    /// # Errors
    /// [`CudaError::Shape`] for slices too short; the driver's own.
    pub fn matmul(
        &self,
        x: &DeviceSlice<f32>,
        rows: usize,
        w: &Weights,
        y: &DeviceSlice<f32>,
    ) -> Result<(), CudaError> {
        self.plain(x, rows, w, None, y)
    }

    /// `y = silu(x · Gᵀ) ⊙ (x · Uᵀ)`, shapes as in [`Ops::matmul`].
    ///
    /// # Errors
    /// As [`Ops::matmul`].
    pub fn gated(
        &self,
        x: &DeviceSlice<f32>,
        rows: usize,
        gate: &Weights,
        up: &Weights,
        y: &DeviceSlice<f32>,
    ) -> Result<(), CudaError> {
        self.plain(x, rows, gate, Some(up), y)
    }

    fn plain(
        &self,
        x: &DeviceSlice<f32>,
        rows: usize,
        w: &Weights,
        up: Option<&Weights>,
        y: &DeviceSlice<f32>,
    ) -> Result<(), CudaError> {
        holds("matmul", "x [rows, inputs]", x, rows * w.cols)?;
        holds("matmul", "y [rows, outputs]", y, rows * w.rows)?;
        let (kernel, arguments) = self.product(x, rows, w, up, y)?;
        // SAFETY: lengths were checked, and the table names whole matrices of these shapes.
        unsafe { launch(kernel, rows.div_ceil(TILE_ROWS) * w.rows, arguments) }
    }

    /// The gated product of every row with each of its experts that is held here, by slot: x `[rows, cols]`, y `[slots, w.rows()]`.
    ///
    /// # Errors
    /// As [`Ops::matmul`].
    pub fn experts_up(
        &self,
        x: &DeviceSlice<f32>,
        sorted: &Sorted,
        rows: usize,
        gate: &Weights,
        up: &Weights,
        y: &DeviceSlice<f32>,
    ) -> Result<(), CudaError> {
        holds("experts_up", "x [rows, inputs]", x, rows * gate.cols)?;
        holds("experts_up", "y [rows × top_k, outputs]", y, rows * sorted.top_k() * gate.rows)?;
        self.grouped(x, sorted, rows, gate, Some(up), y)
    }

    /// From slots back to places in the routing: x `[slots, cols]`, y `[rows × top_k, w.rows()]`.
    ///
    /// # Errors
    /// As [`Ops::matmul`].
    pub fn experts_down(
        &self,
        x: &DeviceSlice<f32>,
        sorted: &Sorted,
        rows: usize,
        down: &Weights,
        y: &DeviceSlice<f32>,
    ) -> Result<(), CudaError> {
        holds("experts_down", "x [rows × top_k, inputs]", x, rows * sorted.top_k() * down.cols)?;
        holds("experts_down", "y [rows × top_k, outputs]", y, rows * sorted.top_k() * down.rows)?;
        self.grouped(x, sorted, rows, down, None, y)
    }

    fn grouped(
        &self,
        x: &DeviceSlice<f32>,
        sorted: &Sorted,
        rows: usize,
        w: &Weights,
        up: Option<&Weights>,
        y: &DeviceSlice<f32>,
    ) -> Result<(), CudaError> {
        let (kernel, consecutive) = self.product(x, rows, w, up, y)?;
        if w.count != sorted.held() {
            let problem = format!("{} matrices for {} experts", w.count, sorted.held());
            return Err(CudaError::Shape { operation: "experts", problem });
        }
        let arguments = Matmul {
            tiles: sorted.tiles.address(),
            members: sorted.members.address(),
            top_k: sorted.top_k() as i32,
            gathers: i32::from(up.is_some()),
            ..consecutive
        };
        // SAFETY: lengths were checked for the most slots there can be; tiles and members are `sort_experts`' own.
        unsafe { launch(kernel, sorted.tiles_for(rows) * w.rows, arguments) }
    }

    /// The kernel of a product, gated if there is `up`, and its arguments for rows in tiles one after another.
    fn product(
        &self,
        x: &DeviceSlice<f32>,
        rows: usize,
        w: &Weights,
        up: Option<&Weights>,
        y: &DeviceSlice<f32>,
    ) -> Result<(&dyn Launch, Matmul), CudaError> {
        same_shape(w, up)?;
        let arguments = Matmul {
            x: x.address(),
            y: y.address(),
            w: w.table(),
            up: up.map_or(0, Weights::table),
            tiles: 0,
            members: 0,
            rows: rows as i32,
            inputs: w.cols as i32,
            outputs: w.rows as i32,
            top_k: 1,
            gathers: 0,
        };
        let kernel = if up.is_some() { &self.gated } else { &self.matmul };
        Ok((&**kernel, arguments))
    }
}

fn same_shape(w: &Weights, up: Option<&Weights>) -> Result<(), CudaError> {
    match up {
        Some(up) if (up.rows, up.cols, up.count) != (w.rows, w.cols, w.count) => {
            let problem = format!("gates of {}x{} beside ups of {}x{}", w.rows, w.cols, up.rows, up.cols);
            Err(CudaError::Shape { operation: "gated", problem })
        }
        _ => Ok(()),
    }
}
