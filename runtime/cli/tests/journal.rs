//! Journals: what is written is read, a file that ends anywhere is read up to there, and no byte changes unnoticed.

use proptest::prelude::*;
use rally_cli::journal::record::{Contents, JournalFault, JournaledRequest, MAGIC, Origin, Position, Record, read};
use rally_cli::journal::{Journal, JournalError, SyncPolicy};
use rally_cli::requests::RequestId;
use rally_engine::schedule::batch::{SamplingParams, SequenceRequest, TokenDetail};
use rally_engine::schedule::planner::FinishReason;
use rally_engine::stage::Sample;
use rally_transport::handshake::Hash;

fn origin(requests: usize) -> Record {
    Record::Begin(Origin {
        version: "0.1.0".into(),
        graph_name: "graph".into(),
        graph: Hash::of(&[b"graph"]),
        model: Hash::of(&[b"model"]),
        requests,
        stdout: None,
    })
}

fn request(index: u64) -> JournaledRequest {
    JournaledRequest {
        id: RequestId::from_index(index as usize),
        opening: "Es war einmal, ☃".into(),
        sequence: SequenceRequest {
            id: index,
            prompt: [1, 2, 70_000].into(),
            generated: [].into(),
            max_new_tokens: 9,
            stop_token_ids: [2].into(),
            sampling: SamplingParams { temperature: 0.7, top_k: 4, top_p: 0.9, min_p: 0.01, seed: u64::MAX },
            detail: TokenDetail { logprobs: Some(2), logits: false },
        },
        stops: vec!["the end".into(), "\n\n".into()],
    }
}

fn token(request: u64, index: u64) -> Record {
    let logprobs = (request == 1).then(|| (-0.5, vec![(7, -0.5), (8, -1.25)]));
    let logits = (request == 2).then(|| vec![0.0, f32::NEG_INFINITY, 3.5]);
    Record::Token {
        index,
        sample: Sample { sequence: request, token: (index * 31 + request) as u32, logprobs, logits },
    }
}

fn bytes(records: &[Record]) -> Vec<u8> {
    records.iter().fold(MAGIC.to_vec(), |mut bytes, record| {
        bytes.extend(record.encode());
        bytes
    })
}

fn begun() -> Vec<Record> {
    let requests = (0..3).map(|index| Record::Request(Box::new(request(index))));
    std::iter::once(origin(3)).chain(requests).collect()
}

/// A run of three requests, tokens in turn.
fn whole() -> Vec<Record> {
    let mut records = begun();
    for index in 0..4 {
        records.extend((0..3).filter(|request| *request != 0 || index < 2).map(|request| token(request, index)));
        if index == 1 {
            records.push(Record::End { request: 0, reason: FinishReason::Stop });
            records.push(Record::Printed(Position { requests: 1, opened: false, bytes: 0 }));
        }
    }
    records.push(Record::End { request: 2, reason: FinishReason::Length });
    records
}

#[test]
fn what_is_written_is_read() {
    let bytes = bytes(&whole());
    let contents = read(&bytes).expect("it is whole");
    assert_eq!(contents.requests, (0..3).map(request).collect::<Vec<_>>());
    let counts: Vec<usize> = contents.tokens.iter().map(Vec::len).collect();
    assert_eq!(counts, [2, 4, 4]);
    let Record::Token { sample, .. } = token(1, 3) else { unreachable!() };
    assert_eq!(contents.tokens[1][3], sample);
    assert_eq!(contents.ends, [Some(FinishReason::Stop), None, Some(FinishReason::Length)]);
    assert_eq!((contents.printed.requests, contents.whole_bytes), (1, bytes.len()));
}

/// What a process that dies leaves: every length that a file can have.
#[test]
fn a_file_that_ends_anywhere_is_read_up_to_its_last_whole_record() {
    let (records, all) = (whole(), bytes(&whole()));
    let mut ends = vec![MAGIC.len()];
    records.iter().for_each(|record| ends.push(ends[ends.len() - 1] + record.encode().len()));
    for length in 0..all.len() {
        let records_in = ends.iter().filter(|end| **end <= length).count().saturating_sub(1);
        match read(&all[..length]) {
            Ok(contents) => {
                assert_eq!(contents.whole_bytes, ends[records_in], "{length}");
                assert_eq!(Ok(contents), read(&bytes(&records[..records_in])));
            }
            Err(JournalFault::NoJournal) => assert!(length < MAGIC.len()),
            Err(JournalFault::Incomplete { .. }) => assert!(records_in < begun().len(), "{length}"),
            Err(other) => panic!("{length}: {other}"),
        }
    }
}

/// Blocks that were never written are zeros after a crash.
#[test]
fn zeros_behind_the_last_record_are_cut_off() {
    let whole = bytes(&whole());
    let contents = read(&[whole.clone(), vec![0; 4096]].concat()).expect("it is whole");
    assert_eq!(contents.whole_bytes, whole.len());
}

#[test]
fn records_out_of_place_are_named() {
    let cases: [(Vec<Record>, &str); 7] = [
        (vec![token(0, 0)], "not what a journal begins with"),
        ([begun(), vec![token(0, 1)]].concat(), "token 1 of request 0, where token 0 is due"),
        ([begun(), vec![token(0, 0), token(0, 0)]].concat(), "token 0 of request 0, where token 1 is due"),
        ([begun(), vec![token(3, 0)]].concat(), "of a request 3 that is not there"),
        ([begun(), begun()].concat(), "not one that may stand there"),
        (
            [begun(), vec![Record::End { request: 1, reason: FinishReason::Stop }, token(1, 0)]].concat(),
            "a token of request 1 after its end",
        ),
        (
            [begun(), vec![Record::End { request: 1, reason: FinishReason::Stop }; 2]].concat(),
            "a second end of request 1",
        ),
    ];
    for (records, said) in cases {
        let fault = read(&bytes(&records)).expect_err(said);
        assert!(fault.to_string().contains(said), "{fault}");
    }
}

/// Whoever goes on must be what began; and nobody else may be at it.
#[test]
fn a_journal_of_something_else_is_refused_with_both_values() {
    let folder = tempfile::tempdir().expect("a folder can be had");
    let path = folder.path().join("a.journal");
    let Record::Begin(origin) = origin(3) else { unreachable!() };
    let new = || Journal::create(&path, origin.clone(), (0..3).map(request), SyncPolicy::Step);
    let journal = new().expect("there is none yet");
    assert!(matches!(new(), Err(JournalError::Exists { .. })));
    assert!(matches!(Journal::open(&path, &origin, SyncPolicy::Step), Err(JournalError::Taken { .. })));
    drop(journal);
    let said = |here: Origin| match Journal::open(&path, &here, SyncPolicy::Step) {
        Err(error @ JournalError::Differs { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    };
    let version = said(Origin { version: "9.9.9".into(), ..origin.clone() });
    assert!(version.contains("0.1.0 there, 9.9.9 here"), "{version}");
    let (model, other) = (Hash::of(&[b"model"]), Hash::of(&[b"other"]));
    let said_of_model = said(Origin { model: other, ..origin.clone() });
    assert!(said_of_model.contains(&format!("another model: {model} there, {other} here")), "{said_of_model}");
    let said_of_graph = said(Origin { graph: other, graph_name: "b".into(), ..origin.clone() });
    assert!(said_of_graph.contains(&format!("`b` ({other}) here")), "{said_of_graph}");
    let (_, contents) = Journal::open(&path, &origin, SyncPolicy::Never).expect("it is this run's");
    assert_eq!(contents.requests.len(), 3);
}

proptest! {
    /// A flipped bit is a fault, or it is in the last record, which is then cut off.
    #[test]
    fn no_bit_changes_unnoticed(place in any::<prop::sample::Index>(), bit in 0..8u32) {
        let (records, mut all) = (whole(), bytes(&whole()));
        let place = place.index(all.len());
        all[place] ^= 1 << bit;
        let last = all.len() - records[records.len() - 1].encode().len();
        match read(&all) {
            Err(fault) => prop_assert!(place < last || fault == JournalFault::NoJournal, "{fault}"),
            Ok(Contents { whole_bytes, .. }) => prop_assert!(place >= last && whole_bytes == last),
        }
    }

    #[test]
    fn junk_is_no_journal(junk in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(read(&junk).is_err());
        prop_assert!(read(&[&MAGIC[..], &junk].concat()).is_err());
    }
}
