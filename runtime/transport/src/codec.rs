//! Words of messages and handshakes as bytes: little-endian numbers, texts with their length before them. A reader never trusts a
//! length: it asks first whether so many bytes are there.

/// Bytes that do not say what they should.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} cannot be read at byte {at}")]
pub struct CodecError {
    /// What was expected.
    pub what: &'static str,
    /// Where.
    pub at: usize,
}

/// Writes words behind each other.
#[derive(Clone, Debug, Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// With room for `bytes`.
    pub fn with_capacity(bytes: usize) -> Self {
        Self(Vec::with_capacity(bytes))
    }

    /// A byte.
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.raw(&[value])
    }

    /// A number.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    /// A number.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    /// A count or a place; 32 bits are enough for all that crosses.
    pub fn count(&mut self, value: usize) -> &mut Self {
        self.u32(u32::try_from(value).unwrap_or(u32::MAX))
    }

    /// A float, its bits unchanged.
    pub fn f32(&mut self, value: f32) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    /// A text.
    pub fn text(&mut self, value: &str) -> &mut Self {
        self.count(value.len()).raw(value.as_bytes())
    }

    /// Bytes whose number the reader knows.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// All that was written.
    pub fn finish(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0)
    }
}

/// Reads what a [`Writer`] wrote, or says where something else stands.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// From the first byte on.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    fn fault<T>(&self, what: &'static str) -> Result<T, CodecError> {
        Err(CodecError { what, at: self.at })
    }

    /// Bytes that are left.
    pub fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// `count` bytes.
    pub fn raw(&mut self, count: usize, what: &'static str) -> Result<&'a [u8], CodecError> {
        if self.left() < count {
            return self.fault(what);
        }
        let bytes = &self.bytes[self.at..self.at + count];
        self.at += count;
        Ok(bytes)
    }

    /// As many bytes as the array has.
    pub fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], CodecError> {
        let mut array = [0; N];
        array.copy_from_slice(self.raw(N, what)?);
        Ok(array)
    }

    /// A byte.
    pub fn u8(&mut self, what: &'static str) -> Result<u8, CodecError> {
        Ok(self.array::<1>(what)?[0])
    }

    /// A byte that is 0 or 1.
    pub fn flag(&mut self, what: &'static str) -> Result<bool, CodecError> {
        match self.u8(what)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => self.fault(what),
        }
    }

    /// A number.
    pub fn u32(&mut self, what: &'static str) -> Result<u32, CodecError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    /// A number.
    pub fn u64(&mut self, what: &'static str) -> Result<u64, CodecError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A float.
    pub fn f32(&mut self, what: &'static str) -> Result<f32, CodecError> {
        Ok(f32::from_le_bytes(self.array(what)?))
    }

    /// A count or a place that is at most `most`.
    pub fn count(&mut self, most: usize, what: &'static str) -> Result<usize, CodecError> {
        let value = self.u32(what)? as usize;
        if value <= most { Ok(value) } else { self.fault(what) }
    }

    /// A number of things that take at least `bytes` bytes each, and which must therefore be there.
    pub fn length(&mut self, bytes: usize, what: &'static str) -> Result<usize, CodecError> {
        let value = self.u32(what)? as usize;
        if value.saturating_mul(bytes) <= self.left() { Ok(value) } else { self.fault(what) }
    }

    /// A text of at most `most` bytes.
    pub fn text(&mut self, most: usize, what: &'static str) -> Result<&'a str, CodecError> {
        let count = self.count(most, what)?;
        let bytes = self.raw(count, what)?;
        std::str::from_utf8(bytes).or_else(|_| self.fault(what))
    }

    /// Nothing may be left.
    pub fn end(&self, what: &'static str) -> Result<(), CodecError> {
        if self.left() == 0 { Ok(()) } else { self.fault(what) }
    }
}
