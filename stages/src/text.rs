//! Text to token ids and back: `tokenizer.json`, streaming, and stop strings.
//!
//! Owns everything between the characters a person reads and the ids a model reads. Knows no model: whether ids fit
//! the vocabulary is asked with [`TextCodec::check_vocab`].

mod bytes;
mod stop;
mod stream;

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;
use tokenizers::{DecoderWrapper, Tokenizer};

pub use stop::{Scanned, StopScanner};
pub use stream::StreamDecoder;

/// Largest `tokenizer.json` that is read; large ones have some 20 megabytes.
const MAX_TOKENIZER_BYTES: u64 = 256 << 20;

/// A tokenizer that cannot be read, or text that it cannot encode.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TextError {
    /// The file cannot be opened or read.
    #[error("{}: cannot be read: {source}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is larger than any tokenizer.
    #[error("{}: larger than {limit} bytes, which no tokenizer is", file.display())]
    TooLarge {
        /// The file.
        file: PathBuf,
        /// The limit in bytes.
        limit: u64,
    },
    /// The file does not describe a tokenizer.
    #[error("{}: not a tokenizer: {message}; expected the tokenizer.json of the `tokenizers` library", file.display())]
    Invalid {
        /// The file.
        file: PathBuf,
        /// What the library said.
        message: String,
    },
    /// The tokenizer makes ids that the model does not have.
    #[error("{}: holds the token id {id}; expected ids below {vocab}, the model's vocabulary", file.display())]
    Vocab {
        /// The file.
        file: PathBuf,
        /// The largest id.
        id: u32,
        /// The model's vocabulary.
        vocab: usize,
    },
    /// The text cannot be encoded.
    #[error("{}: cannot encode the text: {message}", file.display())]
    Encode {
        /// The tokenizer's file.
        file: PathBuf,
        /// What the library said.
        message: String,
    },
    /// The ids cannot be decoded.
    #[error("{}: cannot decode the token ids: {message}", file.display())]
    Decode {
        /// The tokenizer's file.
        file: PathBuf,
        /// What the library said.
        message: String,
    },
}

/// A checkpoint's tokenizer. Cloning is cheap.
#[derive(Clone)]
pub struct TextCodec {
    inner: Arc<Inner>,
}

struct Inner {
    file: PathBuf,
    tokenizer: Tokenizer,
    /// Sorted.
    special_ids: Vec<u32>,
    /// Of the longest token.
    longest_token_bytes: usize,
    /// Whether tokens spell bytes, so that a token's bytes do not depend on its neighbours.
    is_byte_level: bool,
}

impl TextCodec {
    /// Reads `tokenizer.json` of a model folder; `None` if there is none, in which case a model runs on ids alone.
    ///
    /// Truncation and padding that the file may ask for are training settings and switched off: a prompt is never
    /// shortened silently.
    ///
    /// # Errors
    /// [`TextError`] if the file is there but is not a tokenizer.
    pub fn load(dir: &Path) -> Result<Option<Self>, TextError> {
        let file = dir.join("tokenizer.json");
        let io = |source| TextError::Io { file: file.clone(), source };
        match std::fs::metadata(&file) {
            Ok(metadata) if metadata.is_file() => {}
            Ok(_) => return Err(io(std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file"))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !file.is_symlink() => return Ok(None),
            Err(error) => return Err(io(error)),
        }
        let mut bytes = Vec::new();
        std::fs::File::open(&file).map_err(io)?.take(MAX_TOKENIZER_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
        if bytes.len() as u64 > MAX_TOKENIZER_BYTES {
            return Err(TextError::TooLarge { file, limit: MAX_TOKENIZER_BYTES });
        }
        Self::from_bytes(&bytes, &file).map(Some)
    }

    /// Reads the contents of a `tokenizer.json`; `path` is only used to name the file in errors.
    ///
    /// # Errors
    /// [`TextError::Invalid`] if they do not describe a tokenizer.
    pub fn from_bytes(bytes: &[u8], path: &Path) -> Result<Self, TextError> {
        let invalid = |message: String| TextError::Invalid { file: path.to_path_buf(), message };
        // The library panics on text that is not JSON, if the fault is at an unlucky place; what else may make it panic
        // is not known, but a broken file must not take the process down.
        serde_json::from_slice::<serde::de::IgnoredAny>(bytes).map_err(|error| invalid(error.to_string()))?;
        let parsed = std::panic::catch_unwind(|| Tokenizer::from_bytes(bytes));
        let mut tokenizer = match parsed {
            Ok(parsed) => parsed.map_err(|error| invalid(error.to_string()))?,
            Err(_) => return Err(invalid("its parts contradict each other".to_owned())),
        };
        tokenizer.with_truncation(None).map_err(|error| invalid(error.to_string()))?.with_padding(None);
        let added = tokenizer.get_added_tokens_decoder();
        let mut special_ids: Vec<u32> = added.iter().filter(|(_, token)| token.special).map(|(id, _)| *id).collect();
        special_ids.sort_unstable();
        let is_byte_level = matches!(tokenizer.get_decoder(), Some(DecoderWrapper::ByteLevel(_)));
        let longest = tokenizer.get_vocab(true).into_keys().map(|token| token.len()).max();
        let longest_token_bytes = longest.unwrap_or(1).max(1);
        let inner = Inner { file: path.to_path_buf(), tokenizer, special_ids, longest_token_bytes, is_byte_level };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The ids of `text`. Special tokens written out in the text are recognised; `add_special` also adds those that the
    /// tokenizer puts around every text (a begin-of-sentence token, for example).
    ///
    /// # Errors
    /// [`TextError::Encode`] if the tokenizer has no token for some of the text.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TextError> {
        match self.inner.tokenizer.encode(text, add_special) {
            Ok(encoding) => Ok(encoding.get_ids().to_vec()),
            Err(error) => Err(TextError::Encode { file: self.inner.file.clone(), message: error.to_string() }),
        }
    }

    /// The text of `ids`, without special tokens. Ids that the tokenizer does not have stand for no text, as models
    /// have more rows than tokens; bytes that are not UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// [`TextError::Decode`] if the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TextError> {
        self.inner.decode(ids)
    }

    /// A decoder that takes one id at a time.
    pub fn stream(&self) -> StreamDecoder {
        StreamDecoder::new(Arc::clone(&self.inner))
    }

    /// The ids of special tokens, in order. They have no text in an answer.
    pub fn special_token_ids(&self) -> &[u32] {
        &self.inner.special_ids
    }

    /// Bytes of the longest token as the file writes it, at least 1: no token stands for more text than that, but for what a
    /// tokenizer drops altogether.
    pub fn longest_token_bytes(&self) -> usize {
        self.inner.longest_token_bytes
    }

    /// What one token stands for, by itself: its bytes, which may be a part of a character; a special token's own name. Nothing
    /// for ids that the tokenizer does not have.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        let Some(token) = self.inner.tokenizer.id_to_token(id) else { return Vec::new() };
        if self.inner.is_special(id) {
            return token.into_bytes();
        }
        if self.inner.is_byte_level {
            return bytes::token_bytes(&token);
        }
        // Only a decoder that fails on everything fails here; the token's own spelling is the next best.
        self.inner.decode(&[id]).unwrap_or(token).into_bytes()
    }

    /// The same as text; where it is a part of a character, `bytes:` and the bytes in hexadecimal, as other servers write it.
    pub fn token_text(&self, id: u32) -> String {
        String::from_utf8(self.token_bytes(id)).unwrap_or_else(|error| {
            let bytes = error.into_bytes();
            bytes.iter().fold("bytes:".into(), |text, byte| format!("{text}\\x{byte:02x}"))
        })
    }

    /// The id of a token by its text, `<|story|>` for example.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.tokenizer.token_to_id(token)
    }

    /// Checks that every token has a row in a model of `vocab` rows.
    ///
    /// # Errors
    /// [`TextError::Vocab`], naming the largest id.
    pub fn check_vocab(&self, vocab: usize) -> Result<(), TextError> {
        match self.inner.tokenizer.get_vocab(true).into_values().max() {
            Some(id) if id as usize >= vocab => Err(TextError::Vocab { file: self.inner.file.clone(), id, vocab }),
            _ => Ok(()),
        }
    }
}

impl std::fmt::Debug for TextCodec {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("TextCodec").field("file", &self.inner.file).finish_non_exhaustive()
    }
}

impl Inner {
    fn decode(&self, ids: &[u32]) -> Result<String, TextError> {
        let decoded = self.tokenizer.decode(ids, true);
        decoded.map_err(|error| TextError::Decode { file: self.file.clone(), message: error.to_string() })
    }

    fn is_special(&self, id: u32) -> bool {
        self.special_ids.binary_search(&id).is_ok()
    }
}
