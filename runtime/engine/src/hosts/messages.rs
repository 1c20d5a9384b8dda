//! What hosts say to each other beside rows, and how it looks on the wire. What is read is held against the sizes of the run
//! before anyone works with it.

use super::samples::{read_sample, read_sampling, write_sample, write_sampling};
use crate::stage::Sample;
use crate::steps::StepEnd;
use rally_schedule::batch::{DeviceBatch, GroupInput, RowGroup, SampleSpec};
use rally_schedule::planner::PlannerConfig;
use rally_transport::codec::{CodecError, Reader, Writer};
use std::ops::Range;

/// Longest reason for a failure.
const MOST_REASON_BYTES: usize = 4096;
/// Most hosts.
const MOST_HOSTS: usize = 65_536;

/// A message.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// Coordinator to a host, first of all: who takes part in this epoch.
    Epoch {
        /// By host.
        present: Vec<bool>,
    },
    /// The host has its connections and its slots.
    Ready {
        /// Its attention devices have what the epoch before left in them.
        keeps: bool,
    },
    /// Coordinator to all: everyone is ready.
    Go,
    /// Coordinator to an attention host: the rows of a step on one of its devices.
    Planned {
        /// Micro-batch.
        micro_batch: usize,
        /// Step.
        step: u64,
        /// Index among the attention devices.
        device: usize,
        /// The rows.
        batch: DeviceBatch,
    },
    /// An attention host to the coordinator: one of its lanes is through with a step.
    StepEnded {
        /// Micro-batch.
        micro_batch: usize,
        /// The lane's device, an index among the attention devices.
        device: usize,
        /// The lane's cycle.
        cycle: u64,
        /// The step that follows.
        next: u64,
        /// What was sampled there.
        samples: Vec<Sample>,
    },
    /// Coordinator to all: the last cycle that lanes begin.
    Finish {
        /// It.
        cycle: u64,
    },
    /// The sender's run has failed.
    Failed {
        /// Why.
        reason: String,
        /// The host that was lost, if that is why.
        lost: Option<usize>,
    },
    /// A host to the coordinator: it was asked to leave.
    Leaving,
    /// Coordinator to a host that wants to leave: nobody else has what it has, and the run needs it.
    Needed,
}

/// What messages must keep to.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Sizes of the run.
    pub planner: PlannerConfig,
    /// Values of a row of logits.
    pub vocab: usize,
}

impl Message {
    /// As on the wire.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::default();
        match self {
            Self::Ready { keeps } => {
                writer.u8(1).u8(u8::from(*keeps));
            }
            Self::Go => {
                writer.u8(2);
            }
            Self::Planned { micro_batch, step, device, batch } => {
                return encode_planned(*micro_batch, *step, *device, batch);
            }
            Self::StepEnded { micro_batch, device, cycle, next, samples } => {
                let (micro_batch, device, cycle, next) = (*micro_batch, *device, *cycle, *next);
                return encode_step_ended(StepEnd { micro_batch, device, cycle, next }, samples);
            }
            Self::Finish { cycle } => {
                writer.u8(5).u64(*cycle);
            }
            Self::Failed { reason, lost } => {
                let mut end = reason.len().min(MOST_REASON_BYTES);
                while !reason.is_char_boundary(end) {
                    end -= 1;
                }
                writer.u8(6).text(&reason[..end]).count(lost.map_or(0, |host| host + 1));
            }
            Self::Leaving => {
                writer.u8(8);
            }
            Self::Needed => {
                writer.u8(9);
            }
            Self::Epoch { present } => {
                writer.u8(7).count(present.len());
                for present in present {
                    writer.u8(u8::from(*present));
                }
            }
        }
        writer.finish()
    }

    /// From the wire.
    pub fn decode(bytes: &[u8], bounds: &Bounds) -> Result<Self, CodecError> {
        let mut reader = Reader::new(bytes);
        let message = match reader.u8("a message")? {
            1 => Self::Ready { keeps: reader.flag("whether something was kept")? },
            2 => Self::Go,
            3 => Self::Planned {
                micro_batch: below(&mut reader, bounds.planner.micro_batches, "a micro-batch")?,
                step: reader.u64("a step")?,
                device: below(&mut reader, bounds.planner.devices, "an attention device")?,
                batch: decode_batch(&mut reader, &bounds.planner)?,
            },
            4 => Self::StepEnded {
                micro_batch: below(&mut reader, bounds.planner.micro_batches, "a micro-batch")?,
                device: below(&mut reader, bounds.planner.devices, "an attention device")?,
                cycle: reader.u64("a cycle")?,
                next: reader.u64("a step")?,
                samples: decode_samples(&mut reader, bounds)?,
            },
            5 => Self::Finish { cycle: reader.u64("a cycle")? },
            6 => Self::Failed {
                reason: reader.text(MOST_REASON_BYTES, "a reason")?.into(),
                lost: reader.count(MOST_HOSTS, "a host")?.checked_sub(1),
            },
            7 => {
                let hosts = reader.length(1, "a number of hosts")?;
                Self::Epoch {
                    present: (0..hosts).map(|_| reader.flag("whether a host is there")).collect::<Result<_, _>>()?,
                }
            }
            8 => Self::Leaving,
            9 => Self::Needed,
            _ => return Err(CodecError { what: "a message", at: 0 }),
        };
        reader.end("the end of a message")?;
        Ok(message)
    }
}

fn below(reader: &mut Reader<'_>, count: usize, what: &'static str) -> Result<usize, CodecError> {
    reader.count(count.saturating_sub(1), what)
}

/// [`Message::Planned`] without a copy of the batch.
pub(crate) fn encode_planned(micro_batch: usize, step: u64, device: usize, batch: &DeviceBatch) -> Vec<u8> {
    let bytes = 32 + batch.groups.len() * 72 + (batch.token_ids.len() + batch.pages.len()) * 4;
    let mut writer = Writer::with_capacity(bytes);
    writer.u8(3).count(micro_batch).u64(step).count(device).count(batch.rows).count(batch.groups.len());
    for group in &batch.groups {
        writer.u64(group.sequence).count(group.slot).count(group.first_row).count(group.rows);
        writer.count(group.first_position).u8(u8::from(group.input == GroupInput::LastSampled));
        writer.count(group.pages.start).count(group.pages.end).u8(u8::from(group.sample.is_some()));
        let Some(SampleSpec { token_index, params, detail }) = &group.sample else { continue };
        write_sampling(writer.u64(*token_index), params, detail);
    }
    for list in [&batch.token_ids, &batch.pages] {
        writer.count(list.len());
        for id in list {
            writer.u32(*id);
        }
    }
    writer.finish()
}

fn decode_batch(reader: &mut Reader<'_>, sizes: &PlannerConfig) -> Result<DeviceBatch, CodecError> {
    let rows = reader.count(sizes.rows_per_device, "a number of rows")?;
    let groups = reader.length(38, "a number of row groups")?;
    let mut batch = DeviceBatch { rows, ..DeviceBatch::default() };
    for _ in 0..groups {
        batch.groups.push(decode_group(reader, rows, sizes)?);
    }
    let tokens = reader.length(4, "a number of tokens")?;
    batch.token_ids = (0..tokens).map(|_| reader.u32("a token")).collect::<Result<_, _>>()?;
    let pages = reader.length(4, "a number of pages")?;
    let last = (sizes.pages_per_device as usize).saturating_sub(1);
    batch.pages = (0..pages).map(|_| Ok(reader.count(last, "a page")? as u32)).collect::<Result<_, _>>()?;
    // Rows that follow each other without holes, each with a token; pages that are there and hold all of the sequence.
    let mut next = 0;
    for group in &batch.groups {
        let reaches = group.pages.len() * sizes.page_tokens;
        let whole = group.pages.end <= pages && group.first_position + group.rows <= reaches;
        if group.first_row != next || group.rows == 0 || !whole {
            return Err(CodecError { what: "a row group that fits", at: 0 });
        }
        next += group.rows;
    }
    if next != rows || tokens != rows {
        return Err(CodecError { what: "a token for every row", at: 0 });
    }
    Ok(batch)
}

fn decode_group(reader: &mut Reader<'_>, rows: usize, sizes: &PlannerConfig) -> Result<RowGroup, CodecError> {
    Ok(RowGroup {
        sequence: reader.u64("a sequence")?,
        slot: below(reader, sizes.sequences_per_device, "a sequence's slot")?,
        first_row: reader.count(rows, "a row")?,
        rows: reader.count(rows, "a number of rows")?,
        first_position: below(reader, sizes.max_positions, "a position")?,
        input: if reader.flag("an input")? { GroupInput::LastSampled } else { GroupInput::Given },
        pages: decode_range(reader)?,
        sample: if reader.flag("whether a token is sampled")? { Some(decode_sample_spec(reader)?) } else { None },
    })
}

fn decode_range(reader: &mut Reader<'_>) -> Result<Range<usize>, CodecError> {
    let start = reader.u32("the first page")? as usize;
    let end = reader.u32("the last page")? as usize;
    if start <= end { Ok(start..end) } else { Err(CodecError { what: "a range of pages", at: 0 }) }
}

fn decode_sample_spec(reader: &mut Reader<'_>) -> Result<SampleSpec, CodecError> {
    let token_index = reader.u64("a token's index")?;
    let (params, detail) = read_sampling(reader)?;
    Ok(SampleSpec { token_index, params, detail })
}

/// [`Message::StepEnded`] without a copy of the samples.
pub(crate) fn encode_step_ended(end: StepEnd, samples: &[Sample]) -> Vec<u8> {
    let mut writer = Writer::default();
    let StepEnd { micro_batch, device, cycle, next } = end;
    writer.u8(4).count(micro_batch).count(device).u64(cycle).u64(next).count(samples.len());
    for sample in samples {
        write_sample(&mut writer, sample);
    }
    writer.finish()
}

fn decode_samples(reader: &mut Reader<'_>, bounds: &Bounds) -> Result<Vec<Sample>, CodecError> {
    let count = reader.length(14, "a number of samples")?;
    (0..count).map(|_| read_sample(reader, Some(bounds.vocab))).collect()
}
