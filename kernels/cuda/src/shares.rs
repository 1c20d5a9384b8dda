//! Shares of a card: multiprocessors that one device's work has to itself. Owns who gets how many, and the driver's green contexts.

use crate::device::Device;
use crate::error::{Context, CudaError};
use crate::probe::{self, Card};
use cudarc::driver::sys;
use std::mem::MaybeUninit;
use std::sync::Arc;

/// What a device of a deployment asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The card's number; none: devices take the cards in turn.
    pub card: Option<usize>,
    /// Multiprocessors of it; none: all of them, shared with whoever else is there.
    pub sms: Option<u32>,
}

/// What it gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Given {
    /// The card's number.
    pub card: usize,
    /// Multiprocessors that are its own; none: it shares them all.
    pub sms: Option<u32>,
}

/// Into what a card can be divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grain {
    /// Multiprocessors in all.
    pub multiprocessors: u32,
    /// Fewest of a share.
    pub least: u32,
    /// What a share is a multiple of, unless it is the rest of the card.
    pub step: u32,
}

impl Grain {
    /// Of a card (CUDA driver API, green contexts: 8 from compute capability 9.0 on, 4 in steps of 2 before).
    pub fn of(card: &Card) -> Grain {
        let (least, step) = if card.capability.0 >= 9 { (8, 8) } else { (4, 2) };
        Grain { multiprocessors: card.multiprocessors, least, step }
    }
}

/// First driver with streams of green contexts.
const FIRST_DRIVER: (i32, i32) = (12, 5);

/// Whether the driver can divide cards, and if not, why.
///
/// # Errors
/// [`CudaError::NoDriver`]; [`CudaError::Share`] if it is too old.
pub fn supported() -> Result<(), CudaError> {
    let (major, minor) = probe::driver_version()?;
    if (major, minor) >= FIRST_DRIVER {
        return Ok(());
    }
    let (from, to) = FIRST_DRIVER;
    Err(refused(format!("the driver is for CUDA {major}.{minor}, and shares of a card need {from}.{to}: update it")))
}

/// A card for every device, and its share. On one card all devices name a share, or none does, and together they have no more than
/// there is.
///
/// # Errors
/// The device's place in `wanted`, and what is wrong with what it wants: [`CudaError::Ordinal`] or [`CudaError::Share`].
pub fn divide(wanted: &[Wanted], cards: &[Grain]) -> Result<Vec<Given>, (usize, CudaError)> {
    let mut given = Vec::with_capacity(wanted.len());
    for (index, wanted) in wanted.iter().enumerate() {
        let card = wanted.card.unwrap_or(index % cards.len().max(1));
        if card >= cards.len() {
            return Err((index, CudaError::Ordinal { ordinal: card, count: cards.len() }));
        }
        given.push(Given { card, sms: wanted.sms });
    }
    for (card, grain) in cards.iter().enumerate() {
        let on: Vec<usize> = (0..given.len()).filter(|index| given[*index].card == card).collect();
        let shared: Vec<usize> = on.iter().copied().filter(|index| given[*index].sms.is_some()).collect();
        if shared.is_empty() {
            continue;
        }
        if let Some(whole) = on.iter().find(|index| given[**index].sms.is_none()) {
            let problem =
                format!("it would take all of card {card}, of which another device has a share: give it `sms` too");
            return Err((*whole, refused(problem)));
        }
        let mut before = 0;
        for index in &shared {
            let sms = given[*index].sms.unwrap_or_default();
            let left = grain.multiprocessors - before;
            if sms > left {
                let beside = if before > 0 { format!(", {before} of them taken") } else { String::new() };
                let all = grain.multiprocessors;
                return Err((
                    *index,
                    refused(format!("{sms} multiprocessors of card {card}, which has {all}{beside}")),
                ));
            }
            before += sms;
        }
        let odd = |index: &&usize| given[**index].sms.is_some_and(|sms| !sms.is_multiple_of(grain.step));
        let uneven: Vec<usize> = shared.iter().filter(odd).copied().collect();
        let is_rest = before == grain.multiprocessors && uneven.len() == 1;
        let small = shared.iter().find(|index| given[**index].sms.is_some_and(|sms| sms < grain.least));
        if let Some(index) = small.or(uneven.first().filter(|_| !is_rest)) {
            let (sms, Grain { least, step, .. }) = (given[*index].sms.unwrap_or_default(), grain);
            let problem = format!(
                "{sms} multiprocessors: a share of card {card} is {least} or more, in steps of {step}, or all that others leave"
            );
            return Err((*index, refused(problem)));
        }
    }
    Ok(given)
}

pub(crate) fn refused(problem: String) -> CudaError {
    CudaError::Share { problem }
}

/// Multiprocessors of one card that streams of this share run on, and no others.
#[derive(Debug)]
pub struct Share {
    handle: sys::CUgreenCtx,
    multiprocessors: u32,
    /// Keeps the card's context.
    _device: Arc<Device>,
}

// SAFETY: the driver's calls on a green context are thread-safe.
unsafe impl Send for Share {}
// SAFETY: as above.
unsafe impl Sync for Share {}

impl Share {
    /// How many it has.
    pub fn multiprocessors(&self) -> u32 {
        self.multiprocessors
    }

    pub(crate) fn handle(&self) -> sys::CUgreenCtx {
        self.handle
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        // SAFETY: made once by `take`; streams of it keep it.
        let _ = unsafe { sys::cuGreenCtxDestroy(self.handle) };
    }
}

/// Divides a card into shares of these sizes, as [`divide`] allows, no multiprocessor in two of them.
///
/// # Errors
/// What [`supported`] says; [`CudaError::Share`] if the driver gives other sizes; the driver's own.
pub fn split(device: &Arc<Device>, sizes: &[u32]) -> Result<Vec<Arc<Share>>, CudaError> {
    supported()?;
    device.bind()?;
    let (all, step) = (multiprocessors_of(device)?, Grain::of(device.card()).step);
    // What is left of a division cannot be divided again (CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION, driver 580): one call has to do.
    let parts = match *sizes {
        [size] if size == count(&all) => vec![vec![all]],
        [size] => vec![cut(&all, 1, size)?.0],
        [first, second] if first + second == count(&all) => {
            let odd = !first.is_multiple_of(step);
            let (mut group, rest) = cut(&all, 1, if odd { second } else { first })?;
            group.push(rest);
            if odd {
                group.reverse();
            }
            group.into_iter().map(|part| vec![part]).collect()
        }
        [first, ..] if first.is_multiple_of(step) && sizes.iter().all(|size| *size == first) => {
            let (groups, _) = cut(&all, sizes.len() as u32, first)?;
            if groups.len() < sizes.len() {
                return Err(refused(format!(
                    "the driver divides the card {} times into {first} at most",
                    groups.len()
                )));
            }
            groups.into_iter().map(|part| vec![part]).collect()
        }
        _ => in_steps(&all, step, sizes)?,
    };
    let shares = parts.into_iter().zip(sizes).map(|(mut parts, wanted)| {
        let given: u32 = parts.iter().map(count).sum();
        if given != *wanted {
            return Err(refused(format!("the driver gives {given} multiprocessors where {wanted} are wanted")));
        }
        Ok(Arc::new(take(device, &mut parts)?))
    });
    shares.collect()
}

/// Shares put together from the smallest groups that there are.
fn in_steps(all: &sys::CUdevResource, step: u32, sizes: &[u32]) -> Result<Vec<Vec<sys::CUdevResource>>, CudaError> {
    let (groups, rest) = cut(all, count(all) / step, step)?;
    let left = count(&rest);
    let has_rest = |size: u32| !size.is_multiple_of(step);
    // One share at most is no multiple of the step: it has what is left over.
    let wanted: u32 = sizes.iter().map(|size| if has_rest(*size) { size.saturating_sub(left) } else { *size }).sum();
    if wanted > groups.len() as u32 * step || sizes.iter().any(|size| has_rest(*size) && *size < left) {
        return Err(refused(format!(
            "{sizes:?}: three or more shares are put together from the {} groups of {step} and one of {left} that the driver makes",
            groups.len()
        )));
    }
    let mut groups = groups.into_iter();
    let parts = sizes.iter().map(|size| {
        let of_groups = if has_rest(*size) { size - left } else { *size };
        let mut parts: Vec<_> = groups.by_ref().take((of_groups / step) as usize).collect();
        if has_rest(*size) {
            parts.push(rest);
        }
        parts
    });
    Ok(parts.collect())
}

/// All multiprocessors of a card.
fn multiprocessors_of(device: &Device) -> Result<sys::CUdevResource, CudaError> {
    let mut all = MaybeUninit::zeroed();
    let kind = sys::CUdevResourceType::CU_DEV_RESOURCE_TYPE_SM;
    // SAFETY: the structure is the driver's to fill, which it has when the call succeeds.
    unsafe {
        sys::cuDeviceGetDevResource(device.handle(), all.as_mut_ptr(), kind)
            .result()
            .during("asking for a card's multiprocessors")?;
        Ok(all.assume_init())
    }
}

/// `groups` times `size` multiprocessors of `all`, and what is left.
fn cut(
    all: &sys::CUdevResource,
    groups: u32,
    size: u32,
) -> Result<(Vec<sys::CUdevResource>, sys::CUdevResource), CudaError> {
    let mut given = groups;
    let mut parts = vec![*all; groups as usize];
    let mut rest = MaybeUninit::zeroed();
    // SAFETY: there is room for as many groups as are asked for; the driver fills all when the call succeeds.
    let rest = unsafe {
        sys::cuDevSmResourceSplitByCount(parts.as_mut_ptr(), &mut given, all, rest.as_mut_ptr(), 0, size)
            .result()
            .during("dividing a card's multiprocessors")?;
        rest.assume_init()
    };
    parts.truncate(given as usize);
    Ok((parts, rest))
}

fn take(device: &Arc<Device>, parts: &mut [sys::CUdevResource]) -> Result<Share, CudaError> {
    let multiprocessors = parts.iter().map(count).sum();
    let (mut description, mut handle) = (std::ptr::null_mut(), std::ptr::null_mut());
    let flags = sys::CUgreenCtxCreate_flags::CU_GREEN_CTX_DEFAULT_STREAM as u32;
    // SAFETY: resources of the driver's own making, of one division; both handles are filled when the calls succeed.
    unsafe {
        sys::cuDevResourceGenerateDesc(&mut description, parts.as_mut_ptr(), parts.len() as u32)
            .result()
            .during("describing a share of a card")?;
        sys::cuGreenCtxCreate(&mut handle, description, device.handle(), flags)
            .result()
            .during("making a share of a card")?;
    }
    Ok(Share { handle, multiprocessors, _device: Arc::clone(device) })
}

fn count(resource: &sys::CUdevResource) -> u32 {
    // SAFETY: all resources here are of multiprocessors.
    unsafe { resource.__bindgen_anon_1.sm.smCount }
}
