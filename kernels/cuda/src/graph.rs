//! Work captured once and replayed. Owns the instantiated graph.

use crate::device::Device;
use crate::error::{Context, CudaError};
use crate::stream::Stream;
use cudarc::driver::{result, sys};
use std::sync::Arc;

/// A captured and instantiated sequence of work. Memory that the work uses must outlive its replays.
#[derive(Debug)]
pub struct CudaGraph {
    graph: sys::CUgraph,
    executable: sys::CUgraphExec,
    device: Arc<Device>,
}

// SAFETY: handles that one thread at a time uses; launching takes `&self`, which the driver serialises.
unsafe impl Send for CudaGraph {}

impl CudaGraph {
    /// Captures what `enqueue` puts on `stream`, which must not wait for the device meanwhile.
    ///
    /// # Errors
    /// What `enqueue` says, or the driver's own.
    pub fn capture(
        stream: &Stream,
        enqueue: impl FnOnce(&Stream) -> Result<(), CudaError>,
    ) -> Result<CudaGraph, CudaError> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is alive; the capture is ended below whatever `enqueue` says.
        unsafe { result::stream::begin_capture(stream.handle(), mode) }.during("beginning a capture")?;
        let enqueued = enqueue(stream);
        // SAFETY: a capture is under way.
        let graph = unsafe { result::stream::end_capture(stream.handle()) }.during("ending a capture");
        enqueued?;
        let graph = graph?;
        let mut executable = std::ptr::null_mut();
        // SAFETY: the graph came from the capture; both handles are destroyed in `drop`.
        unsafe { sys::cuGraphInstantiateWithFlags(&mut executable, graph, 0) }
            .result()
            .during("instantiating a graph")?;
        Ok(CudaGraph { graph, executable, device: stream.device().clone() })
    }

    /// Enqueues a replay.
    ///
    /// # Errors
    /// The driver's own.
    pub fn launch(&self, stream: &Stream) -> Result<(), CudaError> {
        // SAFETY: both handles are alive.
        unsafe { result::graph::launch(self.executable, stream.handle()) }.during("launching a graph")
    }
}

impl Drop for CudaGraph {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // SAFETY: made once by `capture`.
            unsafe {
                let _ = result::graph::exec_destroy(self.executable);
                let _ = result::graph::destroy(self.graph);
            }
        }
    }
}
