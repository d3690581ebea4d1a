//! What a description's limits are to the kernel's groups.

use crate::container::cgroup::{CpuQuota, Disk, Guarantee, Limits};
use crate::container::config::ContainerConfig;
use crate::host::Store;
use crate::node::NodeError;

/// The limits of a container, for its groups.
///
/// # Errors
/// [`NodeError::Cgroup`] for processors that cannot be.
pub fn allotted(config: &ContainerConfig, store: &Store) -> Result<Limits, NodeError> {
    let limited =
        config.limits.io_bytes_per_s.is_some() || config.limits.io_requests_per_s.is_some();
    let disk = if limited { Disk::beneath(store.path())? } else { None };
    Ok(Limits::of(config, disk)?)
}

/// What a container is promised.
///
/// # Errors
/// [`NodeError::Cgroup`] for a guarantee that cannot be.
pub fn promised(config: &ContainerConfig) -> Result<Guarantee, NodeError> {
    let cpu = config.guarantees.cpu.map(CpuQuota::from_processors).transpose()?;
    Ok(Guarantee {
        cpu_thousandths: cpu.map_or(0, |cpu| cpu.thousandths().into()),
        memory_bytes: config.guarantees.memory_bytes.unwrap_or(0),
    })
}
