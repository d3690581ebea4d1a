//! What higher layers hide: bytes that are kept and that nothing shows.

use std::collections::HashMap;

use crate::object::ObjectId;

use super::{PlaceId, Strata, Version};
use crate::inspect::InspectError;

/// Content that no name of the topmost layer shows any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wasted {
    /// A name it had.
    pub place: PlaceId,
    /// Names it had, in all layers.
    pub names: u64,
    /// The lowest layer that has it.
    pub layer: usize,
    /// The layer that hid the last of its names.
    pub hidden_by: usize,
    /// Its length.
    pub bytes: u64,
}

/// All that higher layers hide. Each content counts once, and not at all as long as any name
/// still shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Waste {
    /// In all layers.
    pub bytes: u64,
    /// By the lowest layer that has the content.
    pub by_layer: Vec<u64>,
    /// The largest first.
    pub contents: Vec<Wasted>,
}

impl Strata {
    /// Finds what higher layers hide.
    ///
    /// # Errors
    /// [`InspectError::Manifest`] for damage.
    pub fn waste(&self) -> Result<Waste, InspectError> {
        let mut hidden: HashMap<ObjectId, Wasted> = HashMap::new();
        let mut shown = Vec::new();
        for (index, place) in self.places.iter().enumerate() {
            let mut above: Option<&Version> = None;
            let mut at = place.newest;
            while let Some(version) = at.and_then(|at| self.versions.get(at)) {
                if version.shown && version.size > 0 && version.kind.is_regular() {
                    match above {
                        None => shown.push(version),
                        Some(above) => self.note(&mut hidden, PlaceId(index), version, above)?,
                    }
                }
                above = Some(version);
                at = version.earlier;
            }
        }
        for version in shown {
            if let Some(object) = self.object(version.source)? {
                hidden.remove(&object);
            }
        }
        let mut waste = Waste { by_layer: vec![0; self.layers.len()], ..Waste::default() };
        waste.contents = hidden.into_values().collect();
        waste.contents.sort_by_key(|one| (std::cmp::Reverse(one.bytes), one.place));
        for one in &waste.contents {
            waste.bytes = waste.bytes.saturating_add(one.bytes);
            if let Some(sum) = waste.by_layer.get_mut(one.layer) {
                *sum = sum.saturating_add(one.bytes);
            }
        }
        Ok(waste)
    }

    fn note(
        &self,
        hidden: &mut HashMap<ObjectId, Wasted>,
        place: PlaceId,
        version: &Version,
        above: &Version,
    ) -> Result<(), InspectError> {
        let Some(object) = self.object(version.source)? else { return Ok(()) };
        let new = Wasted {
            place,
            names: 0,
            layer: version.layer,
            hidden_by: above.layer,
            bytes: version.size,
        };
        let known = hidden.entry(object).or_insert(new);
        known.names += 1;
        if version.layer < known.layer {
            (known.layer, known.place) = (version.layer, place);
        }
        known.hidden_by = known.hidden_by.max(above.layer);
        Ok(())
    }
}
