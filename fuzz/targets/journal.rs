//! Journals of any bytes, and of any bytes whose checksums are right: read, or refused by name. What can be read adds up.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rally_cli::journal::record::{MAGIC, read};
use rally_transport::handshake::Hash;

fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    // The same as records: pieces behind their lengths, which get the checksums that nobody guesses.
    let (mut journal, mut rest) = (MAGIC.to_vec(), bytes);
    while let [low, high, tail @ ..] = rest {
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(tail.len());
        let (payload, behind) = tail.split_at(length);
        journal.extend((length as u32).to_le_bytes());
        journal.extend(&Hash::of(&[payload]).0[..8]);
        journal.extend(payload);
        rest = behind;
    }
    check(&journal);
});

fn check(bytes: &[u8]) {
    let Ok(contents) = read(bytes) else { return };
    assert!(contents.whole_bytes <= bytes.len());
    assert_eq!(contents.requests.len(), contents.origin.requests);
    assert_eq!((contents.tokens.len(), contents.ends.len()), (contents.requests.len(), contents.requests.len()));
    // Floats that are no numbers are equal to nothing: what is cut off changes nothing else.
    let again = read(&bytes[..contents.whole_bytes]).expect("what is whole is read");
    assert_eq!(again.whole_bytes, contents.whole_bytes);
    assert!(again.tokens.iter().map(Vec::len).eq(contents.tokens.iter().map(Vec::len)));
}
