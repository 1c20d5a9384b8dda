//! Decoding while tokens arrive.

use std::sync::Arc;

use super::bytes::{Utf8Assembler, token_bytes};
use super::{Inner, TextError};

/// Ids that are kept back before looking closer. A character has at most four bytes, so of eight ids whose text ends
/// with U+FFFD some are complete: the replacement character itself, or no text at all.
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
        match self.unfinished()? {
            Some(keep) => self.give(keep),
            None => Ok(String::new()),
        }
    }

    /// Returns what was kept back, with U+FFFD for an unfinished character. The decoder is as new afterwards.
    ///
    /// # Errors
    /// [`TextError::Decode`] as for [`Self::push`].
    pub fn finish(&mut self) -> Result<String, TextError> {
        let text = if self.inner.is_byte_level { self.bytes.finish() } else { self.give(0)? };
        self.ids.clear();
        self.given = 0;
        Ok(text)
    }

    /// How many ids at the end are an unfinished character; `None` if that is not known yet.
    fn unfinished(&self) -> Result<Option<usize>, TextError> {
        let whole = self.inner.decode(&self.ids)?;
        let Some(finished) = whole.strip_suffix(char::REPLACEMENT_CHARACTER) else { return Ok(Some(0)) };
        if self.ids.len() - self.given < MAX_HELD_IDS {
            return Ok(None);
        }
        for keep in 1..=3 {
            if self.inner.decode(&self.ids[..self.ids.len() - keep])? == finished {
                return Ok(Some(keep));
            }
        }
        Ok(Some(0))
    }

    /// Gives out the text of all ids but the last `keep`.
    fn give(&mut self, keep: usize) -> Result<String, TextError> {
        let end = self.ids.len() - keep;
        let context = self.inner.decode(&self.ids[..self.given])?;
        let text = self.inner.decode(&self.ids[..end])?;
        // A decoder that changes earlier text because of later ids gives nothing new to show.
        let fresh = text.strip_prefix(&context).unwrap_or_default().to_owned();
        if !fresh.is_empty() || end - self.given >= MAX_HELD_IDS {
            self.ids.drain(..self.given);
            self.given = end - self.given;
        }
        Ok(fresh)
    }
}
