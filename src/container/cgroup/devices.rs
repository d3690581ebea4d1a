//! Which devices a container may open, by the kernel's word on cgroup2.
//!
//! The v1 hierarchy `devices` is written by the runtime, by the list in its configuration. cgroup2 has
//! no file for it: a program is asked. The embedded runtime brings none, so this one is ours, whatever
//! the runtime; it lies on the group above the container's own.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;

use super::error::CgroupError;
use super::{Cgroup, Controller};
use crate::sys::bpf::{Instruction, filter_devices};

/// Devices: a kind, a major number, and a minor number or all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    block: bool,
    major: u32,
    minor: Option<u32>,
}

/// What every container may open: what OCI runtimes allow by themselves, as it stands in docs/CONTAINERS.md.
const COMMON: [Rule; 9] = [
    character(1, Some(3)), // null
    character(1, Some(5)), // zero
    character(1, Some(7)), // full
    character(1, Some(8)), // random
    character(1, Some(9)), // urandom
    character(5, Some(0)), // tty
    character(5, Some(1)), // console
    character(5, Some(2)), // ptmx
    character(136, None),  // pts
];

const fn character(major: u32, minor: Option<u32>) -> Rule {
    Rule { block: false, major, minor }
}

/// Holds the processes of `group` to the common devices and `also`. A node may be made of any device, as
/// elsewhere: it is opening that counts.
pub(super) fn hold(group: &Cgroup, also: &[PathBuf]) -> Result<(), CgroupError> {
    let held_by_v1 = group.layout.with(Controller::Devices).is_some();
    let mut rules = COMMON.to_vec();
    for path in also {
        let metadata = fs::metadata(path).map_err(CgroupError::system("look at", path))?;
        let number = metadata.rdev();
        rules.push(Rule {
            block: metadata.file_type().is_block_device(),
            major: rustix::fs::major(number),
            minor: Some(rustix::fs::minor(number)),
        });
    }
    let filtered = match group.layout.unified() {
        Some(unified) => {
            let outer = group.outer(unified);
            File::open(&outer).and_then(|outer| filter_devices(outer.as_fd(), &program(&rules)))
        }
        None => Err(io::Error::from(io::ErrorKind::Unsupported)),
    };
    match filtered {
        Err(source) if !held_by_v1 => Err(CgroupError::DevicesOpen { source }),
        _held => Ok(()),
    }
}

/// The program that says 1 to what `rules` allow, and 0 to the rest.
fn program(rules: &[Rule]) -> Vec<Instruction> {
    const BLOCK: i32 = 1;
    const CHARACTER: i32 = 2;
    const READ_OR_WRITE: i32 = 2 | 4;
    let at = |code, destination: u8, source: u8, offset, immediate| Instruction {
        code,
        registers: destination | source << 4,
        offset,
        immediate,
    };
    let load = |register, offset| at(0x61, register, 1, offset, 0);
    let answer = |value| [at(0xb7, 0, 0, 0, value), at(0x95, 0, 0, 0, 0)];
    let unequal = |register, to, skip| at(0x55, register, 0, skip, to);
    // struct bpf_cgroup_dev_ctx: the access in the high half of a word and the kind in the low one, the
    // major and the minor number.
    let mut all = vec![
        load(2, 0),
        at(0xbf, 3, 2, 0, 0),
        at(0x74, 3, 0, 0, 16),
        at(0x54, 2, 0, 0, 0xffff),
        load(4, 4),
        load(5, 8),
        at(0x45, 3, 0, 2, READ_OR_WRITE),
    ];
    all.extend(answer(1));
    for rule in rules {
        let kind = if rule.block { BLOCK } else { CHARACTER };
        let number = |number: u32| i32::try_from(number).unwrap_or(i32::MAX);
        let beyond = if rule.minor.is_some() { 4 } else { 3 };
        all.push(unequal(2, kind, beyond));
        all.push(unequal(4, number(rule.major), beyond - 1));
        if let Some(minor) = rule.minor {
            all.push(unequal(5, number(minor), 2));
        }
        all.extend(answer(1));
    }
    all.extend(answer(0));
    all
}
