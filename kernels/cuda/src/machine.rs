//! Where plain kernels run: a card, or the processor standing in for one. Owns the way in; what kernels mean is `ops`'.
//!
//! A machine is one stream of work in order, and memory. Several machines may be on one card; [`Mark`]s order the work of one behind
//! that of another, and rows go from memory to memory.

use crate::device::Device;
use crate::error::CudaError;
use crate::graph::CudaGraph;
use crate::memory::{Arena, DeviceSlice, Plain, Reserve, bytes_of, bytes_of_mut};
use crate::module::{Kernel, Order, Shape};
use crate::shares::{self, Given, Grain, Share, Wanted};
use crate::source::Source;
use crate::stand_in::{Flag, StandIn};
use crate::stream::{Event, Stream, equal_lengths};
use crate::timeline::Timeline;
use std::ffi::c_void;
use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Warps of a block of the plain kernels.
const WARPS: u32 = 4;

/// Which machine is meant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Machines {
    /// The cards that are there.
    #[default]
    Cards,
    /// The processor, with the same kernels compiled as C: for tests, and to try a graph out without a card.
    StandIn,
}

/// What the stand-in is called.
pub(crate) const STAND_IN: &str = "this processor standing in for a CUDA device";

/// The environment variable that [`Machines::from_environment`] reads.
pub const VARIABLE: &str = "RALLY_CUDA";

/// The environment variable that [`launches_one_by_one`] reads.
pub const GRAPHS: &str = "RALLY_CUDA_GRAPHS";

/// Whether `RALLY_CUDA_GRAPHS` is `off`: kernels are then launched one by one, not replayed as CUDA graphs.
pub fn launches_one_by_one() -> bool {
    std::env::var(GRAPHS).as_deref() == Ok("off")
}

impl Machines {
    /// What `RALLY_CUDA` says: `stand-in`, or anything else or nothing for the cards.
    pub fn from_environment() -> Machines {
        let wanted = std::env::var(VARIABLE);
        if wanted.as_deref() == Ok("stand-in") { Machines::StandIn } else { Machines::Cards }
    }

    /// What there are, for people: the cards' names in order.
    ///
    /// # Errors
    /// What [`crate::probe::cards`] says.
    pub fn names(self) -> Result<Vec<String>, CudaError> {
        match self {
            Machines::StandIn => Ok(vec![STAND_IN.into()]),
            Machines::Cards => Ok(crate::probe::cards()?.into_iter().map(|card| card.name).collect()),
        }
    }

    /// A machine for the `index`-th device of a deployment whose devices want nothing special: they take the cards in turn.
    ///
    /// # Errors
    /// What opening a card says, or the C compiler.
    pub fn open(self, index: usize) -> Result<Arc<dyn Machine>, CudaError> {
        match self {
            Machines::StandIn => Ok(Arc::new(StandIn::new(None)?)),
            Machines::Cards => Card::open(&Device::open(index % crate::probe::cards()?.len())?, None),
        }
    }

    /// Machines for the devices of a deployment, in order, each with what it wants.
    ///
    /// # Errors
    /// The device's place in `wanted`, and what [`shares::divide`], opening its card or the C compiler says.
    pub fn open_all(self, wanted: &[Wanted]) -> Result<Vec<Arc<dyn Machine>>, (usize, CudaError)> {
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        match self {
            Machines::StandIn => {
                let given = shares::divide(wanted, &[STAND_IN_GRAIN])?;
                let open = |(index, given): (usize, &Given)| match StandIn::new(given.sms) {
                    Ok(machine) => Ok(Arc::new(machine) as Arc<dyn Machine>),
                    Err(error) => Err((index, error)),
                };
                given.iter().enumerate().map(open).collect()
            }
            Machines::Cards => {
                let cards = crate::probe::cards().map_err(|error| (0, error))?;
                let grains: Vec<Grain> = cards.iter().map(Grain::of).collect();
                open_cards(&shares::divide(wanted, &grains)?)
            }
        }
    }
}

/// The card that the processor stands in for, as far as shares go: a Hopper's.
const STAND_IN_GRAIN: Grain = Grain { multiprocessors: 132, least: 8, step: 8 };

fn open_cards(given: &[Given]) -> Result<Vec<Arc<dyn Machine>>, (usize, CudaError)> {
    let mut machines: Vec<Option<Arc<dyn Machine>>> = vec![None; given.len()];
    for first in 0..given.len() {
        if machines[first].is_some() {
            continue;
        }
        let at = |error| (first, error);
        let device = Device::open(given[first].card).map_err(at)?;
        let here: Vec<usize> = (first..given.len()).filter(|index| given[*index].card == given[first].card).collect();
        let sizes: Vec<u32> = here.iter().filter_map(|index| given[*index].sms).collect();
        // All of a card's devices have shares, or none has.
        let shares = if sizes.is_empty() { Vec::new() } else { shares::split(&device, &sizes).map_err(at)? };
        for (place, index) in here.into_iter().enumerate() {
            let machine = Card::open(&device, shares.get(place)).map_err(|error| (index, error))?;
            machines[index] = Some(machine);
        }
    }
    Ok(machines.into_iter().flatten().collect())
}

/// A stream and memory.
pub trait Machine: Debug + Send + Sync {
    /// What it is, for people: `CUDA device 0 (NVIDIA H100 80GB HBM3)`.
    fn name(&self) -> String;

    /// The card and the stream of work on it, for operations that only a card has; none of the processor.
    fn card(&self) -> Option<(&Arc<Device>, &Arc<Stream>)> {
        None
    }

    /// CTAs that [`crate::mfa`] is launched with, one a multiprocessor; 0 where it does not run.
    fn mfa_ctas(&self) -> usize {
        0
    }

    /// Multiprocessors that its work runs on: those of its share, or all of its card; 0 of the processor without a share.
    fn multiprocessors(&self) -> usize;

    /// Bytes that its second-level cache holds; of the processor, what its own may.
    fn cache_bytes(&self) -> usize;

    /// Bytes of memory free now; absent where nobody counts them.
    ///
    /// # Errors
    /// The driver's own.
    fn free_bytes(&self) -> Result<Option<usize>, CudaError>;

    /// Takes `bytes` at once, out of which [`Machine::allocate`] is served from then on, as long as there is some.
    ///
    /// # Errors
    /// As [`Machine::allocate`].
    fn reserve(&self, bytes: usize) -> Result<(), CudaError>;

    /// Takes memory; what is in it is not said.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`] with both numbers if less is free.
    fn allocate(&self, bytes: usize) -> Result<Arena, CudaError>;

    /// Kernels of a file of plain kernels, in the order of `names`.
    ///
    /// # Errors
    /// What compiling and loading say.
    fn kernels(&self, source: &Source, names: &[&'static str]) -> Result<Vec<Box<dyn Launch>>, CudaError>;

    /// Says which files' kernels are asked for next, to be compiled at once where that takes time.
    fn prepare(&self, _sources: &[&Source]) {}

    /// Copies host bytes in behind all work so far; they may be let go at once. Lengths agree.
    ///
    /// # Errors
    /// The driver's own.
    fn write_bytes(&self, from: &[u8], to: &DeviceSlice<u8>) -> Result<(), CudaError>;

    /// Copies device bytes out behind all work so far and waits for them. Lengths agree.
    ///
    /// # Errors
    /// The driver's own, a kernel's fault included.
    fn read_bytes(&self, from: &DeviceSlice<u8>, to: &mut [u8]) -> Result<(), CudaError>;

    /// Sets every byte, behind all work so far.
    ///
    /// # Errors
    /// The driver's own.
    fn fill(&self, slice: &DeviceSlice<u8>, byte: u8) -> Result<(), CudaError>;

    /// Where its memory is.
    fn place(&self) -> Place;

    /// Whether its kernels can read the memory at `there`: another card's, if the two are connected so.
    ///
    /// # Errors
    /// The driver's own.
    fn reads(&self, there: Place) -> Result<bool, CudaError>;

    /// Copies bytes of the memory at `there`, this machine's or another's, behind all work so far of this one. Lengths agree; what
    /// the other machine has yet to do with them is ordered by marks.
    ///
    /// # Errors
    /// The driver's own.
    fn copy_bytes(&self, from: &DeviceSlice<u8>, there: Place, to: &DeviceSlice<u8>) -> Result<(), CudaError>;

    /// A mark that this machine can record.
    ///
    /// # Errors
    /// The driver's own.
    fn mark(&self) -> Result<Mark, CudaError>;

    /// Puts one of its own marks behind all work so far.
    ///
    /// # Errors
    /// The driver's own.
    fn record(&self, mark: &Mark) -> Result<(), CudaError>;

    /// Work from now on waits until a mark, this machine's or another's, is reached where it was recorded last. The host does not.
    ///
    /// # Errors
    /// The driver's own.
    fn wait_for(&self, mark: &Mark) -> Result<(), CudaError>;

    /// When one of its own marks was reached, on the host's clock; it has been. The two clocks are held together to a few
    /// microseconds, times between marks are true to half of one.
    ///
    /// # Errors
    /// The driver's own.
    fn when(&self, mark: &Mark) -> Result<Instant, CudaError>;

    /// Keeps what `enqueue` enqueues, instead of doing it, so that it can be done again and again. Only kernels are kept: whatever
    /// brings numbers from the host, or waits, is refused meanwhile. Memory that they use must outlive them.
    ///
    /// # Errors
    /// What `enqueue` says; [`CudaError::Shape`] for what cannot be kept; the driver's own.
    fn capture(&self, enqueue: &mut dyn FnMut() -> Result<(), CudaError>) -> Result<Box<dyn Replay>, CudaError>;
}

/// Captured work.
pub trait Replay: Debug + Send {
    /// Enqueues it.
    ///
    /// # Errors
    /// The driver's own; faults of kernels come later, from whatever waits.
    fn launch(&self) -> Result<(), CudaError>;
}

/// What a capture cannot keep.
pub(crate) fn not_kept(operation: &'static str) -> CudaError {
    let problem = "asked for while kernels were captured: it would not be done again with them".into();
    CudaError::Shape { operation, problem }
}

/// Whose memory: two machines of one card share it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Place(usize);

/// A point in a machine's work, with its time. One that was never recorded counts as reached.
#[derive(Debug)]
pub struct Mark(Point);

#[derive(Debug)]
enum Point {
    OnCard(Event),
    StandIn(Arc<Flag>),
}

impl Mark {
    /// Whether the work before it is done.
    ///
    /// # Errors
    /// The driver's own, a kernel's fault included.
    pub fn is_reached(&self) -> Result<bool, CudaError> {
        match &self.0 {
            Point::OnCard(event) => event.is_done(),
            Point::StandIn(flag) => Ok(flag.is_reached()),
        }
    }

    /// Blocks until it is.
    ///
    /// # Errors
    /// The driver's own, a kernel's fault included.
    pub fn wait(&self) -> Result<(), CudaError> {
        match &self.0 {
            Point::OnCard(event) => event.synchronize(),
            Point::StandIn(flag) => {
                flag.wait();
                Ok(())
            }
        }
    }
}

fn other_kind(operation: &'static str) -> CudaError {
    let problem = "a card's mark beside one of the processor standing in: use machines of one kind".into();
    CudaError::Shape { operation, problem }
}

/// [`Machine::copy_bytes`] of elements.
///
/// # Errors
/// [`CudaError::Shape`] if the lengths differ; the driver's own.
pub fn copy<T: Plain>(
    machine: &dyn Machine,
    from: &DeviceSlice<T>,
    there: Place,
    to: &DeviceSlice<T>,
) -> Result<(), CudaError> {
    equal_lengths("copy", from.len(), to.len())?;
    if from.is_empty() { Ok(()) } else { machine.copy_bytes(&from.as_bytes(), there, &to.as_bytes()) }
}

/// [`Machine::write_bytes`] of elements.
///
/// # Errors
/// [`CudaError::Shape`] if the lengths differ; the driver's own.
pub fn write<T: Plain>(machine: &dyn Machine, from: &[T], to: &DeviceSlice<T>) -> Result<(), CudaError> {
    equal_lengths("write", from.len(), to.len())?;
    if from.is_empty() { Ok(()) } else { machine.write_bytes(bytes_of(from), &to.as_bytes()) }
}

/// [`Machine::read_bytes`] of elements.
///
/// # Errors
/// [`CudaError::Shape`] if the lengths differ; the driver's own.
pub fn read<T: Plain>(machine: &dyn Machine, from: &DeviceSlice<T>, to: &mut [T]) -> Result<(), CudaError> {
    equal_lengths("read", from.len(), to.len())?;
    if to.is_empty() { Ok(()) } else { machine.read_bytes(&from.as_bytes(), bytes_of_mut(to)) }
}

/// A kernel and the stream that its launches go to.
pub trait Launch: Debug + Send + Sync {
    /// Enqueues work on `items` items.
    ///
    /// # Safety
    /// `arguments` points to a value of the kernel's parameter structure, of `bytes` bytes; memory it names is large enough for `items`, outlives
    /// the work, and has no other writer meanwhile.
    ///
    /// # Errors
    /// The driver's own; faults of the kernel come later, from whatever waits.
    unsafe fn launch(&self, items: u32, arguments: *mut c_void, bytes: usize) -> Result<(), CudaError>;
}

/// A card's stream.
#[derive(Debug)]
struct Card {
    device: Arc<Device>,
    stream: Arc<Stream>,
    timeline: Arc<Timeline>,
    is_capturing: AtomicBool,
    reserve: Reserve,
}

impl Card {
    fn open(device: &Arc<Device>, share: Option<&Arc<Share>>) -> Result<Arc<dyn Machine>, CudaError> {
        let stream = share.map_or_else(|| Stream::new(device), |share| Stream::on(device, share))?;
        Ok(Arc::new(Card {
            device: Arc::clone(device),
            stream: Arc::new(stream),
            timeline: Timeline::of(device)?,
            is_capturing: AtomicBool::new(false),
            reserve: Reserve::default(),
        }))
    }

    /// For what is not kernels.
    fn bind(&self, operation: &'static str) -> Result<(), CudaError> {
        if self.is_capturing.load(Ordering::Relaxed) {
            return Err(not_kept(operation));
        }
        self.device.bind()
    }
}

impl Machine for Card {
    fn name(&self) -> String {
        let card = self.device.card();
        let whole = format!("CUDA device {} ({})", card.ordinal, card.name);
        match self.stream.multiprocessors() {
            sms if sms == card.multiprocessors => whole,
            sms => format!("{whole}, {sms} of {} multiprocessors", card.multiprocessors),
        }
    }

    fn card(&self) -> Option<(&Arc<Device>, &Arc<Stream>)> {
        Some((&self.device, &self.stream))
    }

    fn mfa_ctas(&self) -> usize {
        if self.device.card().is_hopper() { self.multiprocessors() } else { 0 }
    }

    fn multiprocessors(&self) -> usize {
        self.stream.multiprocessors() as usize
    }

    fn cache_bytes(&self) -> usize {
        self.device.card().l2_bytes
    }

    fn free_bytes(&self) -> Result<Option<usize>, CudaError> {
        self.device.memory().map(|(free, _)| Some(free))
    }

    fn reserve(&self, bytes: usize) -> Result<(), CudaError> {
        self.reserve.put(Arena::new(&self.device, bytes)?);
        Ok(())
    }

    fn allocate(&self, bytes: usize) -> Result<Arena, CudaError> {
        self.reserve.take(bytes).map_or_else(|| Arena::new(&self.device, bytes), Ok)
    }

    fn prepare(&self, sources: &[&Source]) {
        self.device.prepare(sources);
    }

    fn kernels(&self, source: &Source, names: &[&'static str]) -> Result<Vec<Box<dyn Launch>>, CudaError> {
        let module = self.device.load(source)?;
        let on_card = |name: &&'static str| {
            let kernel = module.kernel(name, 0)?;
            Ok(Box::new(OnCard { kernel, stream: Arc::clone(&self.stream) }) as Box<dyn Launch>)
        };
        names.iter().map(on_card).collect()
    }

    fn write_bytes(&self, from: &[u8], to: &DeviceSlice<u8>) -> Result<(), CudaError> {
        self.bind("write")?;
        self.stream.write_staged(from, to)
    }

    fn read_bytes(&self, from: &DeviceSlice<u8>, to: &mut [u8]) -> Result<(), CudaError> {
        self.bind("read")?;
        self.stream.read(from, to)
    }

    fn fill(&self, slice: &DeviceSlice<u8>, byte: u8) -> Result<(), CudaError> {
        self.bind("fill")?;
        self.stream.fill(slice, byte)
    }

    fn place(&self) -> Place {
        Place(self.device.address())
    }

    fn reads(&self, there: Place) -> Result<bool, CudaError> {
        self.device.bind()?;
        Ok(there == self.place() || self.device.reach(there.0))
    }

    fn copy_bytes(&self, from: &DeviceSlice<u8>, there: Place, to: &DeviceSlice<u8>) -> Result<(), CudaError> {
        self.bind("copy")?;
        if there == self.place() {
            return self.stream.copy(from, to);
        }
        self.stream.copy_from_peer(from, there.0, to)
    }

    fn mark(&self) -> Result<Mark, CudaError> {
        Ok(Mark(Point::OnCard(Event::timed(&self.device)?)))
    }

    fn record(&self, mark: &Mark) -> Result<(), CudaError> {
        let Point::OnCard(event) = &mark.0 else { return Err(other_kind("record")) };
        self.bind("record")?;
        self.stream.record(event)
    }

    fn wait_for(&self, mark: &Mark) -> Result<(), CudaError> {
        let Point::OnCard(event) = &mark.0 else { return Err(other_kind("wait_for")) };
        self.bind("wait_for")?;
        self.stream.wait(event)
    }

    fn when(&self, mark: &Mark) -> Result<Instant, CudaError> {
        let Point::OnCard(event) = &mark.0 else { return Err(other_kind("when")) };
        self.bind("when")?;
        self.timeline.when(event)
    }

    fn capture(&self, enqueue: &mut dyn FnMut() -> Result<(), CudaError>) -> Result<Box<dyn Replay>, CudaError> {
        self.bind("capture")?;
        self.is_capturing.store(true, Ordering::Relaxed);
        let graph = CudaGraph::capture(&self.stream, |_| enqueue());
        self.is_capturing.store(false, Ordering::Relaxed);
        Ok(Box::new(Captured { graph: graph?, stream: Arc::clone(&self.stream) }))
    }
}

/// A card's graph.
#[derive(Debug)]
struct Captured {
    graph: CudaGraph,
    stream: Arc<Stream>,
}

impl Replay for Captured {
    fn launch(&self) -> Result<(), CudaError> {
        self.stream.device().bind()?;
        self.graph.launch(&self.stream)
    }
}

impl Mark {
    pub(crate) fn stand_in(flag: Arc<Flag>) -> Mark {
        Mark(Point::StandIn(flag))
    }

    pub(crate) fn flag(&self) -> Result<&Arc<Flag>, CudaError> {
        match &self.0 {
            Point::StandIn(flag) => Ok(flag),
            Point::OnCard(_) => Err(other_kind("mark")),
        }
    }
}

impl Place {
    /// The host's memory, which all that stand in share.
    pub(crate) const HOST: Place = Place(0);
}

#[derive(Debug)]
struct OnCard {
    kernel: Kernel,
    stream: Arc<Stream>,
}

impl Launch for OnCard {
    unsafe fn launch(&self, items: u32, arguments: *mut c_void, _bytes: usize) -> Result<(), CudaError> {
        self.kernel.device().bind()?;
        let mut count = items as i32;
        let shape = Shape { grid: (items.div_ceil(WARPS), 1), block: WARPS * 32, order: Order::After };
        // SAFETY: a plain kernel has these two parameters, which the launch copies; the rest is the caller's.
        unsafe { self.kernel.launch(&self.stream, shape, &mut [arguments, (&raw mut count).cast()]) }
    }
}
