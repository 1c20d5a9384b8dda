//! Labels, and what bounds the values of each: a metric whose label can take any text would grow without end.

/// Why a lane did nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BubbleCause {
    /// It waited for a device that does attention.
    Attention,
    /// It waited for a device that does the FFN.
    Ffn,
    /// It waited for rows that were on their way.
    Transfer,
    /// There was no work: nobody had submitted any, or everyone had ended.
    Admission,
    /// It did what belongs to no stage: planning a step, publishing tokens, waking others.
    Host,
}

impl BubbleCause {
    /// All of them; a cause's place here is `cause as usize`.
    pub const ALL: [Self; 5] = [Self::Attention, Self::Ffn, Self::Transfer, Self::Admission, Self::Host];

    /// As a label value.
    pub fn name(self) -> &'static str {
        CAUSES[self as usize]
    }
}

/// What is slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StragglerCause {
    /// Most of what a device does.
    Device,
    /// Its computing of one stage.
    Stage,
    /// Its part of one transfer.
    Transfer,
}

impl StragglerCause {
    /// As a label value.
    pub fn name(self) -> &'static str {
        STRAGGLER_CAUSES[self as usize]
    }
}

const STRAGGLER_CAUSES: &[&str] = &["device", "stage", "transfer"];
const CAUSES: &[&str] = &["attention", "ffn", "transfer", "admission", "host"];
const LAYER_KINDS: &[&str] = &["dense", "moe", "none"];
const FINISHED_REASONS: &[&str] = &["stop", "length", "abort"];

/// A label of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Label {
    /// The model that is served.
    ModelName,
    /// Which engine of the process.
    Engine,
    /// Which contender, where several take turns: on every series then, and on none otherwise.
    Schedule,
    /// A stage's id.
    Stage,
    /// What kind of layer a stage ran in; `none` outside the layers.
    LayerKind,
    /// A device.
    Device,
    /// A lane.
    Lane,
    /// Why a lane did nothing.
    Cause,
    /// What is slow.
    StragglerCause,
    /// A transfer's id.
    Edge,
    /// A layer's index.
    Layer,
    /// A routed expert's index.
    Expert,
    /// Why a request ended.
    FinishedReason,
}

/// What keeps the values of a label few.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// One value a process.
    Process,
    /// One value for each that was named on the command line.
    Contenders,
    /// These and no others.
    Enumerated(&'static [&'static str]),
    /// Names written in the graph file.
    Graph,
    /// Indices below a size of the model.
    Model,
}

impl Label {
    /// Its name in a page.
    pub fn key(self) -> &'static str {
        match self {
            Self::ModelName => "model_name",
            Self::Engine => "engine",
            Self::Schedule => "schedule",
            Self::Stage => "stage",
            Self::LayerKind => "layer_kind",
            Self::Device => "device",
            Self::Lane => "lane",
            Self::Cause | Self::StragglerCause => "cause",
            Self::Edge => "edge",
            Self::Layer => "layer",
            Self::Expert => "expert",
            Self::FinishedReason => "finished_reason",
        }
    }

    /// What bounds its values.
    pub fn bound(self) -> Bound {
        match self {
            Self::ModelName | Self::Engine => Bound::Process,
            Self::Schedule => Bound::Contenders,
            Self::Stage | Self::Device | Self::Lane | Self::Edge => Bound::Graph,
            Self::Layer | Self::Expert => Bound::Model,
            Self::LayerKind => Bound::Enumerated(LAYER_KINDS),
            Self::Cause => Bound::Enumerated(CAUSES),
            Self::StragglerCause => Bound::Enumerated(STRAGGLER_CAUSES),
            Self::FinishedReason => Bound::Enumerated(FINISHED_REASONS),
        }
    }

    /// Whether `value` is within the bound, as far as the label alone can tell.
    pub fn allows(self, value: &str) -> bool {
        match self.bound() {
            Bound::Enumerated(values) => values.contains(&value),
            Bound::Model => value.parse::<u32>().is_ok(),
            Bound::Process | Bound::Contenders | Bound::Graph => !value.is_empty(),
        }
    }
}
