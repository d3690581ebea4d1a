//! A private layer of mica under the kernel's overlayfs: what its format promises.
//!
//! Reads such a mount as a root would show it: marks of mica's are not there, attributes that a
//! container gave the names of marks are unescaped, and the empty file that stands for device
//! 0:0 is that device.

use std::collections::BTreeMap;

use rustix::io::Errno;

use crate::host::HostTree;
use crate::operation::{Place, Step};
use crate::world::{Identity, Kind, Look, Observation, Outcome, World};

const RDEV: &[u8] = b"trusted.mica.rdev";
const MARKS: &[u8] = b"trusted.mica.";
const ESCAPED: &[u8] = b"trusted.mica.mica.";

/// The mount, read as a root.
pub(crate) struct Overlaid(pub(crate) HostTree);

impl World for Overlaid {
    fn apply(&mut self, step: &Step) -> Outcome {
        self.0.apply(step)
    }

    fn observe(&mut self, place: &Place, look: Look) -> Result<(Observation, Identity), Errno> {
        let (mut seen, identity) = self.0.observe(place, look)?;
        let stands_for_device = match &seen.xattrs {
            Some(xattrs) => xattrs.contains_key(RDEV),
            None => self.is_device(place)?,
        };
        if stands_for_device {
            (seen.kind, seen.size) = (Kind::Character, Some(0));
            (seen.device, seen.content) = (Some((0, 0)), None);
        }
        if let Some(xattrs) = &mut seen.xattrs {
            let all = std::mem::take(xattrs);
            xattrs.extend(all.into_iter().filter_map(|(name, value)| {
                if let Some(name) = name.strip_prefix(ESCAPED) {
                    return Some(([MARKS, name].concat(), value));
                }
                (!name.starts_with(MARKS)).then_some((name, value))
            }));
        }
        Ok((seen, identity))
    }

    fn names(&mut self, place: &Place) -> Result<BTreeMap<Vec<u8>, (Kind, u64)>, Errno> {
        let mut names = self.0.names(place)?;
        for (name, (kind, _)) in &mut names {
            if *kind == Kind::Regular && self.is_device(&place.join(name))? {
                *kind = Kind::Character;
            }
        }
        Ok(names)
    }

    fn identity(&mut self, slot: usize) -> Option<Identity> {
        self.0.identity(slot)
    }

    fn identity_at(&mut self, place: &Place) -> Option<Identity> {
        self.0.identity_at(place)
    }

    fn close_all(&mut self) {
        self.0.close_all();
    }
}

impl Overlaid {
    fn is_device(&mut self, place: &Place) -> Result<bool, Errno> {
        let (seen, _) = self.0.observe(place, Look::Xattrs)?;
        Ok(seen.xattrs.is_some_and(|xattrs| xattrs.contains_key(RDEV)))
    }
}
