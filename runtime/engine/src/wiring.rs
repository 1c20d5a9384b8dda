//! Which slots a transfer task reads and writes, and which rows: worked out once, before the lanes start.

use crate::exchange::{ExchangeSize, Legs};
use crate::hosts::Crossings;
use crate::primitives::Mutex;
use crate::slot::Slot;
use crate::values::Widths;
use rally_graph::plan::{TaskRole, TaskTemplate};
use rally_graph::routes::{Exchanges, FfnLayout, Rails, Share};
use rally_graph::spec::WireDtype;
use rally_graph::stage_graph::{DeviceIndex, Payload, ResolvedTransfer, StageGraph, StageIndex};
use rally_kernels::prefetch::{LINE, prefetch};
use rally_transport::{Peer, SlotKey};
use std::collections::HashMap;
use std::sync::Arc;

pub(crate) type SharedSlot = Arc<Mutex<Slot>>;

/// What a task of a lane moves.
pub(crate) enum Moves {
    /// Nothing: it is no part of a transfer.
    Nothing,
    /// Rows of the own values to slots.
    Send(Vec<Outgoing>),
    /// Encoded rows to the rest of the group: a rail's all-gather.
    Forward(Vec<Forward>),
    /// Sums over the own group to slots: the end of a rail's reduce-scatter.
    Reduce(Vec<Reduce>),
    /// FFN input out of slots, one source after the other.
    Gather(Vec<(DeviceIndex, SharedSlot)>),
    /// y out of slots: groups in order, the parts of a group in order, of each part the slots of all replicas.
    Sum(Vec<Vec<Part>>),
}

/// Cache lines that a task begins with and another lane has last written: a slot's lock, its header, its first rows.
#[derive(Default)]
pub(crate) struct Lines {
    /// Address, and whether it is to be written.
    lines: Vec<(usize, bool)>,
}

impl Lines {
    fn add(&mut self, slot: &SharedSlot, write: bool) {
        let lock = &raw const **slot as usize;
        // To take the lock is to write, and the header is beside it.
        let locks = (lock..lock + size_of::<Mutex<Slot>>()).step_by(LINE);
        self.lines.extend(locks.map(|line| (line, true)));
        if let Ok(slot) = slot.lock() {
            self.lines.extend(slot.first_lines().map(|line| (line, write)));
        }
    }

    /// Asks for them.
    pub(crate) fn prefetch(&self) {
        self.lines.iter().for_each(|(line, write)| prefetch(*line, *write));
    }
}

impl Moves {
    /// Whether rows go to another host.
    pub(crate) fn crosses(&self) -> bool {
        match self {
            Self::Send(sent) => sent.iter().any(|sent| sent.crossing.is_some()),
            Self::Reduce(reduces) => reduces.iter().any(|reduce| reduce.crossing.is_some()),
            Self::Nothing | Self::Forward(_) | Self::Gather(_) | Self::Sum(_) => false,
        }
    }

    /// What is read and what is written of slots that others share.
    pub(crate) fn lines(&self) -> (Lines, Lines) {
        let (mut incoming, mut outgoing) = (Lines::default(), Lines::default());
        match self {
            Self::Nothing => {}
            Self::Send(sent) => sent.iter().for_each(|sent| outgoing.add(&sent.slot, true)),
            Self::Forward(forwards) => {
                for forward in forwards {
                    incoming.add(&forward.from, false);
                    forward.to.iter().for_each(|to| outgoing.add(to, true));
                }
            }
            Self::Reduce(reduces) => {
                for reduce in reduces {
                    reduce.parts.iter().for_each(|part| incoming.add(part, false));
                    outgoing.add(&reduce.to, true);
                }
            }
            Self::Gather(sources) => sources.iter().for_each(|(_, slot)| incoming.add(slot, false)),
            Self::Sum(groups) => groups.iter().flatten().flatten().for_each(|(_, slot)| incoming.add(slot, false)),
        }
        (incoming, outgoing)
    }
}

/// Rows for one destination.
pub(crate) struct Outgoing {
    pub(crate) rows: RowsOf,
    pub(crate) slot: SharedSlot,
    /// Index among the slots that cross to another host, if it does.
    pub(crate) crossing: Option<usize>,
}

/// Which of a device's rows are meant.
pub(crate) enum RowsOf {
    /// A share of its own.
    Share(Share),
    /// Those that came from this device.
    Origin(DeviceIndex),
}

/// A slot and where its contents are copied to.
pub(crate) struct Forward {
    pub(crate) from: SharedSlot,
    pub(crate) to: Vec<SharedSlot>,
}

/// The parts of y of `home`'s rows, in order, and where their sum goes.
pub(crate) struct Reduce {
    pub(crate) home: DeviceIndex,
    pub(crate) parts: Vec<SharedSlot>,
    pub(crate) to: SharedSlot,
    /// As in [`Outgoing`].
    pub(crate) crossing: Option<usize>,
}

/// One part of y: the rows that each replica computed.
pub(crate) type Part = Vec<(Share, SharedSlot)>;

/// Ways between the same two ends. A rail's way home has two: parts inside the group, and their sum.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Leg {
    Rows,
    Sum,
    /// Out of this part of a stage.
    Part(usize),
}

/// The slots of a run, made when first asked for, and what says who uses which.
pub(crate) struct Wiring<'a> {
    graph: &'a StageGraph,
    attention: &'a [DeviceIndex],
    /// By device: whether its values live in memory of its own.
    remote: Vec<bool>,
    /// By layer.
    ffns: Vec<Option<FfnLayout>>,
    /// By device: it is on a host that takes no part.
    away: Vec<bool>,
    made: HashMap<(StageIndex, usize, DeviceIndex, DeviceIndex, Leg), SharedSlot>,
    rows: usize,
    widths: Widths,
    /// Present where there are other hosts.
    pub(crate) crossings: Option<Crossings>,
}

/// A transfer task of one micro-batch.
struct End<'a> {
    stage: StageIndex,
    micro_batch: usize,
    device: DeviceIndex,
    dtype: WireDtype,
    transfer: &'a ResolvedTransfer,
    rails: Option<Rails>,
    ffn: FfnLayout,
    /// All devices of the transfer have memory of their own, so its rows never come to the host.
    stays: bool,
}

impl<'a> Wiring<'a> {
    /// `rows`: most rows of a micro-batch on an attention device.
    /// `remote`: by device, whether its values live in memory of its own.
    pub(crate) fn new(
        graph: &'a StageGraph,
        attention: &'a [DeviceIndex],
        remote: Vec<bool>,
        rows: usize,
        widths: Widths,
    ) -> Self {
        let (ffns, away) = (FfnLayout::by_layer(graph), vec![false; graph.devices.len()]);
        Self { graph, attention, remote, ffns, away, made: HashMap::new(), rows, widths, crossings: None }
    }

    /// The same on one of several hosts, some devices `away` with theirs.
    pub(crate) fn on_host(self, host: Peer, away: Vec<bool>) -> Self {
        let crossings = Some(Crossings::new(host, self.graph.layers));
        let without = |ffn: FfnLayout| ffn.without(|device| away[device]);
        let ffns = self.ffns.into_iter().map(|ffn| ffn.map(without)).collect();
        Self { crossings, ffns, away, ..self }
    }

    /// Whether rows go to or come from `device`: it is there, and if it has a part in the FFN of this layer, so are the devices with
    /// the other parts.
    fn takes_part(&self, ffn: &FfnLayout, device: DeviceIndex) -> bool {
        !self.away[device] && (ffn.replica_of(device).is_none() || ffn.works(device))
    }

    /// Those of `others` with whom the device at `end` exchanges rows.
    fn partners<'b>(
        &self,
        end: &End<'_>,
        others: &'b [DeviceIndex],
    ) -> impl Iterator<Item = &'b DeviceIndex> + use<'b> {
        let all = self.takes_part(&end.ffn, end.device);
        let partners: Vec<bool> = others.iter().map(|other| all && self.takes_part(&end.ffn, *other)).collect();
        others.iter().zip(partners).filter(|(_, takes)| *takes).map(|(other, _)| other)
    }

    /// Begins anew with what tasks read from other hosts.
    pub(crate) fn forget_touched(&mut self) {
        if let Some(crossings) = &mut self.crossings {
            crossings.touched.clear();
        }
    }

    /// What `task` of micro-batch `micro_batch` moves.
    pub(crate) fn moves(&mut self, task: &TaskTemplate, micro_batch: usize) -> Moves {
        let graph = self.graph;
        let Some(transfer) = &graph.stages[task.stage].transfer else { return Moves::Nothing };
        let output = task.payload == Payload::Output;
        let ffn = task.layer.and_then(|layer| self.ffns[layer].clone());
        let ffn_ends = if output { &transfer.from } else { &transfer.to };
        let end = End {
            stage: task.stage,
            micro_batch,
            device: task.device,
            dtype: transfer.dtype,
            transfer,
            rails: Rails::of(graph, transfer),
            ffn: ffn.unwrap_or_else(|| FfnLayout::one_copy(graph, ffn_ends)),
            stays: transfer.from.iter().chain(&transfer.to).all(|device| self.remote[*device]),
        };
        match (task.role, output, &end.rails) {
            (TaskRole::Compute, ..) => Moves::Nothing,
            (TaskRole::Send, false, Some(rails)) => {
                self.send_input(&end, &Rails::opposite(&rails.from, end.device, &rails.to))
            }
            (TaskRole::Send, false, None) => self.send_input(&end, &transfer.to),
            (TaskRole::Exchange, false, rails) => self.forward(&end, rails.as_ref()),
            (TaskRole::Receive, false, _) => self.gather(&end),
            (TaskRole::Send, true, Some(rails)) => self.reduce(&end, rails),
            (TaskRole::Send | TaskRole::Exchange, true, _) => self.send_output(&end),
            (TaskRole::Receive, true, _) => self.sum(&end),
        }
    }

    /// What `task`, a part of a stage whose devices exchange rows, hands on; `sizes` are the stage's.
    pub(crate) fn legs(&mut self, task: &TaskTemplate, micro_batch: usize, sizes: &[ExchangeSize]) -> Option<Legs> {
        let stage = &self.graph.stages[task.stage];
        let exchanges = Exchanges::of(self.graph, stage, task.layer?)?;
        let peers = exchanges.peers_of(task.device);
        let size = |part: usize| sizes.get(part).copied().unwrap_or_default();
        let mut slot = |from: DeviceIndex, to: DeviceIndex, part: usize| {
            let ExchangeSize { rows, width, own, stays } = size(part);
            let rows = if own || from != to { rows } else { 0 };
            let slot = || if stays { Slot::of_parcels() } else { Slot::new(rows, width, 0, WireDtype::F32) };
            let make = || Arc::new(Mutex::new(slot()));
            Arc::clone(self.made.entry((task.stage, micro_batch, from, to, Leg::Part(part))).or_insert_with(make))
        };
        let mut legs = Legs { part: task.part, ..Legs::default() };
        if let Some(before) = task.part.checked_sub(1) {
            legs.incoming = peers.iter().map(|peer| slot(*peer, task.device, before)).collect();
            legs.incoming_width = size(before).width;
        }
        if task.part + 1 < exchanges.parts {
            legs.outgoing = peers.iter().map(|peer| slot(task.device, *peer, task.part)).collect();
            legs.outgoing_width = size(task.part).width;
        }
        Some(legs)
    }

    /// A slot that is filled and read on this host, whichever devices its rows come from and go to.
    fn slot(&mut self, end: &End<'_>, from: DeviceIndex, to: DeviceIndex, leg: Leg) -> SharedSlot {
        let slot = || match end.stays {
            true => Slot::of_parcels(),
            false => Slot::new(self.rows, self.widths.hidden, self.widths.top_k, end.dtype),
        };
        let make = || Arc::new(Mutex::new(slot()));
        Arc::clone(self.made.entry((end.stage, end.micro_batch, from, to, leg)).or_insert_with(make))
    }

    /// A slot that `from` fills and `to` reads, and its index among those that go to another host.
    fn crossing_slot(
        &mut self,
        end: &End<'_>,
        from: DeviceIndex,
        to: DeviceIndex,
        leg: Leg,
    ) -> (SharedSlot, Option<usize>) {
        let slot = self.slot(end, from, to, leg);
        let (rows, widths, dtype) = (self.rows, self.widths, end.dtype);
        let Some(crossings) = &mut self.crossings else { return (slot, None) };
        // The checker knows no graph with more devices, stages or micro-batches than 16 bits count.
        let [edge, micro_batch, from, to] = [end.stage, end.micro_batch, from, to].map(|index| index as u16);
        let key = SlotKey { edge, micro_batch, from, to, leg: u8::from(leg == Leg::Sum) };
        let crossing = crossings.note(self.graph, key, &slot, (rows, widths, dtype));
        (slot, crossing)
    }

    /// Index among the attention devices.
    fn source(&self, device: DeviceIndex) -> usize {
        self.attention.iter().position(|attention| *attention == device).unwrap_or(0)
    }

    fn send_input(&mut self, end: &End<'_>, peers: &[DeviceIndex]) -> Moves {
        let source = self.source(end.device);
        let outgoing = self.partners(end, peers).map(|peer| {
            let share = end.ffn.replica_of(*peer).map_or(Share::ALL, |replica| end.ffn.share(source, replica));
            let (slot, crossing) = self.crossing_slot(end, end.device, *peer, Leg::Rows);
            Outgoing { rows: RowsOf::Share(share), slot, crossing }
        });
        Moves::Send(outgoing.collect())
    }

    fn forward(&mut self, end: &End<'_>, rails: Option<&Rails>) -> Moves {
        let Some(rails) = rails else { return Moves::Nothing };
        let others = Rails::group(&rails.to, end.device).iter().filter(|other| **other != end.device);
        let others: Vec<DeviceIndex> = others.copied().collect();
        let sources = Rails::opposite(&rails.to, end.device, &rails.from);
        let forwards = self.partners(end, &sources).map(|source| Forward {
            from: self.crossing_slot(end, *source, end.device, Leg::Rows).0,
            to: others.iter().map(|other| self.slot(end, *source, *other, Leg::Rows)).collect(),
        });
        Moves::Forward(forwards.collect())
    }

    fn gather(&mut self, end: &End<'_>) -> Moves {
        let sources = self.partners(end, &end.transfer.from).map(|source| {
            // On rails they have crossed before, to the device that passed them on.
            let slot = match &end.rails {
                Some(_) => self.slot(end, *source, end.device, Leg::Rows),
                None => self.crossing_slot(end, *source, end.device, Leg::Rows).0,
            };
            (*source, slot)
        });
        Moves::Gather(sources.collect())
    }

    fn send_output(&mut self, end: &End<'_>) -> Moves {
        let outgoing = self.partners(end, &end.transfer.to).map(|home| {
            // On rails they go to the device of the own group that sums them.
            let (slot, crossing) = match &end.rails {
                Some(_) => (self.slot(end, end.device, *home, Leg::Rows), None),
                None => self.crossing_slot(end, end.device, *home, Leg::Rows),
            };
            Outgoing { rows: RowsOf::Origin(*home), slot, crossing }
        });
        Moves::Send(outgoing.collect())
    }

    fn reduce(&mut self, end: &End<'_>, rails: &Rails) -> Moves {
        let group = Rails::group(&rails.from, end.device);
        let members: Vec<DeviceIndex> =
            end.ffn.devices().iter().copied().filter(|device| group.contains(device)).collect();
        let homes = Rails::opposite(&rails.from, end.device, &rails.to);
        let reduces = self.partners(end, &homes).map(|home| {
            let parts = members.iter().map(|member| self.slot(end, *member, *home, Leg::Rows)).collect();
            let (to, crossing) = self.crossing_slot(end, end.device, *home, Leg::Sum);
            Reduce { home: *home, parts, to, crossing }
        });
        Moves::Reduce(reduces.collect())
    }

    fn sum(&mut self, end: &End<'_>) -> Moves {
        let groups = end.ffn.home_groups().iter().map(|parts| match &end.rails {
            // The group has summed already.
            Some(rails) => vec![self.part(end, parts[0], Some(rails))],
            None => parts.iter().map(|part| self.part(end, *part, None)).collect(),
        });
        Moves::Sum(groups.collect())
    }

    /// Part `part`, or on rails the sum of its group, from each replica.
    fn part(&mut self, end: &End<'_>, part: usize, rails: Option<&Rails>) -> Part {
        let source = self.source(end.device);
        let from = |replica: usize| {
            let device = end.ffn.device(replica, part);
            let Some(rails) = rails else { return (device, Leg::Rows) };
            let group = Rails::group(&rails.from, device);
            let on_rail = Rails::opposite(&rails.to, end.device, &rails.from);
            (on_rail.into_iter().find(|other| group.contains(other)).unwrap_or(device), Leg::Sum)
        };
        let working = end.ffn.working().iter().copied();
        working
            .map(|replica| {
                let (device, leg) = from(replica);
                (end.ffn.share(source, replica), self.crossing_slot(end, device, end.device, leg).0)
            })
            .collect()
    }
}
