//! Bytes to text, a few at a time.

/// The bytes that a token of a byte-level tokenizer spells.
///
/// Such a tokenizer writes each byte as one printable character (GPT-2's table): printable bytes of Latin-1 as
/// themselves, the other 68 as the characters from U+0100 on. A token with any other character was added by hand and is
/// taken literally.
pub(super) fn token_bytes(token: &str) -> Vec<u8> {
    token.chars().map(byte_of).collect::<Option<Vec<u8>>>().unwrap_or_else(|| token.as_bytes().to_vec())
}

fn byte_of(character: char) -> Option<u8> {
    let code = u32::from(character);
    let byte = match code {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => code,
        // 0 to 32, 127 to 160, and 173, in order.
        0x100..=0x120 => code - 0x100,
        0x121..=0x142 => code - 0x121 + 127,
        0x143 => 173,
        _ => return None,
    };
    u8::try_from(byte).ok()
}

/// Assembles UTF-8: gives out whole characters, keeps back at most the three bytes of an unfinished one, and replaces
/// what cannot be UTF-8 exactly as [`String::from_utf8_lossy`] would over all bytes at once.
#[derive(Debug, Default)]
pub(super) struct Utf8Assembler {
    pending: Vec<u8>,
}

impl Utf8Assembler {
    pub(super) fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut text = String::new();
        let mut done = 0;
        for chunk in self.pending.utf8_chunks() {
            text.push_str(chunk.valid());
            done += chunk.valid().len();
            if chunk.invalid().is_empty() {
                continue;
            }
            if done + chunk.invalid().len() == self.pending.len() && is_unfinished(chunk.invalid()) {
                break;
            }
            done += chunk.invalid().len();
            text.push(char::REPLACEMENT_CHARACTER);
        }
        self.pending.drain(..done);
        text
    }

    pub(super) fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned()
    }
}

/// Whether more bytes could make a character of these.
fn is_unfinished(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
}
