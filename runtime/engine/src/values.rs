//! The values a micro-batch has on one device: residual, FFN input, routing, FFN output.
//!
//! One [`Values`] per (device, micro-batch), sized once from the limits and owned by the device's lane, so no lock guards it.

/// Widths that size the buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Widths {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Experts a token is routed to; 0 in a model without routed experts.
    pub top_k: usize,
}

/// Rows one device sent, as a destination sees them: `rows` consecutive rows from device `device`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Device the rows came from.
    pub device: usize,
    /// First of them.
    pub first_row: usize,
    /// How many.
    pub rows: usize,
}

/// Buffers of one micro-batch on one device. Row-major; only the first `rows` rows mean anything.
#[derive(Clone, Debug)]
pub struct Values {
    /// Rows in use.
    pub rows: usize,
    /// Widths of the rows.
    pub widths: Widths,
    /// Residual stream x, `[rows, hidden]`; only on attention devices.
    pub x: Vec<f32>,
    /// FFN input u, `[rows, hidden]`.
    pub u: Vec<f32>,
    /// Chosen experts, best first, `[rows, top_k]`.
    pub expert_ids: Vec<u32>,
    /// Their weights, `[rows, top_k]`.
    pub expert_weights: Vec<f32>,
    /// FFN output y, `[rows, hidden]`.
    pub y: Vec<f32>,
    /// Where the rows came from, if a transfer brought them.
    pub origins: Vec<Origin>,
}

impl Values {
    /// Zeroed buffers of `rows` rows.
    pub fn new(rows: usize, widths: Widths) -> Self {
        let wide = || vec![0.0; rows * widths.hidden];
        Self {
            rows: 0,
            widths,
            x: wide(),
            u: wide(),
            expert_ids: vec![0; rows * widths.top_k],
            expert_weights: vec![0.0; rows * widths.top_k],
            y: wide(),
            origins: Vec::new(),
        }
    }

    /// Rows the buffers hold.
    pub fn capacity(&self) -> usize {
        self.x.len() / self.widths.hidden
    }
}
