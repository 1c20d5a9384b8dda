//! API keys: who may ask. They are compared in a time that says nothing about them, and never printed.

use std::fmt;
use std::path::{Path, PathBuf};
use subtle::ConstantTimeEq;

/// Longest key.
const MOST_BYTES: usize = 256;
const MOST_KEYS: usize = 10_000;
/// Where keys are looked for without a file: separated by commas or white space.
pub const VARIABLE: &str = "RALLY_API_KEYS";

/// Why there are no keys to compare with. Says which, never what they are.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read.
    #[error("{}: cannot be read: {source}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// There is none: nobody could ask.
    #[error("{place} has no API key")]
    None {
        /// The file or variable.
        place: String,
    },
    /// More than anyone has.
    #[error("{place} has more than {MOST_KEYS} API keys")]
    TooMany {
        /// The file or variable.
        place: String,
    },
    /// One that no client could send.
    #[error("{place}: API key {number} is not of 1 to {MOST_BYTES} printable ASCII characters without spaces")]
    Unusable {
        /// The file or variable.
        place: String,
        /// Which one, from 1.
        number: usize,
    },
}

#[derive(Clone, PartialEq, Eq)]
struct Key {
    /// Filled up with zeros, which no key contains.
    bytes: [u8; MOST_BYTES],
}

impl Key {
    fn new(text: &str) -> Option<Self> {
        let usable = (1..=MOST_BYTES).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        let mut bytes = [0; MOST_BYTES];
        usable.then(|| bytes[..text.len()].copy_from_slice(text.as_bytes()))?;
        Some(Self { bytes })
    }
}

/// At least one key.
#[derive(Clone)]
pub struct Keys(Vec<Key>);

impl fmt::Debug for Keys {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} API keys", self.0.len())
    }
}

impl Keys {
    /// Those of a file, one a line; empty lines and lines that begin with `#` are none.
    ///
    /// # Errors
    /// It cannot be read, has none, or one that cannot be used.
    pub fn from_file(file: &Path) -> Result<Self, KeyError> {
        let text = std::fs::read_to_string(file).map_err(|source| KeyError::Io { file: file.into(), source })?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        Self::new(&file.display().to_string(), lines)
    }

    /// Those of the environment variable [`VARIABLE`]; `None` if it is not set.
    ///
    /// # Errors
    /// It is set, but has none or one that cannot be used.
    pub fn from_environment() -> Result<Option<Self>, KeyError> {
        let Some(text) = std::env::var_os(VARIABLE) else { return Ok(None) };
        let text = text.to_string_lossy();
        let words = text.split(|c: char| c == ',' || c.is_whitespace()).filter(|word| !word.is_empty());
        Self::new(VARIABLE, words).map(Some)
    }

    fn new<'a>(place: &str, texts: impl Iterator<Item = &'a str>) -> Result<Self, KeyError> {
        let key =
            |(index, text)| Key::new(text).ok_or_else(|| KeyError::Unusable { place: place.into(), number: index + 1 });
        let keys = texts.take(MOST_KEYS + 1).enumerate().map(key).collect::<Result<Vec<_>, _>>()?;
        match keys.len() {
            0 => Err(KeyError::None { place: place.into() }),
            count if count > MOST_KEYS => Err(KeyError::TooMany { place: place.into() }),
            _ => Ok(Self(keys)),
        }
    }

    /// Which key this is; `None` if none. Takes equally long for every text.
    pub(crate) fn find(&self, text: &str) -> Option<usize> {
        let given = Key::new(text);
        // A text that can be no key is compared all the same.
        let bytes = given.as_ref().map_or([0; MOST_BYTES], |key| key.bytes);
        let mut found = None;
        for (index, key) in self.0.iter().enumerate() {
            if bool::from(key.bytes.ct_eq(&bytes)) {
                found = Some(index);
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_one_of_those_and_nothing_else() {
        let keys = Keys::new("here", ["sk-one", "sk-two"].into_iter()).expect("they can be used");
        assert_eq!((keys.find("sk-one"), keys.find("sk-two")), (Some(0), Some(1)));
        for other in ["", "sk-on", "sk-one1", "sk-one ", "SK-ONE", "\0", &"x".repeat(300), "sk-öne"] {
            assert_eq!(keys.find(other), None, "{other:?}");
        }
        assert!(!format!("{keys:?}").contains("sk-"), "keys are never printed");
    }

    #[test]
    fn a_file_has_a_key_a_line() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("keys");
        let read = |text: &str| {
            std::fs::write(&file, text).expect("it can be written");
            Keys::from_file(&file)
        };
        assert_eq!(read("# ours\n\n  sk-one  \nsk-two\n").expect("two").0.len(), 2);
        assert!(matches!(read("# none\n"), Err(KeyError::None { .. })));
        let error = read("fine\nsecret words\n").expect_err("a space").to_string();
        assert!(error.contains("API key 2") && !error.contains("secret"), "{error}");
        assert!(matches!(Keys::from_file(&folder.path().join("no")), Err(KeyError::Io { .. })));
    }
}
