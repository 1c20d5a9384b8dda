//! What a stage keeps for each layer it runs in, looked up by the layer's number.

use super::registry::BuildContext;

/// By layer of the model; nothing where the stage does not run.
pub(super) struct Layers<T>(Vec<Option<T>>);

/// The engine calls a stage in the layers of its build context alone.
const RUNS_THERE: &str = "a stage only runs in layers it was made for";

impl<T> Layers<T> {
    /// Made in the order of the layers.
    pub(super) fn make<E>(context: &BuildContext<'_>, mut make: impl FnMut(usize) -> Result<T, E>) -> Result<Self, E> {
        let mut layers: Vec<Option<T>> = context.shape.layers.iter().map(|_| None).collect();
        for layer in &context.layers {
            layers[*layer] = Some(make(*layer)?);
        }
        Ok(Self(layers))
    }

    pub(super) fn at(&self, layer: usize) -> &T {
        self.0[layer].as_ref().expect(RUNS_THERE)
    }

    pub(super) fn at_mut(&mut self, layer: usize) -> &mut T {
        self.0[layer].as_mut().expect(RUNS_THERE)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().flatten()
    }
}
