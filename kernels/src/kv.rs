//! Pages of keys and values of one attention layer, stored as f32, bf16 or fp8.
//!
//! Owns the memory. Which sequence has which page is the caller's business.

use crate::dtype::{StorageDtype, bf16_to_f32, f32_to_bf16};
use crate::memory::AlignedBuffer;
use crate::wire::{decode_scaled, encode_scaled};

/// One layer's pages. A page holds `page_tokens` rows of a key and as many of a value; the widths are independent.
#[derive(Debug)]
pub struct KvPool {
    pages: usize,
    page_tokens: usize,
    keys: Rows,
    values: Rows,
}

/// Rows of one width in one format.
#[derive(Debug)]
pub(crate) struct Rows {
    width: usize,
    numbers: Numbers,
}

#[derive(Debug)]
enum Numbers {
    F32(AlignedBuffer<f32>),
    Bf16(AlignedBuffer<u16>),
    /// One scale a row: its largest magnitude / 448.
    Fp8 {
        codes: AlignedBuffer<u8>,
        scales: AlignedBuffer<f32>,
    },
}

impl KvPool {
    /// `pages` pages of `page_tokens` tokens: keys of `key_width` and values of `value_width` numbers, zero at first.
    pub fn new(pages: usize, page_tokens: usize, key_width: usize, value_width: usize, dtype: StorageDtype) -> KvPool {
        assert!(page_tokens > 0, "a page holds tokens");
        assert!(key_width > 0 && value_width > 0, "keys and values have a width");
        let tokens = pages * page_tokens;
        KvPool {
            pages,
            page_tokens,
            keys: Rows::new(tokens, key_width, dtype),
            values: Rows::new(tokens, value_width, dtype),
        }
    }

    /// Stores the key (`[key_width]`) and value (`[value_width]`) of the token at `offset` of `page`.
    ///
    /// fp8 rounds relative to one scale per token and tensor.
    pub fn write(&mut self, page: u32, offset: usize, k: &[f32], v: &[f32]) {
        let row = self.row(page, offset);
        self.keys.write(row, k);
        self.values.write(row, v);
    }

    /// Bytes of all pages, scales included.
    pub fn bytes(&self) -> usize {
        self.keys.bytes() + self.values.bytes()
    }

    /// Number of pages.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Tokens of a page.
    pub fn page_tokens(&self) -> usize {
        self.page_tokens
    }

    /// Numbers of a key.
    pub fn key_width(&self) -> usize {
        self.keys.width
    }

    /// Numbers of a value.
    pub fn value_width(&self) -> usize {
        self.values.width
    }

    pub(crate) fn keys(&self) -> &Rows {
        &self.keys
    }

    pub(crate) fn values(&self) -> &Rows {
        &self.values
    }

    /// Index of a token's row.
    pub(crate) fn row(&self, page: u32, offset: usize) -> usize {
        assert!((page as usize) < self.pages, "page {page} is one of the pool's {}", self.pages);
        assert!(offset < self.page_tokens, "offset {offset} is below a page's {} tokens", self.page_tokens);
        page as usize * self.page_tokens + offset
    }
}

impl Rows {
    fn new(rows: usize, width: usize, dtype: StorageDtype) -> Rows {
        let numbers = match dtype {
            StorageDtype::F32 => Numbers::F32(AlignedBuffer::zeroed(rows * width)),
            StorageDtype::Bf16 => Numbers::Bf16(AlignedBuffer::zeroed(rows * width)),
            StorageDtype::Fp8E4m3 => {
                Numbers::Fp8 { codes: AlignedBuffer::zeroed(rows * width), scales: AlignedBuffer::zeroed(rows) }
            }
        };
        Rows { width, numbers }
    }

    fn bytes(&self) -> usize {
        match &self.numbers {
            Numbers::F32(values) => size_of_val(&values[..]),
            Numbers::Bf16(values) => size_of_val(&values[..]),
            Numbers::Fp8 { codes, scales } => size_of_val(&codes[..]) + size_of_val(&scales[..]),
        }
    }

    fn write(&mut self, row: usize, from: &[f32]) {
        assert_eq!(from.len(), self.width, "a row has the pool's width");
        let range = row * self.width..(row + 1) * self.width;
        match &mut self.numbers {
            Numbers::F32(values) => values[range].copy_from_slice(from),
            Numbers::Bf16(values) => {
                values[range].iter_mut().zip(from).for_each(|(to, &from)| *to = f32_to_bf16(from));
            }
            Numbers::Fp8 { codes, scales } => scales[row] = encode_scaled(from, &mut codes[range]),
        }
    }

    /// Widens row `row` to `out` (`[width]`).
    #[inline(always)]
    pub(crate) fn read(&self, row: usize, out: &mut [f32]) {
        let range = row * self.width..(row + 1) * self.width;
        match &self.numbers {
            Numbers::F32(values) => out.copy_from_slice(&values[range]),
            Numbers::Bf16(values) => {
                out.iter_mut().zip(&values[range]).for_each(|(out, &bits)| *out = bf16_to_f32(bits));
            }
            Numbers::Fp8 { codes, scales } => decode_scaled(&codes[range], scales[row], out),
        }
    }
}
