//! An accelerator: peaks, bandwidth, memory, links and price, each figure with its source.

use crate::fields::{self, Fields};
use crate::{Dtype, SpecError};
use std::path::{Path, PathBuf};

/// A figure and where it is from.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// In the unit that its key names.
    pub value: f64,
    /// A table, a datasheet, a price list; absent where a user's file has a bare number.
    pub source: Option<String>,
}

/// What connects accelerators, in bytes a second and direction.
#[derive(Clone, Debug, PartialEq)]
pub struct Links {
    /// Accelerators of one server.
    pub devices_per_server: Figure,
    /// Inside a server, of one accelerator.
    pub fabric_bytes_per_s: Figure,
    /// From one accelerator's work to the other's, inside a server, however few bytes go; absent where nobody measured it.
    pub fabric_latency_s: Option<Figure>,
    /// Out of a server, all its network cards together.
    pub network_bytes_per_s: Figure,
}

impl Links {
    /// The network's share of one accelerator.
    pub fn network_bytes_per_s_per_device(&self) -> f64 {
        self.network_bytes_per_s.value / self.devices_per_server.value
    }
}

/// One accelerator of a kind.
#[derive(Clone, Debug, PartialEq)]
pub struct Hardware {
    /// As reports name it.
    pub name: String,
    /// Other names it is known by.
    pub aliases: Vec<String>,
    file: PathBuf,
    bandwidth: Figure,
    memory: Figure,
    peaks: Vec<(Dtype, Figure)>,
    price: Option<Figure>,
    links: Links,
}

impl Hardware {
    /// Parses a spec; `file` is only named in errors.
    ///
    /// # Errors
    /// [`SpecError`] naming file and key: unknown keys, missing figures, values of the wrong type or out of range.
    pub fn parse(text: &str, file: &Path) -> Result<Self, SpecError> {
        let root = fields::parse(text, file)?;
        let fields = Fields::new(&root, file)?;
        fields.only(&[
            "name",
            "aliases",
            "price_usd_per_hour",
            "peak_flops",
            "memory_bytes_per_s",
            "memory_bytes",
            "links",
        ])?;
        let name = fields.text("name")?.ok_or_else(|| fields.missing("name", "reports need something to call it"))?;
        Ok(Self {
            name: name.into(),
            bandwidth: figure(&fields, "memory_bytes_per_s", BYTES_PER_S)?,
            memory: figure(&fields, "memory_bytes", BYTES)?,
            aliases: aliases(&fields)?,
            file: file.into(),
            peaks: peaks(&fields)?,
            price: figure_if(&fields, "price_usd_per_hour", USD_PER_HOUR)?,
            links: links(&fields)?,
        })
    }

    /// Bytes of its memory.
    pub fn memory_bytes(&self) -> f64 {
        self.memory.value
    }

    /// Bandwidth of its memory.
    pub fn memory_bytes_per_s(&self) -> f64 {
        self.bandwidth.value
    }

    /// FLOPs a second in `dtype`, dense.
    ///
    /// # Errors
    /// [`SpecError::Missing`] where the spec has no such peak.
    pub fn peak(&self, dtype: Dtype) -> Result<f64, SpecError> {
        self.peaks.iter().find(|(known, _)| *known == dtype).map(|(_, figure)| figure.value).ok_or_else(|| {
            let has: Vec<&str> = self.peaks.iter().map(|(dtype, _)| dtype.name()).collect();
            SpecError::Missing {
                file: self.file.clone(),
                key: format!("peak_flops.{dtype}"),
                remedy: format!("{} has {}", self.name, rally_graph::words::list(&has)),
            }
        })
    }

    /// What products of 8-bit weights are computed in: fp8 where there is any, else bf16 (weights and cache stay 8-bit, as the
    /// Step-3 report has it for A800 and 910B).
    pub fn decode_dtype(&self) -> Dtype {
        if self.peaks.iter().any(|(dtype, _)| *dtype == Dtype::Fp8) { Dtype::Fp8 } else { Dtype::Bf16 }
    }

    /// Every figure by its key, with its source.
    pub fn figures(&self) -> Vec<(String, &Figure)> {
        let peaks = self.peaks.iter().map(|(dtype, figure)| (format!("peak_flops.{dtype}"), figure));
        let price = self.price.iter().map(|figure| ("price_usd_per_hour".to_owned(), figure));
        let others = [
            ("memory_bytes_per_s", &self.bandwidth),
            ("memory_bytes", &self.memory),
            ("links.devices_per_server", &self.links.devices_per_server),
            ("links.fabric_bytes_per_s", &self.links.fabric_bytes_per_s),
            ("links.network_bytes_per_s", &self.links.network_bytes_per_s),
        ];
        let latency = self.links.fabric_latency_s.iter().map(|figure| ("links.fabric_latency_s".to_owned(), figure));
        price.chain(peaks).chain(others.map(|(key, figure)| (key.to_owned(), figure))).chain(latency).collect()
    }

    /// USD an hour.
    ///
    /// # Errors
    /// [`SpecError::Missing`] where the spec has none.
    pub fn price(&self) -> Result<f64, SpecError> {
        self.price.as_ref().map(|figure| figure.value).ok_or_else(|| SpecError::Missing {
            file: self.file.clone(),
            key: "price_usd_per_hour".into(),
            remedy: format!("write it there, or give --price {}=USD", self.name),
        })
    }

    /// The same at another price.
    ///
    /// # Errors
    /// [`SpecError::Invalid`] for a price below zero or no number.
    pub fn at_price(mut self, usd_per_hour: f64) -> Result<Self, SpecError> {
        if !USD_PER_HOUR.holds(usd_per_hour) {
            return Err(SpecError::Invalid {
                file: self.file,
                key: "price_usd_per_hour".into(),
                found: usd_per_hour.to_string(),
                expected: USD_PER_HOUR.what.into(),
            });
        }
        self.price = Some(Figure { value: usd_per_hour, source: Some("as given".into()) });
        Ok(self)
    }

    /// Links, of one server.
    pub fn links(&self) -> &Links {
        &self.links
    }

    /// Whether `name` is one of its names, in any case.
    pub fn is_called(&self, name: &str) -> bool {
        let same = |known: &str| known.eq_ignore_ascii_case(name);
        same(&self.name) || self.aliases.iter().any(|alias| same(alias))
    }
}

/// What a figure may be. Lower ends are far below anything sold: they catch a figure written in GB/s or TFLOP/s.
#[derive(Clone, Copy)]
struct Range {
    least: f64,
    most: f64,
    what: &'static str,
}

impl Range {
    fn holds(self, value: f64) -> bool {
        (self.least..=self.most).contains(&value)
    }
}

const BYTES: Range = Range { least: 1e6, most: 1e15, what: "bytes, from 1e6 to 1e15" };
const BYTES_PER_S: Range = Range { least: 1e6, most: 1e16, what: "bytes a second, from 1e6 to 1e16" };
const FLOPS: Range = Range { least: 1e9, most: 1e19, what: "FLOPs a second, from 1e9 to 1e19" };
const USD_PER_HOUR: Range = Range { least: 0.0, most: 1e6, what: "USD an hour, from 0 to 1e6" };

fn figure_if(fields: &Fields<'_>, key: &str, range: Range) -> Result<Option<Figure>, SpecError> {
    let Some(value) = fields.find(key) else { return Ok(None) };
    let (number, source) = if value.is_object() {
        let inner = fields.object(key)?.expect("the value was found above");
        inner.only(&["value", "source"])?;
        (inner.get("value", range.what)?, inner.text("source")?.map(str::to_owned))
    } else {
        (value, None)
    };
    match number.as_f64().filter(|number| range.holds(*number)) {
        Some(value) => Ok(Some(Figure { value, source })),
        None => Err(fields.invalid(key, number, range.what)),
    }
}

fn figure(fields: &Fields<'_>, key: &str, range: Range) -> Result<Figure, SpecError> {
    figure_if(fields, key, range)?.ok_or_else(|| {
        fields.missing(key, &format!("expected {}, as a number or {{\"value\", \"source\"}}", range.what))
    })
}

fn aliases(fields: &Fields<'_>) -> Result<Vec<String>, SpecError> {
    let Some(value) = fields.find("aliases") else { return Ok(Vec::new()) };
    let names = value.as_array().and_then(|names| names.iter().map(|name| name.as_str().map(str::to_owned)).collect());
    names.ok_or_else(|| fields.invalid("aliases", value, "a list of names"))
}

fn peaks(fields: &Fields<'_>) -> Result<Vec<(Dtype, Figure)>, SpecError> {
    let all = fields.object("peak_flops")?.ok_or_else(|| fields.missing("peak_flops", "FLOPs a second by dtype"))?;
    all.only(&Dtype::ALL.map(Dtype::name))?;
    let mut peaks = Vec::new();
    for dtype in Dtype::ALL {
        peaks.extend(figure_if(&all, dtype.name(), FLOPS)?.map(|figure| (dtype, figure)));
    }
    // Whatever a card lacks, this is what products are computed in instead.
    figure(&all, Dtype::Bf16.name(), FLOPS)?;
    Ok(peaks)
}

fn links(fields: &Fields<'_>) -> Result<Links, SpecError> {
    let links = fields
        .object("links")?
        .ok_or_else(|| fields.missing("links", "`devices_per_server`, `fabric_bytes_per_s`, `network_bytes_per_s`"))?;
    links.only(&["devices_per_server", "fabric_bytes_per_s", "fabric_latency_s", "network_bytes_per_s"])?;
    let latency = Range { least: 1e-9, most: 1.0, what: "seconds, from 1e-9 to 1" };
    let devices = Range { least: 1.0, most: 4096.0, what: "a number of accelerators, from 1 to 4096" };
    Ok(Links {
        devices_per_server: figure(&links, "devices_per_server", devices)?,
        fabric_bytes_per_s: figure(&links, "fabric_bytes_per_s", BYTES_PER_S)?,
        fabric_latency_s: figure_if(&links, "fabric_latency_s", latency)?,
        network_bytes_per_s: figure(&links, "network_bytes_per_s", BYTES_PER_S)?,
    })
}
