//! Rotary position embedding in the rotate-half form. Owns its angles, and the processor's tables of their cosines and sines.
//!
//! Source: Step-3's attention (element j pairs with j + head_dim/2, over the whole head).

use crate::memory::AlignedBuffer;

/// Positions whose angles are computed together, when the first of them is asked for.
const CHUNK_POSITIONS: usize = 64;

/// Radians per position of each pair of a head: `theta^(-2j / head_dim)`.
pub fn frequencies(head_dim: usize, theta: f64) -> Box<[f64]> {
    (0..head_dim / 2).map(|j| theta.powf(-2.0 * j as f64 / head_dim as f64)).collect()
}

/// The cosines of a position's pairs, then their sines, into `row` `[head_dim]`: angles in f64, what is written in f32.
pub fn write_angles(position: usize, frequencies: &[f64], row: &mut [f32]) {
    let (cosines, sines) = row.split_at_mut(frequencies.len());
    for ((cosine, sine), frequency) in cosines.iter_mut().zip(sines).zip(frequencies) {
        let angle = position as f64 * frequency;
        (*cosine, *sine) = (angle.cos() as f32, angle.sin() as f32);
    }
}

/// Cosines and sines of `position · theta^(-2j / head_dim)`: angles in f64, tables in f32, filled in chunks of 64
/// positions at their first use. Their memory is reserved at once and taken when filled, so a long limit costs nothing until
/// it is reached, and reaching it allocates nothing.
#[derive(Debug)]
pub struct RopeTable {
    head_dim: usize,
    /// Radians per position of each pair.
    frequencies: Box<[f64]>,
    max_positions: usize,
    /// `[positions, head_dim]`: the cosines of a position, then its sines.
    table: AlignedBuffer<f32>,
    /// Which chunks of the table are there.
    filled: Box<[bool]>,
}

impl RopeTable {
    /// Tables for heads of `head_dim` (even) elements and positions below `max_positions`.
    pub fn new(head_dim: usize, theta: f64, max_positions: usize) -> RopeTable {
        assert!(head_dim > 0 && head_dim.is_multiple_of(2), "a rotated head has pairs, not {head_dim} elements");
        let chunks = max_positions.div_ceil(CHUNK_POSITIONS);
        RopeTable {
            head_dim,
            frequencies: frequencies(head_dim, theta),
            max_positions,
            table: AlignedBuffer::zeroed(chunks * CHUNK_POSITIONS * head_dim),
            filled: vec![false; chunks].into_boxed_slice(),
        }
    }

    /// Rotates every head of `row` (`[heads, head_dim]`) to `position`.
    pub fn apply(&mut self, row: &mut [f32], position: usize) {
        assert!(row.len().is_multiple_of(self.head_dim), "a row is whole heads of {}", self.head_dim);
        assert!(position < self.max_positions, "position {position} is below {}", self.max_positions);
        if !self.filled[position / CHUNK_POSITIONS] {
            self.fill(position / CHUNK_POSITIONS);
        }
        let start = position * self.head_dim;
        let (cosines, sines) = self.table[start..start + self.head_dim].split_at(self.head_dim / 2);
        for head in row.chunks_exact_mut(self.head_dim) {
            let (low, high) = head.split_at_mut(self.head_dim / 2);
            for (((low, high), &cosine), &sine) in low.iter_mut().zip(high).zip(cosines).zip(sines) {
                (*low, *high) = (*low * cosine - *high * sine, *high * cosine + *low * sine);
            }
        }
    }

    fn fill(&mut self, chunk: usize) {
        for position in chunk * CHUNK_POSITIONS..(chunk + 1) * CHUNK_POSITIONS {
            let start = position * self.head_dim;
            write_angles(position, &self.frequencies, &mut self.table[start..start + self.head_dim]);
        }
        self.filled[chunk] = true;
    }
}
