//! Text: encoding, streaming that equals decoding at once, and stop strings that do not depend on where text is cut.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::LazyLock;

use proptest::prelude::*;
use rally_stages::text::{StopScanner, TextCodec, TextError};

/// GPT-2's table: the character that stands for a byte.
fn byte_character(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let number = (0..byte).filter(|byte| !printable(*byte)).count() as u32;
    char::from_u32(256 + number).unwrap()
}

const MERGES: [(&str, &str); 6] = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ã", "©"), ("Ġ", "hello")];

/// A byte-level tokenizer of 256 bytes (the token of a byte is the byte), a few merges, and the special tokens 262 and 263 (the latter not in ASCII).
fn tokenizer_json(decoder: &str) -> String {
    let quote = |text: &str| serde_json::to_string(text).unwrap();
    let bytes = (0..=255_u8).map(|byte| byte_character(byte).to_string());
    let words = bytes.chain(MERGES.iter().map(|(left, right)| format!("{left}{right}")));
    let vocab: Vec<String> = words.enumerate().map(|(id, word)| format!("{}:{id}", quote(&word))).collect();
    let merges: Vec<String> =
        MERGES.iter().map(|(left, right)| format!("[{},{}]", quote(left), quote(right))).collect();
    let added = |id: u32, text: &str, special: bool| {
        format!(
            "{{\"id\":{id},\"content\":{},\"single_word\":false,\"lstrip\":false,\"rstrip\":false,\"normalized\":false,\
             \"special\":{special}}}",
            quote(text)
        )
    };
    format!(
        "{{\"version\":\"1.0\",\"truncation\":{{\"direction\":\"Right\",\"max_length\":4,\"strategy\":\"LongestFirst\",\
         \"stride\":0}},\"padding\":null,\"added_tokens\":[{},{},{}],\"normalizer\":null,\
         \"pre_tokenizer\":{{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,\"use_regex\":true}},\
         \"post_processor\":null,\"decoder\":{decoder},\"model\":{{\"type\":\"BPE\",\"dropout\":null,\
         \"unk_token\":null,\"continuing_subword_prefix\":null,\"end_of_word_suffix\":null,\"fuse_unk\":false,\
         \"byte_fallback\":false,\"ignore_merges\":false,\"vocab\":{{{}}},\"merges\":[{}]}}}}",
        added(262, "<|story|>", true),
        added(263, "<｜end▁here｜>", true),
        added(264, "<think>", false),
        vocab.join(","),
        merges.join(",")
    )
}

const BYTE_LEVEL: &str = "{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"trim_offsets\":true,\"use_regex\":true}";
const SEQUENCE: &str = "{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\
    \"trim_offsets\":true,\"use_regex\":true}]}";

fn codec(decoder: &str) -> TextCodec {
    TextCodec::from_bytes(tokenizer_json(decoder).as_bytes(), Path::new("tokenizer.json")).unwrap()
}

static CODEC: LazyLock<TextCodec> = LazyLock::new(|| codec(BYTE_LEVEL));
/// The same tokenizer, but not recognised as byte-level: takes the general way of streaming.
static GENERAL: LazyLock<TextCodec> = LazyLock::new(|| codec(SEQUENCE));

fn streamed(codec: &TextCodec, ids: &[u32]) -> String {
    let mut stream = codec.stream();
    let mut text: String = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
    text.push_str(&stream.finish().unwrap());
    text
}

#[test]
fn text_is_encoded_and_decoded() {
    let ids = CODEC.encode("<|story|>hello hello é", false).unwrap();
    assert_eq!(ids, [262, 259, 261, 32, 260]);
    assert_eq!(CODEC.decode(&ids).unwrap(), "hello hello é");
    assert_eq!(CODEC.special_token_ids(), [262, 263]);
    assert_eq!(CODEC.token_id("<|story|>"), Some(262));
    assert_eq!(CODEC.decode(&[259, 262, 264, 100_000, 259, 263]).unwrap(), "hello<think>hello");
}

#[test]
fn prompts_are_never_truncated() {
    assert_eq!(CODEC.encode(&"xy".repeat(50), true).unwrap().len(), 100);
}

#[test]
fn half_characters_are_held_back() {
    let mut stream = CODEC.stream();
    let ids: Vec<u32> = "a🙂b".bytes().map(u32::from).collect();
    let pieces: Vec<String> = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
    assert_eq!(pieces, ["a", "", "", "", "🙂", "b"]);
    let mut stream = CODEC.stream();
    assert_eq!(stream.push(0xf0).unwrap() + &stream.push(0x9f).unwrap(), "");
    assert_eq!(stream.finish().unwrap(), "\u{fffd}");
    assert_eq!(stream.push(0x61).unwrap(), "a");
}

#[test]
fn replacement_characters_in_the_text_do_not_cut_the_next_one() {
    // Eight bytes that all decode to U+FFFD, so far, once made the general way give out half a character.
    let text = "\u{fffd}\u{fffd}\u{1e2c0}";
    let ids: Vec<u32> = text.bytes().map(u32::from).collect();
    assert_eq!(streamed(&GENERAL, &ids), text);
}

#[test]
fn broken_tokenizers_are_named() {
    let dir = tempfile::tempdir().unwrap();
    assert!(TextCodec::load(dir.path()).unwrap().is_none());
    let file = dir.path().join("tokenizer.json");
    let good = tokenizer_json(BYTE_LEVEL);
    let unknown_merge = good.replace("[\"h\",\"e\"]", "[\"h\",\"zz\"]");
    for text in
        ["", "{}", "[1]", "not json", &good[..good.len() / 2], &unknown_merge, &good.replace("\"BPE\"", "\"LSTM\"")]
    {
        std::fs::write(&file, text).unwrap();
        let error = TextCodec::load(dir.path()).unwrap_err();
        assert!(matches!(error, TextError::Invalid { .. }), "{error}");
        assert!(error.to_string().starts_with(&file.display().to_string()), "{error}");
    }
    std::fs::write(&file, &good).unwrap();
    let codec = TextCodec::load(dir.path()).unwrap().unwrap();
    codec.check_vocab(265).unwrap();
    assert!(matches!(codec.check_vocab(264), Err(TextError::Vocab { id: 264, vocab: 264, .. })));
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    assert!(matches!(TextCodec::load(dir.path()), Err(TextError::Io { .. })));
}

/// Pushes pieces one by one; what came out, and which stop string ended it.
fn scan(stops: &[&str], pieces: &[&str]) -> (Vec<String>, Option<usize>) {
    let stops: Vec<String> = stops.iter().map(|stop| (*stop).to_owned()).collect();
    let mut scanner = StopScanner::new(&stops);
    let mut out = Vec::new();
    for piece in pieces {
        let scanned = scanner.push(piece);
        out.push(scanned.text);
        if scanned.stop.is_some() {
            assert_eq!(scanner.push("more").text + &scanner.finish(), "");
            return (out, scanned.stop);
        }
    }
    out.push(scanner.finish());
    (out, None)
}

#[test]
fn stop_strings_are_found_across_pieces() {
    for (stops, pieces, out, stop) in [
        (&["END"][..], &["a E", "N", "D b"][..], &["a ", "", ""][..], Some(0)),
        (&["END"], &["a E", "N", "C b"], &["a ", "", "ENC b", ""], None),
        (&["END"], &["EEN", "EN", "D"], &["E", "EN", ""], Some(0)),
        (&["END"], &["a EN"], &["a ", "EN"], None),
        (&["\n\n", "."], &["one\n", "two. three"], &["one", "\ntwo"], Some(1)),
        (&["aab"], &["aaa", "b"], &["a", ""], Some(0)),
        (&["é🙂"], &["xé", "🙂"], &["x", ""], Some(0)),
        // `bc` is complete first although `abcd` begins first.
        (&["abcd", "bc"], &["abcd"], &["a"], Some(1)),
        (&["bc", "abc"], &["xabc"], &["x"], Some(1)),
        (&[""], &["a", "b"], &["a", "b", ""], None),
        (&[], &["a"], &["a", ""], None),
    ] {
        assert_eq!(
            scan(stops, pieces),
            (out.iter().map(|text| (*text).to_owned()).collect(), stop),
            "{stops:?} {pieces:?}"
        );
    }
}

proptest! {
    #[test]
    fn streaming_equals_decoding_at_once(ids in proptest::collection::vec(prop_oneof![0_u32..300, 0xc0_u32..0x100], 0..60)) {
        prop_assert_eq!(streamed(&CODEC, &ids), CODEC.decode(&ids).unwrap());
    }

    #[test]
    fn streamed_text_comes_back(text in "\\PC{0,30}") {
        for codec in [&CODEC, &GENERAL] {
            let ids = codec.encode(&text, false).unwrap();
            let special = ["<|story|>", "<｜end▁here｜>"];
            prop_assume!(special.iter().all(|token| !text.contains(token)));
            prop_assert_eq!(&streamed(codec, &ids), &text);
            // Bytes one at a time, as a model with few merges would give them.
            let ids: Vec<u32> = text.bytes().map(u32::from).collect();
            prop_assert_eq!(&streamed(codec, &ids), &text);
        }
    }

    #[test]
    fn the_general_way_never_loses_later_text(ids in proptest::collection::vec(0_u32..300, 0..60)) {
        let text = streamed(&GENERAL, &[ids, vec![32; 9], GENERAL.encode("end", false).unwrap()].concat());
        prop_assert!(text.ends_with("end"));
    }

    #[test]
    fn stops_do_not_depend_on_the_pieces(text in "[ab]{0,24}", stops in proptest::collection::vec("[ab]{1,4}", 0..4),
        cuts in proptest::collection::vec(0_usize..25, 0..8)) {
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).chain([0, text.len()]).collect();
        cuts.sort_unstable();
        let pieces: Vec<&str> = cuts.windows(2).map(|window| &text[window[0]..window[1]]).collect();
        let words: Vec<&str> = stops.iter().map(String::as_str).collect();
        let (out, stop) = scan(&words, &pieces);
        // By definition: the shortest beginning of the text that ends with a stop string.
        let end = (0..=text.len()).find(|end| words.iter().any(|word| text[..*end].ends_with(word)));
        let longest = end.map(|end| words.iter().filter(|word| text[..end].ends_with(**word)).map(|word| word.len()).max().unwrap());
        let want = end.zip(longest).map_or(text.as_str(), |(end, longest)| &text[..end - longest]);
        prop_assert_eq!(out.concat(), want);
        prop_assert_eq!(stop.map(|stop| words[stop].len()), longest);
    }

    #[test]
    fn nothing_is_held_back_that_cannot_stop(text in "[abc]{1,12}", stop in "[abc]{1,5}") {
        let mut scanner = StopScanner::new(std::slice::from_ref(&stop));
        let scanned = scanner.push(&text);
        if scanned.stop.is_none() {
            let held = &text[scanned.text.len()..];
            let longest = (0..stop.len()).rev().find(|length| text.ends_with(&stop[..*length])).unwrap();
            prop_assert_eq!(held.len(), longest);
        }
    }

    #[test]
    fn damaged_tokenizers_never_panic(changes in proptest::collection::vec((any::<prop::sample::Index>(), 32_u8..127), 1..4)) {
        let mut bytes = tokenizer_json(BYTE_LEVEL).into_bytes();
        for (index, byte) in changes {
            let position = index.index(bytes.len());
            bytes[position] = byte;
        }
        if let Ok(codec) = TextCodec::from_bytes(&bytes, Path::new("tokenizer.json")) {
            let _ = codec.encode("hello é", true);
        }
    }
}
