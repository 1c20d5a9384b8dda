//! The committed tiny model's shapes, for targets that read something against a model.

use rally_graph::model::ModelShape;
use rally_stages::config::parse_model_shape;
use std::path::Path;
use std::sync::LazyLock;

pub static SHAPE: LazyLock<ModelShape> = LazyLock::new(|| {
    let text = include_str!("../../models/tiny-step3/config.json");
    parse_model_shape(text, Path::new("config.json")).expect("the committed configuration is in order")
});
