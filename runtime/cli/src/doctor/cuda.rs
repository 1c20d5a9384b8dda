//! What `rally doctor` says of CUDA: driver, cards, compiler, kernel cache. Opens no device.

use super::Finding;

/// What a card is for.
#[cfg(feature = "cuda")]
const RUNS: &str = "graphs with `cuda` devices run on its cards";

#[cfg(feature = "cuda")]
pub(super) fn findings() -> Vec<Finding> {
    let found = rally_cuda::probe::probe();
    let mut findings = vec![driver(found.driver)];
    match found.cards {
        Ok(cards) => {
            findings.extend(cards.iter().map(card));
            findings.push(shares(&cards));
        }
        Err(error) => findings.push(missing("cuda device", &error)),
    }
    findings.push(match found.compiler {
        Ok((major, minor)) => {
            ok("cuda compiler", format!("NVRTC {major}.{minor}"), "kernels are compiled for the card at hand, once")
        }
        Err(error) => missing("cuda compiler", &error),
    });
    findings.push(nccl());
    findings.push(cache());
    findings
}

#[cfg(not(feature = "cuda"))]
pub(super) fn findings() -> Vec<Finding> {
    let meaning = "build with `--features cuda` to use NVIDIA cards";
    vec![Finding { item: "cuda backend", state: "missing", found: "not built in".into(), meaning: meaning.into() }]
}

#[cfg(feature = "cuda")]
fn driver(version: Result<(i32, i32), rally_cuda::CudaError>) -> Finding {
    match version {
        Ok((major, minor)) => ok("nvidia driver", format!("for CUDA {major}.{minor}"), RUNS),
        Err(error) => missing("nvidia driver", &error),
    }
}

#[cfg(feature = "cuda")]
fn card(card: &rally_cuda::probe::Card) -> Finding {
    let gib = card.memory_bytes as f64 / (1u64 << 30) as f64;
    let found = format!("{}: {}, {} multiprocessors, {gib:.1} GiB", card.ordinal, card.name, card.multiprocessors);
    let (state, meaning) = if card.is_hopper() {
        ("ok", "kernels made for it (Hopper's matrix instructions and copy engine)")
    } else {
        ("limited", "kernels run on their plain paths: right, and far below what the card can do")
    };
    Finding { item: "cuda device", state, found, meaning: meaning.into() }
}

/// Whether devices may have multiprocessors of their own.
#[cfg(feature = "cuda")]
fn shares(cards: &[rally_cuda::probe::Card]) -> Finding {
    let item = "cuda shares";
    match (rally_cuda::shares::supported(), cards.first().map(rally_cuda::shares::Grain::of)) {
        (Ok(()), Some(grain)) => ok(
            item,
            format!("{} multiprocessors or more, in steps of {}", grain.least, grain.step),
            "`sms` gives a device a part of a card to itself",
        ),
        (Ok(()), None) => missing(item, &rally_cuda::CudaError::NoDevice),
        (Err(error), _) => missing(item, &error),
    }
}

/// For sums between cards.
#[cfg(feature = "cuda")]
fn nccl() -> Finding {
    match rally_cuda::nccl::version() {
        Ok((major, minor, patch)) => ok(
            "nccl",
            format!("NCCL {major}.{minor}.{patch}"),
            "sums of parts on several cards go through it where that was measured to be faster; `RALLY_NCCL=always` or `off`",
        ),
        Err(error) => Finding {
            item: "nccl",
            state: "limited",
            found: "none".into(),
            meaning: format!("sums of parts on several cards are copied and added; {error}"),
        },
    }
}

#[cfg(feature = "cuda")]
fn cache() -> Finding {
    match rally_cuda::cache::CubinCache::for_user() {
        Some(cache) => {
            let found = cache.folder().display().to_string();
            ok("kernel cache", found, "compiled kernels are kept here; it may be deleted at any time")
        }
        None => Finding {
            item: "kernel cache",
            state: "limited",
            found: "none".into(),
            meaning: "set HOME or XDG_CACHE_HOME, or kernels are compiled at every start".into(),
        },
    }
}

#[cfg(feature = "cuda")]
fn ok(item: &'static str, found: String, meaning: &str) -> Finding {
    Finding { item, state: "ok", found, meaning: meaning.into() }
}

#[cfg(feature = "cuda")]
fn missing(item: &'static str, error: &rally_cuda::CudaError) -> Finding {
    Finding { item, state: "missing", found: "none".into(), meaning: error.to_string() }
}
