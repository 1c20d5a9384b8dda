//! Decoding while tokens arrive.

use std::sync::Arc;

use super::bytes::{Utf8Assembler, token_bytes};
use super::{Inner, TextError};

/// Ids that are kept back at most. A character has at most four bytes, so of eight ids without a whole character some
/// are not text at all.
const MAX_HELD_IDS: usize = 8;

/// Turns ids into text one by one: each call gives the text that has become certain, never half a character.
///
/// For byte-level tokenizers (Step-3's is one) all pieces together equal [`super::TextCodec::decode`] of all ids. Other
/// tokenizers are decoded with the ids just before as context, which can differ where bytes are not UTF-8.
pub struct StreamDecoder {
    inner: Arc<Inner>,
    bytes: Utf8Assembler,
    /// Only for tokenizers that are not byte-level: ids whose text was given out (context), then ids held back.
    ids: Vec<u32>,
    given: usize,
}

impl StreamDecoder {
    pub(super) fn new(inner: Arc<Inner>) -> Self {
        Self { inner, bytes: Utf8Assembler::default(), ids: Vec::new(), given: 0 }
    }

    /// Takes the next id and returns the text that became complete, often one word, sometimes nothing. Special tokens
    /// and ids unknown to the tokenizer are skipped.
    ///
    /// # Errors
    /// [`TextError::Decode`] if the tokenizer's decoder fails; byte-level ones do not.
    pub fn push(&mut self, id: u32) -> Result<String, TextError> {
        if self.inner.is_special(id) {
            return Ok(String::new());
        }
        if self.inner.is_byte_level {
            let token = self.inner.tokenizer.id_to_token(id);
            return Ok(token.map(|token| self.bytes.push(&token_bytes(&token))).unwrap_or_default());
        }
        self.ids.push(id);
        self.flush(self.ids.len() - self.given >= MAX_HELD_IDS)
    }

    /// Returns what was kept back, with U+FFFD for an unfinished character. The decoder is as new afterwards.
    ///
    /// # Errors
    /// [`TextError::Decode`] as for [`Self::push`].
    pub fn finish(&mut self) -> Result<String, TextError> {
        let text = if self.inner.is_byte_level { self.bytes.finish() } else { self.flush(true)? };
        self.ids.clear();
        self.given = 0;
        Ok(text)
    }

    fn flush(&mut self, is_forced: bool) -> Result<String, TextError> {
        let context = self.inner.decode(&self.ids[..self.given])?;
        let whole = self.inner.decode(&self.ids)?;
        if !is_forced && whole.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(String::new());
        }
        // A decoder that changes earlier text because of later ids gives nothing new to show.
        let fresh = whole.strip_prefix(&context).unwrap_or_default().to_owned();
        if !fresh.is_empty() || is_forced {
            self.ids.drain(..self.given);
            self.given = self.ids.len();
        }
        Ok(fresh)
    }
}
