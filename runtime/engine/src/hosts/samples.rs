//! Samples, and how tokens are chosen, as bytes: in messages between hosts, and in whatever else remembers them.

use crate::stage::Sample;
use rally_schedule::batch::{SamplingParams, TokenDetail};
use rally_transport::codec::{CodecError, Reader, Writer};

/// How tokens are chosen, and what is told of them.
pub fn write_sampling(writer: &mut Writer, params: &SamplingParams, detail: &TokenDetail) {
    let SamplingParams { temperature, top_k, top_p, min_p, seed } = *params;
    writer.f32(temperature).u32(top_k).f32(top_p).f32(min_p).u64(seed);
    writer.u8(u8::from(detail.logprobs.is_some())).u32(detail.logprobs.unwrap_or(0)).u8(u8::from(detail.logits));
}

/// What [`write_sampling`] wrote.
///
/// # Errors
/// [`CodecError`] where the bytes are none of it.
pub fn read_sampling(reader: &mut Reader<'_>) -> Result<(SamplingParams, TokenDetail), CodecError> {
    let params = SamplingParams {
        temperature: reader.f32("a temperature")?,
        top_k: reader.u32("top_k")?,
        top_p: reader.f32("top_p")?,
        min_p: reader.f32("min_p")?,
        seed: reader.u64("a seed")?,
    };
    let wanted = reader.flag("whether log probabilities are wanted")?;
    let logprobs = Some(reader.u32("a number of log probabilities")?).filter(|_| wanted);
    Ok((params, TokenDetail { logprobs, logits: reader.flag("whether logits are wanted")? }))
}

/// A sample with all that was asked of it.
pub fn write_sample(writer: &mut Writer, sample: &Sample) {
    let Sample { sequence, token, logprobs, logits } = sample;
    writer.u64(*sequence).u32(*token).u8(u8::from(logprobs.is_some()));
    if let Some((chosen, top)) = logprobs {
        writer.f32(*chosen).count(top.len());
        for (token, logprob) in top {
            writer.u32(*token).f32(*logprob);
        }
    }
    writer.u8(u8::from(logits.is_some()));
    if let Some(logits) = logits {
        writer.count(logits.len());
        for logit in logits {
            writer.f32(*logit);
        }
    }
}

/// What [`write_sample`] wrote; of a vocabulary of so many tokens, if that is known.
///
/// # Errors
/// [`CodecError`] where the bytes are none of it, or of another vocabulary.
pub fn read_sample(reader: &mut Reader<'_>, vocab: Option<usize>) -> Result<Sample, CodecError> {
    let sequence = reader.u64("a sequence")?;
    let token = match vocab {
        Some(vocab) => reader.count(vocab.saturating_sub(1), "a token")? as u32,
        None => reader.u32("a token")?,
    };
    let logprobs = match reader.flag("whether there are log probabilities")? {
        false => None,
        true => {
            let chosen = reader.f32("a log probability")?;
            let count = reader.length(8, "a number of log probabilities")?;
            let pair = |reader: &mut Reader<'_>| Ok((reader.u32("a token")?, reader.f32("a log probability")?));
            Some((chosen, (0..count).map(|_| pair(reader)).collect::<Result<_, CodecError>>()?))
        }
    };
    let logits = match reader.flag("whether there are logits")? {
        false => None,
        true => {
            let count = reader.length(4, "a number of logits")?;
            if vocab.is_some_and(|vocab| count != vocab) {
                return Err(CodecError { what: "as many logits as there are tokens", at: 0 });
            }
            Some((0..count).map(|_| reader.f32("a logit")).collect::<Result<_, CodecError>>()?)
        }
    };
    Ok(Sample { sequence, token, logprobs, logits })
}
