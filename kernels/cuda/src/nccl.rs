//! Sums between cards by NCCL, where it is installed. Owns its communicators and their streams; when a sum is worth it is measured
//! ([`pays`]).
//!
//! One thread enqueues a sum for all cards at once, each on a stream of its own behind what the sum waits for, one sum after the other
//! everywhere: so no card ever waits for a call that is yet to be made, whatever the order in which lanes come. NCCL adds in an order of
//! its own: of two parts to the bit what one addition gives, of more the same within rounding.

use crate::device::Device;
use crate::error::CudaError;
use crate::memory::DeviceSlice;
use crate::stream::{Event, Stream};
use cudarc::nccl::{result, sys};
use std::ffi::c_void;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

/// The environment variable that [`Choice::from_environment`] reads.
pub const VARIABLE: &str = "RALLY_NCCL";

/// When sums go through NCCL.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Choice {
    /// Where it was measured to be faster ([`pays`]).
    #[default]
    WhereFaster,
    /// Wherever it can: to measure it.
    Always,
    /// Nowhere.
    Never,
}

impl Choice {
    /// What `RALLY_NCCL` says: `always`, `off`, or anything else or nothing for where it is faster.
    pub fn from_environment() -> Choice {
        match std::env::var(VARIABLE).as_deref() {
            Ok("always") => Choice::Always,
            Ok("off") => Choice::Never,
            _ => Choice::WhereFaster,
        }
    }

    /// Whether a sum of `bytes` of each of `cards` cards goes through NCCL.
    pub fn takes(self, cards: usize, bytes: usize) -> bool {
        match self {
            Choice::Always => true,
            Choice::Never => false,
            Choice::WhereFaster => pays(cards, bytes),
        }
    }
}

/// Bytes of a part from which on sums of two cards go through NCCL: 16 rows of 7168 in bf16.
const PAYS_FROM: usize = 16 * 7168 * 2;

/// Whether NCCL sums `bytes` of each of `cards` cards faster than one card copies and adds them (`NOTES.md`, "Several cards"). It was measured
/// on two: more are left to copies.
pub fn pays(cards: usize, bytes: usize) -> bool {
    cards == 2 && bytes >= PAYS_FROM
}

/// NCCL's version, such as (2, 28, 3).
///
/// # Errors
/// [`CudaError::NoNccl`] if its library cannot be loaded, or is broken.
pub fn version() -> Result<(i32, i32, i32), CudaError> {
    require()?;
    let version = result::get_nccl_version().map_err(|error| failed("asking for NCCL's version", &error))?;
    // 2.9 and later: major × 10000 + minor × 100 + patch.
    Ok((version / 10_000, version / 100 % 100, version % 100))
}

fn require() -> Result<(), CudaError> {
    // SAFETY: loading NVIDIA's library runs its initialisers, which is what is wanted. Looking first is needed because cudarc panics
    // when a library is missing.
    static PRESENT: OnceLock<bool> = OnceLock::new();
    PRESENT.get_or_init(|| unsafe { sys::is_culib_present() }).then_some(()).ok_or(CudaError::NoNccl)
}

fn failed(action: &'static str, error: &result::NcclError) -> CudaError {
    CudaError::Nccl { action, code: format!("{:?}", error.0) }
}

/// How the numbers of a sum are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Number {
    /// f32.
    F32,
    /// bf16, each addition rounded.
    Bf16,
}

impl Number {
    fn bytes(self) -> usize {
        match self {
            Number::F32 => 4,
            Number::Bf16 => 2,
        }
    }
}

/// One card's part of a sum.
#[derive(Debug, Clone)]
pub struct PartAt {
    /// The card's number.
    pub card: usize,
    /// Its numbers; more than are summed may follow.
    pub rows: DeviceSlice<u8>,
}

/// A communicator over some cards.
#[derive(Debug)]
pub struct Fabric {
    ranks: Vec<Rank>,
}

#[derive(Debug)]
struct Rank {
    device: Arc<Device>,
    stream: Stream,
    communicator: sys::ncclComm_t,
    ready: Event,
    done: Event,
}

// SAFETY: one thread at a time works on the communicators (`LAUNCHING`).
unsafe impl Send for Fabric {}
// SAFETY: as above.
unsafe impl Sync for Fabric {}

/// Held while a sum is told to all cards: all of them get all sums in one order.
static LAUNCHING: Mutex<()> = Mutex::new(());

/// By cards, while anyone has it.
static OPEN: Mutex<Vec<(Vec<usize>, Weak<Fabric>)>> = Mutex::new(Vec::new());

impl Fabric {
    /// Over these cards, each once; one for all who ask for the same.
    ///
    /// # Errors
    /// [`CudaError::NoNccl`], [`CudaError::Nccl`], or what opening a card says.
    pub fn over(cards: &[usize]) -> Result<Arc<Fabric>, CudaError> {
        require()?;
        let mut cards = cards.to_vec();
        cards.sort_unstable();
        cards.dedup();
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|(_, fabric)| fabric.strong_count() > 0);
        if let Some(fabric) = open.iter().find(|(of, _)| *of == cards).and_then(|(_, fabric)| fabric.upgrade()) {
            return Ok(fabric);
        }
        let ordinals: Vec<i32> = cards.iter().map(|card| *card as i32).collect();
        let mut communicators = vec![std::ptr::null_mut(); cards.len()];
        // SAFETY: as many communicators as cards.
        unsafe { result::comm_init_all(communicators.as_mut_ptr(), ordinals.len() as i32, ordinals.as_ptr()) }
            .map_err(|error| failed("connecting cards", &error))?;
        let rank = |(card, communicator): (&usize, sys::ncclComm_t)| -> Result<Rank, CudaError> {
            let device = Device::open(*card)?;
            let (stream, ready, done) = (Stream::new(&device)?, Event::new(&device)?, Event::new(&device)?);
            Ok(Rank { device, stream, communicator, ready, done })
        };
        let ranks = cards.iter().zip(communicators).map(rank).collect::<Result<_, _>>()?;
        let fabric = Arc::new(Fabric { ranks });
        open.push((cards, Arc::downgrade(&fabric)));
        Ok(fabric)
    }

    /// Cards, ascending.
    pub fn cards(&self) -> impl ExactSizeIterator<Item = usize> {
        self.ranks.iter().map(|rank| rank.device.card().ordinal)
    }

    /// Sums as many numbers of every card's part as `to` has room for, on card `root`, behind all that was enqueued on `main`, a stream of
    /// that card; what is enqueued on `main` afterwards comes behind the sum.
    ///
    /// # Errors
    /// [`CudaError::Shape`] if a card has no part, or a part too few numbers; [`CudaError::Nccl`]; the driver's own.
    pub fn sum(
        &self,
        main: &Stream,
        root: usize,
        parts: &[PartAt],
        to: &DeviceSlice<u8>,
        number: Number,
    ) -> Result<(), CudaError> {
        let place = self.ranks.iter().position(|rank| rank.device.card().ordinal == root);
        let (Some(root), true) = (place, parts.len() == self.ranks.len()) else {
            let problem =
                format!("{} parts to card {root}, and NCCL was set up for {} cards", parts.len(), self.ranks.len());
            return Err(CudaError::Shape { operation: "nccl sum", problem });
        };
        if let Some(short) = parts.iter().find(|part| part.rows.len() < to.len()) {
            let problem = format!("{} bytes of card {}, where {} are summed", short.rows.len(), short.card, to.len());
            return Err(CudaError::Shape { operation: "nccl sum", problem });
        }
        let kind = match number {
            Number::F32 => sys::ncclDataType_t::ncclFloat32,
            Number::Bf16 => sys::ncclDataType_t::ncclBfloat16,
        };
        let _one_at_a_time = LAUNCHING.lock().unwrap_or_else(PoisonError::into_inner);
        let home = &self.ranks[root];
        home.device.bind()?;
        main.record(&home.ready)?;
        for rank in &self.ranks {
            rank.device.bind()?;
            rank.stream.wait(&home.ready)?;
        }
        result::group_start().map_err(|error| failed("beginning a sum", &error))?;
        let mut told = Ok(());
        for rank in &self.ranks {
            let Some(part) = parts.iter().find(|part| part.card == rank.device.card().ordinal) else {
                let problem = format!("card {} has no part", rank.device.card().ordinal);
                told = Err(CudaError::Shape { operation: "nccl sum", problem });
                break;
            };
            // SAFETY: lengths were checked; the stream is of the communicator's card.
            let one = unsafe {
                result::reduce(
                    part.rows.address() as *const c_void,
                    to.address() as *mut c_void,
                    to.len() / number.bytes(),
                    kind,
                    sys::ncclRedOp_t::ncclSum,
                    root as i32,
                    rank.communicator,
                    rank.stream.handle().cast(),
                )
            };
            if let Err(error) = one {
                told = Err(failed("summing", &error));
                break;
            }
        }
        let ended = result::group_end().map_err(|error| failed("summing", &error));
        told?;
        ended?;
        home.device.bind()?;
        home.stream.record(&home.done)?;
        main.wait(&home.done)
    }
}

impl Drop for Rank {
    fn drop(&mut self) {
        let _ = self.stream.synchronize();
        // SAFETY: made once by `Fabric::over`, and no sum of it is under way.
        let _ = unsafe { result::comm_destroy(self.communicator) };
    }
}
