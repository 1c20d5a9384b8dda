//! What stands in a journal: records, their bytes, and what a whole file of them adds up to.
//!
//! A file begins with [`MAGIC`]. Each record is its length (4 bytes), a checksum of its bytes (8 bytes, the first of their SHA-256), and
//! its bytes. All numbers are little-endian. The first record says what the run is of, one a request follows, and then come tokens, ends
//! and how far the output has got, in the order in which they happened.

use crate::requests::RequestId;
use rally_engine::hosts::samples::{read_sample, read_sampling, write_sample, write_sampling};
use rally_engine::schedule::batch::SequenceRequest;
use rally_engine::schedule::planner::FinishReason;
use rally_engine::stage::Sample;
use rally_transport::codec::{CodecError, Reader, Writer};
use rally_transport::handshake::Hash;
use std::sync::Arc;

/// First bytes of a journal; the last is the version of its form.
pub const MAGIC: [u8; 8] = *b"rallyjl1";
/// Length and checksum.
const HEAD_BYTES: usize = 12;
/// Longest record: a token with its logits or a prompt of some ten million tokens fits.
const MOST_RECORD_BYTES: usize = 64 << 20;
/// Longest text of a request.
const MOST_TEXT_BYTES: usize = 16 << 20;
/// Most requests of a run.
const MOST_REQUESTS: usize = 1 << 24;

/// What a run is of. Only where all of it is the same do tokens go on as they began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Version of rally.
    pub version: String,
    /// Name of the graph, for people.
    pub graph_name: String,
    /// Of all in the graph that tokens may depend on.
    pub graph: Hash,
    /// Of the model's shapes and weights.
    pub model: Hash,
    /// Requests of the run.
    pub requests: usize,
    /// The regular file that stdout was, if it was one, and its length when the run began.
    pub stdout: Option<OutputPlace>,
}

/// A regular file as stdout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutputPlace {
    /// Its device.
    pub device: u64,
    /// Its number there.
    pub inode: u64,
    /// Its length.
    pub bytes: u64,
}

/// A request with all that its answer follows from.
#[derive(Clone, Debug, PartialEq)]
pub struct JournaledRequest {
    /// As in the request.
    pub id: RequestId,
    /// Shown before its text.
    pub opening: String,
    /// What is decoded.
    pub sequence: SequenceRequest,
    /// Stop strings.
    pub stops: Vec<String>,
}

/// How far the output on stdout has got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Requests that are completely printed.
    pub requests: usize,
    /// Whether the next one has begun.
    pub opened: bool,
    /// Bytes of its text that are out.
    pub bytes: u64,
}

/// A record.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// The first one.
    Begin(Origin),
    /// A request; they follow each other in order.
    Request(Box<JournaledRequest>),
    /// The token of this index of the request that `sample` names.
    Token {
        /// Index among the generated ones.
        index: u64,
        /// The token and what was asked for with it.
        sample: Sample,
    },
    /// A request has ended.
    End {
        /// Which.
        request: usize,
        /// Why.
        reason: FinishReason,
    },
    /// So much is on stdout.
    Printed(Position),
}

/// Why a file is no journal that a run can go on from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JournalFault {
    /// Another file.
    #[error("it is no journal of a run: it begins otherwise than with `rallyjl1`")]
    NoJournal,
    /// A record whose checksum is wrong, and others after it: not the end of a process that died writing.
    #[error("the record at byte {at} is damaged, and others follow it")]
    Damaged {
        /// Where it begins.
        at: usize,
    },
    /// A record that is whole and makes no sense.
    #[error("the record at byte {at} makes no sense: {source}")]
    Record {
        /// Where it begins.
        at: usize,
        /// What was expected.
        source: CodecError,
    },
    /// A record where it cannot be.
    #[error("the record at byte {at} is {what}")]
    OutOfPlace {
        /// Where it begins.
        at: usize,
        /// What it is.
        what: String,
    },
    /// The requests are not all there.
    #[error("only {found} of {expected} requests are in it")]
    Incomplete {
        /// Requests that are there.
        found: usize,
        /// Requests that the run has.
        expected: usize,
    },
}

/// What a journal adds up to.
#[derive(Clone, Debug, PartialEq)]
pub struct Contents {
    /// What the run is of.
    pub origin: Origin,
    /// Its requests.
    pub requests: Vec<JournaledRequest>,
    /// By request, its tokens in order.
    pub tokens: Vec<Vec<Sample>>,
    /// By request, why it has ended.
    pub ends: Vec<Option<FinishReason>>,
    /// What is on stdout.
    pub printed: Position,
    /// Bytes of the file that are whole records. What follows is half a record, which a process that died left.
    pub whole_bytes: usize,
}

impl Record {
    /// As in the file, length and checksum included.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Token { index, sample } => encode_token(*index, sample),
            Self::Begin(origin) => frame(&encode_origin(origin)),
            Self::Request(request) => encode_request(request),
            Self::End { request, reason } => {
                frame(&Writer::default().u8(4).count(*request).u8(reason_code(*reason)).finish())
            }
            Self::Printed(Position { requests, opened, bytes }) => {
                frame(&Writer::default().u8(5).count(*requests).u8(u8::from(*opened)).u64(*bytes).finish())
            }
        }
    }

    fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut reader = Reader::new(bytes);
        let record = match reader.u8("a record")? {
            1 => Self::Begin(decode_origin(&mut reader)?),
            2 => Self::Request(Box::new(decode_request(&mut reader)?)),
            3 => Self::Token { index: reader.u64("a token's index")?, sample: read_sample(&mut reader, None)? },
            4 => Self::End { request: reader.count(MOST_REQUESTS, "a request")?, reason: decode_reason(&mut reader)? },
            5 => Self::Printed(Position {
                requests: reader.count(MOST_REQUESTS, "a number of requests")?,
                opened: reader.flag("whether one has begun")?,
                bytes: reader.u64("a number of bytes")?,
            }),
            _ => return Err(CodecError { what: "a record", at: 0 }),
        };
        reader.end("the end of a record")?;
        Ok(record)
    }
}

fn frame(payload: &[u8]) -> Vec<u8> {
    let mut writer = Writer::with_capacity(HEAD_BYTES + payload.len());
    writer.count(payload.len()).raw(&checksum(payload)).raw(payload).finish()
}

fn checksum(payload: &[u8]) -> [u8; 8] {
    let mut check = [0; 8];
    check.copy_from_slice(&Hash::of(&[payload]).0[..8]);
    check
}

fn reason_code(reason: FinishReason) -> u8 {
    match reason {
        FinishReason::Stop => 0,
        FinishReason::Length => 1,
        FinishReason::Cancelled => 2,
    }
}

fn decode_reason(reader: &mut Reader<'_>) -> Result<FinishReason, CodecError> {
    match reader.u8("a reason")? {
        0 => Ok(FinishReason::Stop),
        1 => Ok(FinishReason::Length),
        2 => Ok(FinishReason::Cancelled),
        _ => Err(CodecError { what: "a reason", at: 0 }),
    }
}

fn encode_origin(origin: &Origin) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.u8(1).text(&origin.version).text(&origin.graph_name).raw(&origin.graph.0).raw(&origin.model.0);
    writer.count(origin.requests).u8(u8::from(origin.stdout.is_some()));
    if let Some(OutputPlace { device, inode, bytes }) = origin.stdout {
        writer.u64(device).u64(inode).u64(bytes);
    }
    writer.finish()
}

fn decode_origin(reader: &mut Reader<'_>) -> Result<Origin, CodecError> {
    Ok(Origin {
        version: reader.text(256, "a version")?.into(),
        graph_name: reader.text(MOST_TEXT_BYTES, "a graph's name")?.into(),
        graph: Hash(reader.array("a graph's hash")?),
        model: Hash(reader.array("a model's hash")?),
        requests: reader.count(MOST_REQUESTS, "a number of requests")?,
        stdout: match reader.flag("whether stdout was a file")? {
            false => None,
            true => Some(OutputPlace {
                device: reader.u64("a device")?,
                inode: reader.u64("a file's number")?,
                bytes: reader.u64("a length")?,
            }),
        },
    })
}

/// [`Record::Request`] without a copy of the prompt.
pub(super) fn encode_request(request: &JournaledRequest) -> Vec<u8> {
    let JournaledRequest { id, opening, sequence, stops } = request;
    let mut writer = Writer::with_capacity(256 + 4 * sequence.prompt.len());
    writer.u8(2).text(id.as_str()).u8(u8::from(id.is_number())).text(opening);
    for list in [&sequence.prompt, &sequence.stop_token_ids] {
        writer.count(list.len());
        for token in list.iter() {
            writer.u32(*token);
        }
    }
    writer.u64(sequence.max_new_tokens as u64);
    write_sampling(&mut writer, &sequence.sampling, &sequence.detail);
    writer.count(stops.len());
    for stop in stops {
        writer.text(stop);
    }
    frame(&writer.finish())
}

fn decode_request(reader: &mut Reader<'_>) -> Result<JournaledRequest, CodecError> {
    let text = reader.text(MOST_TEXT_BYTES, "an id")?.to_owned();
    let id = RequestId::new(text, reader.flag("whether the id is a number")?);
    let opening = reader.text(MOST_TEXT_BYTES, "an opening")?.into();
    let prompt = decode_tokens(reader)?;
    let stop_token_ids = decode_tokens(reader)?;
    let max_new_tokens = usize::try_from(reader.u64("a number of tokens")?).unwrap_or(usize::MAX);
    let (sampling, detail) = read_sampling(reader)?;
    let stops = reader.length(4, "a number of stop strings")?;
    let stop = |reader: &mut Reader<'_>| Ok(reader.text(MOST_TEXT_BYTES, "a stop string")?.to_owned());
    let stops = (0..stops).map(|_| stop(reader)).collect::<Result<_, CodecError>>()?;
    let generated = Arc::default();
    let sequence = SequenceRequest { generated, id: 0, prompt, max_new_tokens, stop_token_ids, sampling, detail };
    Ok(JournaledRequest { id, opening, sequence, stops })
}

fn decode_tokens(reader: &mut Reader<'_>) -> Result<Arc<[u32]>, CodecError> {
    let count = reader.length(4, "a number of tokens")?;
    (0..count).map(|_| reader.u32("a token")).collect()
}

/// [`Record::Token`] without a copy of the sample.
pub(super) fn encode_token(index: u64, sample: &Sample) -> Vec<u8> {
    let mut writer = Writer::with_capacity(64);
    write_sample(writer.u8(3).u64(index), sample);
    frame(&writer.finish())
}

/// Furthest that a tail which is no record is searched for records.
const MOST_SEARCHED_BYTES: usize = 1 << 20;

/// The record that begins at `at`, if it is whole: its bytes, and where the next one begins.
fn record_at(bytes: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let mut reader = Reader::new(bytes.get(at..)?);
    let length = reader.count(MOST_RECORD_BYTES, "a length").ok().filter(|length| *length > 0)?;
    let check: [u8; 8] = reader.array("a checksum").ok()?;
    let payload = reader.raw(length, "a record").ok()?;
    (checksum(payload) == check).then_some((payload, at + HEAD_BYTES + length))
}

/// Reads a whole journal.
///
/// # Errors
/// [`JournalFault`]; half a record at the end is none.
pub fn read(bytes: &[u8]) -> Result<Contents, JournalFault> {
    if !bytes.starts_with(&MAGIC) {
        return Err(JournalFault::NoJournal);
    }
    let mut at = MAGIC.len();
    let mut contents: Option<Contents> = None;
    while let Some((payload, end)) = record_at(bytes, at) {
        let record = Record::decode(payload).map_err(|source| JournalFault::Record { at, source })?;
        add(&mut contents, record).map_err(|what| JournalFault::OutOfPlace { at, what })?;
        at = end;
    }
    // Half a record, or one that reached the disk in parts, has nothing behind it.
    let last = bytes.len().min(at + MOST_SEARCHED_BYTES);
    if (at + 1..last).any(|at| record_at(bytes, at).is_some()) {
        return Err(JournalFault::Damaged { at });
    }
    let mut contents = contents.ok_or(JournalFault::Incomplete { found: 0, expected: 1 })?;
    let (found, expected) = (contents.requests.len(), contents.origin.requests);
    if found < expected {
        return Err(JournalFault::Incomplete { found, expected });
    }
    contents.whole_bytes = at;
    Ok(contents)
}

fn add(contents: &mut Option<Contents>, record: Record) -> Result<(), String> {
    let Some(contents) = contents else {
        let Record::Begin(origin) = record else { return Err("not what a journal begins with".into()) };
        let printed = Position::default();
        let (requests, tokens, ends) = (Vec::new(), Vec::new(), Vec::new());
        *contents = Some(Contents { origin, requests, tokens, ends, printed, whole_bytes: 0 });
        return Ok(());
    };
    let complete = contents.requests.len() == contents.origin.requests;
    match record {
        Record::Request(mut request) if !complete => {
            request.sequence.id = contents.requests.len() as u64;
            contents.requests.push(*request);
            contents.tokens.push(Vec::new());
            contents.ends.push(None);
            Ok(())
        }
        Record::Token { index, sample } if complete => {
            let request = usize::try_from(sample.sequence).unwrap_or(usize::MAX);
            let tokens =
                contents.tokens.get_mut(request).ok_or_else(|| format!("of a request {request} that is not there"))?;
            if contents.ends[request].is_some() {
                return Err(format!("a token of request {request} after its end"));
            }
            if index != tokens.len() as u64 {
                return Err(format!("token {index} of request {request}, where token {} is due", tokens.len()));
            }
            tokens.push(sample);
            Ok(())
        }
        Record::End { request, reason } if complete => {
            let end =
                contents.ends.get_mut(request).ok_or_else(|| format!("of a request {request} that is not there"))?;
            match end.replace(reason) {
                None => Ok(()),
                Some(_) => Err(format!("a second end of request {request}")),
            }
        }
        Record::Printed(position) if complete && position.requests <= contents.requests.len() => {
            contents.printed = position;
            Ok(())
        }
        _ => Err("not one that may stand there".into()),
    }
}
