//! The values of a CUDA device where rows of theirs cross an edge.

use super::device::CudaDevice;
use super::load::stored;
use rally_cuda::machine::{read, write};
use rally_cuda::memory::DeviceSlice;
use rally_cuda::ops::Stored;
use rally_engine::remote::{Field, RemoteRows, RemoteValues};
use rally_engine::stage::StageError;
use rally_engine::values::Values;
use rally_kernels::dtype::StorageDtype;
use std::sync::Arc;

/// What the engine gets of a device.
pub(crate) struct CudaValues {
    device: Arc<CudaDevice>,
    /// Expert ids as the device has them.
    ids: Vec<i32>,
}

impl CudaValues {
    pub(crate) fn new(device: Arc<CudaDevice>) -> Self {
        Self { device, ids: Vec::new() }
    }

    fn rows(&self, field: Field, at: RemoteRows) -> DeviceSlice<f32> {
        let (values, hidden) = (self.device.values(at.micro_batch), self.device.widths.hidden);
        let whole = if field == Field::Input { &values.u } else { &values.y };
        whole.part(at.first * hidden, at.rows * hidden)
    }
}

impl RemoteValues for CudaValues {
    fn name(&self) -> String {
        self.device.name()
    }

    fn encode(
        &mut self,
        field: Field,
        at: RemoteRows,
        dtype: StorageDtype,
        bytes: &mut [u8],
    ) -> Result<(), StageError> {
        let (rows, wire) = (self.rows(field, at), self.device.wire.part(0, bytes.len()));
        let done = match stored(dtype) {
            Stored::F32 => read(self.device.machine(), &rows.as_bytes(), bytes),
            dtype => self
                .device
                .ops()
                .encode(&rows, at.rows, self.device.widths.hidden, dtype, &wire)
                .and_then(|()| read(self.device.machine(), &wire, bytes)),
        };
        done.map_err(self.device.fault())
    }

    fn decode(&mut self, field: Field, at: RemoteRows, dtype: StorageDtype, bytes: &[u8]) -> Result<(), StageError> {
        let (rows, wire) = (self.rows(field, at), self.device.wire.part(0, bytes.len()));
        let done = match stored(dtype) {
            Stored::F32 => write(self.device.machine(), bytes, &rows.as_bytes()),
            dtype => write(self.device.machine(), bytes, &wire)
                .and_then(|()| self.device.ops().decode(&wire, at.rows, self.device.widths.hidden, dtype, &rows)),
        };
        done.map_err(self.device.fault())
    }

    fn write_output(&mut self, at: RemoteRows, rows: &[f32]) -> Result<(), StageError> {
        write(self.device.machine(), rows, &self.rows(Field::Output, at)).map_err(self.device.fault())
    }

    fn read_routing(&mut self, at: RemoteRows, ids: &mut [u32], weights: &mut [f32]) -> Result<(), StageError> {
        let routing = &self.device.values(at.micro_batch).routing;
        let first = at.first * self.device.widths.top_k;
        self.ids.resize(ids.len(), 0);
        let done = read(self.device.machine(), &routing.ids.part(first, ids.len()), &mut self.ids)
            .and_then(|()| read(self.device.machine(), &routing.weights.part(first, weights.len()), weights));
        ids.iter_mut().zip(&self.ids).for_each(|(to, from)| *to = *from as u32);
        done.map_err(self.device.fault())
    }

    fn write_routing(&mut self, at: RemoteRows, ids: &[u32], weights: &[f32]) -> Result<(), StageError> {
        let routing = &self.device.values(at.micro_batch).routing;
        let first = at.first * self.device.widths.top_k;
        self.ids.clear();
        self.ids.extend(ids.iter().map(|id| *id as i32));
        let done = write(self.device.machine(), &self.ids, &routing.ids.part(first, ids.len()))
            .and_then(|()| write(self.device.machine(), weights, &routing.weights.part(first, weights.len())));
        done.map_err(self.device.fault())
    }

    fn fetch(&mut self, micro_batch: usize, values: &mut Values) -> Result<(), StageError> {
        let at = RemoteRows { micro_batch, first: 0, rows: values.rows };
        let (wide, chosen) = (values.rows * values.widths.hidden, values.rows * values.widths.top_k);
        let device = self.device.values(micro_batch);
        for (from, to) in [(&device.x, &mut values.x), (&device.u, &mut values.u), (&device.y, &mut values.y)] {
            read(self.device.machine(), &from.part(0, wide), &mut to[..wide]).map_err(self.device.fault())?;
        }
        self.read_routing(at, &mut values.expert_ids[..chosen], &mut values.expert_weights[..chosen])
    }
}
